"""The log-density of a flow policy's actions."""

import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.models import FlowPolicy, LogDensityEstimate
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.paths import (
    AffinePath,
    ClipSquash,
    GaussianSource,
    LinearSchedule,
    NoSquash,
    TanhSquash,
    VarianceExplodingSchedule,
)
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import RK4, Euler, ExactDivergence, Heun, HutchinsonDivergence
from tests.combinations import each_value
from tests.families import SCHEDULES
from tests.models.exact_policy import SCALES, Law, exact_policy
from tests.oracles import F64, normal

B, A, T_MIN = 5, 2, 0.05
ODE = OdeSampler(Euler(1))


def pushed_forward(law: Law, latent: Tensor) -> Tensor:
    """Log-density of what the flow makes of the scaled source between T_MIN and its mirror: again a Gaussian."""
    first, last = torch.tensor([T_MIN], dtype=F64), torch.tensor([1.0 - T_MIN], dtype=F64)
    mean = law.carry(torch.zeros_like(latent), first, last)
    std = law.std(last) / law.std(first) * law.schedule.sigma(first) * law.source_scale
    return torch.distributions.Normal(mean, std).log_prob(latent).sum(-1)


def case(schedule, source_scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, latent points, and the log-density of the points."""
    observation, latent = normal(B, A, seed=1), 0.8 * normal(B, A, seed=2)
    return observation, latent, pushed_forward(Law(schedule, 0.5 * observation, SCALES, source_scale), latent)


@each_value
@pytest.mark.parametrize(
    ("prediction", "source_scale"),
    [("velocity", 1.0), ("velocity", 2.0), ("noise", 1.0), ("data", 2.0), ("score", 1.0)],
)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_log_density_of_latent_points_is_that_of_the_gaussian(schedule, prediction, source_scale) -> None:
    observation, latent, wanted = case(schedule, source_scale)
    policy = exact_policy(schedule, ODE, prediction, source_scale=source_scale, t_min=T_MIN)
    steps = 80 if isinstance(schedule, VarianceExplodingSchedule) else 25  # its noise falls by 5000 along the path
    found = policy.log_prob(observation, latent, RK4(steps), ExactDivergence())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_error_shrinks_with_the_steps_at_the_order_of_the_solver() -> None:
    observation, latent, wanted = case(LinearSchedule())
    policy = exact_policy(LinearSchedule(), ODE, t_min=T_MIN)

    def error(solver) -> float:
        return float((policy.log_prob(observation, latent, solver, ExactDivergence()) - wanted).abs().mean())

    assert error(Euler(80)) == pytest.approx(error(Euler(40)) / 2.0, rel=0.2)
    assert error(Heun(80)) == pytest.approx(error(Heun(40)) / 4.0, rel=0.25)


def test_gaussian_probes_are_right_on_average_and_rademacher_ones_at_once() -> None:
    observation, latent, wanted = case(LinearSchedule())
    policy = exact_policy(LinearSchedule(), ODE, t_min=T_MIN)
    count = 1000
    many = [x[:1].expand(count, -1) for x in (observation, latent)]
    divergence = HutchinsonDivergence("gaussian", 2)
    values = policy.log_prob(*many, RK4(20), divergence, normal(2, count, A, seed=3))
    assert values.std() > 0.1
    assert abs(float(values.mean() - wanted[0])) < 5.0 * float(values.std()) / math.sqrt(count)
    # The Jacobian of this field is diagonal.
    exact = policy.log_prob(observation, latent, RK4(20), HutchinsonDivergence(), normal(1, B, A, seed=4))
    torch.testing.assert_close(exact, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("squash", [TanhSquash(), NoSquash(), ClipSquash(limit=9.0)], ids=repr)
def test_density_of_actions_is_that_of_their_latent_points_over_the_volume(squash) -> None:
    observation, latent, wanted = case(LinearSchedule())
    policy = exact_policy(LinearSchedule(), ODE, squash=squash, t_min=T_MIN)
    found = LogDensityEstimate(RK4(30)).of_actions(policy, observation, latent)
    point = latent.clone().requires_grad_()
    (slope,) = torch.autograd.grad(squash.action(point).sum(), point)
    torch.testing.assert_close(found, wanted - slope.log().sum(-1), rtol=0, atol=1e-3)
    assert not found.requires_grad


@pytest.mark.parametrize("source", [GaussianSource(), GaussianSource(2.0)], ids=repr)
def test_density_of_any_network_integrates_to_one_over_the_box(source) -> None:
    torch.manual_seed(3)
    network = VelocityArchitecture(hidden_dim=16, time_features=8, max_frequency=5.0).build(1, 2).double()
    with torch.no_grad():
        network.to_velocity.weight.mul_(0.5)
    policy = FlowPolicy(network, AffinePath(), ODE, TanhSquash(), T_MIN, source=source)
    # Cells of the box that are narrow at its edges, where the density may be high.
    edges = torch.linspace(-10.0, 10.0, 1501, dtype=F64)
    width, latent = edges.tanh().diff(), (0.5 * (edges[1:] + edges[:-1]))[:, None]
    for observation in (torch.zeros(2, dtype=F64), torch.tensor([1.5, -0.5], dtype=F64)):
        log_density = LogDensityEstimate(RK4(20)).of_actions(policy, observation.expand(len(latent), 2), latent)
        assert float((log_density.exp() * width).sum()) == pytest.approx(1.0, abs=2e-3)


def test_entropy_of_samples_is_that_of_the_gaussian() -> None:
    count = 1500
    policy = exact_policy(LinearSchedule(), OdeSampler(RK4(30)), squash=NoSquash(), t_min=0.005)
    observation = torch.tensor([[0.8, -1.2]], dtype=F64)
    latent = policy.sample_latents(observation, normal(1, count, A, seed=5))[0]
    value = LogDensityEstimate(RK4(30)).of_actions(policy, observation.expand(count, -1), latent)
    entropy = float((0.5 * torch.log(2.0 * math.pi * math.e * SCALES**2)).sum())
    assert float(-value.mean()) == pytest.approx(entropy, abs=0.1)


def test_probes_must_be_given_where_they_are_needed() -> None:
    policy = exact_policy(LinearSchedule(), ODE)
    estimate = LogDensityEstimate(divergence=HutchinsonDivergence(num_probes=3))
    with pytest.raises(ValueError, match=r"\(3, 5, 2\), got None"):
        estimate.of_actions(policy, normal(B, A, seed=1), normal(B, A, seed=2))
