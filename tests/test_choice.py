"""The simulation of choosing on a small dev set, in miniature."""

from tests.benchmarks.choice import DEV, TRAIN, losses


def test_a_pick_on_few_examples_is_hardly_better_than_a_random_one_and_more_examples_help():
    small, large = losses(dev=DEV, times=300), losses(dev=TRAIN, times=300)
    assert 3.7 < small["random"] < 4.3
    assert 2.3 < small["picked"] < 3.4 and small["optimism"] > 7
    assert large["picked"] < 0.7 * small["picked"] and large["optimism"] < 0.5 * small["optimism"]


def test_fewer_settings_lose_less():
    assert losses(settings=3, times=300)["picked"] < losses(times=300)["picked"]
