import math

import numpy as np
import pytest
import torch
from scipy.special import log_ndtr
from scipy.stats import truncnorm

from flowmatch_rl.estimators.truncated_normal import log_mass, truncated_normal
from tests.combinations import each_value
from tests.oracles import F64

CASES = [(0.0, 1.0), (0.3, 0.1), (1.2, 0.3), (-1.5, 0.05), (0.9, 5.0), (1.0, 0.01), (50.0, 99.0), (1e3, 100.0)]
FAR = [(50.0, 0.1), (-1e3, 1.0), (5e4, 1.0), (30.0, 0.01)]
LIMIT = 1.0


def noise(dtype: torch.dtype) -> torch.Tensor:
    return torch.linspace(-5.5, 5.5, 45, dtype=dtype)


@each_value
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-8), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("mean", "scale"), CASES)
def test_the_points_are_the_quantiles_of_the_normal_in_the_interval(
    mean: float, scale: float, dtype: torch.dtype, tolerance: float
) -> None:
    z = noise(dtype)
    probability = torch.special.ndtr(z.to(F64)).numpy()
    expected = truncnorm.ppf(probability, (-LIMIT - mean) / scale, (LIMIT - mean) / scale, loc=mean, scale=scale)
    points = truncated_normal(z, torch.tensor(mean, dtype=dtype), torch.tensor(scale, dtype=dtype), LIMIT)
    assert points.dtype == dtype
    error = np.abs(points.to(F64).numpy() - expected).max()
    assert error < tolerance * expected.std()


@each_value
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-5), (torch.float32, 1e-2)])
@pytest.mark.parametrize(("mean", "scale"), FAR)
def test_far_out_the_distance_to_the_near_edge_is_exponential(
    mean: float, scale: float, dtype: torch.dtype, tolerance: float
) -> None:
    z = noise(dtype)
    start = (abs(mean) - LIMIT) / scale
    points = truncated_normal(z, torch.tensor(mean, dtype=dtype), torch.tensor(scale, dtype=dtype), LIMIT)
    assert (points.abs() <= LIMIT).all()
    assert (points.diff() >= 0.0).all()
    # log S(start + d) - log S(start) is -start d - d^2 / 2 up to terms of order d / start.
    distance = (LIMIT - math.copysign(1.0, mean) * points.to(F64)) / scale
    survival = -log_ndtr(math.copysign(1.0, mean) * z.to(F64).numpy())
    expected = 2.0 * survival / (start + np.sqrt(start**2 + 2.0 * survival))
    scale_of_distance = 1.0 / start
    spacing = torch.finfo(dtype).eps * LIMIT / scale
    allowed = (tolerance + 2.0 / start**2) * (expected + scale_of_distance) + spacing
    assert (np.abs(distance.numpy() - expected) < allowed).all()


@each_value
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize(("mean", "scale"), [*CASES, *FAR, (-1e4, 1e-3), (1e5, 1e-2)])
def test_the_map_is_odd_increasing_and_stays_in_the_interval(mean: float, scale: float, dtype: torch.dtype) -> None:
    z, spread = torch.cat([noise(dtype), torch.tensor([13.0, 40.0], dtype=dtype)]), torch.tensor(scale, dtype=dtype)
    points = truncated_normal(z, torch.tensor(mean, dtype=dtype), spread, LIMIT)
    assert points.isfinite().all()
    assert (points.abs() <= LIMIT).all()
    slack = torch.finfo(dtype).eps * (abs(mean) + scale)  # the rounding of the mean
    assert (points.diff() >= -slack).all()
    mirrored = truncated_normal(-z, torch.tensor(-mean, dtype=dtype), spread, LIMIT)
    torch.testing.assert_close(mirrored, -points, rtol=0.0, atol=1e-5 if dtype == torch.float32 else 1e-10)


@each_value
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("mean", "scale"), [*CASES, *FAR])
def test_the_mass_is_that_of_the_normal_in_the_interval(
    mean: float, scale: float, dtype: torch.dtype, tolerance: float
) -> None:
    near, far = (abs(mean) - LIMIT) / scale, (abs(mean) + LIMIT) / scale
    log_near, log_far = log_ndtr(-near), log_ndtr(-far)
    expected = log_near + math.log1p(-math.exp(log_far - log_near))
    found = log_mass(torch.tensor(mean, dtype=dtype), torch.tensor(scale, dtype=dtype), LIMIT).item()
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
