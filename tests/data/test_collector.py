"""Our collector against TorchRL's own: the same blocks, and a state to continue from."""

from collections.abc import Iterator

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import EnvBase

from flowmatch_rl.batches import ACTION, DONE, TRANSITION, TRUNCATED
from flowmatch_rl.data.collector import StepCollector
from flowmatch_rl.envs import DMControlEnvironment, Environment, GymnasiumEnvironment, build_environment
from flowmatch_rl.models import FirstSelection, GaussianPolicyArchitecture, ParticleActor, no_values
from flowmatch_rl.models.actor import ActorModule
from flowmatch_rl.nets import GaussianArchitecture

KEYS = (*TRANSITION, DONE, TRUNCATED, ("next", "episode_reward"), ("next", "step_count"), "step_count", "done")
TERMINATING = GymnasiumEnvironment("tests.toys:ToyCounting-v0", {"truncate": False})
SHORT = GymnasiumEnvironment("Pendulum-v1", {"max_episode_steps": 7})
SUITE = DMControlEnvironment("cartpole", "swingup")
CPU = torch.device("cpu")


def parts(environment: Environment, num_envs: int) -> tuple[EnvBase, ActorModule]:
    env = build_environment(environment, num_envs)
    env.set_seed(3)
    torch.manual_seed(4)
    sizes = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    policy = GaussianPolicyArchitecture(GaussianArchitecture(hidden_dim=8)).build(*sizes)
    return env, ActorModule(ParticleActor(policy, no_values, 1, FirstSelection(), 1.0))


def ours(environment: Environment, num_envs: int, block: int, random: int) -> StepCollector:
    return StepCollector(*parts(environment, num_envs), block, random, KEYS, CPU)


def taken(collector: BaseCollector, number: int) -> list[TensorDictBase]:
    torch.manual_seed(5)  # TorchRL's draws numbers when it is made
    blocks: Iterator[TensorDictBase] = iter(collector)
    found = [next(blocks).clone() for _ in range(number)]
    collector.shutdown()
    return found


@pytest.mark.parametrize(
    ("environment", "num_envs", "block", "random"),
    [(SHORT, 1, 5, 0), (SHORT, 2, 4, 13), (SUITE, 1, 1, 2), (TERMINATING, 1, 3, 10), (TERMINATING, 3, 4, 9)],
)
def test_blocks_are_those_of_the_collector_of_torchrl_to_the_last_digit(environment, num_envs, block, random) -> None:
    other = Collector(
        *parts(environment, num_envs),
        frames_per_batch=block * num_envs,
        total_frames=-1,
        init_random_frames=random,
        trust_policy=True,
        track_traj_ids=False,
        auto_register_policy_transforms=False,
    )
    wanted = taken(other, 6)
    for mine, theirs in zip(taken(ours(environment, num_envs, block, random), 6), wanted, strict=True):
        assert mine.batch_size == theirs.batch_size
        assert set(mine.keys(True, True)) == set(KEYS)
        for key in KEYS:
            assert mine[key].dtype == theirs[key].dtype
            assert torch.equal(mine[key], theirs[key])


def test_later_blocks_leave_earlier_ones_as_they_are() -> None:
    collector = ours(SHORT, 2, 4, 0)
    first, second = collector.block(), collector.block()
    kept = first.clone()
    collector.block()
    assert torch.equal(first[ACTION], kept[ACTION])
    assert torch.equal(first["next", "observation"][:, -1], second["observation"][:, 0])
    assert not torch.equal(first["observation"], second["observation"])
    collector.shutdown()


@pytest.mark.parametrize("after", [1, 3])  # in the warm-up and after it
def test_a_collector_continues_from_the_state_of_another_in_the_same_environments(after: int) -> None:
    whole, begun = ours(SHORT, 2, 3, 10), ours(SHORT, 2, 3, 10)
    torch.manual_seed(5)
    wanted = [whole.block() for _ in range(6)]
    torch.manual_seed(5)
    found = [begun.block() for _ in range(after)]
    state = begun.state_dict()
    resumed = StepCollector(begun.env, begun.policy, 3, 0, KEYS, CPU)
    resumed.load_state_dict(state)
    found += [resumed.block() for _ in range(6 - after)]
    for mine, theirs in zip(found, wanted, strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in KEYS)
    whole.shutdown()
    resumed.shutdown()
    assert resumed.env.is_closed
    resumed.shutdown()
