"""When training stops, and which evaluation's adapter is kept."""

from mept.patience import Patience

STREAM = [(0.5, 1.0), (0.4, 0.9), (0.4, 0.95), (0.6, 0.95), (0.5, 0.9), (0.5, 0.8), (0.7, 0.7)]
"""Dev scores and dev losses."""


def follow(limit: int, *names: str, counting: bool = True) -> list[tuple[bool, int]]:
    """Whether each evaluation is kept, and how long nothing was, until all patience is spent."""
    found: list[tuple[bool, int]] = []
    patience = None
    for score, loss in STREAM:
        measures = {name: value for name, value in (("score", score), ("loss", -loss)) if name in names}
        patience = patience.after(measures, limit, counting) if patience else Patience.begin(measures)
        found.append((patience.improved, patience.waited))
        if patience.waited >= limit:
            break
    return found


def test_by_the_score_alone_only_a_better_score_is_kept() -> None:
    assert follow(3, "score") == [
        (True, 0), (False, 1), (False, 2), (True, 0), (False, 1), (False, 2), (True, 0),
    ]  # fmt: skip
    assert follow(2, "score") == [(True, 0), (False, 1), (False, 2)]


def test_with_both_either_is_kept_and_both_must_be_spent() -> None:
    kept = [kept for kept, _ in follow(4, "score", "loss")]
    assert kept == [True, True, False, True, False, True, True]
    assert [waited for _, waited in follow(4, "score", "loss")] == [0, 0, 1, 0, 1, 0, 0]


def test_a_spent_measure_does_not_come_back() -> None:
    # After three evaluations without a better score only the loss counts; with both spent, nothing does.
    assert follow(2, "score", "loss") == [(True, 0), (True, 0), (False, 1), (False, 2)]
    assert follow(1, "score", "loss") == [(True, 0), (True, 0), (False, 1)]


def test_before_the_last_phase_nothing_is_spent() -> None:
    assert [waited for _, waited in follow(1, "score", counting=False)] == [0] * len(STREAM)
