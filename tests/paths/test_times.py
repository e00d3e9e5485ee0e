import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.paths import (
    CosineMapTime,
    CosineSchedule,
    KumaraswamyTime,
    LinearSchedule,
    LogitNormalTime,
    TimeDistribution,
    UniformTime,
    UShapedTime,
    stratify,
)
from tests.combinations import each_value, one_test
from tests.families import TIME_DISTRIBUTIONS
from tests.oracles import F64, uniform


def density(distribution: TimeDistribution, t: Tensor) -> Tensor:
    """The stated density of a law of flow times."""
    match distribution:
        case UniformTime():
            return torch.ones_like(t)
        case LogitNormalTime(mean, scale):
            z = (torch.logit(t) - mean) / scale
            return torch.exp(-0.5 * z.square()) / (math.sqrt(2.0 * math.pi) * scale * t * (1.0 - t))
        case CosineMapTime():
            return 2.0 / (math.pi - 2.0 * math.pi * t + 2.0 * math.pi * t.square())
        case KumaraswamyTime(a, b):
            return a * b * t ** (a - 1.0) * (1.0 - t**a) ** (b - 1.0)
        case UShapedTime(sharpness):
            height = torch.cosh(sharpness * (t - 0.5))
            return height * sharpness / (2.0 * math.sinh(0.5 * sharpness))
    raise AssertionError(f"no density stated for {distribution}")


def mass_below(distribution: TimeDistribution, t: Tensor) -> Tensor:
    """Integral of the density from 0 to each of the times, by Gauss-Legendre quadrature."""
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(200))
    return (density(distribution, 0.5 * t[:, None] * (nodes + 1.0)) * weights).sum(-1) * 0.5 * t


@pytest.mark.parametrize("distribution", TIME_DISTRIBUTIONS, ids=repr)
def test_the_quantile_function_increases_within_the_unit_interval(distribution: TimeDistribution) -> None:
    times = distribution.quantile(torch.linspace(0.001, 0.999, 999, dtype=F64))
    assert (times.diff() > 0).all()
    assert (times > 0).all()
    assert (times < 1).all()


@pytest.mark.parametrize(
    "distribution", [*TIME_DISTRIBUTIONS, KumaraswamyTime(2.5, 1.3), UShapedTime(9.0), UShapedTime(0.1)], ids=repr
)
def test_the_quantile_function_inverts_the_integral_of_the_density(distribution: TimeDistribution) -> None:
    shares = torch.linspace(0.005, 0.995, 100, dtype=F64)
    torch.testing.assert_close(mass_below(distribution, distribution.quantile(shares)), shares, rtol=0, atol=1e-7)


@one_test
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", TIME_DISTRIBUTIONS, ids=repr)
def test_the_ends_of_the_noise_give_times_within_the_closed_interval(
    distribution: TimeDistribution, dtype: torch.dtype
) -> None:
    ends = torch.tensor([0.0, 1e-12, 1.0 - 2.0**-24], dtype=dtype)
    times = distribution.quantile(ends)
    assert times.isfinite().all()
    assert times.amin() >= 0.0
    assert times.amax() <= 1.0


@one_test
@pytest.mark.parametrize("shape", [(), (1,), (3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", TIME_DISTRIBUTIONS, ids=repr)
def test_times_keep_the_shape_and_type_of_the_noise(
    distribution: TimeDistribution, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    times = distribution.quantile(torch.full(shape, 0.3, dtype=dtype))
    assert times.shape == shape
    assert times.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_logit_normal_time_never_reaches_the_ends(dtype: torch.dtype) -> None:
    times = LogitNormalTime().quantile(torch.tensor([0.0, 1.0], dtype=dtype))
    assert 0.0 < times[0] < 0.01
    assert 0.99 < times[1] < 1.0


def test_uniform_time_is_the_noise() -> None:
    noise = torch.linspace(0.0, 0.99, 10, dtype=F64)
    assert torch.equal(UniformTime().quantile(noise), noise)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (1.0, 0.5), (-0.7, 2.0)])
def test_the_logit_of_a_logit_normal_time_has_the_stated_mean_and_scale(mean: float, scale: float) -> None:
    count = 20000
    logits = torch.logit(LogitNormalTime(mean, scale).quantile((torch.arange(count, dtype=F64) + 0.5) / count))
    assert logits.mean().item() == pytest.approx(mean, abs=1e-9)
    assert logits.std().item() == pytest.approx(scale, rel=1e-3)
    # The share of a normal within one deviation of its mean.
    assert ((logits - mean).abs() < scale).double().mean().item() == pytest.approx(0.6827, abs=1e-3)


@pytest.mark.parametrize("scale", [0.0, -0.5, math.nan])
def test_a_scale_that_is_not_positive_is_named(scale: float) -> None:
    with pytest.raises(ValueError, match=str(scale)):
        LogitNormalTime(scale=scale)


@pytest.mark.parametrize(("a", "b"), [(2.0, 1.0), (0.7, 1.0), (1.0, 1.5), (1.0, 0.6), (1.0, 1.0)])
def test_with_one_shape_at_one_a_kumaraswamy_time_is_a_beta_time(a: float, b: float) -> None:
    shares = torch.linspace(0.0, 1.0, 21, dtype=F64)
    expected = torch.from_numpy(scipy.stats.beta.ppf(shares.numpy(), a, b))
    torch.testing.assert_close(KumaraswamyTime(a, b).quantile(shares), expected)


def test_cosine_map_times_have_on_the_linear_path_the_signal_ratios_of_the_cosine_path() -> None:
    uniforms = torch.linspace(0.01, 0.99, 99, dtype=F64)
    t, linear, cosine = CosineMapTime().quantile(uniforms), LinearSchedule(), CosineSchedule()
    torch.testing.assert_close(linear.alpha(t) / linear.sigma(t), cosine.alpha(uniforms) / cosine.sigma(uniforms))


@pytest.mark.parametrize("distribution", [CosineMapTime(), LogitNormalTime(), UShapedTime(), UniformTime()], ids=repr)
def test_laws_without_a_side_treat_both_ends_alike(distribution: TimeDistribution) -> None:
    shares = torch.linspace(0.01, 0.5, 50, dtype=F64)
    torch.testing.assert_close(distribution.quantile(1.0 - shares), 1.0 - distribution.quantile(shares))


def test_each_law_prefers_the_times_it_says() -> None:
    shares = (torch.arange(3000, dtype=F64) + 0.5) / 3000

    def thirds(distribution: TimeDistribution) -> tuple[float, float, float]:
        early, middle, late = torch.histc(distribution.quantile(shares), 3, 0.0, 1.0).tolist()
        return early, middle, late

    early, middle, late = thirds(UShapedTime())
    assert min(early, late) > 1.5 * middle
    for distribution in (LogitNormalTime(), CosineMapTime()):
        early, middle, late = thirds(distribution)
        assert middle > 1.2 * max(early, late)
    early, _, late = thirds(KumaraswamyTime())
    assert early > 1.5 * late
    early, _, late = thirds(KumaraswamyTime(a=2.0, b=1.0))
    assert late > 1.5 * early
    early, _, late = thirds(LogitNormalTime(mean=0.4))
    assert late > 1.5 * early


@pytest.mark.parametrize("size", [1, 2, 7, 300])
def test_stratified_noise_has_one_number_in_every_stratum(size: int) -> None:
    numbers = stratify(uniform(size, seed=1))
    assert torch.equal((numbers * size).floor(), torch.arange(size, dtype=F64))
    inside = numbers * size - torch.arange(size, dtype=F64)
    torch.testing.assert_close(inside, uniform(size, seed=1), rtol=0, atol=1e-9)


def test_a_stratified_number_of_random_rank_is_uniform() -> None:
    """All offsets and ranks together fill [0, 1) evenly."""
    offsets = (torch.arange(40, dtype=F64) + 0.5) / 40
    together = torch.cat([stratify(offset.expand(7)) for offset in offsets]).sort().values
    torch.testing.assert_close(together, (torch.arange(280, dtype=F64) + 0.5) / 280)


def test_stratified_means_scatter_far_less_than_independent_ones() -> None:
    draws = uniform(400, 50, seed=2)
    stratified = torch.stack([stratify(row) for row in draws])
    assert stratified.mean(1).std() < 0.05 * draws.mean(1).std()


@each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 3, 256, 1000])
def test_stratified_noise_never_rounds_up_to_one(size: int, dtype: torch.dtype) -> None:
    largest = 1.0 - torch.finfo(dtype).eps / 2.0
    numbers = stratify(torch.full((size,), largest, dtype=dtype))
    assert numbers.dtype == dtype
    assert numbers.amax() < 1.0
    assert stratify(torch.zeros(size, dtype=dtype)).amin() == 0.0


@one_test
@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda: KumaraswamyTime(a=0.0), "a must be positive, got 0.0"),
        (lambda: KumaraswamyTime(b=-1.5), "b must be positive, got -1.5"),
        (lambda: KumaraswamyTime(b=math.nan), "b must be positive, got nan"),
        (lambda: UShapedTime(0.0), "0.0"),
        (lambda: UShapedTime(-2.0), "-2.0"),
        (lambda: UShapedTime(math.nan), "nan"),
    ],
)
def test_a_shape_that_is_not_positive_is_named(build: object, value: str) -> None:
    with pytest.raises(UserError, match=value):
        build()
