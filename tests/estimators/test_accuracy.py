"""Measured errors of the control variates on mixtures, each statement in the range where it holds."""

import functools

import pytest
import torch
from torch import Tensor

from flowmatch_rl.estimators import (
    ControlVariate,
    FisherControlVariate,
    GradientControlVariate,
    LikelihoodProposal,
    NoControlVariate,
    PosteriorMeanEstimator,
    ProductProposal,
    Proposal,
    RegressControlVariate,
)
from flowmatch_rl.paths import AffinePath
from tests.combinations import each_value
from tests.oracles import (
    EVEN,
    F64,
    NORMAL,
    ONE_D,
    TWO_D,
    GaussianMixture,
    RecordingControlVariate,
    at,
    normal,
    on_quadrature,
    quadrature_nodes,
    rmse,
)

PATH = AffinePath()
STATES, REPEATS, COUNT = 25, 40, 100
TIMES = [0.1, 0.3, 0.5, 0.7, 0.9, 0.98]

on_both_proposals = pytest.mark.parametrize("proposal", [LikelihoodProposal(), ProductProposal()], ids=repr)
on_both_mixtures = pytest.mark.parametrize("mixture", [EVEN, TWO_D], ids=["line", "plane"])


def points(mixture: GaussianMixture, t: float) -> tuple[Tensor, Tensor]:
    """Points of the path, each repeated, and their times."""
    dims = mixture.means.shape[1]
    times = torch.full((STATES,), t, dtype=F64)
    x_t = PATH.sample(normal(STATES, dims, seed=1), mixture.draw(STATES, seed=2), times)
    return x_t.repeat_interleave(REPEATS, 0), times.repeat_interleave(REPEATS)


def error_with(mixture: GaussianMixture, t: float, proposal: Proposal, rule: ControlVariate) -> float:
    """Root mean square error of the data mean over states and repeats, noise common to all rules."""
    x_t, times = points(mixture, t)
    z = normal(len(x_t), COUNT, x_t.shape[1], seed=3)
    found = PosteriorMeanEstimator(COUNT, proposal, rule).estimate(PATH, NORMAL, mixture.density, at(x_t, times), z)
    return rmse(found.x_1 - mixture.posterior_means(x_t, times, 1.0 - times)[1])


error = functools.cache(error_with)


def oracle(mixture: GaussianMixture, t: float, proposal: Proposal) -> RecordingControlVariate:
    """The coefficient of least asymptotic variance at each point, by quadrature on the line."""
    x_t, times = (v[::REPEATS] for v in points(mixture, t))
    nodes, recorder = quadrature_nodes(STATES, 4001), RecordingControlVariate()
    found = PosteriorMeanEstimator(nodes.shape[1], proposal, recorder).estimate(
        PATH, NORMAL, on_quadrature(mixture.density, nodes), at(x_t, times), nodes
    )
    ((posterior, x_0, r, _),) = recorder.calls
    squared = posterior.square() * (0.5 * nodes.square()).exp()  # squared weight per draw, times the density of draws
    eta = (squared * (x_0 - found.x_0[:, None]) * r).sum(1) / (squared * r.square()).sum(1)
    return RecordingControlVariate(eta.repeat_interleave(REPEATS, 0))


@each_value
@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("mixture", [EVEN, ONE_D], ids=["even", "uneven"])
@on_both_proposals
def test_the_oracle_coefficient_is_as_accurate_as_the_better_expectation(
    proposal: Proposal, mixture: GaussianMixture, t: float
) -> None:
    best = min(error(mixture, t, proposal, rule) for rule in (NoControlVariate(), GradientControlVariate()))
    assert error_with(mixture, t, proposal, oracle(mixture, t, proposal)) ** 2 <= 1.05 * best**2


@each_value
@pytest.mark.parametrize("t", [0.7, 0.9, 0.98])
@on_both_mixtures
@on_both_proposals
def test_the_regression_is_as_accurate_as_the_better_expectation_late_on_the_path(
    proposal: Proposal, mixture: GaussianMixture, t: float
) -> None:
    best = min(error(mixture, t, proposal, rule) for rule in (NoControlVariate(), GradientControlVariate()))
    assert error(mixture, t, proposal, RegressControlVariate()) ** 2 <= 1.05 * best**2


def test_the_regression_loses_to_no_control_variate_where_few_samples_count() -> None:
    """The reason for the range above: fitted to the samples it corrects, it follows their noise."""
    without = error(TWO_D, 0.3, LikelihoodProposal(), NoControlVariate())
    assert error(TWO_D, 0.3, LikelihoodProposal(), RegressControlVariate()) > 1.2 * without


@each_value
@pytest.mark.parametrize("t", TIMES)
@on_both_mixtures
@on_both_proposals
def test_the_fisher_rule_is_never_much_worse_than_no_control_variate(
    proposal: Proposal, mixture: GaussianMixture, t: float
) -> None:
    without = error(mixture, t, proposal, NoControlVariate())
    assert error(mixture, t, proposal, FisherControlVariate()) <= 1.1 * without


@each_value
@pytest.mark.parametrize("t", TIMES)
@on_both_mixtures
@on_both_proposals
def test_the_noise_expectation_wins_early_and_the_gradient_expectation_late(
    proposal: Proposal, mixture: GaussianMixture, t: float
) -> None:
    noise, gradient = (error(mixture, t, proposal, rule) for rule in (NoControlVariate(), GradientControlVariate()))
    if t <= 0.7:
        assert noise < gradient
    else:
        assert gradient < noise
    if t <= 0.3:
        assert gradient > 5.0 * noise
