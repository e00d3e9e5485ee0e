"""Other methods are special cases: the same targets with common noise."""

import pytest
import torch
from torch import Tensor

from flowmatch_rl.estimators import (
    FixedControlVariate,
    GradientControlVariate,
    LikelihoodProposal,
    NoControlVariate,
    PosteriorMeanEstimator,
    Proposal,
    boltzmann_density,
)
from flowmatch_rl.objectives import prediction_loss, reverse_flow_target
from flowmatch_rl.paths import AffinePath, NoSquash, Schedule, TanhSquash
from tests.families import SCHEDULES, WIDE_PROPOSALS
from tests.oracles import F64, NORMAL, TWO_D, RecordingControlVariate, at, normal

B, K, D = 5, 11, 2
T = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64)


def q(action: Tensor) -> Tensor:
    return torch.sin(2.0 * action).sum(-1) - torch.cos(action - 0.3).prod(-1)


def q_and_gradient(action: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        action = action.detach().requires_grad_()
        value = q(action)
        (gradient,) = torch.autograd.grad(value.sum(), action)
    return value.detach(), gradient


def coefficients(schedule: Schedule) -> tuple[Tensor, Tensor]:
    return schedule.alpha(T)[:, None, None], schedule.sigma(T)[:, None, None]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("temperature", [0.2, 2.0])
def test_coefficient_zero_is_the_noise_expectation_of_maxentdp(schedule: Schedule, temperature: float) -> None:
    x_t, z = normal(B, D, seed=1), normal(B, K, D, seed=2)
    density = boltzmann_density(q_and_gradient, temperature, NoSquash())
    estimator = PosteriorMeanEstimator(K, LikelihoodProposal(), NoControlVariate())
    found = estimator.estimate(AffinePath(schedule), NORMAL, density, at(x_t, T), z)
    alpha, sigma = coefficients(schedule)
    noise = -z
    weight = (q((x_t[:, None] - sigma * noise) / alpha) / temperature).exp()
    target = (weight[..., None] * noise).sum(1) / weight.sum(1)[:, None]
    torch.testing.assert_close(found.x_0, target, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("squash", [NoSquash(), TanhSquash()], ids=repr)
def test_coefficient_one_is_the_gradient_of_the_smoothed_log_density_of_idem(
    schedule: Schedule, squash: NoSquash | TanhSquash
) -> None:
    temperature = 0.5
    x_t, z = normal(B, D, seed=1).requires_grad_(), normal(B, K, D, seed=2)
    density = boltzmann_density(q_and_gradient, temperature, squash)
    estimator = PosteriorMeanEstimator(K, LikelihoodProposal(), GradientControlVariate())
    with torch.no_grad():
        found = estimator.estimate(AffinePath(schedule), NORMAL, density, at(x_t, T), z)
    alpha, sigma = coefficients(schedule)
    x_1 = (x_t[:, None] + sigma * z) / alpha  # the noise end points are -z
    log_density = q(squash.action(x_1)) / temperature
    if isinstance(squash, TanhSquash):
        log_density = log_density - 2.0 * torch.logaddexp(x_1, -x_1).sum(-1)
    (gradient,) = torch.autograd.grad(torch.logsumexp(log_density, dim=1).sum(), x_t)
    torch.testing.assert_close(found.x_0, -sigma[:, 0] * gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
def test_a_fixed_coefficient_mixes_the_two_expectations_linearly(proposal: Proposal, schedule: Schedule) -> None:
    x_t, z = normal(B, D, seed=1), normal(B, K, D, seed=2)
    noise, gradient, mixed = (
        PosteriorMeanEstimator(K, proposal, rule).estimate(AffinePath(schedule), NORMAL, TWO_D.density, at(x_t, T), z)
        for rule in (NoControlVariate(), GradientControlVariate(), FixedControlVariate(0.3))
    )
    for name in ("x_0", "x_1"):
        target = 0.7 * getattr(noise, name) + 0.3 * getattr(gradient, name)
        torch.testing.assert_close(getattr(mixed, name), target, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
def test_the_weighted_loss_of_sdac_has_the_gradient_of_the_loss_against_the_mean(
    proposal: Proposal, schedule: Schedule
) -> None:
    path, x_t, z = AffinePath(schedule), normal(B, D, seed=1), normal(B, K, D, seed=2)
    recorder = RecordingControlVariate()
    estimator = PosteriorMeanEstimator(K, proposal, recorder)
    found = reverse_flow_target(estimator, path, NORMAL, TWO_D.density, at(x_t, T), z)
    target = path.target("velocity", found.x_0, found.x_1, T)
    ((weights, x_0, _, _),) = recorder.calls
    network = torch.nn.Sequential(torch.nn.Linear(D + 1, 7), torch.nn.Tanh(), torch.nn.Linear(7, D)).to(F64)

    def velocity(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return network(torch.cat([x, t[:, None]], dim=-1))

    to_mean = prediction_loss(velocity, x_t, T, target).mean()
    alpha, sigma = coefficients(schedule)
    x_1 = (x_t[:, None] - sigma * x_0) / alpha
    d_alpha, d_sigma = schedule.d_alpha(T)[:, None, None], schedule.d_sigma(T)[:, None, None]
    miss = velocity(x_t, T, None)[:, None] - (d_alpha * x_1 + d_sigma * x_0)
    to_each = (weights * miss.square()).sum(1).mean()
    assert to_each - to_mean > 1e-3
    parameters = list(network.parameters())
    for one, other in zip(
        torch.autograd.grad(to_mean, parameters), torch.autograd.grad(to_each, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
