"""Rewards of a data set that are replaced by a function of the state arrived in."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import REWARD, read_transition
from flowmatch_rl.checks import UserError
from flowmatch_rl.data import OnlinePhase, PolicyData, TransitionStore, collect_transitions
from flowmatch_rl.data.transitions.reader import TransitionReader
from flowmatch_rl.envs import DMControlEnvironment, ProcessEnvironment
from flowmatch_rl.modules import FlowQLearning
from flowmatch_rl.testbeds import BoxReward, LinearReward, PointMassMaze, SpeedReward
from flowmatch_rl.types import Reward
from tests.data.test_policy_data import quiet, tiny_module
from tests.data.toy_trajectories import TRAJECTORIES, trajectory_store

TIME_AND_PLACE = LinearReward(columns=("time", "trajectory"), weights=(10.0, 1.0))
MAZE = ProcessEnvironment(PointMassMaze(action_repeat=4), reward=BoxReward((None, None), (None, None)), max_steps=6)


@dataclass(frozen=True)
class NotEverywhere(Reward):
    """A reward that is not a number at time 2."""

    needed_columns = ("time",)  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def of_columns(self, values: Tensor) -> Tensor:
        return torch.where(values[..., 0] == 2.0, torch.nan, 1.0)


@dataclass(frozen=True)
class Learned(Reward):
    """A reward with weights that a user has trained."""

    needed_columns = ("time",)  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def of_columns(self, values: Tensor) -> Tensor:
        return (values * torch.nn.Parameter(torch.tensor([2.0]))).sum(-1)


def test_rewards_need_no_gradient(tmp_path: Path) -> None:
    rewards = trajectory_store(tmp_path / "set").relabelled(Learned()).transitions.get(REWARD)
    assert not rewards.requires_grad
    assert float(rewards.max()) == 10.0


@pytest.mark.parametrize(("n_steps", "chunk"), [(1, 1), (3, 1), (3, 3)])
def test_every_step_has_the_reward_of_the_state_that_it_arrives_in(n_steps: int, chunk: int, tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set", [*TRAJECTORIES[:1], *TRAJECTORIES[2:3]], has_rewards=False)
    before = store.transitions.get(REWARD).clone()
    relabelled = store.relabelled(TIME_AND_PLACE)
    batch = read_transition(TransitionReader(relabelled, n_steps, 64, seed=0, chunk=chunk).take())
    for row in range(64):
        (i, k), length = batch.observation[row].tolist(), int(batch.length[row])
        wanted = [10.0 * (k + j + 1.0) + i if j < length else 0.0 for j in range(n_steps)]
        assert list(batch.rewards[row]) == wanted
    plain = read_transition(TransitionReader(store, n_steps, 64, seed=0, chunk=chunk).take())
    assert torch.equal(plain.terminated, batch.terminated)
    assert bool(batch.terminated.any())
    relabelled.require_rewards()
    assert relabelled.info.reward_mean == pytest.approx(float(relabelled.transitions.get(REWARD).mean()))
    # Neither the object nor the files have changed.
    for untouched in (store, TransitionStore.open(tmp_path / "set")):
        assert torch.equal(untouched.transitions.get(REWARD), before)
        assert not untouched.info.has_rewards


def test_data_without_rewards_train_a_policy_of_a_given_one(tmp_path: Path) -> None:
    trajectory_store(tmp_path / "set", TRAJECTORIES * 5, has_rewards=False)
    data = PolicyData(str(tmp_path / "set"), batch_size=16, num_updates=2, held_out=0.2, reward=TIME_AND_PLACE)
    module, trainer = FlowQLearning(**data.dimensions), quiet(max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert trainer.global_step > 0
    held_out = data.evaluation_batches(1, 0)[0]()
    arrival = held_out["next", "observation"]
    torch.testing.assert_close(held_out[REWARD][:, 0], TIME_AND_PLACE.evaluate(arrival, ("trajectory", "time")))
    assert data.outline["reward"] == str(TIME_AND_PLACE)


def test_episodes_are_evaluated_under_the_reward_of_the_training(tmp_path: Path) -> None:
    path, reward = tmp_path / "set", SpeedReward()
    collect_transitions(MAZE, str(path), 40, progress=False)
    sizes = {"num_updates": 2, "held_out": 0.5, "test_episodes": 3}
    plain, relabelled = (PolicyData(str(path), MAZE, 4, reward=each, **sizes) for each in (None, reward))
    returns = []
    for data in (plain, relabelled):
        module, trainer = tiny_module(data), quiet(max_epochs=1)
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
        returns.append(float(trainer.callback_metrics["test/return_mean"]))
        data.trainer = trainer
        steps = data.episodes(3, 1_000_000)
        assert float(steps[REWARD].sum()) / 3.0 == pytest.approx(returns[-1], abs=1e-4)
    speed = steps["next", "observation"][..., 2:].square().sum(-1).sqrt()
    torch.testing.assert_close(steps[REWARD].squeeze(-1), speed)
    assert returns[0] == 6.0
    assert 0.0 < returns[1] < 6.0


def test_scores_of_a_benchmark_are_not_those_of_another_reward(tmp_path: Path) -> None:
    environment = DMControlEnvironment("cartpole", "swingup")
    collect_transitions(environment, str(tmp_path / "set"), 8, progress=False)
    column = TransitionStore.open(tmp_path / "set").info.columns[0]
    plain, other = (
        PolicyData(str(tmp_path / "set"), environment, 4, held_out=0.5, reward=reward)
        for reward in (None, LinearReward((column,), (1.0,)))
    )
    assert plain.return_range == (0.0, 1000.0)
    assert other.return_range is None


def test_rewards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set"
    trajectory_store(path)
    with pytest.raises(UserError, match="needs the column 'vx'; the states have trajectory, time"):
        PolicyData(str(path), reward=SpeedReward())
    with pytest.raises(UserError, match=r"NotEverywhere\(\) is not finite in 4 of the 16 states arrived in"):
        PolicyData(str(path), reward=NotEverywhere())
    collect_transitions(MAZE, str(tmp_path / "maze"), 40, progress=False)
    with pytest.raises(UserError, match=r"data\.reward must be null with it, got SpeedReward"):
        PolicyData(str(tmp_path / "maze"), MAZE, 4, online=OnlinePhase(50), reward=SpeedReward())
