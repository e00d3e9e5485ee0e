import math

import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.paths import (
    CosineSchedule,
    LinearSchedule,
    Schedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from tests.combinations import each_value, one_test
from tests.families import SCHEDULES
from tests.oracles import F64

TIMES = torch.linspace(0.05, 0.95, 19, dtype=F64)


@each_value
@pytest.mark.parametrize("coefficient", ["alpha", "sigma"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_declared_derivative_matches_autograd(schedule: Schedule, coefficient: str) -> None:
    t = TIMES.clone().requires_grad_()
    value = getattr(schedule, coefficient)(t) + 0.0 * t  # a constant depends on t as well
    (slope,) = torch.autograd.grad(value.sum(), t)
    torch.testing.assert_close(getattr(schedule, f"d_{coefficient}")(t), slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_path_runs_from_noise_to_data(schedule: Schedule) -> None:
    start, end = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    assert schedule.alpha(start).abs() <= 0.02 * schedule.sigma(start)
    assert schedule.alpha(end) == 1.0
    assert schedule.sigma(end) <= 0.1
    t = torch.linspace(0.0, 1.0, 101, dtype=F64)
    assert (schedule.alpha(t).diff() >= 0).all()
    assert (schedule.sigma(t).diff() < 0).all()


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if not isinstance(s, VarianceExplodingSchedule)], ids=repr)
def test_paths_that_do_not_explode_start_from_a_standard_normal(schedule: Schedule) -> None:
    start = torch.zeros((), dtype=F64)
    assert schedule.alpha(start).abs() < 0.01
    assert (schedule.sigma(start) - 1.0).abs() < 1e-4


def test_exploding_noise_is_geometric_between_its_bounds() -> None:
    schedule = VarianceExplodingSchedule(sigma_min=0.5, sigma_max=8.0)
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=F64)
    torch.testing.assert_close(schedule.sigma(t), torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5], dtype=F64))
    assert (schedule.alpha(t) == 1.0).all()


@one_test
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 3), (2, 1, 1)])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_coefficients_keep_the_shape_and_type_of_the_times(
    schedule: Schedule, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    t = torch.full(shape, 0.4, dtype=dtype)
    for coefficient in (schedule.alpha, schedule.sigma, schedule.d_alpha, schedule.d_sigma):
        assert coefficient(t).shape == shape
        assert coefficient(t).dtype == dtype


@pytest.mark.parametrize("schedule", [CosineSchedule(), VariancePreservingSchedule()], ids=repr)
def test_variance_preserving_coefficients_have_squares_that_sum_to_one(schedule: Schedule) -> None:
    torch.testing.assert_close(schedule.alpha(TIMES) ** 2 + schedule.sigma(TIMES) ** 2, torch.ones_like(TIMES))


@pytest.mark.parametrize("sigma_min", [0.0, 0.1, 0.5])
def test_linear_path_leaves_sigma_min_of_the_noise(sigma_min: float) -> None:
    schedule = LinearSchedule(sigma_min)
    torch.testing.assert_close(schedule.alpha(TIMES), TIMES)
    torch.testing.assert_close(schedule.sigma(TIMES), (1 - TIMES) * 1.0 + TIMES * sigma_min)


def test_cosine_coefficients_are_those_of_an_angle() -> None:
    t = torch.tensor([0.0, 1.0 / 3.0, 0.5, 1.0], dtype=F64)
    torch.testing.assert_close(CosineSchedule().alpha(t), torch.tensor([0.0, 0.5, math.sqrt(0.5), 1.0], dtype=F64))


@pytest.mark.parametrize(("beta_min", "beta_max"), [(0.1, 20.0), (1.0, 1.0), (0.5, 4.0)])
def test_variance_preserving_signal_decays_with_the_integral_of_the_noise_rate(
    beta_min: float, beta_max: float
) -> None:
    schedule = VariancePreservingSchedule(beta_min, beta_max)
    for t in (0.0, 0.3, 0.9):
        ages = torch.linspace(0.0, 1.0 - t, 1001, dtype=F64)
        rates = beta_min + (beta_max - beta_min) * ages
        alpha = torch.exp(-0.5 * torch.trapezoid(rates, ages))
        torch.testing.assert_close(schedule.alpha(torch.tensor(t, dtype=F64)), alpha)
    at_start = schedule.alpha(torch.zeros((), dtype=F64)).item()
    assert at_start == pytest.approx(math.exp(-(beta_min + beta_max) / 4.0), rel=1e-12)


def test_little_noise_near_the_data_is_not_lost_to_rounding() -> None:
    schedule = VariancePreservingSchedule()
    t = torch.tensor(1.0 - 1e-7, dtype=F64)
    assert schedule.sigma(t).item() == pytest.approx(math.sqrt(0.1 * 1e-7), rel=1e-4)
    assert schedule.sigma(t.float()).item() == pytest.approx(schedule.sigma(t.float().double()).item(), rel=1e-3)


@one_test
@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda: LinearSchedule(-0.25), "-0.25"),
        (lambda: LinearSchedule(1.0), "1.0"),
        (lambda: LinearSchedule(math.nan), "nan"),
        (lambda: VariancePreservingSchedule(beta_min=0.0), "beta_min must be positive, got 0.0"),
        (lambda: VariancePreservingSchedule(beta_min=-1.5), "beta_min must be positive, got -1.5"),
        (lambda: VariancePreservingSchedule(beta_min=3.0, beta_max=2.5), "beta_max must be at least 3, got 2.5"),
    ],
)
def test_a_bad_constructor_argument_is_named(build: object, value: str) -> None:
    with pytest.raises(UserError, match=value):
        build()
