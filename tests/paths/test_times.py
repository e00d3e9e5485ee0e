import math

import pytest
import torch

from flowmatch_rl.paths import LogitNormalTime, TimeDistribution, UniformTime
from tests.families import TIME_DISTRIBUTIONS
from tests.oracles import F64


@pytest.mark.parametrize("distribution", TIME_DISTRIBUTIONS, ids=repr)
def test_the_quantile_function_increases_within_the_unit_interval(distribution: TimeDistribution) -> None:
    times = distribution.quantile(torch.linspace(0.001, 0.999, 999, dtype=F64))
    assert (times.diff() > 0).all()
    assert (times > 0).all()
    assert (times < 1).all()


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
