import itertools
import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import (
    AffinePath,
    CosineSchedule,
    LinearSchedule,
    Schedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from flowmatch_rl.shapes import append_dims
from flowmatch_rl.solvers import RK4, Euler
from flowmatch_rl.types import Prediction
from tests.combinations import each_value
from tests.families import SCHEDULES
from tests.oracles import F64, ONE_D, TWO_D, GaussianMixture, normal, stratified_normal, uniform

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
PAIRS = list(itertools.permutations(PREDICTIONS, 2))
ENDS = [
    (LinearSchedule(), 1.0, 0.02),
    (LinearSchedule(sigma_min=0.1), 1.0, 0.02),
    (CosineSchedule(), 1.0, 0.007),
    # Its sigma has an unbounded slope at t = 1.
    (VariancePreservingSchedule(), 0.999, 0.007),
]
"""Schedules with the time to stop at and the distance allowed to 50 Euler steps."""


def all_predictions(path: AffinePath, x_0: Tensor, x_1: Tensor, t: Tensor) -> dict[Prediction, Tensor]:
    """The four predictions at a point of the path whose end points are known."""
    return {
        "velocity": path.conditional_velocity(x_0, x_1, t),
        "data": x_1,
        "noise": x_0,
        "score": -x_0 / append_dims(path.schedule.sigma(t), like=x_0),
    }


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversions_agree_with_the_definitions_and_return_to_the_start(
    source: Prediction, target: Prediction, schedule: Schedule
) -> None:
    path = AffinePath(schedule)
    t = torch.linspace(0.05, 0.95, 7, dtype=F64)
    x_0, x_1 = normal(7, 7, seed=1), normal(7, 7, seed=2)
    x_t = path.sample(x_0, x_1, t)
    known = all_predictions(path, x_0, x_1, t)
    there = path.convert(known[source], x_t, t, source, target)
    torch.testing.assert_close(there, known[target], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path.convert(there, x_t, t, target, source), known[source], rtol=1e-10, atol=1e-10)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversions_agree_with_the_posterior_of_a_mixture_and_return_to_the_start(
    source: Prediction, target: Prediction, schedule: Schedule
) -> None:
    path = AffinePath(schedule)
    t = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98], dtype=F64)
    x_t = path.sample(normal(7, 2, seed=1), TWO_D.draw(7, seed=2), t)
    known = all_predictions(path, *TWO_D.posterior_means(x_t, schedule.alpha(t), schedule.sigma(t)), t)
    there = path.convert(known[source], x_t, t, source, target)
    torch.testing.assert_close(there, known[target], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path.convert(there, x_t, t, target, source), known[source], rtol=1e-10, atol=1e-10)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_of_a_prediction_follows_from_the_target_of_every_other(
    prediction: Prediction, schedule: Schedule
) -> None:
    path = AffinePath(schedule)
    t = torch.linspace(0.05, 0.95, 3, dtype=F64)
    x_0, x_1 = normal(3, 3, seed=1), normal(3, 3, seed=2)
    x_t, target = path.sample(x_0, x_1, t), path.target(prediction, x_0, x_1, t)
    torch.testing.assert_close(target, all_predictions(path, x_0, x_1, t)[prediction])
    for other in PREDICTIONS:
        converted = path.convert(path.target(other, x_0, x_1, t), x_t, t, other, prediction)
        torch.testing.assert_close(target, converted, rtol=1e-10, atol=1e-10)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("source", "target"), [*PAIRS, ("score", "score")])
def test_the_coefficients_of_a_conversion_are_its_derivatives(
    source: Prediction, target: Prediction, schedule: Schedule
) -> None:
    path = AffinePath(schedule)
    t = torch.linspace(0.05, 0.95, 5, dtype=F64)
    value, x_t = normal(5, 1, seed=1).requires_grad_(), normal(5, 1, seed=2).requires_grad_()
    converted = path.convert(value, x_t, t, source, target) + 0.0 * x_t  # one of itself does not depend on x_t
    by_point, by_value = torch.autograd.grad(converted.sum(), (x_t, value))
    of_point, of_value = path.conversion(t, source, target)
    assert of_point.shape == of_value.shape == t.shape
    torch.testing.assert_close(of_point, by_point[:, 0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(of_value, by_value[:, 0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=repr)
@pytest.mark.parametrize(("source", "target", "end"), [("data", "noise", 1.0), ("noise", "data", 0.0)])
def test_an_error_counts_without_bound_where_the_point_already_says_the_same(
    source: Prediction, target: Prediction, end: float, schedule: Schedule
) -> None:
    t = torch.tensor([abs(end - gap) for gap in (1e-2, 1e-4, 1e-6)], dtype=F64)
    size = AffinePath(schedule).conversion(t, source, target)[1].abs()
    assert (size[1:] > 50.0 * size[:-1]).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_diffusion_is_the_rate_at_which_noise_gains_on_the_signal(schedule: Schedule) -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=F64, requires_grad=True)
    log_ratio = (schedule.alpha(t) / schedule.sigma(t)).log()
    (slope,) = torch.autograd.grad(log_ratio.sum(), t)
    expected = 2.0 * schedule.sigma(t.detach()).square() * slope
    torch.testing.assert_close(AffinePath(schedule).diffusion(t.detach()), expected, rtol=1e-10, atol=1e-10)


def test_the_diffusions_are_those_of_the_textbook() -> None:
    t = torch.linspace(0.05, 0.95, 7, dtype=F64)
    age = (1.0 - t).requires_grad_()
    preserving = AffinePath(VariancePreservingSchedule(0.4, 7.0)).diffusion(t)
    torch.testing.assert_close(preserving, 0.4 + 6.6 * (1.0 - t), rtol=1e-12, atol=1e-12)
    exploding = AffinePath(VarianceExplodingSchedule(0.3, 9.0)).diffusion(t)
    (growth,) = torch.autograd.grad((0.3 * (9.0 / 0.3) ** age).square().sum(), age)
    torch.testing.assert_close(exploding, growth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(AffinePath().diffusion(t), 2.0 * (1.0 - t) / t, rtol=1e-12, atol=1e-12)
    cosine = AffinePath(CosineSchedule()).diffusion(t)
    torch.testing.assert_close(cosine, math.pi / torch.tan(0.5 * math.pi * t), rtol=1e-12, atol=1e-12)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("shape", [(), (1,), (3, 3)])
def test_scaled_points_have_unit_variance_where_both_ends_have(schedule: Schedule, shape: tuple[int, ...]) -> None:
    path, t = AffinePath(schedule), 0.05 + 0.9 * uniform(*shape, seed=1)
    scale = path.input_scale(t)
    assert scale.shape == shape
    # Ends that take the four pairs of signs equally often are uncorrelated and of unit variance.
    signs = torch.tensor([-1.0, 1.0], dtype=F64)
    x_0, x_1 = (side.flatten() for side in torch.meshgrid(signs, signs, indexing="ij"))
    x_t = path.sample(x_0.expand(*shape, 4), x_1.expand(*shape, 4), t)
    torch.testing.assert_close((append_dims(scale, like=x_t) * x_t).square().mean(-1), torch.ones_like(t))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_converts_to_itself_unchanged_even_at_the_ends(prediction: Prediction) -> None:
    value, x_t = normal(2, 3, seed=1), normal(2, 3, seed=2)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    assert torch.equal(AffinePath().convert(value, x_t, t, prediction, prediction), value)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=repr)
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_conversions_hold_at_the_ends_of_the_path_wherever_the_source_tells_something(
    schedule: Schedule, end: float
) -> None:
    path, t = AffinePath(schedule), torch.full((4,), end, dtype=F64)
    x_0, x_1 = normal(4, 3, seed=1), normal(4, 3, seed=2)
    x_t = path.sample(x_0, x_1, t)
    known = all_predictions(path, x_0, x_1, t)
    sources = ("velocity", "data") if end == 0.0 else ("velocity", "noise")
    for source, target in itertools.product(sources, ("velocity", "data", "noise")):
        torch.testing.assert_close(path.convert(known[source], x_t, t, source, target), known[target])


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=repr)
def test_a_finite_score_leaves_no_noise_at_the_data_end(schedule: Schedule) -> None:
    path, t = AffinePath(schedule), torch.ones(4, dtype=F64)
    x_t, score = normal(4, 3, seed=1), normal(4, 3, seed=2)
    torch.testing.assert_close(path.convert(score, x_t, t, "score", "data"), x_t)
    torch.testing.assert_close(path.convert(score, x_t, t, "score", "noise"), torch.zeros_like(x_t))
    velocity = schedule.d_alpha(t)[:, None] * x_t
    torch.testing.assert_close(path.convert(score, x_t, t, "score", "velocity"), velocity)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_velocity_is_the_time_derivative_of_the_path(schedule: Schedule) -> None:
    path = AffinePath(schedule)
    x_0, x_1 = normal(5, 1, seed=1), normal(5, 1, seed=2)
    t = torch.linspace(0.1, 0.9, 5, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(path.sample(x_0, x_1, t).sum(), t)
    torch.testing.assert_close(path.conditional_velocity(x_0, x_1, t)[:, 0], slope)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_three_formulas_of_the_marginal_velocity_agree(schedule: Schedule) -> None:
    path = AffinePath(schedule)
    t = torch.linspace(0.05, 0.95, 8, dtype=F64)
    x_t = normal(8, 2, seed=3)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    d_alpha, d_sigma = schedule.d_alpha(t)[:, None], schedule.d_sigma(t)[:, None]
    x_0, x_1 = TWO_D.posterior_means(x_t, alpha, sigma)
    by_ends = path.conditional_velocity(x_0, x_1, t)
    alpha, sigma = alpha[:, None], sigma[:, None]
    by_noise = d_alpha / alpha * x_t + (alpha * d_sigma - d_alpha * sigma) / alpha * x_0
    by_data = d_sigma / sigma * x_t + (d_alpha * sigma - alpha * d_sigma) / sigma * x_1
    torch.testing.assert_close(by_ends, by_noise, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(by_ends, by_data, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path.convert(x_0, x_t, t, "noise", "velocity"), by_ends, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path.convert(x_1, x_t, t, "data", "velocity"), by_ends, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_posterior_means_convert_to_the_score_of_the_marginal(schedule: Schedule) -> None:
    t = torch.linspace(0.1, 0.9, 6, dtype=F64)
    x_t = normal(6, 2, seed=4).requires_grad_()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    (score,) = torch.autograd.grad(TWO_D.log_marginal(x_t, alpha, sigma).sum(), x_t)
    _, x_1 = TWO_D.posterior_means(x_t, alpha, sigma)
    torch.testing.assert_close(AffinePath(schedule).convert(x_1, x_t, t, "data", "score"), score)


@pytest.mark.parametrize(("schedule", "t_end", "allowed"), ENDS, ids=[repr(s) for s, _, _ in ENDS])
def test_the_exact_field_carries_the_noise_to_the_mixture(schedule: Schedule, t_end: float, allowed: float) -> None:
    path = AffinePath(schedule)

    def velocity(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        alpha, sigma = (c.expand(x.shape[0]) for c in (schedule.alpha(t), schedule.sigma(t)))
        return path.conditional_velocity(*ONE_D.posterior_means(x, alpha, sigma), t)

    def law_at(t: float) -> GaussianMixture:
        time = torch.tensor(t, dtype=F64)
        return ONE_D.at(schedule.alpha(time), schedule.sigma(time))

    start = law_at(0.0).quantiles(1000)
    if schedule.alpha(torch.zeros(())) == 0.0:
        torch.testing.assert_close(start, stratified_normal(1000))
    # On the line the flow keeps the order of its points, and the distance W1 is that of quantiles.
    for solver, limit in ((Euler(50), allowed), (RK4(50), 1e-3)):
        end = solver.integrate(velocity, start[:, None], 0.0, t_end)[:, 0]
        assert (end - law_at(t_end).quantiles(1000)).abs().mean() < limit


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(
    ("t_shape", "x_shape"),
    [((), (3, 3)), ((3,), (3, 3)), ((1,), (1, 1)), ((2,), (2, 4, 3)), ((2, 4), (2, 4, 3)), ((4, 4), (4, 4, 4))],
)
def test_times_of_any_prefix_shape_equal_a_loop_over_samples(
    schedule: Schedule, t_shape: tuple[int, ...], x_shape: tuple[int, ...]
) -> None:
    path = AffinePath(schedule)
    t = 0.1 + 0.8 * uniform(*t_shape, seed=5)
    x_0, x_1 = normal(*x_shape, seed=6), normal(*x_shape, seed=7)
    x_t, velocity = path.sample(x_0, x_1, t), path.conditional_velocity(x_0, x_1, t)
    noise = path.convert(velocity, x_t, t, "velocity", "noise")
    torch.testing.assert_close(noise, x_0)
    for index in itertools.product(*map(range, t_shape)):
        time = t[index]
        expected = schedule.alpha(time) * x_1[index] + schedule.sigma(time) * x_0[index]
        torch.testing.assert_close(x_t[index], expected)
        slope = schedule.d_alpha(time) * x_1[index] + schedule.d_sigma(time) * x_0[index]
        torch.testing.assert_close(velocity[index], slope)


def test_shapes_that_would_broadcast_are_refused() -> None:
    path, x, t = AffinePath(), torch.zeros(4, 3), torch.full((4,), 0.5)
    for other in (torch.zeros(4, 1), torch.zeros(3), torch.zeros(4), torch.zeros(1, 3)):
        for call in (path.sample, path.conditional_velocity):
            with pytest.raises(ValueError, match="equal shapes"):
                call(other, x, t)
        with pytest.raises(ValueError, match="equal shapes"):
            path.convert(other, x, t, "data", "noise")
    for time in (torch.full((3,), 0.5), torch.full((4, 1, 1), 0.5), torch.full((5,), 0.5)):
        for call in (path.sample, path.conditional_velocity):
            with pytest.raises(ValueError, match="prefix"):
                call(x, x, time)
        for source, target in (*PAIRS, ("data", "data")):
            with pytest.raises(ValueError, match="prefix"):
                path.convert(x, x, time, source, target)


def test_an_unknown_prediction_is_named() -> None:
    x, t = torch.zeros(4, 3), torch.full((4,), 0.5)
    with pytest.raises(ValueError, match="'epsilon'"):
        AffinePath().convert(x, x, t, "data", "epsilon")
    with pytest.raises(ValueError, match="'epsilon'"):
        AffinePath().target("epsilon", x, x, t)


@each_value
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise", "score"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_output_scale_is_the_root_mean_square_of_the_target(schedule: Schedule, prediction: Prediction) -> None:
    path, t = AffinePath(schedule), torch.linspace(0.05, 0.95, 5, dtype=F64)
    x_0, x_1 = normal(5, 20_000, seed=0), normal(5, 20_000, seed=1)
    target = path.target(prediction, x_0, x_1, t)
    torch.testing.assert_close(path.output_scale(t, prediction), target.square().mean(1).sqrt(), rtol=0.02, atol=0.0)


@each_value
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_guess_for_normal_data_is_its_exact_prediction(schedule: Schedule, prediction: Prediction) -> None:
    path, x, t = AffinePath(schedule), normal(50, 3, seed=1), 0.05 + 0.9 * uniform(50, seed=2)
    law = GaussianMixture.of([1.0], [[0.0, 0.0, 0.0]], [1.0])
    x_0, x_1 = law.posterior_means(x, schedule.alpha(t), schedule.sigma(t))
    torch.testing.assert_close(path.normal_guess(t, prediction)[:, None] * x, path.target(prediction, x_0, x_1, t))
