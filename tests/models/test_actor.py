"""The actor that chooses among the particles of a policy."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.models import (
    Acting,
    ActorModule,
    FirstSelection,
    GreedySelection,
    ParticleActor,
    Selection,
    SoftmaxSelection,
)
from flowmatch_rl.paths import LinearSchedule
from flowmatch_rl.samplers import DdimSampler, SdeSampler
from tests.combinations import each_value
from tests.families import SELECTIONS
from tests.models.exact_policy import exact_policy
from tests.models.test_policy import build_policy
from tests.oracles import normal

B, N, S, A = 3, 5, 4, 2


def values(observation: Tensor, actions: Tensor) -> Tensor:
    """Values whose best particle depends on the state."""
    return torch.sin(3.0 * actions.sum(-1) + observation[:, :1])


def build_actor(
    selection: Selection, num_particles: int = N, dtype: torch.dtype = torch.float64, **options
) -> ParticleActor:
    given = {"values": values, "temperature": 0.1} | options
    return ParticleActor(build_policy(dtype=dtype), num_particles=num_particles, selection=selection, **given)


def refused(observation: Tensor, actions: Tensor) -> Tensor:
    pytest.fail("evaluated the values")


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
    index = values(observation, actions).argmax(1)
    best = torch.stack([actions[b, index[b]] for b in range(B)])
    assert index.any()
    torch.testing.assert_close(actor(observation, torch.Generator().manual_seed(1)), best)


def test_softmax_choice_at_vanishing_temperature_is_greedy() -> None:
    observation = torch.randn(20, S).double()
    cold, warm, greedy = (
        actor(observation, torch.Generator().manual_seed(1))
        for actor in (
            build_actor(SoftmaxSelection(), temperature=1e-9),
            build_actor(SoftmaxSelection(), temperature=10.0),
            build_actor(GreedySelection(), temperature=1.0),
        )
    )
    torch.testing.assert_close(cold, greedy)
    assert not torch.allclose(warm, greedy)


@pytest.mark.parametrize(("selection", "evaluations"), [(FirstSelection(), 0), (GreedySelection(), 1)], ids=repr)
def test_only_choices_that_need_values_evaluate_them(selection, evaluations) -> None:
    calls = []

    def counted(observation: Tensor, actions: Tensor) -> Tensor:
        calls.append((observation.shape, actions.shape))
        return values(observation, actions)

    build_actor(selection, values=counted)(torch.randn(B, S).double())
    assert calls == [((B, S), (B, N, A))] * evaluations


def test_first_choice_is_the_first_particle_and_one_particle_needs_no_values() -> None:
    first = build_actor(FirstSelection(), values=refused)
    observation = torch.randn(B, S).double()
    wanted = first.particles(observation, torch.Generator().manual_seed(3))[:, 0]
    torch.testing.assert_close(first.latent(observation, torch.Generator().manual_seed(3)), wanted)
    assert build_actor(GreedySelection(), num_particles=1, values=refused)(observation).shape == (B, A)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "num_particles must be at least 1, got 0"),
        ({"noise_scale": -0.1}, "noise_scale must be at least 0, got -0.1"),
        ({"exploration": math.nan}, "exploration must be at least 0, got nan"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(options, message) -> None:
    with pytest.raises(UserError, match=message):
        build_actor(GreedySelection(), **options)


def test_exploration_adds_noise_of_its_size_and_stays_in_the_box() -> None:
    observation = normal(2000, S, seed=1)
    plain, noisy = (
        build_actor(FirstSelection(), exploration=size)(observation, torch.Generator().manual_seed(1))
        for size in (0.0, 0.2)
    )
    assert noisy.abs().max() == 1.0
    inside = noisy.abs() < 1.0
    middle = plain.abs() < 0.2  # five standard deviations from the edge
    assert inside[middle].all()
    assert float((noisy - plain)[middle].std()) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_particles_start_from_noise_of_the_stated_scale(scale) -> None:
    observation = torch.randn(B, S).double()
    actor, generator = build_actor(FirstSelection(), noise_scale=scale), torch.Generator().manual_seed(2)
    noise = scale * torch.randn(B, N, A, generator=generator, dtype=torch.float64)
    found = actor.particles(observation, torch.Generator().manual_seed(2))
    torch.testing.assert_close(found, actor.policy.sample_latents(observation, noise))


def test_each_role_has_its_particles_selection_and_exploration() -> None:
    acting = Acting(3, 4, 5, FirstSelection(), GreedySelection(), SoftmaxSelection(), exploration=0.3)
    policy, temperature = build_policy(), torch.tensor(0.7)
    expected = {
        "train": (3, FirstSelection(), 0.0),
        "collect": (4, GreedySelection(), 0.3),
        "eval": (5, SoftmaxSelection(), 0.0),
    }
    for role, wanted in expected.items():
        actor = acting.actor(role, policy, values, temperature)
        assert (actor.num_particles, actor.selection, actor.exploration) == wanted
        assert actor.policy is policy
        assert actor.values is values
        assert actor.temperature is temperature


@pytest.mark.parametrize("name", ["train_particles", "collect_particles", "eval_particles"])
def test_roles_without_particles_are_refused_by_name(name) -> None:
    with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
        Acting(**{name: 0})


@pytest.mark.parametrize("sampler", [SdeSampler(4), DdimSampler(4, eta=1.0)], ids=repr)
def test_noise_on_the_way_comes_from_the_generator_alone(sampler) -> None:
    actor = ParticleActor(exact_policy(LinearSchedule(), sampler), refused, 1, FirstSelection(), 1.0, noise_scale=0.0)
    observation, state = normal(B, A, seed=1), torch.get_rng_state()
    first, again, other = (actor(observation, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)  # they start from the same point
