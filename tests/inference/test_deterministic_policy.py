"""A trained policy whose noise is fixed, and what a policy says about itself."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from flowmatch_rl.data import OnlineData
from flowmatch_rl.envs import DMControlEnvironment, GymnasiumEnvironment
from flowmatch_rl.inference import TrainedPolicy, load_policy
from flowmatch_rl.models import SoftmaxSelection
from flowmatch_rl.modules import ReverseFlowActorCritic, SoftActorCritic
from flowmatch_rl.samplers import DdimSampler
from flowmatch_rl.schema import Interface
from tests.inference.test_policy import BOUNDS, module
from tests.modules.options import grouped
from tests.modules.test_reverse_flow_actor_critic import TINY, A, S

STATES = np.random.default_rng(1).normal(size=(600, S)).astype(np.float32)  # several pieces of a batch


@pytest.mark.parametrize(
    "options",
    [{}, {"eval_selection": SoftmaxSelection()}, {"sampler": DdimSampler(3, eta=1.0), "t_min": 0.05}],
    ids=["best particle", "softmax", "stochastic sampler"],
)
@pytest.mark.parametrize("samples", [False, True])
def test_a_deterministic_policy_gives_one_action_for_one_observation(options, samples) -> None:
    built = module(action_bounds=BOUNDS, **options)
    policy = TrainedPolicy(built, samples=samples, deterministic=True)
    batch, reordered = policy(STATES), policy(STATES[::-1].copy())[::-1]
    np.testing.assert_allclose(batch, reordered, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batch[577], policy(STATES[577]), rtol=1e-5, atol=1e-5)
    assert batch.std(0).min() > 0.0
    assert not np.allclose(batch, TrainedPolicy(built, 1, samples, deterministic=True)(STATES))


def test_a_deterministic_policy_takes_the_best_particle_of_the_noise_that_it_states() -> None:
    built = module()
    policy = TrainedPolicy(built, seed=4, deterministic=True)
    noise = np.random.default_rng(4).standard_normal((4, A)).astype(np.float32)
    np.testing.assert_array_equal(policy.noise, noise)
    states = torch.as_tensor(STATES[:9])
    latents = built.policy.sample_latents(states, torch.as_tensor(noise).expand(9, -1, -1))
    actions = built.policy.squash.action(latents)
    best = built.critics.values(states, actions).argmax(1)
    np.testing.assert_allclose(policy(STATES[:9]), actions[torch.arange(9), best].numpy(), atol=1e-6)
    assert best.unique().numel() > 1


def test_a_deterministic_gaussian_acts_by_its_mode_and_by_one_sample_on_request() -> None:
    built = SoftActorCritic(S, A, **grouped(gaussian=True, critic=TINY["critic"]))
    mode = TrainedPolicy(built)(STATES[:9])
    np.testing.assert_allclose(TrainedPolicy(built, seed=3, deterministic=True)(STATES[:9]), mode, atol=1e-6)
    sample = TrainedPolicy(built, seed=3, samples=True, deterministic=True)
    np.testing.assert_array_equal(sample(STATES[0]), sample(STATES[0]))
    assert not np.allclose(sample(STATES[0]), mode[0])


def test_a_policy_prints_what_it_takes_and_returns_with_names_units_and_bounds() -> None:
    built = module(action_bounds=BOUNDS)
    built.interface = Interface(("x", "v", "w"), ("m", "m/s", ""), ("push", "turn"), ("N", ""), 0.02)
    assert repr(TrainedPolicy(built, deterministic=True)).splitlines() == [
        "ReverseFlowActorCritic, acts by the best of 4 particles, from fixed noise, every 0.02 s",
        "observation (3): x [m], v [m/s], w",
        "action push [N] in [-2, 2]",
        "action turn in [0, 10]",
    ]
    assert repr(TrainedPolicy(module(), samples=True)).splitlines()[1:] == [
        "observation (3): names unknown",
        "action 0 in [-1, 1]",
        "action 1 in [-1, 1]",
    ]


def test_a_checkpoint_keeps_the_names_and_the_step_of_its_environment(tmp_path) -> None:
    data = OnlineData(GymnasiumEnvironment("Pendulum-v1"), 24, 16, batch_size=16, eval_episodes=1, max_episode_steps=3)
    built = ReverseFlowActorCritic(**data.dimensions, **grouped(**TINY))
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(built, datamodule=data)
    trainer.save_checkpoint(tmp_path / "policy.ckpt")
    policy = load_policy(tmp_path / "policy.ckpt", deterministic=True, seed=2)
    assert policy.interface == Interface(("observation_0", "observation_1", "observation_2"), step_s=0.05)
    assert (policy.observation_dim, policy.action_dim, policy.goal_columns) == (3, 1, ())
    assert policy.action_bounds.high == (2.0,)
    assert policy(np.ones(3)).shape == (1,)


def test_an_environment_states_the_time_of_a_step_with_its_repetitions() -> None:
    data = OnlineData(DMControlEnvironment("cartpole", "swingup", action_repeat=2), 24, 16, batch_size=16)
    assert data.interface.step_s == pytest.approx(0.02)
    assert OnlineData(GymnasiumEnvironment("MountainCarContinuous-v0"), 24, 16, batch_size=16).interface.step_s is None


def test_a_chunk_of_actions_has_the_names_of_its_steps() -> None:
    one = Interface(action_columns=("push", "turn"), action_units=("N", ""))
    assert one.chunked(2).action_columns == ("push_step_0", "turn_step_0", "push_step_1", "turn_step_1")
    assert one.chunked(2).action_units == ("N", "", "N", "")
    assert one.chunked(1) == one
