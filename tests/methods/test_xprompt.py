"""XPrompt: what is pruned, and what pruning leaves."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mept import PromptModel, XPromptConfig, get_prompt_model
from mept.errors import InputError
from mept.methods.xprompt import PrunedPrompt, least
from tests.contract.matrix import batch, build
from tests.models import FAMILIES, random_backbone

CONFIG = XPromptConfig(num_virtual_tokens=4, num_pieces=4, token_pruning_ratio=0.25, piece_pruning_ratio=0.5)
LENGTHS = ((11, 5, 8), (6, 6, 9), (4, 7, 5))


def batches(family: str) -> list[dict[str, Tensor]]:
    """Batches whose texts and labels differ."""
    result = []
    for number, lengths in enumerate(LENGTHS):
        inputs = batch(family, lengths)
        inputs["input_ids"] = (inputs["input_ids"] + 17 * number) * inputs["attention_mask"]
        inputs["labels"] = inputs["labels"].roll(number, 0)
        result.append(inputs)
    return result


def gradients(model: PromptModel, family: str):
    """What training passes to :meth:`after_epoch`."""

    def iterate() -> Iterator[None]:
        for inputs in batches(family):
            model(**inputs).loss.backward()
            yield
            model.zero_grad()

    return iterate


def pruned(family: str, config: XPromptConfig = CONFIG, seed: int = 1) -> PromptModel:
    model = build(config, family, seed)
    assert model.adapter.method.after_epoch(1, 2, gradients(model, family))
    return model


def sensitivity(model: PromptModel, family: str, mask: Tensor) -> Tensor:
    """Sum over the batches of |dL/dmask|, by making the mask a variable of the graph, shaped [m, k]."""
    method = model.adapter.method
    total = torch.zeros_like(mask)
    tuned = method.prompt.detach().clone()
    for inputs in batches(family):
        variable = mask.clone().requires_grad_()
        masked = tuned * variable.repeat_interleave(16 // mask.shape[1], dim=1)
        method.prompts = lambda layer, text, text_mask, masked=masked: masked.expand(len(text), -1, -1)
        model(**inputs).loss.backward()
        total += variable.grad.abs()
    del method.prompts
    model.zero_grad()
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_then_pieces_of_least_importance_are_pruned(family) -> None:
    reference = build(CONFIG, family)
    tokens = sensitivity(reference, family, torch.ones(4, 1))[:, 0].tolist()
    dropped = tokens.index(min(tokens))
    kept_tokens = torch.ones(4, 4)
    kept_tokens[dropped] = 0
    pieces = sensitivity(reference, family, kept_tokens)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    for token in set(range(4)) - {dropped}:
        for piece in sorted(range(4), key=pieces[token].tolist().__getitem__)[2:]:
            expected[token, piece] = True
    assert torch.equal(pruned(family).adapter.method.mask, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kept_pieces_have_their_tuned_values_and_the_others_are_zero(family) -> None:
    tuned = build(CONFIG, family).adapter.method.prompt
    method = pruned(family).adapter.method
    kept = method.mask.repeat_interleave(4, dim=1)
    assert torch.equal(method.prompts(0, torch.zeros(1, 2, 16), torch.ones(1, 2).bool())[0], tuned * kept)
    assert (method.mask.sum(1) > 0).sum() == 3 and method.mask.sum() == 6


def test_retraining_moves_only_what_is_kept() -> None:
    model = pruned("bert")
    method = model.adapter.method
    model(**batch("bert")).loss.backward()
    kept = method.mask.repeat_interleave(4, dim=1)
    assert not method.prompt.grad[~kept].any() and method.prompt.grad[kept].all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_activated_parameters_are_the_entries_kept(family) -> None:
    head = 0 if family == "t5" else 3 * 16
    before, after = build(CONFIG, family).parameter_counts(), pruned(family).parameter_counts()
    assert before.trainable == before.activated == after.trainable == 4 * 16 + head
    assert after.activated == 6 * 4 + head


def test_the_papers_prompt_has_20_tokens_of_16_pieces() -> None:
    config = XPromptConfig()
    method = PrunedPrompt(torch.zeros(config.num_virtual_tokens, 768), 0.5, 0.5, config.num_pieces, 0.5)
    assert method.activated_parameters() == 20 * 768
    assert method.mask.shape == (20, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_prompt_is_saved_and_loaded_exactly(family, tmp_path) -> None:
    model = pruned(family)
    model.save_pretrained(tmp_path)
    again = PromptModel.from_pretrained(random_backbone(family), tmp_path)
    assert torch.equal(again(**batch(family)).logits, model(**batch(family)).logits)
    assert torch.equal(again.adapter.method.mask, model.adapter.method.mask)
    assert again.adapter.method.phase_end(9) == 9, "it knows that it is pruned"


@pytest.mark.parametrize(
    ("share", "epochs", "end"), [(0.5, 10, 5), (0.5, 2, 1), (0.1, 3, 1), (0.9, 3, 2), (0.3, 10, 3), (0.5, 1, 1)]
)
def test_the_first_phase_ends_after_its_share_of_the_epochs(share, epochs, end) -> None:
    model = build(CONFIG.model_copy(update={"first_phase_share": share}), "bert")
    method = model.adapter.method
    assert method.phase_end(epochs) == end
    prunes = [method.after_epoch(epoch, epochs, gradients(model, "bert")) for epoch in range(1, epochs + 1)]
    assert prunes == [epoch == end < epochs for epoch in range(1, epochs + 1)]
    assert bool(method.pruned) == (epochs > 1)


def test_a_share_is_rounded_and_never_takes_all() -> None:
    importance = torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert least(importance, 0.5).tolist() == [[1, 3], [0, 1]]
    assert least(importance, 0.6).tolist() == [[1, 3], [0, 1]]
    assert least(importance, 0.99).tolist() == [[1, 3, 2], [0, 1, 2]]
    assert least(importance, 0.0).tolist() == [[], []]


def test_without_ratios_nothing_is_pruned_but_the_phase_changes() -> None:
    method = pruned("bert", CONFIG.model_copy(update={"token_pruning_ratio": 0.0, "piece_pruning_ratio": 0.0}))
    assert method.adapter.method.mask.all() and method.adapter.method.pruned


def test_pieces_must_divide_the_hidden_size() -> None:
    with pytest.raises(InputError, match="'xprompt'.*`num_pieces` must divide.*num_pieces=5, hidden size 16"):
        get_prompt_model(random_backbone("t5"), XPromptConfig(num_pieces=5))


@pytest.mark.parametrize(
    ("option", "value"),
    [("token_pruning_ratio", 1.0), ("piece_pruning_ratio", -0.1), ("first_phase_share", 1.0), ("num_pieces", 0)],
)
def test_options_out_of_range_are_refused(option, value) -> None:
    with pytest.raises(ValueError, match=option):
        XPromptConfig(**{option: value})
