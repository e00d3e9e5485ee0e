"""The flow policy and the actor that chooses among its particles."""

from typing import get_args

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from flowmatch_rl.models import (
    ActorModule,
    FirstSelection,
    FlowPolicy,
    GreedySelection,
    ParticleActor,
    Selection,
    SoftmaxSelection,
)
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture
from flowmatch_rl.paths import (
    AffinePath,
    GaussianSource,
    LinearSchedule,
    TanhSquash,
    UniformSource,
)
from flowmatch_rl.samplers import AverageVelocitySampler, DdimSampler, OdeSampler, SdeSampler
from flowmatch_rl.solvers import RK4, Euler, Heun, Midpoint, Solver
from flowmatch_rl.types import Prediction
from tests.combinations import each_pair, each_value, one_test
from tests.families import SCHEDULES, SELECTIONS
from tests.models.exact_policy import SCALES, Law, exact_policy
from tests.oracles import F64, normal
from tests.samplers.exact import seeded

B, N, S, A = 3, 5, 4, 2


def build_policy(solver: Solver = Euler(3), dtype: torch.dtype = torch.float64) -> FlowPolicy:
    torch.manual_seed(0)
    network = VelocityArchitecture(hidden_dim=16, time_features=8).build(A, S).to(dtype)
    return FlowPolicy(network, AffinePath(), OdeSampler(solver), TanhSquash(), 0.05)


def build_actor(selection: Selection, num_particles: int = N, dtype: torch.dtype = torch.float64) -> ParticleActor:
    policy = build_policy(dtype=dtype)
    critic = CriticArchitecture(hidden_dim=16).build(S, A).to(dtype)
    return ParticleActor(policy, critic, A, num_particles, selection, "min", 0.1)


@pytest.mark.parametrize("solver", [Euler(1), Euler(4), RK4(2)], ids=repr)
def test_latents_are_the_solution_of_the_flow_from_t_min_to_its_mirror(solver) -> None:
    policy = build_policy(solver)
    observation, noise = torch.randn(B, S).double(), torch.randn(B, N, A).double()
    wanted = solver.integrate(policy.network, 0.95 * noise, 0.05, 0.95, observation[:, None])
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
    network = VelocityArchitecture(hidden_dim=8, time_features=2).build(A, S)
    with pytest.raises(ValueError, match=str(t_min)):
        FlowPolicy(network, AffinePath(), OdeSampler(Euler(1)), TanhSquash(), t_min)


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_generator_makes_actions_reproducible_and_leaves_the_global_noise_alone(selection) -> None:
    actor = build_actor(selection)
    observation = torch.randn(B, S).double()
    state = torch.get_rng_state()
    first = actor(observation, torch.Generator().manual_seed(7))
    again = actor(observation, torch.Generator().manual_seed(7))
    other = actor(observation, torch.Generator().manual_seed(8))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    actor(observation)
    assert not torch.equal(torch.get_rng_state(), state)


def test_greedy_choice_is_the_particle_of_highest_value() -> None:
    actor = build_actor(GreedySelection())
    observation = torch.randn(B, S).double()
    latents = actor.particles(observation, torch.Generator().manual_seed(1))
    actions = latents.tanh()
    values = torch.stack([actor.critic(observation, actions[:, n]).amin(0) for n in range(N)], 1)
    best = actions[torch.arange(B), values.argmax(1)]
    assert len(values.argmax(1).unique()) > 1 or bool((values.argmax(1) != 0).all())
    torch.testing.assert_close(actor(observation, torch.Generator().manual_seed(1)), best)


def test_softmax_choice_at_vanishing_temperature_is_greedy() -> None:
    soft, greedy = build_actor(SoftmaxSelection()), build_actor(GreedySelection())
    cold = ParticleActor(soft.policy, soft.critic, A, N, soft.selection, "min", 1e-9)
    same = ParticleActor(soft.policy, soft.critic, A, N, greedy.selection, "min", 1.0)
    observation = torch.randn(20, S).double()
    torch.testing.assert_close(
        cold(observation, torch.Generator().manual_seed(1)), same(observation, torch.Generator().manual_seed(1))
    )


@pytest.mark.parametrize(("selection", "evaluations"), [(FirstSelection(), 0), (GreedySelection(), 1)], ids=repr)
def test_only_choices_that_need_values_evaluate_the_critic(monkeypatch, selection, evaluations) -> None:
    actor, calls = build_actor(selection), []
    original = actor.critic.action_values
    monkeypatch.setattr(actor.critic, "action_values", lambda *a: calls.append(1) or original(*a))
    actor(torch.randn(B, S).double())
    assert len(calls) == evaluations


def test_first_choice_is_the_first_particle_and_one_particle_needs_no_critic(monkeypatch) -> None:
    first = build_actor(FirstSelection())
    observation = torch.randn(B, S).double()
    wanted = first.particles(observation, torch.Generator().manual_seed(3))[:, 0]
    torch.testing.assert_close(first.latent(observation, torch.Generator().manual_seed(3)), wanted)
    single = build_actor(GreedySelection(), num_particles=1)
    monkeypatch.setattr(single.critic, "action_values", lambda *_: pytest.fail("evaluated the critic"))
    assert single(observation).shape == (B, A)


@each_value
@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
@pytest.mark.parametrize("batch", [(), (1,), (B,), (2, 3)], ids=str)
def test_actions_lie_inside_the_box_whatever_the_batch(selection, batch) -> None:
    actor = build_actor(selection)
    action = actor(torch.randn(*batch, S).double())
    assert action.shape == (*batch, A)
    assert (action.abs() < 1.0).all()
    assert actor(100.0 * torch.randn(*batch, S).double()).abs().max() <= 1.0  # rounds to the bound, never beyond


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_actions_have_the_type_of_the_observation(dtype) -> None:
    assert build_actor(SoftmaxSelection(), dtype=dtype)(torch.randn(B, S, dtype=dtype)).dtype == dtype


def test_actor_module_reads_observation_and_writes_action() -> None:
    actor = build_actor(GreedySelection())
    observation: Tensor = torch.randn(B, S).double()
    module = ActorModule(actor, torch.Generator().manual_seed(5))
    state = module(TensorDict({"observation": observation}, batch_size=[B]))
    torch.testing.assert_close(state["action"], actor(observation, torch.Generator().manual_seed(5)))
    assert not torch.equal(module(state.clone())["action"], state["action"])


def test_no_particles_raise() -> None:
    with pytest.raises(ValueError, match="got 0"):
        build_actor(GreedySelection(), num_particles=0)


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


@pytest.mark.parametrize("sampler", [SdeSampler(4), DdimSampler(4, eta=1.0)], ids=repr)
def test_noise_on_the_way_comes_from_the_generator_alone(sampler) -> None:
    policy = exact_policy(LinearSchedule(), sampler)
    critic = CriticArchitecture(hidden_dim=8).build(A, A).double()
    actor = ParticleActor(policy, critic, A, 1, FirstSelection(), "min", 1.0, noise_scale=0.0)
    observation, state = normal(B, A, seed=1), torch.get_rng_state()
    first, again, other = (actor(observation, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)  # they start from the same point


@pytest.mark.parametrize(
    ("sampler", "prediction", "source"),
    [
        (SdeSampler(), "velocity", GaussianSource(2.0)),
        (DdimSampler(eta=0.5), "noise", UniformSource()),
        (OdeSampler(Euler(1)), "score", UniformSource()),
    ],
    ids=str,
)
def test_source_that_is_not_standard_normal_is_refused_where_scores_are_used(sampler, prediction, source) -> None:
    network = VelocityArchitecture(hidden_dim=8, time_features=2).build(A, S)
    with pytest.raises(ValueError, match="needs a standard normal source, got") as caught:
        FlowPolicy(network, AffinePath(), sampler, TanhSquash(), 0.1, prediction, source)
    assert repr(source) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_average_velocities_are_refused_where_none_are_learned() -> None:
    network = VelocityArchitecture(hidden_dim=8, time_features=2).build(A, S)
    with pytest.raises(ValueError, match=r"AverageVelocitySampler.*MeanFlow"):
        FlowPolicy(network, AffinePath(), AverageVelocitySampler(), TanhSquash(), 0.1)
