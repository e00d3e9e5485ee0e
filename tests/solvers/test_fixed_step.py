import itertools
import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.shapes import append_dims
from flowmatch_rl.solvers import RK4, Euler, Midpoint, Solver
from tests.combinations import each_value, one_test
from tests.families import SOLVERS
from tests.oracles import F64, normal, uniform

SOLVER_TYPES = [solver for solver, _ in SOLVERS]
STEPS = {1: (160, 320), 2: (80, 160), 4: (20, 40)}
"""Numbers of steps, by order, between which the error falls well above rounding and far enough down its tail."""


def pull(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """A field that depends on place, time and condition without being linear in any."""
    t = append_dims(t, like=x)
    extra = 0.0 if condition is None else torch.sin(condition).sum(-1, keepdim=True)
    return torch.cos(3.0 * t + x) - 0.5 * x * t + extra


def decay(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """The field ``-(1 + 2 t) x^2``, whose solutions are ``1 / (t + t^2 + const)``."""
    return -(1.0 + 2.0 * append_dims(t, like=x)) * x.square()


def decayed(x: Tensor, t_start: float, t_end: float) -> Tensor:
    return 1.0 / (1.0 / x + t_end + t_end**2 - t_start - t_start**2)


@each_value
@pytest.mark.parametrize(("t_start", "t_end"), [(0.0, 1.0), (0.7, 0.1)])
@pytest.mark.parametrize(("solver", "order"), SOLVERS)
def test_the_error_falls_with_the_stated_order(solver: type[Solver], order: int, t_start: float, t_end: float) -> None:
    x = torch.tensor([[0.3], [0.45], [0.6]], dtype=F64)
    exact = decayed(x, t_start, t_end)
    coarse, fine = ((solver(n).integrate(decay, x, t_start, t_end) - exact).abs().max().item() for n in STEPS[order])
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", SOLVER_TYPES)
def test_a_constant_field_is_followed_exactly_by_one_step(solver: type[Solver]) -> None:
    x, v = normal(3, 3, seed=1), normal(3, 3, seed=2)
    end = solver(1).integrate(lambda x, t, c: v, x, 0.2, 0.9)
    torch.testing.assert_close(end, x + 0.7 * v)


@pytest.mark.parametrize(("solver", "order"), SOLVERS)
def test_one_step_reproduces_the_taylor_series_up_to_its_order(solver: type[Solver], order: int) -> None:
    h = 0.3
    end = solver(1).integrate(lambda x, t, c: x, torch.ones(1, 1, dtype=F64), 0.0, h)
    assert end.item() == pytest.approx(sum(h**k / math.factorial(k) for k in range(order + 1)), rel=1e-14)


@pytest.mark.parametrize(("solver", "order"), SOLVERS)
def test_a_field_of_time_alone_is_integrated_exactly_up_to_the_order_less_one(solver: type[Solver], order: int) -> None:
    def velocity(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return (order * t ** (order - 1)).expand_as(x)

    end = solver(3).integrate(velocity, torch.zeros(2, 1, dtype=F64), 0.3, 0.8)
    torch.testing.assert_close(end, torch.full_like(end, 0.8**order - 0.3**order))


@each_value
@pytest.mark.parametrize("solver", SOLVER_TYPES)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_end_times_per_sample_equal_a_loop_over_samples(solver: type[Solver], size: int) -> None:
    x, condition = normal(size, 3, seed=1), normal(size, 2, seed=2)
    t_start, t_end = 0.5 * uniform(size, seed=3), uniform(size, seed=4)
    together = solver(4).integrate(pull, x, t_start, t_end, condition)
    alone = [
        solver(4).integrate(pull, x[b : b + 1], t_start[b].item(), t_end[b].item(), condition[b : b + 1])
        for b in range(size)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


@each_value
@pytest.mark.parametrize("solver", SOLVER_TYPES)
@pytest.mark.parametrize(("batch", "particles", "dims"), [(2, 5, 3), (3, 3, 3), (1, 4, 1), (4, 1, 2)])
def test_particles_with_a_shared_condition_equal_a_loop_for_every_shape_of_the_times(
    solver: type[Solver], batch: int, particles: int, dims: int
) -> None:
    x, condition = normal(batch, particles, dims, seed=1), normal(batch, 1, 2, seed=2)
    starts = [torch.tensor(0.1, dtype=F64), 0.4 * uniform(batch, seed=3), 0.4 * uniform(batch, particles, seed=4)]
    ends = [torch.tensor(0.9, dtype=F64), uniform(batch, seed=5), uniform(batch, particles, seed=6)]
    for t_start, t_end in itertools.product(starts, ends):
        together = solver(3).integrate(pull, x, t_start, t_end, condition)
        first = append_dims(t_start, like=x[..., 0]).expand(batch, particles)
        last = append_dims(t_end, like=x[..., 0]).expand(batch, particles)
        for b, n in itertools.product(range(batch), range(particles)):
            alone = solver(3).integrate(pull, x[b, n][None], first[b, n], last[b, n], condition[b])
            torch.testing.assert_close(together[b, n], alone[0])


@pytest.mark.parametrize("solver", SOLVER_TYPES)
def test_integrating_back_returns_to_the_start(solver: type[Solver]) -> None:
    x = normal(4, 4, seed=1)
    t_end = torch.tensor([0.2, 0.5, 0.9, 1.0], dtype=F64)
    errors = []
    for steps in (50, 200):
        end = solver(steps).integrate(pull, x, 0.1, t_end)
        assert (end - x).abs().max() > 0.1
        errors.append((solver(steps).integrate(pull, end, t_end, 0.1) - x).abs().max().item())
    assert errors[0] < 0.05
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize(("solver", "order"), SOLVERS)
def test_the_way_there_and_back_misses_the_start_by_no_more_than_the_order_allows(
    solver: type[Solver], order: int
) -> None:
    x, t_end, misses = torch.tensor([[0.3], [0.45], [0.6]], dtype=F64), torch.tensor([0.5, 0.9, 1.0], dtype=F64), []
    for steps in STEPS[order]:
        there = solver(steps).integrate(decay, x, 0.0, t_end)
        assert (there - x).abs().min() > 0.05
        misses.append((solver(steps).integrate(decay, there, t_end, 0.0) - x).abs().max().item())
    # Errors of an even order cancel between the two ways, and the next order is left.
    expected = order if order % 2 else order + 1
    assert math.log2(misses[0] / misses[1]) == pytest.approx(expected, abs=0.1)


def test_fourth_order_integration_back_is_exact_to_rounding_of_the_eighth_digit() -> None:
    x = normal(4, 4, seed=1)
    there = RK4(100).integrate(pull, x, 0.0, 1.0)
    torch.testing.assert_close(RK4(100).integrate(pull, there, 1.0, 0.0), x, rtol=1e-8, atol=1e-8)


@each_value
@pytest.mark.parametrize("solver", SOLVER_TYPES)
@pytest.mark.parametrize("t_shape", [(), (3,), (3, 3)])
def test_a_trajectory_holds_every_state_and_ends_where_integration_does(
    solver: type[Solver], t_shape: tuple[int, ...]
) -> None:
    x = normal(3, 3, 2, seed=1)
    t_end = 0.5 + 0.5 * uniform(*t_shape, seed=2)
    times, states = solver(5).trajectory(pull, x, 0.1, t_end)
    assert times.shape == (6, *t_shape)
    assert states.shape == (6, 3, 3, 2)
    assert torch.equal(states[0], x)
    assert torch.equal(states[-1], solver(5).integrate(pull, x, 0.1, t_end))
    torch.testing.assert_close(times[0], torch.full(t_shape, 0.1, dtype=F64))
    torch.testing.assert_close(times[-1], t_end)
    torch.testing.assert_close(times.diff(dim=0), ((t_end - 0.1) / 5).expand(5, *t_shape))
    for k in range(5):
        one = solver(1).integrate(pull, states[k], times[k], times[k + 1])
        torch.testing.assert_close(one, states[k + 1])


@each_value
@pytest.mark.parametrize("solver", SOLVER_TYPES)
@pytest.mark.parametrize("t_start", [0.0, 0.25, torch.tensor([0.1, 0.2])])
def test_the_field_is_asked_at_places_times_and_conditions_of_the_stated_shape(
    solver: type[Solver], t_start: Tensor | float
) -> None:
    x, condition, asked = normal(2, 7, 3, seed=1, dtype=torch.float32), torch.ones(2, 1, 4), []

    def velocity(x: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
        asked.append((x.shape, t.shape, t.dtype, c))
        assert (t >= 0.0).all()
        assert (t <= 1.0 + 1e-6).all()  # a sum of steps may round past the end
        return torch.ones_like(x)

    solver(2).integrate(velocity, x, t_start, 1.0, condition)
    t_shape = () if isinstance(t_start, float) else (2,)
    assert asked
    assert all(a[:3] == ((2, 7, 3), t_shape, torch.float32) and a[3] is condition for a in asked)


def test_the_start_is_left_as_it_was_and_gradient_reaches_it() -> None:
    x = normal(2, 3, seed=1).requires_grad_()
    before = x.detach().clone()
    end = Midpoint(3).integrate(pull, x, 0.0, 1.0)
    (gradient,) = torch.autograd.grad(end.sum(), x)
    assert torch.equal(x.detach(), before)
    shift = torch.full_like(x, 1e-6)
    with torch.no_grad():
        change = (Midpoint(3).integrate(pull, x + shift, 0.0, 1.0) - end).sum() / 1e-6
    torch.testing.assert_close(change, gradient.sum(), rtol=1e-4, atol=1e-4)


def test_zero_length_moves_nothing() -> None:
    x, t = normal(3, 2, seed=1), uniform(3, seed=2)
    assert torch.equal(RK4(3).integrate(pull, x, t, t), x)


@one_test
@pytest.mark.parametrize("solver", SOLVER_TYPES)
@pytest.mark.parametrize("bad", [(5,), (1, 3), (3, 4, 2, 1), (3, 2), (4,)])
def test_times_that_are_no_prefix_are_refused(solver: type[Solver], bad: tuple[int, ...]) -> None:
    x = torch.zeros(3, 4, 2)
    for t_start, t_end in ((torch.zeros(bad), 1.0), (0.0, torch.ones(bad))):
        with pytest.raises(ValueError, match="prefix"):
            solver().integrate(pull, x, t_start, t_end)
        with pytest.raises(ValueError, match="prefix"):
            solver().trajectory(pull, x, t_start, t_end)


@one_test
@pytest.mark.parametrize("solver", SOLVER_TYPES)
@pytest.mark.parametrize("num_steps", [0, -3])
def test_a_number_of_steps_below_one_is_named(solver: type[Solver], num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_steps}"):
        solver(num_steps)


def test_euler_takes_the_slope_at_the_start_of_each_step() -> None:
    x = torch.zeros(1, 1, dtype=F64)
    assert Euler(2).integrate(lambda x, t, c: t.expand_as(x), x, 0.0, 1.0).item() == 0.25


@pytest.mark.parametrize("solver", SOLVER_TYPES)
def test_the_same_solver_takes_another_number_of_steps(solver: type[Solver]) -> None:
    other = solver(4).with_steps(7)
    assert other == solver(7)
    assert (solver(4).steps, other.steps) == (4, 7)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        other.with_steps(0)
