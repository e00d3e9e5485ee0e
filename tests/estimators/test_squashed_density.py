"""The Boltzmann density over actions, pulled back through a squash, and its posterior means."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

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
    boltzmann_density,
)
from flowmatch_rl.paths import AffinePath, NoSquash, Squash, TanhSquash
from tests.combinations import each_value
from tests.families import CONTROL_VARIATES, SQUASHES, WIDE_PROPOSALS
from tests.oracles import F64, NORMAL, at, normal, on_quadrature, quadrature_nodes, rmse, uniform

ValueAndGradient: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]

PATH = AffinePath()
TIMES = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64)
POINTS = torch.tensor([[0.4], [-1.2], [0.8], [0.05], [-1.0]], dtype=F64)


def flat(action: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(action.shape[:-1], dtype=action.dtype), torch.zeros_like(action)


def slope_and_bump(action: Tensor) -> tuple[Tensor, Tensor]:
    """Value ``sum 0.6 a - a^2 + cos 3a`` with its gradient."""
    value = (0.6 * action - action**2 + torch.cos(3.0 * action)).sum(-1)
    return value, 0.6 - 2.0 * action - 3.0 * torch.sin(3.0 * action)


def latent_means(value_and_gradient: ValueAndGradient, temperature: float, x_t: Tensor, t: Tensor) -> Tensor:
    """E[u given x_t] for actions of density ``exp(Q / temperature)``, an integral over actions.

    The nodes ``a = tanh(pi / 2 sinh s)`` crowd at the bounds, where the latent has its poles.
    """
    s = torch.linspace(-3.2, 3.2, 6401, dtype=F64)
    u = 0.5 * math.pi * torch.sinh(s)
    log_mass = torch.log(torch.cosh(s)) - 2.0 * torch.log(torch.cosh(u))
    value, _ = value_and_gradient(torch.tanh(u)[:, None])
    log_likelihood = -0.5 * ((x_t - t[:, None] * u) / (1.0 - t[:, None])).square()
    return torch.softmax(value / temperature + log_likelihood + log_mass, dim=1) @ u[:, None]


@dataclass(frozen=True)
class NoJacobianInWeights(Squash):
    """A faulty tanh: its density lacks sech^2."""

    def action(self, u: Tensor) -> Tensor:
        return torch.tanh(u)

    def latent(self, action: Tensor) -> Tensor:
        return torch.atanh(action)

    def log_jacobian(self, u: Tensor) -> Tensor:
        return TanhSquash().log_jacobian(u)

    def latent_gradient(self, action_gradient: Tensor, u: Tensor) -> Tensor:
        return TanhSquash().latent_gradient(action_gradient, u)

    def pull_back(self, action_value: Tensor, action_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return action_value, TanhSquash().pull_back(action_value, action_gradient, u)[1]


@dataclass(frozen=True)
class NoJacobianInScore(Squash):
    """A faulty tanh: its score lacks -2 tanh(u)."""

    def action(self, u: Tensor) -> Tensor:
        return torch.tanh(u)

    def latent(self, action: Tensor) -> Tensor:
        return torch.atanh(action)

    def log_jacobian(self, u: Tensor) -> Tensor:
        return TanhSquash().log_jacobian(u)

    def latent_gradient(self, action_gradient: Tensor, u: Tensor) -> Tensor:
        return TanhSquash().latent_gradient(action_gradient, u)

    def pull_back(self, action_value: Tensor, action_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        log_density, score = TanhSquash().pull_back(action_value, action_gradient, u)
        return log_density, score + 2.0 * torch.tanh(u)


def means_by_quadrature(
    squash: Squash, value_and_gradient: ValueAndGradient, temperature: float, proposal: Proposal, rule: ControlVariate
) -> Tensor:
    nodes = quadrature_nodes(5, width=20.0)
    density = on_quadrature(boltzmann_density(value_and_gradient, temperature, squash), nodes)
    return (
        PosteriorMeanEstimator(nodes.shape[1], proposal, rule)
        .estimate(PATH, NORMAL, density, at(POINTS, TIMES), nodes)
        .x_1
    )


@each_value
@pytest.mark.parametrize("rule", CONTROL_VARIATES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
@pytest.mark.parametrize(("value_and_gradient", "temperature"), [(flat, 1.0), (slope_and_bump, 0.7)])
def test_the_posterior_mean_of_the_latent_is_that_of_the_density_over_actions(
    value_and_gradient: ValueAndGradient, temperature: float, proposal: Proposal, rule: ControlVariate
) -> None:
    found = means_by_quadrature(TanhSquash(), value_and_gradient, temperature, proposal, rule)
    torch.testing.assert_close(found, latent_means(value_and_gradient, temperature, POINTS, TIMES), rtol=0.0, atol=1e-8)


@each_value
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
@pytest.mark.parametrize(
    ("squash", "rule"),
    [
        (NoJacobianInWeights(), NoControlVariate()),
        (NoJacobianInWeights(), FisherControlVariate()),
        (NoJacobianInScore(), GradientControlVariate()),
        (NoJacobianInScore(), RegressControlVariate()),
        (NoJacobianInScore(), FisherControlVariate()),
    ],
    ids=repr,
)
def test_a_missing_half_of_the_jacobian_would_be_seen(squash: Squash, rule: ControlVariate, proposal: Proposal) -> None:
    found = means_by_quadrature(squash, flat, 1.0, proposal, rule)
    assert (found - latent_means(flat, 1.0, POINTS, TIMES)).abs().amax() > 1e-2


def test_a_flat_value_gives_posterior_samples_of_uniform_actions() -> None:
    """Averaged over the path's marginal, the posterior mean of any function is its mean over uniform actions."""
    t, action = torch.full((4000,), 0.5, dtype=F64), 2.0 * uniform(4000, 1, seed=1) - 1.0
    x_t = PATH.sample(normal(4000, 1, seed=2), TanhSquash().latent(action), t)
    estimator = PosteriorMeanEstimator(100, ProductProposal(2.0))
    density = boltzmann_density(flat, 1.0, TanhSquash())
    found = estimator.estimate(PATH, NORMAL, density, at(x_t, t), normal(4000, 100, 1, seed=3))
    # E[u] = 0, and E[x_t E[u given x_t]] = t Var(u) = t pi^2 / 12.
    assert found.x_1.mean().item() == pytest.approx(0.0, abs=0.05)
    assert (found.x_1 * x_t).mean().item() == pytest.approx(0.5 * 0.8225, abs=0.04)


@pytest.mark.parametrize("squash", SQUASHES, ids=repr)
def test_the_score_is_the_gradient_of_the_log_density(squash: Squash) -> None:
    density = boltzmann_density(slope_and_bump, 0.3, squash)
    u = normal(3, 4, 3, seed=4).requires_grad_()
    value, score = density(u)
    (gradient,) = torch.autograd.grad(value.sum(), u)
    torch.testing.assert_close(score, gradient)


def test_the_temperature_divides_the_value_and_not_the_jacobian() -> None:
    u = normal(3, 4, 2, seed=4)
    for temperature in (0.02, 5.0, torch.tensor(0.3, dtype=F64)):
        value, score = boltzmann_density(slope_and_bump, temperature, TanhSquash())(u)
        q, gradient = slope_and_bump(torch.tanh(u))
        torch.testing.assert_close(value, q / temperature + torch.log(1.0 - torch.tanh(u) ** 2).sum(-1))
        torch.testing.assert_close(score, gradient * (1.0 - torch.tanh(u) ** 2) / temperature - 2.0 * torch.tanh(u))
    value, score = boltzmann_density(slope_and_bump, 0.5, NoSquash())(u)
    torch.testing.assert_close(value, 2.0 * slope_and_bump(u)[0])
    torch.testing.assert_close(score, 2.0 * slope_and_bump(u)[1])


@pytest.mark.parametrize("squash", SQUASHES, ids=repr)
def test_without_the_jacobian_the_density_is_that_of_the_value_alone(squash: Squash) -> None:
    u = normal(3, 4, 2, seed=4).requires_grad_()
    (expected,) = torch.autograd.grad(slope_and_bump(squash.action(u))[0].sum() / 0.3, u)
    value, score = boltzmann_density(slope_and_bump, 0.3, squash, jacobian=False)(u.detach())
    torch.testing.assert_close(value, slope_and_bump(squash.action(u.detach()))[0] / 0.3)
    torch.testing.assert_close(score, expected)


def test_values_in_low_precision_are_weighed_in_the_precision_of_the_latent() -> None:
    def low(action: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = flat(action)
        return (value + 300.0).to(torch.bfloat16), gradient.to(torch.bfloat16)

    u = normal(3, 4, 2, seed=4, dtype=torch.float32)
    value, score = boltzmann_density(low, 0.01, TanhSquash())(u)
    assert value.dtype == score.dtype == torch.float32
    log_jacobian = torch.log(1.0 - torch.tanh(u) ** 2).sum(-1)
    torch.testing.assert_close(value - 30_000.0, log_jacobian, rtol=0.0, atol=0.01)


@pytest.mark.parametrize("rule", [NoControlVariate(), FisherControlVariate(), RegressControlVariate()], ids=repr)
def test_at_small_times_the_product_proposal_keeps_six_flat_dimensions_near_their_mean(rule: ControlVariate) -> None:
    t = torch.full((256,), 0.01, dtype=F64)
    latent = TanhSquash().latent(2.0 * uniform(256, 6, seed=1) - 1.0)
    x_t = PATH.sample(normal(256, 6, seed=2), latent, t)
    exact = torch.cat([latent_means(flat, 1.0, x_t[:8, d : d + 1], t[:8]) for d in range(6)], dim=1)
    # So early the posterior is the uniform law but for a slope t Var(u) in x_t, which serves as the truth for all.
    slope = 0.01 * math.pi**2 / 12.0
    torch.testing.assert_close(exact, slope * x_t[:8], rtol=0.03, atol=1e-4)
    z, density = normal(256, 100, 6, seed=3), boltzmann_density(flat, 1.0, TanhSquash())

    def error(proposal: Proposal) -> float:
        found = PosteriorMeanEstimator(100, proposal, rule).estimate(PATH, NORMAL, density, at(x_t, t), z)
        return rmse(found.x_1 - slope * x_t)

    assert error(ProductProposal()) < 0.2
    assert error(LikelihoodProposal()) > 10.0
