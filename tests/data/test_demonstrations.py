"""Collecting with the oracles of OGBench: rows, rewards of tasks, files as OGBench has them, and interruptions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("ogbench", reason="the extra ogbench is not installed")

from ogbench.relabel_utils import relabel_dataset
from ogbench.utils import load_dataset

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.data import OgbenchFile, TransitionStore, collect_demonstrations, convert_layout
from flowmatch_rl.envs import GymnasiumEnvironment, NavigateOracle, OgbenchEnvironment, Oracle, PlayOracle
from flowmatch_rl.envs.oracles import take_trajectory
from tests.combinations import one_test
from tests.data.toy_rows import assert_rows_equal

NAME = "pointmaze-medium-v0"


def task(number: int = 2) -> OgbenchEnvironment:
    return OgbenchEnvironment(NAME, number)


def collect(path: Path, number: int = 700, **changes: Any) -> TransitionStore:
    settings = {
        "environment": task(),
        "oracle": NavigateOracle(),
        "trajectory_steps": 300,
        "seed": 1,
        "progress": False,
    }
    return collect_demonstrations(path=str(path), num_transitions=number, **(settings | changes))


def convert(file: Path, path: Path, number: int | None) -> TransitionStore:
    layout = OgbenchFile(str(file), task=None if number is None else task(number))
    return convert_layout(layout, str(path), progress=False)


def column(store: TransitionStore, *key: str) -> np.ndarray:
    return store.transitions[key].squeeze(-1).numpy()


def test_rows_are_steps_of_trajectories_that_end_where_they_are_cut_or_solved(tmp_path) -> None:
    store = collect(tmp_path / "set")
    assert store.info.ordered
    assert store.info.action_bounds == store.info.action_bounds.unit(2)  # pyright: ignore[reportOptionalMemberAccess]
    observation, arrived = column(store, "observation"), column(store, "next", "observation")
    terminated, truncated, done = (column(store, "next", name) for name in ("terminated", "truncated", "done"))
    cut = np.zeros(700, bool)
    cut[[299, 599, 699]] = True
    np.testing.assert_array_equal(observation[1:][~cut[:-1]], arrived[:-1][~cut[:-1]])
    assert not (observation[1:][cut[:-1]] == arrived[:-1][cut[:-1]]).any()
    assert len(np.unique(observation[[0, 300, 600]], axis=0)) == 3
    np.testing.assert_array_equal(done, cut | terminated)
    np.testing.assert_array_equal(truncated, cut & ~terminated)
    reward = column(store, "next", "reward")
    np.testing.assert_array_equal(reward, np.where(terminated, 0.0, -1.0))
    assert 0 < terminated.sum() < 700
    # The goal of the task has its middle at (20, 0).
    near = np.linalg.norm(observation - [20.0, 0.0], axis=1) <= 1.0
    np.testing.assert_array_equal(terminated, near)


def test_ogbench_reads_the_file_and_computes_the_same_rewards(tmp_path) -> None:
    store = collect(tmp_path / "set", ogbench_file=str(tmp_path / "maze.npz"))
    held = load_dataset(str(tmp_path / "maze.npz"), add_info=True)
    relabel_dataset(NAME, task().make_task(), held)
    for name, key in {"observations": "observation", "actions": "action"}.items():
        np.testing.assert_array_equal(held[name], column(store, key))
    np.testing.assert_array_equal(held["next_observations"], column(store, "next", "observation"))
    np.testing.assert_array_equal(held["rewards"], column(store, "next", "reward"))
    np.testing.assert_array_equal(held["masks"], 1.0 - column(store, "next", "terminated"))
    assert held["terminals"].nonzero()[0].tolist() == [299, 599, 699]
    assert held["qvel"].shape == (700, 2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["maze.npz", "set"]


def test_the_file_becomes_a_data_set_with_the_rewards_of_any_task(tmp_path) -> None:
    file = tmp_path / "maze.npz"
    store = collect(tmp_path / "set", ogbench_file=str(file))
    assert_rows_equal(convert(file, tmp_path / "same", 2).transitions, store.transitions)
    other = collect(tmp_path / "other", environment=task(1))
    assert_rows_equal(convert(file, tmp_path / "1", 1).transitions, other.transitions)
    assert not np.array_equal(column(other, "next", "reward"), column(store, "next", "reward"))
    plain = convert(file, tmp_path / "none", None)
    assert not column(plain, "next", "terminated").any()
    assert [one.info.has_rewards for one in (store, TransitionStore.open(tmp_path / "same"), plain)] == [
        True,
        True,
        False,
    ]


def test_a_collection_that_goes_on_ends_with_the_same_rows_and_the_same_file(tmp_path, monkeypatch) -> None:
    whole = collect(tmp_path / "whole", ogbench_file=str(tmp_path / "whole.npz"))
    calls = [0]

    def interrupted(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:  # one of them is for the dimensions
            raise KeyboardInterrupt
        return take_trajectory(*arguments)

    monkeypatch.setattr("flowmatch_rl.data.demonstrations.take_trajectory", interrupted)
    settings = {"ogbench_file": str(tmp_path / "set.npz")}
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "set", **settings)
    with pytest.raises(UserError, match="not finished \\(300 rows"):
        TransitionStore.open(tmp_path / "set")
    # Written to the file but not to the data set, as if the process had been killed between the two.
    np.savez(tmp_path / "set.npz.partial" / "300.npz", terminals=np.ones(3, bool))
    (tmp_path / "set.npz.partial" / "0.npz").rename(tmp_path / "0.npz")
    with pytest.raises(UserError, match="holds 0 transitions, wanted the 300 that were written"):
        collect(tmp_path / "set", **settings)
    (tmp_path / "0.npz").rename(tmp_path / "set.npz.partial" / "0.npz")
    with pytest.raises(UserError, match=r"provenance\.oracle"):
        collect(tmp_path / "set", oracle=NavigateOracle(noise=0.1), **settings)
    store = collect(tmp_path / "set", **settings)
    assert_rows_equal(store.transitions, whole.transitions)
    with np.load(tmp_path / "set.npz") as one, np.load(tmp_path / "whole.npz") as other:
        assert set(one) == set(other) == {"observations", "actions", "terminals", "qpos", "qvel"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert not list(tmp_path.glob("*.partial"))


@dataclass(frozen=True)
class Clumsy(Oracle):
    """Throws things off the table in some of its trajectories."""

    acts_in: ClassVar[tuple[str, ...]] = ("pointmaze",)

    often: float = 0.5

    def make(self, environment: OgbenchEnvironment) -> Any:
        return NavigateOracle().make(environment)

    def begin(self, env: Any, seed: int, noise: np.random.Generator) -> Any:
        observation, info, script = NavigateOracle().begin(env, seed, noise)
        script.is_spoilt = noise.random() < self.often
        return observation, info, script


def test_trajectories_whose_simulation_goes_wrong_are_left_out(tmp_path) -> None:
    store = collect(tmp_path / "set", 200, oracle=Clumsy(), trajectory_steps=10)
    assert len(store) == 200
    terminated, truncated, done = (column(store, "next", name) for name in ("terminated", "truncated", "done"))
    assert done[9::10].all()
    assert terminated[9::10].any()
    assert not (terminated & truncated).any()
    with pytest.raises(RunError, match=r"20 trajectories in a row; shorten trajectory_steps 1, .*Clumsy"):
        collect(tmp_path / "none", oracle=Clumsy(often=1.0))


@one_test
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"number": 0}, "num_transitions must be at least 1, got 0"),
        ({"trajectory_steps": 0}, "trajectory_steps must be at least 1, got 0"),
        ({"random_fraction": 1.5}, r"random_fraction must lie in \[0, 1\], got 1.5"),
        ({"environment": task(9)}, "has no task 9; task_id must be 1, 2, 3, 4 or 5"),
        ({"environment": OgbenchEnvironment("antmaze-medium-v0")}, "no script for antmaze-medium-v0"),
        (
            {"environment": GymnasiumEnvironment("Pendulum-v1")},
            "GymnasiumEnvironment Pendulum-v1 has no oracle; NavigateOracle acts in an OgbenchEnvironment",
        ),
        ({"ogbench_file": "maze.npy"}, "is called NAME.npz, got 'maze.npy'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        collect(tmp_path / "set", **changes)
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_left_alone(tmp_path) -> None:
    (tmp_path / "a.npz").write_text("mine")
    with pytest.raises(UserError, match=r"a\.npz' exists already"):
        collect(tmp_path / "set", ogbench_file=str(tmp_path / "a.npz"))
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    assert (tmp_path / "a.npz").read_text() == "mine"


@one_test
@pytest.mark.parametrize(
    ("arrays", "number", "words"),
    [
        ({}, 1, ["maze.npz' lacks the array 'qpos'"]),
        ({"qpos": np.zeros((4, 3))}, 1, ["'qpos'", "maze.npz", "shape (4, 3), wanted (4, 2), pointmaze-medium-v0's"]),
        ({"qpos": np.zeros((4, 2))}, 8, ["has no task 8; task_id must be 1, 2, 3, 4 or 5"]),
        ({"qpos": np.full((4, 2), np.nan)}, 1, ["'qpos'", "maze.npz", "nan"]),
    ],
)
def test_a_file_without_the_states_of_a_task_is_refused(tmp_path, arrays, number, words) -> None:
    plain = {"observations": np.zeros((4, 2)), "actions": np.zeros((4, 2)), "terminals": np.array([0, 0, 0, 1])}
    np.savez(tmp_path / "maze.npz", **plain, **arrays)
    with pytest.raises(UserError) as caught:
        convert(tmp_path / "maze.npz", tmp_path / "set", number)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


@pytest.mark.slow
def test_cubes_are_moved_into_a_data_set_and_a_file(tmp_path) -> None:
    environment = OgbenchEnvironment("scene-v0", 1)
    file = tmp_path / "scene.npz"
    store = collect(tmp_path / "set", 60, environment=environment, oracle=PlayOracle(), ogbench_file=str(file))
    layout = OgbenchFile(str(file), task=environment)
    assert_rows_equal(convert_layout(layout, str(tmp_path / "again"), progress=False).transitions, store.transitions)
    with np.load(file) as held:
        assert held["button_states"].shape == (61, 2)
