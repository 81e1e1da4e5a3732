"""Free answers: what is generated is what teacher forcing says, in any batch, and ends where it ends."""

import pytest
import torch

from mept.generation import generate
from mept.model import PromptModel
from tests.contract.matrix import batch, build, build_causal_lm, configurations
from tests.precision import float64

METHODS = ("mept", "prompt_tuning", "p_tuning_v2", "pt_moe", "lora")
CASES = pytest.mark.parametrize(
    ("config", "family"),
    [p for p in configurations(every_variant=False) if p.id.rsplit("-", 1)[0] in METHODS and p.values[1] != "bert"],
)
LENGTHS = (11, 5, 8, 8)
LIMIT = 6
NEVER = -1


def model_of(config, family: str) -> PromptModel:
    return build(config, "t5") if family == "t5" else build_causal_lm(config)


def questions(family: str, rows: list[int]) -> dict[str, torch.Tensor | None]:
    """Some of four texts as a batch, padded as the family's questions are."""
    whole = batch("t5", LENGTHS)
    longest = max(LENGTHS[row] for row in rows)
    ids, mask = (whole[name][rows, :longest] for name in ("input_ids", "attention_mask"))
    if family == "llama":
        shifts = [longest - LENGTHS[row] for row in rows]
        ids, mask = (torch.stack([r.roll(s) for r, s in zip(one, shifts, strict=True)]) for one in (ids, mask))
    return {"input_ids": ids, "attention_mask": None if bool(mask.all()) else mask}


def forced(model: PromptModel, family: str, row: int, answer: list[int]) -> list[int]:
    """The likeliest token at each place of an answer, given those before it, without padding."""
    text, said = questions(family, [row])["input_ids"], torch.tensor([answer])
    if family == "t5":
        start = torch.full((1, 1), model.config.decoder_start_token_id)
        return model(text, decoder_input_ids=torch.cat((start, said[:, :-1]), 1)).logits[0].argmax(-1).tolist()
    labels = torch.cat((torch.full_like(text, -100), said), 1)
    logits = model(input_ids=torch.cat((text, said), 1), labels=labels).logits[0]
    return logits[text.shape[1] - 1 : -1].argmax(-1).tolist()


@CASES
def test_answers_are_those_of_teacher_forcing_in_any_batch_and_stop_at_their_end(config, family) -> None:
    model = model_of(config, family)
    everything = [0, 1, 2, 3]
    with float64(model):
        whole = generate(model, **questions(family, everything), limit=LIMIT, end=NEVER)
        assert [forced(model, family, row, answer) for row, answer in enumerate(whole)] == whole
        for size in (1, 2):
            parts = [everything[i : i + size] for i in range(0, 4, size)]
            found = [generate(model, **questions(family, part), limit=LIMIT, end=NEVER) for part in parts]
            assert [answer for part in found for answer in part] == whole
        end = whole[1][2]
        ended = [answer[: answer.index(end)] if end in answer else answer for answer in whole]
        assert generate(model, **questions(family, everything), limit=LIMIT, end=end) == ended
        assert len(ended[1]) <= 2, "the second one leaves the batch before its limit"


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_answers_that_have_ended_are_computed_no_further(family) -> None:
    [config] = [p.values[0] for p in configurations(every_variant=False) if p.id == f"mept-{family}"]
    model, rows = model_of(config, family), []
    name = "decoder_input_ids" if family == "t5" else "input_ids"
    with float64(model):
        whole = generate(model, **questions(family, [0, 1, 2, 3]), limit=LIMIT, end=NEVER)
        end = whole[1][1]
        model.backbone.register_forward_pre_hook(lambda _, args, given: rows.append(len(given[name])), with_kwargs=True)
        answers = generate(model, **questions(family, [0, 1, 2, 3]), limit=LIMIT, end=end)
    steps = [len(answer) + (end in full) for answer, full in zip(answers, whole, strict=True)]
    assert min(steps) < LIMIT
    assert rows == [sum(own > step for own in steps) for step in range(max(steps))]
