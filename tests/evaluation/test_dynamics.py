"""Departures of a one-step model from the environment."""

import dataclasses
import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import Rollouts
from flowmatch_rl.evaluation import dynamics_lines, rollout_errors
from flowmatch_rl.models import DeterministicDynamics, ResidualDynamics
from flowmatch_rl.models.dynamics import Step
from flowmatch_rl.nets import DynamicsArchitecture
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import ConstantPolicy, RandomPolicy

HALF = ConstantPolicy([0.5])


class Drifting(ResidualDynamics):
    """A state grows by the action in each step, in the model by a tenth more, and by noise.

    A draw that meets large noise ends, far away.
    """

    is_random: ClassVar = True

    def __init__(self, noise: float = 0.0, growth: float = 1.1, ends: bool = False) -> None:
        settings = DeterministicDynamics(DynamicsArchitecture(hidden_dim=4))
        super().__init__(TableSchema(("x",), (1.0,), (4.0,)), 1, settings)
        self.noise, self.growth, self.ends = noise, growth, ends
        self.rows: list[int] = []

    def step(self, observation: Tensor, action: Tensor, generator: Any = None) -> Step:
        self.rows.append(len(observation))
        noise = torch.randn(observation.shape, generator=generator)
        ended = (noise[:, 0] > 0.5) & self.ends
        arrival = observation + self.growth * action + self.noise * noise
        return Step(torch.where(ended[:, None], 1e3, arrival), torch.zeros(len(observation)), ended.float())


def rollouts(num_steps: int, ends_after: int | None = None, copies: int = 1, noise: float = 0.0) -> Rollouts:
    """Trajectories from two states, the first action of which is 1, the others .5."""
    start = torch.tensor([[0.0], [3.0]])
    times = torch.arange(1, num_steps + 1)
    states = start[:, None, None] + (0.5 + 0.5 * times)[:, None]
    states = states.expand(2, copies, num_steps, 1).clone()
    steps = torch.randn(states.shape, generator=torch.Generator().manual_seed(5))
    states += noise * steps.cumsum(2)
    ended = torch.zeros(2, copies, num_steps, dtype=torch.bool)
    if ends_after is not None:
        ended[1, :, ends_after - 1 :] = True
        states[1, :, ends_after:] = 99.0
    length = torch.full((2, copies), num_steps)
    return Rollouts(start, torch.ones(2, 1), torch.empty(2, 0), states, length, ended)


def measured(model: Drifting, real: Rollouts, policy: Any = HALF) -> dict[str, float]:
    return {name: float(value) for name, value in rollout_errors(model, policy, real).metrics().items()}


def test_errors_grow_as_the_model_drifts_in_standard_deviations_of_the_state() -> None:
    wanted = {1: 0.1 / 4.0, 4: (0.1 + 3 * 0.05) / 4.0, 16: (0.1 + 15 * 0.05) / 4.0}
    errors = rollout_errors(Drifting(), HALF, rollouts(20))
    assert errors.steps == (1, 4, 16)
    assert errors.error.tolist() == pytest.approx(list(wanted.values()), rel=1e-4)
    assert errors.unmoved.tolist() == pytest.approx([(0.5 + 0.5 * step) / 4.0 for step in wanted])
    assert measured(Drifting(), rollouts(20)).keys() == {f"dynamics_error/{step}" for step in wanted}


def test_steps_after_a_termination_do_not_count() -> None:
    wanted = pytest.approx((0.1 + 3 * 0.05) / 4.0, rel=1e-4)
    assert measured(Drifting(), rollouts(6, ends_after=4))["dynamics_error/4"] == wanted
    # Of the first trajectory.
    assert measured(Drifting(), rollouts(6, ends_after=3))["dynamics_error/4"] == wanted


def test_draws_that_have_terminated_do_not_count() -> None:
    real, model = rollouts(4), Drifting(ends=True)
    assert measured(model, real)["dynamics_error/1"] > 10.0
    late = rollout_errors(Drifting(growth=1.0, ends=True), HALF, real, steps=(2,)).error
    # Of the draws that went on .31 end in the second step, where they still count; of all draws .52 have ended by then.
    assert float(late) < 0.4 * 1e3 / 4.0


def test_recorded_actions_are_repeated_where_there_is_no_policy() -> None:
    actions = torch.tensor([2.0, 3.0, 4.0, 99.0])[:, None].expand(2, 1, 4, 1)
    real = dataclasses.replace(rollouts(4), actions=actions)
    real.states[:] = real.observation[:, None, None] + torch.tensor([1.0, 3.0, 6.0, 10.0])[:, None]  # pyright: ignore
    errors = measured(Drifting(), real, policy=None)
    assert errors == pytest.approx({"dynamics_error/1": 0.1 / 4.0, "dynamics_error/4": 1.0 / 4.0}, rel=1e-4)
    assert measured(Drifting(), rollouts(4), policy=None) == {}


def test_against_several_trajectories_the_noise_of_both_is_no_error() -> None:
    real = rollouts(4, copies=400, noise=1.0)
    right = measured(Drifting(noise=1.0, growth=1.0), real)
    assert right["dynamics_error/4"] < 0.12  # standard deviation of a state: .5
    assert abs(right["dynamics_distance/4"]) < 0.03
    drifting = measured(Drifting(noise=1.0, growth=1.8), real)
    gap = 0.8 * 2.5 / 4.0
    assert drifting["dynamics_error/4"] == pytest.approx(gap, abs=0.1)
    # Of normal distributions of standard deviation 2 / 4 whose means are apart by the gap.
    spread = math.sqrt(2.0) * 2.0 / 4.0
    apart = spread * math.sqrt(2.0 / math.pi) * math.exp(-(gap**2) / (2 * spread**2))
    apart += gap * math.erf(gap / (spread * math.sqrt(2.0)))
    wanted = 2.0 * (apart - spread * math.sqrt(2.0 / math.pi))
    assert drifting["dynamics_distance/4"] == pytest.approx(wanted, abs=0.12)
    assert measured(Drifting(noise=0.0, growth=1.0), real)["dynamics_distance/4"] > 0.1


def test_a_few_trajectories_of_many_states_show_no_error_of_a_model_that_is_right() -> None:
    pair = rollouts(1, copies=2)
    parts = {name: part.repeat(100, *[1] * (part.dim() - 1)) for name, part in vars(pair).items() if part is not None}
    parts["states"] = parts["states"] + torch.randn(parts["states"].shape, generator=torch.Generator().manual_seed(1))
    # The mean of two states of standard deviation 1 / 4 is off by .18.
    assert measured(Drifting(noise=1.0, growth=1.0), Rollouts(**parts))["dynamics_error/1"] < 0.08


class Certain(Drifting):
    """The same without noise; in each step a third ends."""

    is_random: ClassVar = False

    def step(self, observation: Tensor, action: Tensor, generator: Any = None) -> Step:
        self.rows.append(len(observation))
        arrival = observation + self.growth * action
        return Step(arrival, torch.zeros(len(observation)), torch.full((len(observation),), 1 / 3))


class Uncertain(Certain):
    """A model of the same steps of which that is not known."""

    is_random: ClassVar = True


@pytest.mark.parametrize("policy", [HALF, None], ids=["policy", "recorded actions"])
def test_one_trajectory_stands_for_all_where_only_terminations_are_drawn(policy: Any) -> None:
    actions = torch.arange(4.0)[:, None].expand(2, 3, 4, 1)
    real = dataclasses.replace(rollouts(4, copies=3, noise=1.0), actions=actions)
    fast, slow = Certain(), Uncertain()
    assert measured(fast, real, policy) == measured(slow, real, policy)
    assert measured(fast, real, policy).keys() == {
        f"dynamics_{name}/{k}" for name in ("error", "distance") for k in (1, 4)
    }
    assert set(fast.rows) == {2}
    assert set(slow.rows) == {2 * 32}


def test_a_random_policy_is_followed_several_times() -> None:
    model = Certain()
    measured(model, rollouts(4), RandomPolicy(1))
    assert set(model.rows) == {2 * 32}


def test_the_summary_names_errors_by_their_steps() -> None:
    lines = dynamics_lines({"test/dynamics_error/1": 0.5, "test/dynamics_error/16": 2.0, "test/other": 1.0})
    assert lines == [
        "dynamics     error of the one-step model 0.5 after 1, 2 after 16 steps, in standard deviations of the state"
    ]
    assert len(dynamics_lines({"val/dynamics_error/1": 0.5, "val/dynamics_distance/1": 0.0})) == 2


def test_without_trajectories_nothing_is_measured() -> None:
    start = torch.zeros(2, 1)
    nothing = Rollouts(start, start, torch.empty(2, 0), None, None, None)
    assert measured(Drifting(), nothing) == {}
