import math

import pytest
import torch

from flowmatch_rl.estimators import (
    LikelihoodProposal,
    MixtureProposal,
    NoControlVariate,
    PosteriorMeanEstimator,
    ProductProposal,
    Proposal,
)
from flowmatch_rl.paths import AffinePath, Schedule
from tests.combinations import each_value
from tests.families import PROPOSALS, SCHEDULES
from tests.oracles import EVEN, F64, NORMAL, at, gaussian_density, normal, rmse


@each_value
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", PROPOSALS, ids=repr)
def test_every_pair_of_end_points_passes_through_the_point(proposal: Proposal, schedule: Schedule, size: int) -> None:
    t = torch.linspace(0.05, 0.95, size, dtype=F64)[:, None, None]
    x_t, z = normal(size, 1, size, seed=1), normal(size, size, size, seed=2)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_0, x_1 = proposal.draw(z, NORMAL, x_t, alpha, sigma)
    correction = proposal.correction(x_0, x_1, NORMAL, x_t, alpha, sigma)
    assert x_1.shape == x_0.shape == z.shape
    assert correction.shape in ((size, size), (size, 1))
    torch.testing.assert_close(alpha * x_1 + sigma * x_0, x_t.expand_as(z), rtol=1e-12, atol=1e-11)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", [p for p in PROPOSALS if not isinstance(p, MixtureProposal)], ids=repr)
def test_the_correction_is_the_likelihood_over_the_density_of_the_draw(proposal: Proposal, schedule: Schedule) -> None:
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)[:, None, None]
    x_t, z = normal(5, 1, 3, seed=1), normal(5, 7, 3, seed=2).requires_grad_()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_0, x_1 = proposal.draw(z, NORMAL, x_t, alpha, sigma)
    correction = proposal.correction(x_0, x_1, NORMAL, x_t, alpha, sigma)
    (slope,) = torch.autograd.grad(x_1.sum(), z)  # each entry depends on its own noise alone
    log_density = (-0.5 * z.square() - 0.5 * math.log(2.0 * math.pi) - slope.log()).sum(-1)
    log_likelihood = torch.distributions.Normal(alpha * x_1, sigma).log_prob(x_t).sum(-1)
    torch.testing.assert_close(correction.expand(5, 7), log_likelihood - log_density, rtol=1e-7, atol=1e-7)


def test_the_likelihood_proposal_is_centred_on_the_rescaled_point_with_the_ratio_as_its_scale() -> None:
    alpha, sigma = (torch.full((1, 1, 1), c, dtype=F64) for c in (0.25, 0.75))
    z = torch.tensor([0.0, 1.0, -2.0], dtype=F64)[None, :, None]
    _, x_1 = LikelihoodProposal().draw(z, NORMAL, torch.full((1, 1, 1), 0.5, dtype=F64), alpha, sigma)
    torch.testing.assert_close(x_1[0, :, 0], torch.tensor([2.0, 5.0, -4.0], dtype=F64))


@each_value
@pytest.mark.parametrize("base_variance", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_product_proposal_is_the_exact_posterior_of_its_base(schedule: Schedule, base_variance: float) -> None:
    estimator = PosteriorMeanEstimator(9, ProductProposal(base_variance), NoControlVariate())
    base = gaussian_density(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64) / base_variance)
    t = torch.linspace(0.05, 0.95, 4, dtype=F64)
    x_t = normal(4, 2, seed=1)
    found = estimator.estimate(AffinePath(schedule), NORMAL, base, at(x_t, t), torch.zeros(4, 9, 2, dtype=F64))
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    variance = sigma**2 + alpha**2 * base_variance
    torch.testing.assert_close(found.x_1, alpha * base_variance * x_t / variance)
    torch.testing.assert_close(found.x_0, sigma * x_t / variance)
    z = normal(4, 9, 2, seed=2)
    spread = estimator.estimate(AffinePath(schedule), NORMAL, base, at(x_t, t), z)
    torch.testing.assert_close(spread.effective_sample_size, torch.full((4,), 9.0, dtype=F64))
    _, x_1 = estimator.proposal.draw(z, NORMAL, x_t[:, None], alpha[:, None], sigma[:, None])
    scale = (sigma**2 * base_variance / variance).sqrt()
    torch.testing.assert_close((x_1 - found.x_1[:, None]) / scale[:, None], z)


def test_a_wide_base_gives_the_likelihood_proposal() -> None:
    t, x_t, z = torch.linspace(0.1, 0.9, 5, dtype=F64), normal(5, 1, seed=1), normal(5, 64, 1, seed=2)
    wide, likelihood = (
        PosteriorMeanEstimator(64, proposal).estimate(AffinePath(), NORMAL, EVEN.density, at(x_t, t), z)
        # The two write the noise with opposite signs of x_0, and x_1 with the same.
        for proposal in (ProductProposal(1e10), LikelihoodProposal())
    )
    torch.testing.assert_close(wide.x_1, likelihood.x_1, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(wide.x_0, likelihood.x_0, rtol=1e-6, atol=1e-6)


def test_the_product_proposal_keeps_its_scale_and_its_values_at_both_ends() -> None:
    t = torch.tensor([0.0, 1e-6, 1.0 - 1e-6, 1.0], dtype=F64)[:, None, None]
    x_t, z = normal(4, 1, 3, seed=1), normal(4, 50, 3, seed=2)
    x_0, x_1 = ProductProposal(2.0).draw(z, NORMAL, x_t, t, 1.0 - t)
    correction = ProductProposal(2.0).correction(x_0, x_1, NORMAL, x_t, t, 1.0 - t)
    for values in (x_1, x_0, correction):
        assert values.isfinite().all()
        assert values.abs().amax() < 50.0
    torch.testing.assert_close(x_1[0], math.sqrt(2.0) * z[0])
    torch.testing.assert_close(x_1[3], x_t[3].expand(50, -1))
    _, likelihood = LikelihoodProposal().draw(z[1:2], NORMAL, x_t[1:2], t[1:2], 1.0 - t[1:2])
    assert rmse(likelihood) > 1e5


@pytest.mark.parametrize("base_variance", [0.0, -0.5, math.nan])
def test_a_base_variance_that_is_not_positive_is_named(base_variance: float) -> None:
    with pytest.raises(ValueError, match=str(base_variance)):
        ProductProposal(base_variance)
