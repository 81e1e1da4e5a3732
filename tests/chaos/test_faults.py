"""The faults of `tests.chaos.faults` that matter most, once each; all of them are injected by that command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.cluster import PATIENCE, Cluster, cluster
from tests.chaos.faults import EPOCHS, SHORT, inject
from tests.faults.checker import Contents

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(5 * PATIENCE)]


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Cluster, Contents]]:
    with cluster() as running:
        running.keep_clean_databases()
        running.write_grid(EPOCHS)
        yield running, running.undisturbed()


@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_or_there_twice(name: str, started: tuple[Cluster, Contents]) -> None:
    running, undisturbed = started
    outcome = inject(running, name, 0, undisturbed)
    assert not outcome.wrong, "\n".join(outcome.told)
    assert 0 < outcome.seconds < PATIENCE  # the work went on
