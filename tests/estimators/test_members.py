"""What every estimator of end points keeps to, and the two that draw no samples."""

import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.estimators import EndpointEstimator, PointScoreEstimator, Prior, ReweightedEndpoints
from flowmatch_rl.paths import (
    AffinePath,
    Field,
    GaussianMixture,
    GaussianSource,
    LinearSchedule,
    MixtureSource,
    PathPoints,
    Schedule,
    UniformSource,
)
from flowmatch_rl.types import LogDensityAndScore
from tests.combinations import each_value, one_test
from tests.families import ESTIMATORS, SCHEDULES
from tests.oracles import F64, NORMAL, TWO_D, at, gaussian_density, normal

PATH = AffinePath()
B, D = 6, 2
T = torch.linspace(0.1, 0.9, B, dtype=F64)


def path_points(path: AffinePath, batch: int = B, dtype: torch.dtype = F64) -> PathPoints:
    x_0, x_1 = normal(batch, D, seed=1, dtype=dtype), normal(batch, D, seed=2, dtype=dtype)
    return PathPoints.between(path, x_0, x_1, T[:batch].to(dtype))


def standard_prior(path: AffinePath, dtype: torch.dtype = F64) -> Prior:
    """The flow to a standard normal, for estimators that need a prior; others ignore it."""
    one = torch.ones(1, dtype=dtype)
    mixture = GaussianMixture(one, torch.zeros(1, D, dtype=dtype), one)
    return Prior(Field(path, mixture.field(path)), (0.02, 0.98))


def noise(estimator: EndpointEstimator, batch: int = B, dtype: torch.dtype = F64) -> Tensor:
    return normal(batch, estimator.num_samples, estimator.num_draws * NORMAL.noise_dim(D), seed=3, dtype=dtype)


@each_value
@pytest.mark.parametrize("batch", [1, D, B])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_the_means_lie_on_a_path_through_the_point_and_the_weights_have_mean_one(
    estimator: EndpointEstimator, schedule: Schedule, batch: int
) -> None:
    path = AffinePath(schedule)
    estimator.check(path, NORMAL)
    points = path_points(path, batch)
    found = estimator.estimate(path, NORMAL, TWO_D.density, points, noise(estimator, batch), standard_prior(path))
    for values in (found.x_0, found.x_1, found.eta):
        assert values.shape == (batch, D)
        assert values.isfinite().all()
    for values in (found.weight, found.effective_sample_size, found.log_density_spread):
        assert values.shape == (batch,)
        assert values.isfinite().all()
    torch.testing.assert_close(path.sample(found.x_0, found.x_1, points.t), points.x_t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.weight.mean(), torch.ones((), dtype=F64))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_an_estimator_that_needs_no_score_gives_the_same_without_it(estimator: EndpointEstimator) -> None:
    def without_score(x: Tensor) -> tuple[Tensor, Tensor]:
        return TWO_D.density(x)[0], torch.zeros_like(x)

    points, z, prior = path_points(PATH), noise(estimator), standard_prior(PATH)
    one, other = (estimator.estimate(PATH, NORMAL, d, points, z, prior) for d in (TWO_D.density, without_score))
    same = all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("x_0", "x_1", "weight"))
    assert same != estimator.needs_score


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_values_in_half_precision_are_weighed_in_the_precision_of_the_points(estimator: EndpointEstimator) -> None:
    def half(x: Tensor) -> tuple[Tensor, Tensor]:
        log_density, score = TWO_D.density(x.to(F64))
        return log_density.to(torch.bfloat16), score.to(torch.bfloat16)

    points = path_points(PATH, dtype=torch.float32)
    z = noise(estimator, dtype=torch.float32)
    found = estimator.estimate(PATH, NORMAL, half, points, z, standard_prior(PATH, torch.float32))
    for name in ("x_0", "x_1", "weight", "eta", "effective_sample_size", "log_density_spread"):
        assert getattr(found, name).dtype == torch.float32


@one_test
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_noise_of_a_wrong_shape_is_refused(estimator: EndpointEstimator) -> None:
    points, width = path_points(PATH), estimator.num_draws * D
    for wrong in ((B, estimator.num_samples + 1, width), (B, estimator.num_samples, width + 1), (B + 1, 0, width)):
        with pytest.raises(ValueError, match="expected z of shape"):
            estimator.estimate(PATH, NORMAL, TWO_D.density, points, torch.zeros(wrong, dtype=F64), standard_prior(PATH))


def test_the_point_score_is_exact_at_the_end_of_the_path_and_wrong_before() -> None:
    """Of a normal with variance v the score of the path at x_t is ``-x_t / (alpha^2 v + sigma^2)``."""
    density = gaussian_density(torch.zeros(D, dtype=F64), torch.eye(D, dtype=F64) / 0.5)
    x_t, z = normal(3, D, seed=1), normal(3, 0, D, seed=2)
    t = torch.tensor([0.3, 0.7, 1.0 - 1e-9], dtype=F64)
    found = PointScoreEstimator().estimate(PATH, NORMAL, density, at(x_t, t), z)
    exact = (1.0 - t)[:, None] * x_t / (0.5 * t**2 + (1.0 - t) ** 2)[:, None]
    error = (found.x_0 - exact).norm(dim=1) / exact.norm(dim=1)
    assert error[2] < 1e-8
    assert (error[:2] > 0.05).all()


@pytest.mark.parametrize("source", [GaussianSource(2.0), UniformSource(), MixtureSource(means=[[0.0, 1.0]])], ids=repr)
def test_the_point_score_refuses_noise_that_is_not_standard_normal(source: GaussianSource) -> None:
    with pytest.raises(ValueError, match=r"standard normal source, got"):
        PointScoreEstimator().check(PATH, source)
    ReweightedEndpoints().check(AffinePath(LinearSchedule()), source)


def test_reweighting_changes_nothing_when_a_constant_is_added_and_is_safe_for_steep_densities() -> None:
    points, z = path_points(PATH), normal(B, 0, D, seed=3)

    def scaled(factor: float, shift: float) -> LogDensityAndScore:
        return lambda x: (factor * TWO_D.density(x)[0] + shift, torch.zeros_like(x))

    plain, shifted, steep, flat = (
        ReweightedEndpoints().estimate(PATH, NORMAL, scaled(*numbers), points, z)
        for numbers in ((1.0, 0.0), (1.0, 1e3), (1e6, 0.0), (0.0, 5.0))
    )
    torch.testing.assert_close(plain.weight, shifted.weight)
    torch.testing.assert_close(steep.weight.max(), torch.tensor(float(B), dtype=F64))
    torch.testing.assert_close(steep.effective_sample_size, torch.ones(B, dtype=F64))
    torch.testing.assert_close(flat.weight, torch.ones(B, dtype=F64))
    torch.testing.assert_close(flat.effective_sample_size, torch.full((B,), float(B), dtype=F64))
    limited = ReweightedEndpoints(limit=0.5).estimate(PATH, NORMAL, scaled(1e6, 0.0), points, z)
    assert limited.weight.max() / limited.weight.min() == pytest.approx(math.e, rel=1e-9)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_that_is_not_positive_is_named(limit: float) -> None:
    with pytest.raises(ValueError, match=f"got {limit}"):
        ReweightedEndpoints(limit=limit)
