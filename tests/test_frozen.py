"""What a frozen backbone computes is kept for later trials, and never mistaken for something else."""

import pytest
import torch

from mept import frozen, get_prompt_model
from mept.batches import Collator
from mept.frozen import frozen_states
from mept.methods.linear_head import LinearHeadConfig
from mept.tasks.data import load_task
from mept.tasks.features import encode
from tests.models import random_backbone


class Reader:
    """A random backbone with a head, and the number of texts that it has read."""

    def __init__(self, family: str) -> None:
        self.backbone = random_backbone(family)
        self.read = 0
        self.backbone.stack.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, stack, args, kwargs) -> None:
        self.read += len(kwargs["input_ids"])

    def states(self, part: slice, batch_size: int = 4, precision: str = "float32") -> torch.Tensor:
        """The states of a part of the task's examples, by a model of its own."""
        model = get_prompt_model(self.backbone, LinearHeadConfig(), num_labels=3, seed=0)
        data = load_task("cb", "embedded")
        encoded = encode(data.test[part], data.task, self.backbone.tokenizer, 48)
        collate = Collator(encoded, self.backbone.tokenizer.pad_token_id, None, model.device)
        return frozen_states(model, collate, encoded, batch_size, precision).states


@pytest.fixture(params=["bert", "llama"])
def reader(request) -> Reader:
    return Reader(request.param)


def test_the_same_texts_are_read_once_whichever_model_asks(reader) -> None:
    first = reader.states(slice(6))
    assert torch.equal(reader.states(slice(6)), first)
    assert reader.read == 6
    assert torch.equal(Reader(reader.backbone.family.name).states(slice(6)), first)


def test_whatever_changes_the_states_has_them_computed_again(reader) -> None:
    reader.states(slice(6))
    reader.states(slice(1, 6))
    reader.states(slice(6), batch_size=3)
    reader.states(slice(6), precision="bf16")
    assert reader.read == 6 + 5 + 6 + 6
    reader.backbone.model.to(torch.bfloat16)
    assert reader.states(slice(6)).dtype == torch.bfloat16
    assert reader.read == 29


def test_another_backbone_has_states_of_its_own() -> None:
    bert, llama = (Reader(family).states(slice(6)) for family in ("bert", "llama"))
    assert not torch.equal(bert, llama)


def test_what_was_used_longest_ago_is_dropped_and_what_is_too_large_is_not_kept(reader, monkeypatch) -> None:
    each = reader.states(slice(1)).nbytes
    other = Reader(reader.backbone.family.name)
    monkeypatch.setattr(frozen, "KEPT", 2 * each)
    for part in (slice(0, 1), slice(1, 2), slice(0, 1), slice(2, 3), slice(0, 1)):
        other.states(part)
    assert other.read == 3
    other.states(slice(1, 2))
    assert other.read == 4
    for _ in range(2):
        other.states(slice(3))
    assert other.read == 10
