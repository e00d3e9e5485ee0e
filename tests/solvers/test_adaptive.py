import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.paths import AffinePath, Schedule
from flowmatch_rl.shapes import append_dims
from flowmatch_rl.solvers import AdaptiveSolver
from tests.combinations import each_value, one_test
from tests.families import ADAPTIVE_SOLVERS, SCHEDULES
from tests.oracles import F64, ONE_D, normal, uniform


def decay(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """The field ``-(1 + 2 t) x^2``, whose solutions are ``1 / (t + t^2 + const)``."""
    return -(1.0 + 2.0 * append_dims(t, like=x)) * x.square()


def decayed(x: Tensor, t_start: Tensor | float, t_end: Tensor | float) -> Tensor:
    start, end = (append_dims(torch.as_tensor(t, dtype=F64), like=x) for t in (t_start, t_end))
    return 1.0 / (1.0 / x + end + end**2 - start - start**2)


@each_value
@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS, ids=repr)
@pytest.mark.parametrize(("t_start", "t_end"), [(0.0, 1.0), (0.9, 0.2)])
def test_growth_at_a_constant_rate_is_the_exponential(solver: AdaptiveSolver, t_start: float, t_end: float) -> None:
    x, rates = normal(3, 3, seed=1), torch.tensor([-2.0, 0.5, 3.0], dtype=F64)
    end = solver.integrate(lambda x, t, c: rates * x, x, t_start, t_end)
    torch.testing.assert_close(end, x * torch.exp(rates * (t_end - t_start)), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
def test_the_error_falls_with_the_tolerance(method: str) -> None:
    x = torch.tensor([[0.3], [0.45], [0.6]], dtype=F64)
    exact, errors = decayed(x, 0.0, 1.0), []
    for tolerance in (1e-3, 1e-6, 1e-9):
        end = AdaptiveSolver(method, tolerance, tolerance).integrate(decay, x, 0.0, 1.0)
        errors.append((end - exact).abs().max().item())
        assert errors[-1] < 10.0 * tolerance
    assert errors[2] < 1e-2 * errors[0]


@each_value
@pytest.mark.parametrize("t_end", [0.999, 1.0 - 1e-6])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS, ids=repr)
def test_the_exact_field_of_a_mixture_carries_quantiles_to_quantiles(
    solver: AdaptiveSolver, schedule: Schedule, t_end: float
) -> None:
    path = AffinePath(schedule)

    def velocity(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        alpha, sigma = (c.expand(len(x)) for c in (schedule.alpha(t), schedule.sigma(t)))
        return path.conditional_velocity(*ONE_D.posterior_means(x, alpha, sigma), t)

    def quantiles(t: float) -> Tensor:
        time = torch.tensor(t, dtype=F64)
        return ONE_D.at(schedule.alpha(time), schedule.sigma(time)).quantiles(101)[:, None]

    start, end = quantiles(0.3), quantiles(t_end)
    assert (start - end).abs().max() > 0.1
    torch.testing.assert_close(solver.integrate(velocity, start, 0.3, t_end), end, rtol=0, atol=3e-3)
    torch.testing.assert_close(solver.integrate(velocity, end, t_end, 0.3), start, rtol=0, atol=3e-3)


@each_value
@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS, ids=repr)
@pytest.mark.parametrize(("t_start", "t_end"), [(0.0, 1.0), (1.0, 0.0), (0.3, 0.4)])
@pytest.mark.parametrize("speed", [0.0, 1e-4, 1.0, 30.0])
def test_the_field_is_never_asked_beyond_the_interval(
    solver: AdaptiveSolver, t_start: float, t_end: float, speed: float
) -> None:
    asked = []

    def velocity(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        asked.append(t.item())
        return speed * torch.cos(x + t)

    solver.trajectory(velocity, normal(3, 2, seed=1), t_start, t_end)
    assert min(asked) >= min(t_start, t_end) - 1e-12
    assert max(asked) <= max(t_start, t_end) + 1e-12


@each_value
@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS, ids=repr)
@pytest.mark.parametrize("t_shape", [(4,), (1,), (4, 3), (4, 1)])
def test_every_sample_has_its_own_interval(solver: AdaptiveSolver, t_shape: tuple[int, ...]) -> None:
    x = 0.2 + 0.2 * uniform(4, 3, 2, seed=1)
    t_start, t_end = uniform(*t_shape, seed=2), uniform(*t_shape, seed=3)
    end = solver.integrate(decay, x, t_start, t_end)
    torch.testing.assert_close(end, decayed(x, t_start, t_end), rtol=1e-3, atol=1e-3)
    one_sided = solver.integrate(decay, x, 0.1, t_end)
    torch.testing.assert_close(one_sided, decayed(x, 0.1, t_end), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS, ids=repr)
def test_integrating_back_returns_to_the_start(solver: AdaptiveSolver) -> None:
    x, t_end = 0.3 + 0.3 * uniform(4, 4, seed=1), torch.tensor([0.2, 0.5, 0.9, 1.0], dtype=F64)
    there = solver.integrate(decay, x, 0.1, t_end)
    assert (there - x).abs().amax(1).min() > 0.01
    torch.testing.assert_close(solver.integrate(decay, there, t_end, 0.1), x, rtol=1e-3, atol=1e-3)


@each_value
@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS, ids=repr)
@pytest.mark.parametrize("t_shape", [(), (3,), (3, 3)])
def test_a_trajectory_has_the_stated_points_on_the_solution(solver: AdaptiveSolver, t_shape: tuple[int, ...]) -> None:
    x, t_end = 0.3 + 0.3 * uniform(3, 3, 2, seed=1), 0.5 + 0.5 * uniform(*t_shape, seed=2)
    times, states = solver.trajectory(decay, x, 0.1, t_end)
    assert times.shape == (21, *t_shape)
    assert states.shape == (21, 3, 3, 2)
    assert torch.equal(states[0], x)
    torch.testing.assert_close(times.diff(dim=0), ((t_end - 0.1) / 20).expand(20, *t_shape))
    torch.testing.assert_close(times[0], torch.full(t_shape, 0.1, dtype=F64))
    torch.testing.assert_close(times[-1], t_end)
    for t, state in zip(times, states, strict=True):
        torch.testing.assert_close(state, decayed(x, 0.1, t), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(states[-1], solver.integrate(decay, x, 0.1, t_end), rtol=1e-12, atol=1e-12)


def test_the_number_of_points_does_not_change_the_steps() -> None:
    x, counts = 0.3 + 0.3 * uniform(3, 1, seed=1), []
    for points in (2, 5, 50):
        asked = []

        def velocity(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
            asked.append(t.item())  # noqa: B023 (called at once)
            return decay(x, t, condition)

        assert len(AdaptiveSolver(num_points=points).trajectory(velocity, x, 0.0, 1.0)[0]) == points
        counts.append(asked)
    assert counts[0] == counts[1] == counts[2]


def test_an_interval_of_no_length_moves_nothing() -> None:
    x, t = normal(3, 2, seed=1), uniform(3, seed=2)
    torch.testing.assert_close(AdaptiveSolver().integrate(decay, x, t, t), x, rtol=0, atol=1e-12)


def test_single_precision_and_the_condition_are_passed_on() -> None:
    x, condition, asked = normal(2, 3, seed=1, dtype=torch.float32), torch.ones(2, 4), []

    def velocity(x: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        asked.append((x.dtype, t.dtype, t.shape, c))
        return -x

    end = AdaptiveSolver().integrate(velocity, x, torch.tensor([0.0, 0.5]), 1.0, condition)
    assert end.dtype == torch.float32
    torch.testing.assert_close(end, x * torch.tensor([[math.exp(-1.0)], [math.exp(-0.5)]]), rtol=1e-4, atol=1e-4)
    assert all(a[:3] == (torch.float32, torch.float32, (2,)) and a[3] is condition for a in asked)


@one_test
@pytest.mark.parametrize("bad", [(5,), (1, 3), (3, 4, 2, 1), (3, 2), (4,)])
def test_times_that_are_no_prefix_are_refused(bad: tuple[int, ...]) -> None:
    x = torch.zeros(3, 4, 2)
    for t_start, t_end in ((torch.zeros(bad), 1.0), (0.0, torch.ones(bad))):
        with pytest.raises(ValueError, match="prefix"):
            AdaptiveSolver().integrate(decay, x, t_start, t_end)
        with pytest.raises(ValueError, match="prefix"):
            AdaptiveSolver().trajectory(decay, x, t_start, t_end)


@one_test
@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda: AdaptiveSolver(rtol=0.0), "rtol must be positive, got 0.0"),
        (lambda: AdaptiveSolver(atol=-1.0), "atol must be positive, got -1.0"),
        (lambda: AdaptiveSolver(rtol=math.nan), "rtol must be positive, got nan"),
        (lambda: AdaptiveSolver(num_points=1), "num_points must be at least 2, got 1"),
    ],
)
def test_a_bad_constructor_argument_is_named(build: object, value: str) -> None:
    with pytest.raises(UserError, match=value):
        build()


@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS, ids=repr)
def test_its_steps_follow_from_the_error_alone(solver: AdaptiveSolver) -> None:
    assert solver.steps is None
    assert solver.with_steps(7) is None
