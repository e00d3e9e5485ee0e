"""How much of the spread of future states is due to the action, against closed forms."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import ActionTrials, Rollouts, read_rollouts
from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.data.transitions.rollouts import follow_policy, try_actions
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.evaluation.action_information import ActionEffect, action_lines, modelled_effect, real_effect
from flowmatch_rl.models import Flow, Horizon, Occupancy, OccupancyInputs
from flowmatch_rl.objectives import FirstState
from flowmatch_rl.paths import AffinePath
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import LinearGaussianProcess, LinearPolicy
from tests.modules.occupancy_toys import SMALL, ExactCycle, cycle_rollouts

PROCESS = LinearGaussianProcess(control=[[0.0], [0.6]])
POLICY = LinearPolicy(gain=[[0.1, -0.2]])
DISCOUNT = 0.6
UNITS = TableSchema(PROCESS.columns, (0.0, 0.0), (2.0, 0.3))
FIRST_STATES: list[FirstState] = ["arrival", "current"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class ExactGaussian(Occupancy):
    """The linear-Gaussian process as a model that knows its future, or takes all actions for 0."""

    def __init__(self, blind: bool = False) -> None:
        inputs = OccupancyInputs(UNITS, 1, 0, Horizon(DISCOUNT))
        super().__init__(Flow(SMALL.build(2, 3), AffinePath()), inputs, OdeSampler(Midpoint(1)))
        self.blind = blind
        self.asked: list[Tensor] = []

    def sample(
        self,
        noise: Tensor,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None = None,
        discount: Tensor | float | None = None,
    ) -> Tensor:
        assert isinstance(discount, float)
        self.asked.append(action)
        state = observation.double().expand(*action.shape[:-1], -1)
        mixture = PROCESS.occupancy(state, action.double() * (not self.blind), POLICY, discount)
        # The first normal number picks a component, and what is left of it is uniform again.
        uniform, ends = torch.special.ndtr(noise[..., 0].double()), mixture.weights.cumsum(0)
        part = torch.searchsorted(ends, uniform).clamp_max(len(ends) - 1)
        rest = (uniform - ends[part] + mixture.weights[part]) / mixture.weights[part]
        z = torch.stack([torch.special.ndtri(rest.clamp(1e-9, 1.0 - 1e-9)), noise[..., 1].double()], -1)
        means = torch.take_along_dim(mixture.means.expand(*part.shape[:-1], -1, -1, -1), part[..., None, None], -2)
        return means.squeeze(-2) + torch.einsum(
            "...de,...e->...d", mixture.axes[part], mixture.variances[part].sqrt() * z
        )


def exact(observation: Tensor) -> ActionEffect:
    """By the mixtures of a thousand evenly spaced actions."""
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 500.0 - 1.0
    state = observation.double()[:, None].expand(-1, 1000, -1)
    mixture = PROCESS.occupancy(state, grid[None, :, None].expand(len(state), -1, 1), POLICY, DISCOUNT)
    scale = torch.tensor(UNITS.scale, dtype=torch.float64)
    between = mixture.mean.var(1, correction=0) / scale.square()
    within = torch.diagonal(mixture.covariance, dim1=-2, dim2=-1).mean(1) / scale.square()
    return ActionEffect(between.sum(-1), within.sum(-1))


def states(observation: Tensor) -> Rollouts:
    return Rollouts(observation, torch.zeros(len(observation), 1), torch.empty(len(observation), 0), None, None, None)


def uniform_actions(count: int, number: int) -> Tensor:
    return 2.0 * torch.rand(count, number, 1, generator=generator(5)) - 1.0


def test_the_effect_on_an_exact_model_has_no_bias_however_few_its_samples() -> None:
    """Two samples of three actions: the noise of their means is several times the effect."""
    source = torch.tensor([[0.5, -0.4]]).expand(3_000, 2)
    found = modelled_effect(ExactGaussian(), states(source), uniform_actions(3_000, 3), DISCOUNT, 2, generator())
    wanted = exact(source[:1])
    for name in ("between", "within"):
        values, closed = getattr(found, name), getattr(wanted, name)[0]
        assert abs(float(values.mean() - closed)) < 4.5 * float(values.std()) / 3_000**0.5, name
        assert float(values.std()) / 3_000**0.5 < 0.05 * float(closed), name


def test_the_effect_on_a_blind_model_is_nothing() -> None:
    source = torch.randn(50, 2, generator=generator())
    found = modelled_effect(ExactGaussian(blind=True), states(source), uniform_actions(50, 4), DISCOUNT, 8, generator())
    torch.testing.assert_close(found.between, torch.zeros_like(found.between), rtol=0.0, atol=1e-12)
    assert found.information().item() == pytest.approx(0.0, abs=1e-9)


def test_roll_outs_of_the_environment_and_an_exact_model_agree_with_the_closed_form() -> None:
    environment = ProcessEnvironment(PROCESS)
    known = follow_policy(environment, POLICY, 200, 1, 2, seed=3)
    rollouts = read_rollouts(known | try_actions(environment, POLICY, known, 6, 40, seed=4))
    wanted = exact(rollouts.observation)
    real = real_effect(ExactGaussian(), rollouts, DISCOUNT)
    assert real is not None
    model = ExactGaussian()
    found = FutureTests(test_samples=2, value_samples=2, likelihood_samples=0, action_samples=200).test(
        model, dataclasses.replace(rollouts, states=None), {}, generator()
    )
    assert found["action_information_real"] == real.information()
    for name in ("between", "within"):
        values, closed = getattr(real, name), getattr(wanted, name)
        # Each state has actions of its own, and two trajectories of each.
        assert abs(float((values - closed).mean())) < 4.5 * float((values - closed).std()) / 200**0.5, name
    assert real.information().item() == pytest.approx(wanted.information().item(), rel=0.1)
    # The model is asked about the same actions.
    assert rollouts.tried_actions is not None
    assert torch.equal(model.asked[-1].squeeze(2), rollouts.tried_actions)
    assert found["action_information"].item() == pytest.approx(real.information().item(), rel=0.05)


def moved_cycle(num_steps: int, ends: bool) -> Rollouts:
    """The cycle, in which the first actions 0, 1 and 5 skip as many states."""
    skipped = torch.tensor([0.0, 1.0, 5.0])
    time = 20.0 + torch.arange(1.0, num_steps + 1.0) + skipped[:, None]
    made = torch.stack([time, -time], -1)[None, :, None].expand(-1, -1, 2, -1, -1)
    ended = torch.zeros(1, 3, 2, num_steps, dtype=torch.bool)
    ended[..., -1] = ends
    tried = {"tried_actions": skipped[None, :, None] / 5.0, "tried_states": made, "tried_ended": ended}
    return dataclasses.replace(cycle_rollouts([20], 3), **tried)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("num_steps", [3, 200])
@pytest.mark.parametrize("first_state", FIRST_STATES)
def test_all_times_of_a_trajectory_count_by_their_weight(first_state: FirstState, num_steps: int, ends: bool) -> None:
    found = real_effect(ExactCycle(first_state), moved_cycle(num_steps, ends), 0.8)
    assert found is not None
    lag = 1 if first_state == "arrival" else 0
    times = torch.arange(lag, num_steps + 1, dtype=torch.float64)
    weights = 0.2 * 0.8 ** (times - lag)
    if ends:
        weights[-1] = 1.0 - weights[:-1].sum()
    weights = weights / weights.sum()
    positions = torch.where(times > 0, times + torch.tensor([[0.0], [1.0], [5.0]]), 0.0)
    means = positions @ weights
    variances = positions.square() @ weights - means.square()
    torch.testing.assert_close(found.between, 2.0 * means.var()[None])
    torch.testing.assert_close(found.within, 2.0 * variances.mean()[None])


def test_where_the_action_decides_all_or_nothing_the_information_is_infinite_or_zero() -> None:
    found = real_effect(ExactCycle(), moved_cycle(9, False), 0.0)
    assert found is not None
    assert found.information().item() > 1e6
    assert ActionEffect(torch.zeros(2), torch.zeros(2)).information().item() == 0.0
    assert ActionEffect(torch.ones(2), torch.full((2,), -1e-12)).information().item() == torch.inf


def test_the_information_is_that_of_the_source_states_of_all_processes() -> None:
    parts = ActionEffect(torch.tensor([1.0, 3.0]), torch.tensor([10.0, 10.0]))
    whole = ActionEffect(torch.tensor([1.0, 3.0, 8.0, 8.0]), torch.tensor([10.0, 10.0, 2.0, 2.0]))
    joined = {tuple(getattr(parts, name).tolist()): getattr(whole, name) for name in ("between", "within")}
    assert whole.information().item() == pytest.approx(20.0 / 24.0)
    assert parts.information(lambda values: joined[tuple(values.tolist())]) == whole.information()


def measured(rollouts: Rollouts, model: Occupancy | None = None, **options: Any) -> dict[str, float]:
    small: dict[str, Any] = {"test_samples": 8, "value_samples": 8, "likelihood_samples": 4}
    found = FutureTests(**(small | options)).test(model or ExactCycle(), rollouts, {}, generator())
    return {name: value.item() for name, value in found.items()}


def test_a_test_tries_actions_unless_it_is_switched_off_and_changes_nothing_else() -> None:
    on, off = measured(cycle_rollouts([0, 9], 60)), measured(cycle_rollouts([0, 9], 60), num_actions=0)
    assert on.keys() - off.keys() == {"action_information"}
    assert {name: on[name] for name in off} == off
    discounts = measured(moved_cycle(60, False), discounts=(0.5, 0.8))
    wanted = {f"action_information{real}{suffix}" for real in ("", "_real") for suffix in ("", "@0.5")}
    assert wanted == {name for name in discounts if name.startswith("action")}
    # Var (0, 1, 5) = 7, and that of the time is g / (1 - g)^2.
    assert discounts["action_information_real@0.5"] == pytest.approx(7.0 / 2.0)
    assert discounts["action_information_real"] == pytest.approx(7.0 / 20.0, rel=1e-3)


def test_a_model_that_is_not_finite_in_a_tried_action_breaks_off_a_test() -> None:
    with pytest.raises(RunError, match="24 of 24 modelled states are not finite"):
        modelled_effect(ExactCycle(late=torch.nan), cycle_rollouts([0], 9), torch.zeros(1, 3, 1), 0.8, 8, generator())


@pytest.mark.parametrize(("modelled", "warns"), [(0.0, True), (0.0199, True), (0.0201, False), (0.3, False)])
def test_a_summary_warns_of_a_model_that_is_blind_to_the_action(modelled: float, warns: bool) -> None:
    metrics = {"test/action_information": modelled, "test/action_information_real": 0.2}
    lines = action_lines(metrics, "@0.5")
    assert lines[0].startswith("action@0.5 ")
    assert f"{modelled:.3g} " in lines[0]
    assert "roll-outs 0.2" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["warning@0.5"] * warns
    (alone,) = action_lines({"test/action_information": modelled}, "")
    assert "roll-outs" not in alone
    assert action_lines({}, "") == []


def test_a_single_action_is_refused() -> None:
    with pytest.raises(UserError, match="num_actions must be at least 2, or 0 for none, got 1"):
        FutureTests(num_actions=1)


@pytest.mark.parametrize(("discount", "steps"), [(0.0, 1), (0.01, 1), (0.1, 2), (0.5, 7), (0.99, 459), (0.999, 4603)])
def test_tried_actions_are_followed_until_one_hundredth_of_the_weight_is_left(discount: float, steps: int) -> None:
    trials = FutureTests(num_actions=3).trials(Horizon(discount))
    assert trials == ActionTrials(3, steps)
    assert discount**steps <= 0.01 + 1e-12
    assert steps == 1 or discount ** (steps - 1) > 0.01
