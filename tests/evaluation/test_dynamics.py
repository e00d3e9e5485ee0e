"""Departures of a one-step model from the environment."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import Rollouts
from flowmatch_rl.evaluation import rollout_errors
from flowmatch_rl.models import ResidualDynamics
from flowmatch_rl.models.dynamics import Step
from flowmatch_rl.nets import DynamicsArchitecture
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import ConstantPolicy


class Drifting(ResidualDynamics):
    """A state grows by the action in each step, in the model by a tenth more."""

    def __init__(self) -> None:
        super().__init__(TableSchema(("x",), (1.0,), (4.0,)), 1, DynamicsArchitecture(hidden_dim=4))

    def step(self, observation: Tensor, action: Tensor, generator: Any = None) -> Step:
        return Step(observation + 1.1 * action, torch.zeros(len(observation)), torch.zeros(len(observation)))


def rollouts(num_steps: int, ends_after: int | None = None) -> Rollouts:
    """Two trajectories, the first action of which is 1, the others .5."""
    start = torch.tensor([[0.0], [3.0]])
    times = torch.arange(1, num_steps + 1)
    states = start[:, None, None] + (0.5 + 0.5 * times)[:, None]
    ended = torch.zeros(2, 1, num_steps, dtype=torch.bool)
    if ends_after is not None:
        ended[1, :, ends_after - 1 :] = True
        states[1, :, ends_after:] = 99.0
    length = torch.full((2, 1), num_steps)
    return Rollouts(start, torch.ones(2, 1), torch.empty(2, 0), states, length, ended)


def test_errors_grow_as_the_model_drifts_in_standard_deviations_of_the_state() -> None:
    errors = rollout_errors(Drifting(), ConstantPolicy([0.5]), rollouts(20))
    assert {steps: float(error) for steps, error in errors.items()} == pytest.approx(
        {1: 0.1 / 4.0, 4: (0.1 + 3 * 0.05) / 4.0, 16: (0.1 + 15 * 0.05) / 4.0}, rel=1e-5
    )


def test_steps_after_a_termination_do_not_count() -> None:
    errors = rollout_errors(Drifting(), ConstantPolicy([0.5]), rollouts(6, ends_after=4))
    assert float(errors[4]) == pytest.approx((0.1 + 3 * 0.05) / 4.0)
    errors = rollout_errors(Drifting(), ConstantPolicy([0.5]), rollouts(6, ends_after=3))
    assert float(errors[4]) == pytest.approx((0.1 + 3 * 0.05) / 4.0)  # of the first trajectory


def test_without_trajectories_nothing_is_measured() -> None:
    start = torch.zeros(2, 1)
    nothing = Rollouts(start, start, torch.empty(2, 0), None, None, None)
    assert rollout_errors(Drifting(), ConstantPolicy([0.5]), nothing) == {}
