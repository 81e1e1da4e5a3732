"""Optimisers and the learning rate's schedule."""

import pytest
import torch
from torch import nn

from mept.optim import build_optimizer, build_schedule


@pytest.fixture
def parameters() -> dict[str, nn.Parameter]:
    names = ("method.prompt", "method.a", "method.b", "head.weight")
    return {name: nn.Parameter(torch.ones(2, 3)) for name in names}


def rates(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, float]:
    """The learning rate now in force for each parameter the optimiser has."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_parameters_may_have_learning_rates_of_their_own(name, parameters) -> None:
    optimizer = build_optimizer(parameters, name, 0.3, 0.0, {"method.a": 0.01, "method.b": 0.02})
    assert rates(optimizer, parameters) == {
        "method.prompt": 0.3, "method.a": 0.01, "method.b": 0.02, "head.weight": 0.3,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_a_first_step_is_as_long_as_each_parameters_rate(name, parameters) -> None:
    optimizer = build_optimizer(parameters, name, 0.3, 0.0, {"method.a": 0.01})
    sum(p.sum() for p in parameters.values()).backward()
    optimizer.step()
    # Both optimisers divide a constant gradient by its size.
    for parameter, moved in zip(parameters.values(), (0.3, 0.01, 0.3, 0.3), strict=True):
        torch.testing.assert_close(parameter.detach(), torch.full((2, 3), 1 - moved), atol=1e-5, rtol=0)


def test_the_schedule_scales_every_learning_rate(parameters) -> None:
    optimizer = build_optimizer(parameters, "adamw", 0.4, 0.0, {"method.a": 0.04})
    schedule = build_schedule(optimizer, total_steps=10, warmup_steps=2)
    factors = []
    for _ in range(10):
        now = rates(optimizer, parameters)
        assert now["method.a"] == pytest.approx(now["head.weight"] / 10)
        factors.append(now["head.weight"] / 0.4)
        optimizer.step()
        schedule.step()
    assert factors == pytest.approx([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_frozen_parameters_are_left_out_whatever_their_rate(parameters) -> None:
    parameters["method.a"].requires_grad_(False)
    optimizer = build_optimizer(parameters, "adamw", 0.3, 0.0, {"method.a": 0.01})
    assert "method.a" not in rates(optimizer, parameters)


def test_all_parameters_may_have_their_own_rate(parameters) -> None:
    own = dict.fromkeys(parameters, 0.01)
    assert rates(build_optimizer(parameters, "adafactor", 0.3, 0.0, own), parameters) == own


def test_a_rate_for_a_parameter_that_does_not_exist_is_an_error(parameters) -> None:
    with pytest.raises(AssertionError, match="method.c"):
        build_optimizer(parameters, "adamw", 0.3, 0.0, {"method.c": 0.01})
