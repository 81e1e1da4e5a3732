"""Choosing on a small dev set: the simulation in miniature, and what is made of a real search."""

import pandas as pd
import pytest

from tests.benchmarks.choice import DEV, TRAIN, losses
from tests.benchmarks.chosen import chosen, pick


def test_a_pick_on_few_examples_is_hardly_better_than_a_random_one_and_more_examples_help():
    small, large = losses(dev=DEV, times=300), losses(dev=TRAIN, times=300)
    assert 3.7 < small["random"] < 4.3
    assert 2.3 < small["picked"] < 3.4 and small["optimism"] > 7
    assert large["picked"] < 0.7 * small["picked"] and large["optimism"] < 0.5 * small["optimism"]


def test_fewer_settings_lose_less():
    assert losses(settings=3, times=300)["picked"] < losses(times=300)["picked"]


def test_a_search_picks_by_dev_score_then_by_dev_loss_and_is_worth_what_that_scores_on_test():
    settings = pd.DataFrame({"score": [0.5, 0.7, 0.7], "loss": [0.1, 0.9, 0.8], "test": [0.9, 0.4, 0.6]})
    assert pick(settings) == 0.6
    assert chosen(settings, 3) == 0.6
    assert chosen(settings, 2) == pytest.approx((0.4 + 0.6 + 0.6) / 3)
    assert chosen(settings, 1) == pytest.approx(settings["test"].mean())
