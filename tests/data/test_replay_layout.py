"""The replay buffer of a checkpoint as a data set: steps, trajectories, units."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from flowmatch_rl.checks import UserError
from flowmatch_rl.data import CheckpointReplay, TransitionStore, convert_layout
from flowmatch_rl.data.layouts.replay import trajectories
from flowmatch_rl.data.replay import Replay, RestoredRows
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.schema import ActionBounds

EPISODES = {0: [3, 7, 2, 50], 1: [5, 1, 50], 2: [50]}
"""Lengths of the episodes of each of three environments; those of odd length terminate, the others are truncated."""
BOUNDS = ActionBounds((-2.0,), (6.0,))


def all_steps(environment: int) -> list[dict[Any, Any]]:
    """The steps of an environment; each state names its environment, episode and time."""
    steps = []
    for episode, length in enumerate(EPISODES[environment]):
        for time in range(length):
            last = time == length - 1
            steps.append(
                {
                    "observation": [environment, episode, time],
                    "action": [(10 * episode + time) / 100 - 0.5],
                    ("next", "reward"): [environment + 100.0 * episode + time],
                    ("next", "observation"): [environment, episode, time + 1],
                    ("next", "terminated"): [last and length % 2 == 1],
                    ("next", "done"): [last],
                }
            )
    return steps


def filled(num_envs: int, n_steps: int, block: int, total: int, capacity: int = 1000, resumed_at: int = 0) -> Replay:
    """A buffer after some steps of each environment, collected in blocks."""
    replay = Replay(capacity, 1, n_steps, 1, torch.device("cpu"))
    rows = [all_steps(environment)[:total] for environment in range(num_envs)]
    for first in range(0, total, block):
        if first and first == resumed_at:
            replay.begin_episodes()
        parts = [row[first : first + block] for row in rows]
        entries = {key: torch.tensor([[step[key] for step in part] for part in parts]) for key in parts[0][0]}
        entries = {key: entry if entry.dtype == torch.bool else entry.float() for key, entry in entries.items()}
        replay.add(TensorDict(entries, [num_envs, len(parts[0])]))
    return replay


def checkpoint(folder: Path, replay: Replay, bounds: ActionBounds | None = BOUNDS) -> str:
    state = {"replay": dict(replay.transitions.flatten_keys("/").items()), "local_env_steps": 1}
    content = {"hyper_parameters": {"action_bounds": bounds}, "state_dict": {}, "OnlineData": state}
    torch.save(content, folder / "last.ckpt")
    return str(folder / "last.ckpt")


def converted(folder: Path, replay: Replay, **options: Any) -> TransitionStore:
    return convert_layout(CheckpointReplay(checkpoint(folder, replay), **options), str(folder / "data"), progress=False)


def expected(environment: int, steps: range) -> list[tuple]:
    """Rows of consecutive steps of an environment; the last one is the end of a trajectory."""
    rows = []
    for time in steps:
        step = all_steps(environment)[time]
        terminated = step["next", "terminated"][0]
        truncated = not terminated and (step["next", "done"][0] or time == steps[-1])
        rows.append(
            (*step["observation"], step["next", "reward"][0], *step["next", "observation"], terminated, truncated)
        )
    return rows


def rows_of(store: TransitionStore) -> list[tuple]:
    held = store.transitions
    keys = ("observation", ("next", "reward"), ("next", "observation"), ("next", "terminated"), ("next", "truncated"))
    parts = [held.get(key).tolist() for key in keys]
    return [tuple(value for part in row for value in part) for row in zip(*parts, strict=True)]


@pytest.mark.parametrize("block", [1, 4, 32])
def test_the_steps_of_several_environments_come_out_trajectory_by_trajectory(block: int, tmp_path: Path) -> None:
    rows = rows_of(converted(tmp_path, filled(3, 1, block, total=32)))
    together = [row for environment in range(3) for row in expected(environment, range(32))]
    assert sorted(rows) == sorted(together)
    ends = [number for number, row in enumerate(rows) if row[-1] or row[-2]]
    starts = [0, *(end + 1 for end in ends[:-1])]
    pieces = [rows[start : end + 1] for start, end in zip(starts, ends, strict=True)]
    assert all(here[4:7] == after[:3] for piece in pieces for here, after in itertools.pairwise(piece))
    assert len(pieces) == 4 + 3 + 1


def test_a_trajectory_ends_where_a_resumed_run_began_another(tmp_path: Path) -> None:
    replay = filled(1, 1, 4, total=8)
    later: Any = filled(1, 1, 4, total=16).transitions[12:16]
    replay.add(later.set(("next", "done"), torch.zeros(4, 1).bool()).reshape(1, 4))
    assert rows_of(converted(tmp_path, replay)) == expected(0, range(8)) + expected(0, range(12, 16))


def test_the_oldest_row_of_a_full_buffer_comes_first(tmp_path: Path) -> None:
    assert rows_of(converted(tmp_path, filled(1, 1, 4, total=40, capacity=21))) == expected(0, range(19, 40))


@pytest.mark.parametrize("n_steps", [2, 3, 5])
@pytest.mark.parametrize("block", [1, 4])
def test_transitions_of_several_steps_become_their_first_steps(n_steps: int, block: int, tmp_path: Path) -> None:
    # The transitions of the last n - 1 steps wait, and of the last n stored ones the next step is not certain.
    total = 40
    store = converted(tmp_path, filled(1, n_steps, block, total))
    stored = total - (n_steps - 1)
    assert rows_of(store) == expected(0, range(stored - n_steps))
    assert store.info.provenance["remarks"][1].startswith(f"{n_steps} of {stored} rows were left out")


def test_no_step_of_several_leads_into_what_a_resumed_run_began(tmp_path: Path) -> None:
    rows = rows_of(converted(tmp_path, filled(1, 3, 4, total=40, resumed_at=20)))
    assert rows == expected(0, range(15)) + expected(0, range(20, 35))


def test_several_steps_of_several_environments_are_taken_where_they_are_certain(tmp_path: Path) -> None:
    rows = rows_of(converted(tmp_path, filled(2, 3, 20, total=40)))
    held = {row[:-1] for environment in range(2) for row in expected(environment, range(40))}
    assert {row[:-1] for row in rows} <= held
    assert len(rows) > 50


def test_several_steps_of_interleaved_environments_are_refused(tmp_path: Path) -> None:
    replay = filled(3, 4, 1, total=3 + 7 + 2 + 10)
    endless = replay.transitions["length"].squeeze(-1) == 4
    path = checkpoint(
        tmp_path, Replay(1000, 1, 4, 1, torch.device("cpu"), restored=RestoredRows(replay.transitions[endless]))
    )
    with pytest.raises(UserError, match="transitions of 4 steps of several environments"):
        CheckpointReplay(path).describe()


def test_actions_stay_in_one_unit_and_the_data_set_holds_their_bounds(tmp_path: Path) -> None:
    store = converted(tmp_path, filled(1, 1, 4, total=8))
    assert store.info.action_bounds == BOUNDS
    wanted = torch.tensor([step["action"] for step in all_steps(0)[:8]])
    torch.testing.assert_close(torch.as_tensor(store.transitions["action"]), wanted, rtol=0, atol=0)
    assert store.info.provenance["remarks"][0].endswith(f"--model.policy.path {tmp_path / 'last.ckpt'}")


def test_a_checkpoint_without_bounds_has_none(tmp_path: Path) -> None:
    info = CheckpointReplay(checkpoint(tmp_path, filled(1, 1, 4, total=8), None)).describe()
    assert info.action_bounds is None


def test_columns_are_those_of_the_environment_unless_they_are_given(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, filled(1, 1, 4, total=8))
    assert CheckpointReplay(path).describe().columns == ("observation_0", "observation_1", "observation_2")
    pendulum = GymnasiumEnvironment()
    assert CheckpointReplay(path, environment=pendulum).describe().columns == (
        "observation_0",
        "observation_1",
        "observation_2",
    )
    named = CheckpointReplay(path, environment=pendulum, columns=["cosine", "sine", "speed"])
    assert named.describe().columns == ("cosine", "sine", "speed")


def test_what_is_not_a_replay_buffer_is_refused_by_name(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, filled(1, 1, 4, total=8))
    with pytest.raises(UserError, match=r"action_low -2\.0 and action_high 2\.0, but .* in its checkpoint"):
        CheckpointReplay(path, action_low=-2.0, action_high=2.0)
    other = GymnasiumEnvironment("MountainCarContinuous-v0")
    with pytest.raises(UserError, match=r"MountainCarContinuous-v0 has .* dimension 2, those in .* dimension 3"):
        CheckpointReplay(path, environment=other).describe()
    torch.save({"hyper_parameters": {}, "state_dict": {}, "OnlineData": {"local_env_steps": 1}}, path)
    with pytest.raises(UserError, match=r"holds no replay buffer: .* checkpoint_replay false"):
        CheckpointReplay(path).describe()


def test_nothing_follows_a_terminal_state_and_the_latest_of_equal_states_goes_on() -> None:
    # A walk on a line that ends at 0, where episodes begin too; the third row is of another environment.
    begun, led = np.array([[0.0], [1.0], [3.0], [0.0], [1.0]]), np.array([[1.0], [0.0], [1.0], [1.0], [2.0]])
    order, last = trajectories(begun, led, np.array([False, True, False, False, False]))
    assert order.tolist() == [0, 1, 2, 3, 4]
    assert last.tolist() == [False, True, True, False, True]
