"""The flow policy: its latent points, and the log-density of its actions."""

import math
from typing import get_args

import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.models import Flow, FlowPolicy, FlowPolicyArchitecture, Likelihood
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.paths import (
    AffinePath,
    ClipSquash,
    GaussianSource,
    LinearSchedule,
    NoSquash,
    Preconditioner,
    TanhSquash,
    UniformSource,
    VarianceExplodingSchedule,
)
from flowmatch_rl.samplers import AverageVelocitySampler, DdimSampler, OdeSampler, SdeSampler
from flowmatch_rl.solvers import RK4, Euler, Heun, HutchinsonDivergence, Midpoint, Solver
from flowmatch_rl.types import Prediction
from tests.combinations import each_pair, each_value, one_test
from tests.families import OBJECTIVES, SCHEDULES
from tests.models.exact_policy import SCALES, Law, density_case, exact_policy
from tests.oracles import F64, normal
from tests.samplers.exact import seeded

B, N, S, A = 3, 5, 4, 2
T_MIN, ODE, SMALL = 0.05, OdeSampler(Euler(1)), VelocityArchitecture(hidden_dim=8, time_features=2)


def build_policy(solver: Solver = Euler(3), dtype: torch.dtype = torch.float64) -> FlowPolicy:
    torch.manual_seed(0)
    network = VelocityArchitecture(hidden_dim=16, time_features=8).build(A, S).to(dtype)
    return FlowPolicy(Flow(network, AffinePath(), t_min=0.05), A, OdeSampler(solver), TanhSquash())


@pytest.mark.parametrize("solver", [Euler(1), Euler(4), RK4(2)], ids=repr)
def test_latents_are_the_solution_of_the_flow_from_t_min_to_its_mirror(solver) -> None:
    policy = build_policy(solver)
    observation, noise = torch.randn(B, S).double(), torch.randn(B, N, A).double()
    wanted = solver.integrate(policy.flow, 0.95 * noise, 0.05, 0.95, observation[:, None])
    latents = policy.sample_latents(observation, noise)
    torch.testing.assert_close(latents, wanted)
    assert not latents.requires_grad


def test_trajectories_begin_at_the_scaled_noise_and_end_at_the_latents() -> None:
    policy = build_policy()
    observation, noise = torch.randn(B, S).double(), torch.randn(B, N, A).double()
    times, states = policy.trajectories(observation, noise)
    assert states.shape == (4, B, N, A)
    torch.testing.assert_close(times, torch.linspace(0.05, 0.95, 4, dtype=torch.float64))
    torch.testing.assert_close(states[0], 0.95 * noise)
    torch.testing.assert_close(states[-1], policy.sample_latents(observation, noise))


@pytest.mark.parametrize(("observation", "noise"), [((B, S), (B + 1, N, A)), ((B, S), (B, A)), ((B, 1, S), (B, N, A))])
def test_latents_of_other_shapes_raise(observation, noise) -> None:
    with pytest.raises(ValueError, match="expected"):
        build_policy().sample_latents(torch.randn(observation).double(), torch.randn(noise).double())


@one_test
@pytest.mark.parametrize("t_min", [0.0, 0.5, -0.1, 1.0])
def test_t_min_outside_its_interval_raises(t_min) -> None:
    network = SMALL.build(A, S)
    with pytest.raises(UserError, match=rf"t_min must lie in .*, got {t_min}"):
        FlowPolicy(Flow(network, AffinePath(), t_min=t_min), A, OdeSampler(Euler(1)), TanhSquash())


EVERY_SAMPLER = [
    OdeSampler(Euler(7)),
    OdeSampler(Heun(5)),
    OdeSampler(Midpoint(5)),
    DdimSampler(6),
    DdimSampler(6, eta=1.0),
    SdeSampler(9),
]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


@each_pair
@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("sampler", EVERY_SAMPLER, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_prediction_of_one_field_gives_the_same_samples(schedule, sampler, scales) -> None:
    observation, noise = normal(B, A, seed=1), normal(B, N, A, seed=2)
    by_velocity, *others = (
        exact_policy(schedule, sampler, prediction, scales).sample_latents(observation, noise, seeded(3))
        for prediction in PREDICTIONS
    )
    assert by_velocity.std() > 0.1
    for latents in others:
        torch.testing.assert_close(latents, by_velocity, rtol=1e-7, atol=1e-7)


@each_value
@pytest.mark.parametrize(
    ("prediction", "source_scale"), [*((p, 1.0) for p in PREDICTIONS), ("velocity", 2.0), ("data", 2.0)]
)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_exact_policy_carries_noise_as_its_flow_does(schedule, prediction, source_scale) -> None:
    policy = exact_policy(schedule, OdeSampler(RK4(120)), prediction, source_scale=source_scale)
    observation, noise = normal(B, A, seed=1), normal(B, N, A, seed=2)
    law = Law(schedule, 0.5 * observation[:, None], SCALES, source_scale)
    first, last = torch.tensor([0.01], dtype=F64), torch.tensor([0.99], dtype=F64)
    wanted = law.carry(schedule.sigma(first) * source_scale * noise, first, last)
    torch.testing.assert_close(policy.sample_latents(observation, noise), wanted, rtol=1e-4, atol=1e-4)


@each_value
@pytest.mark.parametrize("sampler", [OdeSampler(Heun(60)), DdimSampler(100), DdimSampler(100, 1.0), SdeSampler(150)])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_samples_have_the_moments_of_the_gaussian(schedule, sampler) -> None:
    policy = exact_policy(schedule, sampler, "noise", t_min=0.002)
    observation = torch.tensor([[0.8, -1.2]], dtype=F64)
    latents = policy.sample_latents(observation, normal(1, 6000, A, seed=5), seeded(6))[0]
    end = torch.tensor([0.998], dtype=F64)
    wanted = Law(schedule, 0.5 * observation[0], SCALES)
    torch.testing.assert_close(latents.mean(0), 0.5 * observation[0], atol=0.08, rtol=0)
    torch.testing.assert_close(latents.std(0), wanted.std(end), atol=0.08, rtol=0)


@each_value
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_average_velocities_land_where_the_flow_does_however_long_the_step(schedule, steps) -> None:
    policy = exact_policy(schedule, AverageVelocitySampler(steps), averages=True)
    observation, noise = normal(B, A, seed=1), normal(B, N, A, seed=2)
    first, last = torch.tensor([0.01], dtype=F64), torch.tensor([0.99], dtype=F64)
    law = Law(schedule, 0.5 * observation[:, None], SCALES)
    wanted = law.carry(schedule.sigma(first) * noise, first, last)
    torch.testing.assert_close(policy.sample_latents(observation, noise), wanted)


@pytest.mark.parametrize(
    ("sampler", "prediction", "source"),
    [(SdeSampler(), "velocity", GaussianSource(2.0)), (DdimSampler(eta=0.5), "noise", UniformSource())],
    ids=str,
)
def test_source_that_is_not_standard_normal_is_refused_where_scores_are_used(sampler, prediction, source) -> None:
    network = SMALL.build(A, S)
    flow = Flow(network, AffinePath(), source, prediction, t_min=0.1)
    with pytest.raises(UserError, match="needs a standard normal source, got") as caught:
        FlowPolicy(flow, A, sampler, TanhSquash())
    assert repr(source) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_average_velocities_are_refused_where_none_are_learned() -> None:
    network = SMALL.build(A, S)
    with pytest.raises(UserError, match=r"AverageVelocitySampler.*MeanFlow"):
        FlowPolicy(Flow(network, AffinePath(), t_min=0.1), A, AverageVelocitySampler(), TanhSquash())


@pytest.mark.parametrize("squash", [TanhSquash(), NoSquash(), ClipSquash(limit=9.0)], ids=repr)
def test_density_of_actions_is_that_of_their_latent_points_over_the_volume(squash) -> None:
    observation, latent, wanted = density_case(LinearSchedule(), T_MIN)
    policy = exact_policy(LinearSchedule(), ODE, squash=squash, t_min=T_MIN)
    found = policy.log_prob(observation, latent, Likelihood(RK4(30)))
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
    policy = FlowPolicy(Flow(network, AffinePath(), source, t_min=T_MIN), 1, ODE, TanhSquash())
    # Cells of the box that are narrow at its edges, where the density may be high.
    edges = torch.linspace(-10.0, 10.0, 1501, dtype=F64)
    width, latent = edges.tanh().diff(), (0.5 * (edges[1:] + edges[:-1]))[:, None]
    for observation in (torch.zeros(2, dtype=F64), torch.tensor([1.5, -0.5], dtype=F64)):
        log_density = policy.log_prob(observation.expand(len(latent), 2), latent, Likelihood(RK4(20)))
        assert float((log_density.exp() * width).sum()) == pytest.approx(1.0, abs=2e-3)


def test_entropy_of_samples_is_that_of_the_gaussian() -> None:
    count = 1500
    policy = exact_policy(LinearSchedule(), OdeSampler(RK4(30)), squash=NoSquash(), t_min=0.005)
    observation = torch.tensor([[0.8, -1.2]], dtype=F64)
    latent = policy.sample_latents(observation, normal(1, count, A, seed=5))[0]
    value = policy.log_prob(observation.expand(count, -1), latent, Likelihood(RK4(30)))
    entropy = float((0.5 * torch.log(2.0 * math.pi * math.e * SCALES**2)).sum())
    assert float(-value.mean()) == pytest.approx(entropy, abs=0.1)


def test_probes_must_be_given_where_they_are_needed() -> None:
    policy = exact_policy(LinearSchedule(), ODE)
    likelihood = Likelihood(divergence=HutchinsonDivergence(num_probes=3))
    with pytest.raises(ValueError, match=r"\(3, 3, 2\), got None"):
        policy.log_prob(normal(B, A, seed=1), normal(B, A, seed=2), likelihood)


def test_probes_give_the_density_of_every_action_by_its_own_noise() -> None:
    """The Jacobian of this field is diagonal, so that one Rademacher probe is exact."""
    observation, latent, wanted = density_case(LinearSchedule(), T_MIN)
    policy = exact_policy(LinearSchedule(), ODE, t_min=T_MIN)
    likelihood = Likelihood(RK4(20), HutchinsonDivergence(num_probes=2))
    found = policy.log_prob(observation, latent, likelihood, normal(len(latent), 2, A, seed=4))
    torch.testing.assert_close(found, wanted - policy.squash.log_jacobian(latent), rtol=0, atol=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_an_architecture_builds_the_policy_of_an_objective(objective) -> None:
    sampler = AverageVelocitySampler() if objective.uses_duration else OdeSampler(Euler(2))
    parts = FlowPolicyArchitecture(
        path=AffinePath(VarianceExplodingSchedule()), sampler=sampler, t_min=0.1, network=SMALL, normalise=True
    )
    policy = parts.build(S, A, objective)
    assert policy.action_dim == policy.noise_dim == A
    assert policy.flow.prediction == objective.prediction
    assert policy.flow.averages == objective.uses_duration
    assert policy.flow.interval == (0.1, 0.9)
    x, t, observation = torch.randn(B, A), torch.full((B,), 0.4), torch.randn(B, S)
    guesses = objective.prediction != "velocity"
    complete = Preconditioner(parts.path, objective.prediction, scales=True, guesses=guesses).complete
    torch.testing.assert_close(policy.flow(x, t, observation), complete(policy.flow.network)(x, t, observation, None))
    latents = policy.sample_latents(torch.randn(B, S), torch.randn(B, N, A))
    assert latents.shape == (B, N, A)
    assert latents.isfinite().all()
