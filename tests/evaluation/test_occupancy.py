"""What evaluations of an occupancy measure, with a model that knows its future exactly."""

import dataclasses
import math
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from flowmatch_rl.batches import Rollouts
from flowmatch_rl.checks import RunError
from flowmatch_rl.evaluation import FutureTests, ValueComparison, real_futures
from flowmatch_rl.evaluation.futures import compare_values
from flowmatch_rl.objectives import FirstState
from flowmatch_rl.testbeds import LinearReward
from tests.combinations import one_test
from tests.modules.occupancy_toys import ExactCycle, cycle_rollouts

LAG: dict[FirstState, int] = {"arrival": 1, "current": 0}
TIME = LinearReward(columns=("time",), weights=(1.0,))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_shares(times: Tensor, shares: dict[int, float]) -> None:
    """Each time has its probability, up to the noise of the draws."""
    for time, share in shares.items():
        found = (times == time).double().mean().item()
        assert abs(found - share) <= 4.5 * math.sqrt(share * (1.0 - share) / times.numel()) + 1e-9, time


@pytest.mark.parametrize("first_state", LAG)
def test_real_futures_are_at_geometric_times(first_state: FirstState) -> None:
    model = ExactCycle(first_state)
    states = real_futures(model, cycle_rollouts([0, 100, 300], 200, copies=2), 0.8, 20_000, generator())
    assert states.shape == (3, 20_000, 2)
    assert torch.equal(states[..., 1], -states[..., 0])
    times = states[..., 0] - torch.tensor([[0.0], [100.0], [300.0]])
    lag = LAG[first_state]
    assert int(times.min()) == lag
    assert_shares(times, {k: 0.2 * 0.8 ** (k - lag) for k in range(lag, 12)})


@pytest.mark.parametrize("first_state", LAG)
def test_at_a_discount_of_zero_the_first_state_is_all_there_is(first_state: FirstState) -> None:
    states = real_futures(ExactCycle(first_state), cycle_rollouts([5], 3), 0.0, 50, generator())
    assert torch.equal(states[..., 0], torch.full((1, 50), 5.0 + LAG[first_state]))


@pytest.mark.parametrize("first_state", LAG)
def test_where_a_trajectory_is_cut_so_is_the_distribution_of_its_times(first_state: FirstState) -> None:
    rollouts = dataclasses.replace(cycle_rollouts([0], 9, copies=1), length=torch.tensor([[4]]))
    times = real_futures(ExactCycle(first_state), rollouts, 0.8, 20_000, generator())[..., 0]
    lag = LAG[first_state]
    total = 1.0 - 0.8 ** (5 - lag)
    assert int(times.max()) == 4
    assert_shares(times, {k: 0.2 * 0.8 ** (k - lag) / total for k in range(lag, 5)})


@pytest.mark.parametrize("first_state", LAG)
def test_a_terminal_state_takes_all_later_times(first_state: FirstState) -> None:
    """However short the roll-out is: it was broken off when all of its trajectories had ended."""
    rollouts = cycle_rollouts([0], 3)
    ended = torch.tensor([[[False, False, True]]])
    times = real_futures(ExactCycle(first_state), dataclasses.replace(rollouts, ended=ended), 0.8, 20_000, generator())
    lag = LAG[first_state]
    shares = {k: 0.2 * 0.8 ** (k - lag) for k in range(lag, 3)} | {3: 0.8 ** (3 - lag)}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert_shares(times[..., 0], shares)


def test_a_summary_of_a_test_that_was_skipped_is_empty() -> None:
    assert FutureTests(discounts=(0.5,)).lines({}, ("time",)) == []


def test_each_future_is_of_a_trajectory_picked_at_random() -> None:
    rollouts = cycle_rollouts([0], 50, copies=4)
    assert rollouts.states is not None
    marked = rollouts.states.clone()
    marked[..., 1] = torch.arange(4.0)[:, None]
    states = real_futures(ExactCycle(), dataclasses.replace(rollouts, states=marked), 0.8, 20_000, generator())
    assert_shares(states[..., 1], dict.fromkeys(range(4), 0.25))


def test_futures_hold_the_modelled_columns() -> None:
    states = real_futures(ExactCycle(columns=["back"]), cycle_rollouts([7], 50), 0.8, 10, generator())
    assert states.shape == (1, 10, 1)
    assert bool((states <= -8.0).all())


def test_states_without_trajectories_have_no_real_futures() -> None:
    bare = dataclasses.replace(cycle_rollouts([0], 3), states=None, length=None, ended=None)
    with pytest.raises(ValueError, match="expected source states with trajectories"):
        real_futures(ExactCycle(), bare, 0.8, 10, generator())
    assert FutureTests().validate(ExactCycle(), bare, generator()) == {}


@pytest.mark.parametrize(("late", "strays"), [(0.0, 0.0), (6.5, 0.0), (7.5, 0.8**4), (20.0, 1.0)])
def test_validation_counts_states_outside_the_range_of_the_data(late: float, strays: float) -> None:
    """Futures of 0 are at 1 to 5, at 5 in .8^4 of all; outside is beyond 12, a tenth of the width past 10."""
    model = ExactCycle(discount=0.8, ends_after=5, late=late)
    model.inputs.use(dataclasses.replace(model.inputs.schema, low=(-10.0, -10.0), high=(10.0, 10.0)))
    found = FutureTests(val_samples=500).validate(model, cycle_rollouts([0], 60), generator())["strays"]
    assert found.item() == pytest.approx(strays, abs=0.05)


def measured(model: ExactCycle, rollouts: Rollouts, rewards: tuple[str, ...] = (), **options: Any) -> dict[str, float]:
    small: dict[str, Any] = {"test_samples": 64, "value_samples": 4_000, "likelihood_samples": 30, "num_actions": 0}
    found = FutureTests(**(small | options)).test(model, rollouts, dict.fromkeys(rewards, TIME), generator())
    return {name: value.item() for name, value in found.items()}


@pytest.mark.parametrize("discount", [0.5, 0.8])
@pytest.mark.parametrize("first_state", LAG)
def test_an_exact_model_estimates_the_exact_value(first_state: FirstState, discount: float) -> None:
    model = ExactCycle(first_state, discount)
    starts = [0, 4, 10, 30]
    found = measured(model, cycle_rollouts(starts, 150, copies=3), ("time",))
    # sum_k g^k (c + k + 1) = (c + 1 / (1 - g)) / (1 - g)
    exact = sum((start + 1.0 / (1.0 - discount)) / (1.0 - discount) for start in starts) / len(starts)
    assert found["value_real/time"] == pytest.approx(exact, rel=1e-4)
    error = found["value_standard_error/time"]
    assert abs(found["value/time"] - exact) < 4.5 * error
    # The times have the variance g / (1 - g)^2.
    scale = 1.0 if first_state == "arrival" else 1.0 / discount
    expected = scale * math.sqrt(discount / 4_000 / 4) / (1.0 - discount) ** 2
    assert error == pytest.approx(expected, rel=0.1)
    # Its own error is all that differs from the roll-outs.
    assert found["value_error/time"] < 10.0 * 4.0 * error**2


@pytest.mark.parametrize("first_state", LAG)
def test_a_terminal_state_earns_its_reward_for_ever(first_state: FirstState) -> None:
    model = ExactCycle(first_state, 0.8, ends_after=3)
    rollouts = dataclasses.replace(cycle_rollouts([0], 3), ended=torch.tensor([[[False, False, True]]]))
    found = measured(model, rollouts, ("time",), test_samples=512)
    exact = 1.0 + 0.8 * 2.0 + 0.8**2 * 3.0 / 0.2
    assert found["value_real/time"] == pytest.approx(exact, rel=1e-6)
    assert abs(found["value/time"] - exact) < 4.5 * found["value_standard_error/time"]
    assert found["wasserstein"] < 0.35


@pytest.mark.parametrize(("late", "starts"), [(0.0, [0, 4, 10, 30]), (500.0, [5, 20, 40])])
def test_values_that_are_off_by_a_constant_correlate_with_those_of_roll_outs(late: float, starts: list[int]) -> None:
    """The error of the estimate is a hundredth of the spread of the values."""
    found = measured(ExactCycle(discount=0.5, late=late), cycle_rollouts(starts, 60), ("time",), value_samples=40_000)
    assert found["value_error/time"] == pytest.approx((2.0 * late) ** 2, rel=0.01, abs=0.1)
    assert found["value_correlation/time"] == pytest.approx(1.0, abs=1e-4)
    (negative,) = compare_values(
        ExactCycle(discount=0.5),
        cycle_rollouts(starts, 60),
        {"time": TIME},
        -torch.tensor(starts).float()[:, None, None] * torch.ones(2) + torch.zeros(2, 1),
        0.5,
    )
    assert negative.metrics()["value_correlation/time"].item() == pytest.approx(-1.0)


@pytest.mark.parametrize("starts", [[3, 9], [7, 7, 7, 7]], ids=["two states", "equal states"])
def test_values_of_few_or_equal_states_have_no_correlation(starts: list[int]) -> None:
    rollouts = cycle_rollouts(starts, 60)
    found = measured(ExactCycle(), rollouts, ("time",))
    assert "value_error/time" in found
    assert "value_correlation/time" not in found
    assert "correlation" not in lines(ExactCycle(), rollouts, ("time",))[-1]


def test_the_correlation_is_over_the_source_states_of_all_processes() -> None:
    """Of two processes each sees two states, in which a wrong model orders the values the wrong way round."""
    real, wrong = torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.tensor([1.0, 0.0, 11.0, 10.0])
    everywhere = {0: wrong, 1: real}

    def gather(values: Tensor) -> Tensor:
        return next(whole for whole in everywhere.values() if torch.equal(whole[:2], values))

    part = ValueComparison("r", wrong[:2], torch.zeros(2), real[:2], None, 1.0)
    assert "value_correlation/r" not in part.metrics()
    found = part.metrics(gather)["value_correlation/r"].item()
    assert found == pytest.approx(scipy.stats.pearsonr(real, wrong)[0])


def test_distances_of_an_exact_model_are_those_of_two_real_samples() -> None:
    found = measured(ExactCycle(discount=0.5), cycle_rollouts([0, 50], 60), test_samples=400)
    assert found["wasserstein"] == pytest.approx(found["wasserstein_floor"], abs=0.2)
    assert 0.0 < found["wasserstein_floor"] < 0.3
    assert not any(name.startswith("value") for name in found)


def test_distances_of_a_shifted_model_are_its_shift() -> None:
    """A model that is late by 7 steps is 7 sqrt(2) away in the plane, and the square of that."""
    model = ExactCycle(discount=0.5, late=7.0)
    found = measured(model, cycle_rollouts([0, 50], 60), test_samples=400)
    assert found["wasserstein"] == pytest.approx(7.0 * 2**0.5, abs=0.3)
    assert found["squared_wasserstein"] == pytest.approx(98.0, abs=5.0)
    validated = FutureTests(val_samples=400).validate(model, cycle_rollouts([0, 50], 60), generator())
    assert validated.keys() == {"wasserstein"}
    assert validated["wasserstein"].item() == pytest.approx(7.0 * 2**0.5, abs=0.3)


def test_the_likelihood_is_that_of_real_futures_per_dimension() -> None:
    """The stand-in's log-density is minus the number of steps, whose mean is 1 / (1 - g)."""
    model = ExactCycle(discount=0.5)
    found = measured(model, cycle_rollouts([0, 50, 70], 60), test_samples=700, likelihood_samples=2_000)
    assert ("log_prob", 3 * 667) in model.asked
    assert found["nll_per_dim"] == pytest.approx(2.0 / 2, abs=4.5 * math.sqrt(2.0 / 2_000) / 2)
    assert "nll_per_dim" not in measured(model, cycle_rollouts([0], 60), likelihood_samples=0)


def test_other_discounts_are_measured_under_names_of_their_own() -> None:
    model = ExactCycle(discount=0.8)
    found = measured(model, cycle_rollouts([0], 150), ("time",), discounts=(0.5, 0.8))
    assert {name.split("@")[0] for name in found if "@" in name} == {name for name in found if "@" not in name}
    assert found["value/time@0.5"] == pytest.approx(4.0, abs=4.5 * found["value_standard_error/time@0.5"])
    assert found["value/time"] == pytest.approx(25.0, abs=4.5 * found["value_standard_error/time"])
    assert found["value_real/time@0.5"] == pytest.approx(4.0, rel=1e-4)


def test_states_alone_are_valued_and_compared_with_nothing() -> None:
    bare = dataclasses.replace(cycle_rollouts([0], 3), states=None, length=None, ended=None)
    found = measured(ExactCycle(), bare, ("time",))
    assert found.keys() == {"value/time", "value_standard_error/time"}


def test_a_model_that_is_not_finite_breaks_off_a_test() -> None:
    model = ExactCycle(late=torch.nan)
    with pytest.raises(RunError, match="128 of 128 modelled states are not finite"):
        measured(model, cycle_rollouts([0, 1], 9), test_samples=64, value_samples=2)


def lines(model: ExactCycle, rollouts: Rollouts, rewards: tuple[str, ...], **options: Any) -> list[str]:
    found = {f"test/{name}": value for name, value in measured(model, rollouts, rewards, **options).items()}
    return FutureTests(**options).lines(found, rewards)


def test_a_report_has_a_line_for_each_thing_measured() -> None:
    rewards = ("time", "late")
    report = lines(ExactCycle(), cycle_rollouts([0], 60), rewards)
    assert [line.split()[0] for line in report] == ["distance", "likelihood", "value", "value"]
    assert "roll-outs 25" in report[2]
    bare = dataclasses.replace(cycle_rollouts([0], 3), states=None, length=None, ended=None)
    alone = lines(ExactCycle(), bare, rewards)
    assert [line.split()[1] for line in alone] == ["time:", "late:"]
    assert not any("roll-outs" in line for line in alone)


def test_a_report_of_other_discounts_alone_names_them() -> None:
    report = lines(ExactCycle(), cycle_rollouts([0], 60), ("time",), discounts=(0.5, 0.25))
    kinds = ("distance", "likelihood", "value")
    assert [line.split()[0] for line in report] == [f"{kind}@{g}" for g in (0.5, 0.25) for kind in kinds]


@one_test
@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("val_samples", 1, 2),
        ("test_samples", 1, 2),
        ("value_samples", 1, 2),
        ("likelihood_samples", -1, 0),
        ("num_actions", -1, 0),
        ("action_samples", 1, 2),
        ("predict_samples", 0, 1),
    ],
)
def test_a_count_out_of_range_is_refused(name: str, value: int, least: int) -> None:
    count: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {value}"):
        FutureTests(**count)
