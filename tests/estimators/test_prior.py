"""Posterior means relative to a flow, against a tilted mixture of normals, which is known exactly."""

import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.estimators import (
    ControlVariate,
    FisherControlVariate,
    GradientControlVariate,
    MarginalProposal,
    NoControlVariate,
    PosteriorProposal,
    Prior,
    PriorMeanEstimator,
    PriorProposal,
)
from flowmatch_rl.paths import (
    AffinePath,
    CosineSchedule,
    Field,
    GaussianMixture,
    GaussianSource,
    PathPoints,
    UniformSource,
)
from flowmatch_rl.samplers import DdimSampler, OdeSampler, SdeSampler
from flowmatch_rl.solvers import Midpoint
from tests.oracles import F64, normal

BEHAVIOR = GaussianMixture(
    torch.tensor([0.5, 0.5], dtype=F64),
    torch.tensor([[-0.6, 0.2], [0.5, -0.3]], dtype=F64),
    torch.tensor([0.15, 0.25], dtype=F64),
)
SLOPE, CURVATURE, D = torch.tensor([2.0, -1.0], dtype=F64), 3.0, 2
FINE = PosteriorProposal(SdeSampler(num_steps=40))
SAMPLED = MarginalProposal(OdeSampler(Midpoint(num_steps=10)))


def tilt(x: Tensor) -> tuple[Tensor, Tensor]:
    """A quadratic value over the temperature, and its gradient."""
    return x @ SLOPE - 0.5 * CURVATURE * x.square().sum(-1), SLOPE - CURVATURE * x


def tilted() -> GaussianMixture:
    """The mixture ``BEHAVIOR exp(tilt)``: each component stays normal."""
    before = BEHAVIOR.scales**-2
    after = before + CURVATURE
    means = (before[:, None] * BEHAVIOR.means + SLOPE) / after[:, None]
    exponent = 0.5 * after * means.square().sum(1) - 0.5 * before * BEHAVIOR.means.square().sum(1)
    weights = (BEHAVIOR.weights.log() + 0.5 * D * (before / after).log() + exponent).softmax(0)
    return GaussianMixture(weights, means, after**-0.5)


def exact_prior(path: AffinePath) -> Prior:
    return Prior(Field(path, BEHAVIOR.field(path)), (0.002, 0.998))


def points(path: AffinePath, t: float, number: int) -> PathPoints:
    uniform = torch.rand(number, generator=torch.Generator().manual_seed(7), dtype=F64)
    x_1 = BEHAVIOR.draw(uniform, normal(number, D, seed=1))
    return PathPoints.between(path, normal(number, D, seed=2), x_1, torch.full((number,), t, dtype=F64))


def estimated(estimator: PriorMeanEstimator, path: AffinePath, given: PathPoints) -> Tensor:
    z = normal(len(given.t), estimator.num_samples, D * estimator.num_draws, seed=3)
    return estimator.estimate(path, GaussianSource(), tilt, given, z, exact_prior(path)).x_1


@pytest.mark.parametrize("path", [AffinePath(), AffinePath(CosineSchedule())], ids=["linear", "cosine"])
@pytest.mark.parametrize("control_variate", [NoControlVariate(), FisherControlVariate()], ids=repr)
@pytest.mark.parametrize(("proposal", "allowed"), [(FINE, 0.05), (SAMPLED, 0.04)], ids=["posterior", "marginal"])
@pytest.mark.parametrize("t", [0.1, 0.4, 0.7])
def test_the_mean_is_that_of_the_tilted_mixture(
    proposal: PriorProposal, allowed: float, control_variate: ControlVariate, path: AffinePath, t: float
) -> None:
    given = points(path, t, 6)
    exact = tilted().posterior_means(path, given.x_t, given.t)[1]
    plain = BEHAVIOR.posterior_means(path, given.x_t, given.t)[1]
    estimator = PriorMeanEstimator(1_500, proposal, control_variate, score_time=0.995, keeps_endpoint=False)
    found = estimated(estimator, path, given)
    assert (found - exact).square().mean().sqrt() < allowed
    assert (plain - exact).square().mean().sqrt() > 3.0 * allowed  # what ignoring the values would give


def test_the_gradient_alone_is_exact_close_to_the_data() -> None:
    path, t = AffinePath(), 0.95
    given = points(path, t, 40)
    exact = tilted().posterior_means(path, given.x_t, given.t)[1]

    def error(control_variate: ControlVariate) -> float:
        estimator = PriorMeanEstimator(16, PosteriorProposal(), control_variate, 0.995, keeps_endpoint=False)
        return float((estimated(estimator, path, given) - exact).square().mean().sqrt())

    assert error(GradientControlVariate()) < 0.25 * error(NoControlVariate())
    assert error(FisherControlVariate()) < 0.6 * error(NoControlVariate())


def test_one_sample_is_the_pair_of_the_point() -> None:
    path = AffinePath()
    given = points(path, 0.5, 3)
    found = estimated(PriorMeanEstimator(1, PosteriorProposal(), NoControlVariate()), path, given)
    torch.testing.assert_close(found, given.x_1)


@pytest.mark.parametrize("proposal", [PosteriorProposal(), PosteriorProposal(DdimSampler(4, eta=1.0)), SAMPLED])
def test_the_pair_lies_on_a_path_through_the_point(proposal: PriorProposal) -> None:
    path = AffinePath()
    given, estimator = points(path, 0.4, 5), PriorMeanEstimator(7, proposal)
    z = normal(5, 7, D * estimator.num_draws, seed=3)
    found = estimator.estimate(path, GaussianSource(), tilt, given, z, exact_prior(path))
    torch.testing.assert_close(path.sample(found.x_0, found.x_1, given.t), given.x_t)
    assert found.effective_sample_size.shape == (5,)
    assert (found.effective_sample_size <= 7.0).all()
    assert math.isclose(float(found.weight.mean()), 1.0)


@pytest.mark.parametrize("weighs_points", [True, False])
def test_weighted_points_have_no_bias_of_few_samples(weighs_points: bool) -> None:
    """Over many draws the weighted mean of the estimates at one point is the posterior mean; the plain mean is not."""
    path, number = AffinePath(), 20_000
    given = points(path, 0.1, 1)
    same = PathPoints(*(part.expand(number, *part.shape[1:]) for part in (given.x_0, given.x_1, given.x_t, given.t)))
    estimator = PriorMeanEstimator(2, SAMPLED, NoControlVariate(), keeps_endpoint=False, weighs_points=weighs_points)
    z = normal(number, 2, D, seed=3)
    found = estimator.estimate(path, GaussianSource(), tilt, same, z, exact_prior(path))
    exact = tilted().posterior_means(path, given.x_t, given.t)[1][0]
    error = ((found.weight[:, None] * found.x_1).mean(0) - exact).norm()
    # Of two samples the likelihood of x_t is self-normalised, too: a part of the bias stays.
    assert (error < 0.06) == weighs_points, float(error)


def test_what_cannot_be_used_is_refused() -> None:
    path = AffinePath()
    with pytest.raises(ValueError, match="PriorMeanEstimator needs a prior, got None"):
        PriorMeanEstimator(2).estimate(path, GaussianSource(), tilt, points(path, 0.5, 3), normal(3, 2, 16, seed=3))
    with pytest.raises(UserError, match="needs a standard normal source, got UniformSource"):
        PriorMeanEstimator(2).check(path, UniformSource())
    PriorMeanEstimator(2, MarginalProposal(), NoControlVariate()).check(path, UniformSource())
    with pytest.raises(UserError, match="need a sampler that adds noise, got DdimSampler"):
        PosteriorProposal(DdimSampler(8))
    with pytest.raises(UserError, match=r"num_samples .*got 0"):
        PriorMeanEstimator(0)
