"""Tune's own state of an experiment, which is written and never read."""

import threading

import ray

from orchestration.run import schedule


def test_it_holds_nothing_of_the_work() -> None:
    """Tune pickles it at the first step; what the work refers to has locks and connections, which cannot be."""
    guard = schedule._Guard(threading.RLock())  # type: ignore[arg-type]
    ray.cloudpickle.dumps([guard, schedule._Stop(guard, threading.RLock().acquire)])
