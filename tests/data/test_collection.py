"""Collecting data sets: trajectories, exploration, families of policies, and interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrl.envs import EnvBase

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.data import TransitionStore, collect_transitions
from flowmatch_rl.envs import DMControlEnvironment, Environment, GymnasiumEnvironment
from flowmatch_rl.types import Policy
from tests.combinations import each_value, one_test
from tests.data.toy_rows import assert_rows_equal
from tests.envs.odd_environments import PREFIX

FLAGS = ("terminated", "truncated", "done")


def counting(**options) -> GymnasiumEnvironment:
    """Observes (steps of this episode, a number drawn at reset), see ``tests.toys``."""
    return GymnasiumEnvironment("tests.toys:ToyCounting-v0", {"length": None} | options)


@dataclass(frozen=True)
class Family(Policy):
    """Member (z_0, z_1) takes the action z; ``calls_left`` counts down to an interruption."""

    dim: int = 2
    calls_left: list[int] = field(default_factory=lambda: [-1], repr=False)

    @property
    def embedding_dim(self) -> int:
        return self.dim

    def embeddings(self, uniform: Tensor) -> Tensor:
        return uniform * 0.5

    def act(self, observation: Tensor, embedding: Tensor | None = None, generator=None) -> Tensor:
        self.calls_left[0] -= 1
        if self.calls_left[0] == 0:
            raise KeyboardInterrupt
        self.check_embedding(embedding)
        return torch.full((len(observation), 2), 0.25) if embedding is None else embedding


def collect(path, number: int = 100, policy: Policy | None = None, num_envs: int = 3, **changes) -> TransitionStore:
    environment = changes.pop("environment", counting())
    settings = {"block_steps": 10, "progress": False} | changes
    return collect_transitions(environment, path, number, policy, num_envs, **settings)


def columns_of(store: TransitionStore, name: str, *, after: bool = False) -> Tensor:
    return (store.transitions["next"] if after else store.transitions)[name].clone().squeeze(-1)


def block_ends(number: int, num_envs: int, block_steps: int) -> list[int]:
    """Rows that are the last of an environment in a block."""
    ends, start = [], 0
    while start < number:
        steps = min(block_steps, -(-(number - start) // num_envs))
        ends += [start + steps * (place + 1) - 1 for place in range(num_envs)]
        start += num_envs * steps
    return [end for end in ends if end < number - 1] + [number - 1]


@each_value
@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(("number", "num_envs"), [(100, 3), (25, 1), (7, 10), (60, 3)])
def test_rows_are_consecutive_steps_and_end_where_done_says(tmp_path, number, num_envs, truncate) -> None:
    store = collect(tmp_path / "set", number, num_envs=num_envs, environment=counting(truncate=truncate))
    assert len(store) == number
    observation, arrived = columns_of(store, "observation"), columns_of(store, "observation", after=True)
    terminated, truncated, done = (columns_of(store, flag, after=True) for flag in FLAGS)
    follows = (arrived[:-1] == observation[1:]).all(1)
    assert torch.equal(follows | done[:-1], torch.ones(number - 1, dtype=torch.bool))
    torch.testing.assert_close(arrived[:, 0], observation[:, 0] + 1.0)
    assert torch.equal(columns_of(store, "reward", after=True), arrived[:, 0])
    assert torch.equal(done, terminated | truncated)
    assert done[-1]
    assert store.info.ordered
    assert store.info.num_trajectories == int(done.sum())
    cuts = torch.zeros(number, dtype=torch.bool)
    cuts[block_ends(number, num_envs, 10)] = True
    # An episode goes on to the length drawn at its reset, so what is no end of a block is one of the environment.
    starts = torch.cat([torch.tensor([True]), done[:-1]])
    assert (observation[starts, 0] == 0.0)[~torch.cat([torch.tensor([True]), cuts[:-1]])[starts]].all()
    if truncate:
        assert not terminated.any()
        assert done[cuts].all()
    else:
        assert torch.equal(truncated, cuts & ~terminated)
        assert terminated.any() == (number > num_envs)


def test_a_trajectory_cut_by_a_block_goes_on_in_the_next(tmp_path) -> None:
    store = collect(tmp_path / "set", 60, num_envs=3, environment=counting(length=1000))
    observation = columns_of(store, "observation").view(2, 3, 10, 2)
    torch.testing.assert_close(observation[:, :, :, 0], torch.arange(20.0).view(2, 1, 10).expand(2, 3, 10))
    assert torch.equal(observation[0, :, 0, 1], observation[1, :, 9, 1])
    assert observation[0, :, 0, 1].unique().numel() == 3


def test_without_a_policy_actions_are_uniform(tmp_path) -> None:
    actions = columns_of(collect(tmp_path / "set", 1600, num_envs=16, block_steps=100), "action")
    assert actions.abs().max() <= 1.0
    quarters = torch.histogram(actions.flatten(), bins=4, range=(-1.0, 1.0)).hist
    assert (quarters - 800).abs().max() < 4.0 * (3200 * 0.25 * 0.75) ** 0.5
    assert torch.corrcoef(actions.T)[0, 1].abs() < 0.1


def test_share_of_the_steps_is_uniform_and_the_rest_the_policys(tmp_path) -> None:
    store = collect(tmp_path / "set", 1600, Family(0), num_envs=16, block_steps=100, random_fraction=0.3)
    own = (columns_of(store, "action") == 0.25).all(1)
    assert abs(own.double().mean().item() - 0.7) < 4.0 * (0.3 * 0.7 / 1600) ** 0.5
    others = columns_of(store, "action")[~own]
    assert (others != 0.25).all()
    assert others.min() < -0.9
    assert others.max() > 0.9


def test_noise_has_the_given_scale_and_is_clipped(tmp_path) -> None:
    actions = columns_of(collect(tmp_path / "a", 800, Family(0), 16, block_steps=50, action_noise=0.1), "action")
    assert actions.mean().item() == pytest.approx(0.25, abs=0.01)
    assert actions.std().item() == pytest.approx(0.1, rel=0.1)
    wild = columns_of(collect(tmp_path / "b", 160, Family(0), 16, block_steps=50, action_noise=5.0), "action")
    assert wild.abs().max() == 1.0
    assert (wild.abs() == 1.0).double().mean() > 0.7


@pytest.mark.parametrize("num_envs", [1, 4])
def test_each_trajectory_has_one_member_of_a_family_and_the_next_another(tmp_path, num_envs) -> None:
    store = collect(tmp_path / "set", 200, Family(), num_envs)
    assert store.info.embedding_dim == 2
    embedding, mark = columns_of(store, "embedding"), columns_of(store, "observation")[:, 1]
    torch.testing.assert_close(columns_of(store, "action"), embedding)
    # The second number of the observation is drawn at each reset: the embedding is a one-to-one function of it.
    both = torch.cat([mark[:, None], embedding], 1).unique(dim=0)
    assert len(both) == len(mark.unique()) == len(embedding.unique(dim=0)) > 20
    assert embedding.min() >= 0.0
    assert embedding.max() < 0.5


def test_a_fraction_of_the_steps_is_followed_by_another_member_within_a_trajectory(tmp_path) -> None:
    store = collect(tmp_path / "set", 3_000, Family(), 3, environment=counting(length=1000), switch_fraction=0.2)
    action, done = columns_of(store, "action"), columns_of(store, "done", after=True)
    changed = (action[1:] != action[:-1]).any(1)[~done[:-1]]
    assert changed.double().mean().item() == pytest.approx(0.2, abs=4.0 * (0.2 * 0.8 / len(changed)) ** 0.5)
    assert store.info.embedding_dim == 0  # no member made a trajectory
    assert store.info.provenance["switch_fraction"] == 0.2
    with pytest.raises(UserError, match=r"switch_fraction 0\.2 needs a family of policies, got Family"):
        collect(tmp_path / "other", 10, Family(0), switch_fraction=0.2)
    with pytest.raises(UserError, match=r"switch_fraction must lie in \[0, 1\], got 1\.5"):
        collect(tmp_path / "other", 10, Family(), switch_fraction=1.5)


def test_same_seed_gives_the_same_rows_and_another_seed_others(tmp_path) -> None:
    settings = {"policy": Family(), "action_noise": 0.1, "random_fraction": 0.5}
    torch.manual_seed(1)
    first = collect(tmp_path / "a", seed=3, **settings)
    torch.manual_seed(2)
    again = collect(tmp_path / "b", seed=3, **settings)
    other = collect(tmp_path / "c", seed=4, **settings)
    assert_rows_equal(again.transitions, first.transitions)
    for key in ("observation", "action", "embedding"):
        assert not torch.equal(columns_of(other, key), columns_of(first, key))


def test_description_has_the_units_of_the_environment_and_how_the_data_were_made(tmp_path) -> None:
    info = collect(tmp_path / "set", 10, Family(0), seed=5, action_noise=0.5).info
    assert info.columns == ("observation_0", "observation_1")
    assert (info.action_low, info.action_high) == ((-3.0, 0.0), (1.0, 10.0))
    made = {"seed": 5, "action_noise": 0.5, "random_fraction": 0.0, "num_envs": 3, "policy": "Family(dim=0)"}
    assert made.items() <= info.provenance.items()
    assert "ToyCounting-v0" in info.provenance["environment"]


@dataclass(frozen=True)
class NamedCounting(Environment):
    """An environment that names its columns."""

    def column_names(self, env: EnvBase) -> tuple[str, ...]:
        return "steps", "mark"

    @property
    def label(self) -> str:
        return "named"

    def make(self, render: bool) -> EnvBase:
        return counting().make(render)

    def make_copies(self, num_envs: int, parallel: bool) -> EnvBase:
        return counting().make_copies(num_envs, parallel)

    def frame(self, env: EnvBase) -> np.ndarray:
        return counting().frame(env)

    def frames_per_second(self, env: EnvBase) -> float:
        return 1.0

    def read_state(self, env: EnvBase) -> dict[str, Any]:
        return counting().read_state(env)

    def write_state(self, env: EnvBase, state: dict[str, Any]) -> None:
        counting().write_state(env, state)


def test_names_of_columns_are_the_environments_own_where_it_has_some(tmp_path) -> None:
    assert collect(tmp_path / "set", 10, environment=NamedCounting()).info.columns == ("steps", "mark")


def test_columns_of_a_dictionary_are_named_in_the_order_of_the_observation(tmp_path) -> None:
    store = collect(tmp_path / "set", 10, environment=GymnasiumEnvironment("tests.toys:ToyNamed-v0"))
    assert store.info.columns == ("alpha_0", "alpha_1", "observation_0", "observation_1", "zeta_0")
    assert columns_of(store, "observation")[0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_columns_of_a_control_suite_task_are_its_parts(tmp_path) -> None:
    environment = DMControlEnvironment("pendulum", "swingup")
    store = collect(tmp_path / "set", 6, num_envs=2, environment=environment)
    assert store.info.columns == ("orientation_0", "orientation_1", "velocity_0")
    torch.testing.assert_close(columns_of(store, "observation")[:, :2].norm(dim=1), torch.ones(6))


@pytest.mark.parametrize(
    ("option", "message"),
    [("bad_reward_at", "a reward that is not finite"), ("bad_observation_at", "an observation that is not finite")],
)
def test_numbers_that_are_not_finite_end_the_collection_and_name_the_step(tmp_path, option, message) -> None:
    with pytest.raises(RunError, match=rf"{message} \(nan\) at environment step 8 \(step 2 of an episode\)") as caught:
        collect(tmp_path / "set", 20, num_envs=1, environment=counting(**{option: 8}))
    assert "ToyCounting-v0" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


@one_test
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"number": 0}, "num_transitions must be at least 1, got 0"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"block_steps": 0}, "block_steps must be at least 1, got 0"),
        ({"policy": Family(), "action_noise": -1.0}, "action_noise must be at least 0, got -1.0"),
        ({"policy": Family(), "random_fraction": 1.5}, r"random_fraction must lie in \[0, 1\], got 1.5"),
        ({"random_fraction": 0.5}, "need a policy"),
        ({"environment": GymnasiumEnvironment("NoSuch-v0")}, "NoSuch-v0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        collect(tmp_path / "set", **changes)
    assert not list(tmp_path.iterdir())


@one_test
@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(
    ("name", "odd_from", "words"),
    [
        ("Breaks", 7, ["ZeroDivisionError", "the robot fell over"]),
        ("VectorReward", 7, ["reward [1. 2.]"]),
        ("WrongShape", 30, ["shape (3,)", "0 of 80 rows are written"]),
    ],
)
def test_environment_that_becomes_odd_ends_the_collection_in_one_line(
    tmp_path, name, odd_from, words, num_envs
) -> None:
    environment = GymnasiumEnvironment(f"{PREFIX}{name}-v0", {"odd_from": odd_from})
    with pytest.raises(RunError) as caught:
        collect(tmp_path / "set", 80, num_envs=num_envs, block_steps=20 // num_envs, environment=environment)
    message = str(caught.value)
    assert "\n" not in message
    for word in [f"{name}-v0", *words]:
        assert word in message, message
    # What was written can be resumed; where nothing was, nothing is left.
    assert [file.name for file in tmp_path.iterdir()] == (["set.partial"] if odd_from == 30 else [])


@one_test
@pytest.mark.parametrize("name", ["VectorReward", "NoSeed", "EmptyObservations", "OldStep", "BreaksWhenMade"])
def test_environment_that_cannot_be_used_is_refused_before_anything_is_written(tmp_path, name) -> None:
    with pytest.raises(UserError, match=f"{name}-v0"):
        collect(tmp_path / "set", environment=GymnasiumEnvironment(f"{PREFIX}{name}-v0"))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_collection_goes_on_and_does_not_repeat_its_start(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "set", 100, Family(calls_left=[25]))
    with pytest.raises(ValueError, match="not finished \\(60 rows"):
        TransitionStore.open(tmp_path / "set")
    with pytest.raises(ValueError, match=r"provenance\.seed is 0, here it is 1"):
        collect(tmp_path / "set", 100, Family(), seed=1)
    store = collect(tmp_path / "set", 100, Family())
    whole = collect(tmp_path / "whole", 100, Family())
    assert len(store) == 100
    assert_rows_equal(store.transitions[:60], whole.transitions[:60])
    marks = columns_of(store, "observation")[:, 1]
    assert not set(marks[:60].tolist()) & set(marks[60:].tolist())
    with pytest.raises(ValueError, match="not overwritten"):
        collect(tmp_path / "set", 100, Family())


def test_a_collection_killed_at_any_moment_goes_on_with_the_same_command(tmp_path) -> None:
    path, progress = tmp_path / "set", tmp_path / "set.partial" / "progress.json"
    code = f"from tests.data.test_collection import collect; collect({str(path)!r}, 2000, block_steps=5)"
    child = subprocess.Popen([sys.executable, "-c", code])
    rows, deadline = 0, time.monotonic() + 240.0
    while rows < 45:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
        rows = json.loads(progress.read_text())["rows_written"] if progress.exists() else 0
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not path.exists()
    with pytest.raises(ValueError, match="not finished"):
        TransitionStore.open(path)
    store = collect(path, 2000, block_steps=5)
    assert len(store) == 2000
    observation, arrived = columns_of(store, "observation"), columns_of(store, "observation", after=True)
    done = columns_of(store, "done", after=True)
    assert ((arrived[:-1] == observation[1:]).all(1) | done[:-1]).all()
    torch.testing.assert_close(arrived[:, 0], observation[:, 0] + 1.0)
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_is_shown_where_it_is_wanted(tmp_path, capsys, progress) -> None:
    collect(tmp_path / "set", 30, progress=progress)
    assert ("ToyCounting-v0: 100%" in capsys.readouterr().err) == progress
