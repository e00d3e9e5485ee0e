"""Layouts: each gives, row by row, the transitions that its files hold."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tensordict import TensorDict

from flowmatch_rl.data import D4rlFile, ExorlEpisodes, Layout, MinariFolder, OgbenchFile, TransitionTable
from flowmatch_rl.data.layouts import steps
from tests.combinations import each_value
from tests.data.layout_files import (
    minari_episode,
    numbers,
    step_arrays,
    write_d4rl,
    write_exorl,
    write_hdf5,
    write_minari,
    write_ogbench,
)


def read(layout: Layout) -> list[dict[str, list]]:
    """All transitions; the description must tell their number, names and sizes."""
    info = layout.describe()
    blocks = TensorDict.cat(list(layout.blocks()))
    assert len(blocks) == info.num_transitions
    assert blocks["observation"].shape[1] == len(info.columns)
    assert blocks["action"].shape[1] == info.action_dim
    assert (("next", "action") in blocks.keys(True)) == info.has_next_action
    flat = blocks.flatten_keys("/")
    for name, value in flat.items():
        assert value.dtype == (
            torch.bool if name in ("next/terminated", "next/truncated", "next/done") else torch.float32
        )
        assert value.ndim == 2
    assert torch.equal(flat["next/done"], flat["next/terminated"] | flat["next/truncated"])
    return [{name: value[row].tolist() for name, value in flat.items()} for row in range(len(flat))]


def row(observation, action, reward, arrival, end: str = "") -> dict[str, list]:
    """One transition; ``end`` is "terminated", "truncated" or empty."""
    return {
        "observation": np.float32(observation).tolist(),
        "action": np.float32(action).tolist(),
        "next/observation": np.float32(arrival).tolist(),
        "next/reward": np.float32(reward).reshape(1).tolist(),
        "next/terminated": [end == "terminated"],
        "next/truncated": [end == "truncated"],
        "next/done": [end != ""],
    }


def test_exorl_action_is_the_one_that_led_to_its_row(tmp_path: Path) -> None:
    episodes = write_exorl(tmp_path / "buffer", {2: 3, 10: 2}, discounts={10: 0.0})
    a, b = ((e["observation"], e["action"], e["reward"]) for e in (episodes[2], episodes[10]))
    wanted = [row(x[t - 1], u[t], r[t], x[t]) for x, u, r in (a, b) for t in range(1, len(x))]
    wanted[2] = row(a[0][2], a[1][3], a[2][3], a[0][3], "truncated")
    wanted[4] = row(b[0][1], b[1][2], b[2][2], b[0][2], "terminated")
    assert read(ExorlEpisodes(str(tmp_path / "buffer"))) == wanted


def test_exorl_discount_below_one_is_not_a_termination(tmp_path: Path) -> None:
    write_exorl(tmp_path / "buffer", {0: 2}, discounts={0: 0.99})
    assert [r["next/terminated"] for r in read(ExorlEpisodes(str(tmp_path / "buffer")))] == [[False], [False]]


def test_ogbench_rows_arrive_where_the_next_one_starts_but_not_across_a_boundary(tmp_path: Path) -> None:
    held = write_ogbench(tmp_path / "maze.npz", [0, 0, 1, 0, 0, 1])
    x, u = held["observations"], held["actions"]
    assert read(OgbenchFile(str(tmp_path / "maze.npz"))) == [
        row(x[0], u[0], 0.0, x[1]),
        row(x[1], u[1], 0.0, x[2], "truncated"),
        row(x[3], u[3], 0.0, x[4]),
        row(x[4], u[4], 0.0, x[5], "truncated"),
    ]


def test_ogbench_rewards_and_masks_are_those_of_the_row(tmp_path: Path) -> None:
    more = {"rewards": np.array([-1.0, -2.0, -3.0, -4.0]), "masks": np.array([1.0, 0.0, 1.0, 1.0])}
    held = write_ogbench(tmp_path / "maze.npz", [0, 0, 0, 1], **more)
    x, u = held["observations"], held["actions"]
    assert read(OgbenchFile(str(tmp_path / "maze.npz"))) == [
        row(x[0], u[0], -1.0, x[1]),
        row(x[1], u[1], -2.0, x[2], "terminated"),
        row(x[2], u[2], -3.0, x[3], "truncated"),
    ]


def test_ogbench_file_without_rewards_makes_a_data_set_that_says_so(tmp_path: Path) -> None:
    for name, more in (("a", {}), ("b", {"rewards": np.zeros(3)})):
        write_ogbench(tmp_path / f"{name}.npz", [0, 0, 1], **more)
    found = {name: OgbenchFile(str(tmp_path / f"{name}.npz")).describe().has_rewards for name in "ab"}
    assert found == {"a": False, "b": True}
    assert not OgbenchFile(str(tmp_path)).describe().has_rewards


def test_ogbench_file_with_valid_rows_flags_the_row_before_the_last_as_well(tmp_path: Path) -> None:
    held = write_ogbench(tmp_path / "maze.npz", [0, 1, 1, 1, 1], valids=np.array([1.0, 1.0, 0.0, 1.0, 0.0]))
    x, u = held["observations"], held["actions"]
    assert read(OgbenchFile(str(tmp_path / "maze.npz"))) == [
        row(x[0], u[0], 0.0, x[1]),
        row(x[1], u[1], 0.0, x[2], "truncated"),
        row(x[3], u[3], 0.0, x[4], "truncated"),
    ]


def test_ogbench_arrivals_of_the_file_are_taken_where_it_has_them(tmp_path: Path) -> None:
    arrivals = numbers(3, 3)
    held = write_ogbench(tmp_path / "maze.npz", [0, 1, 1], next_observations=arrivals)
    x, u = held["observations"], held["actions"]
    assert read(OgbenchFile(str(tmp_path / "maze.npz"))) == [
        row(x[0], u[0], 0.0, arrivals[0]),
        row(x[1], u[1], 0.0, arrivals[1], "truncated"),
        row(x[2], u[2], 0.0, arrivals[2], "truncated"),
    ]


def test_ogbench_folder_is_read_by_number_without_validation_files(tmp_path: Path) -> None:
    parts = {name: write_ogbench(tmp_path / f"{name}.npz", [0, 1]) for name in ("c-010", "c-9", "c-9-val")}
    wanted = [
        row(x[0], u[0], 0.0, x[1], "truncated")
        for x, u in ((parts[name]["observations"], parts[name]["actions"]) for name in ("c-9", "c-010"))
    ]
    assert read(OgbenchFile(str(tmp_path))) == wanted


def test_d4rl_with_arrivals_keeps_every_row(tmp_path: Path) -> None:
    held = write_d4rl(tmp_path / "hopper.hdf5", terminals=[0, 1, 0, 0, 0], timeouts=[0, 0, 0, 1, 0], arrivals=True)
    x, u, r, y = (held[k] for k in ("observations", "actions", "rewards", "next_observations"))
    endings = ["", "terminated", "", "truncated", "truncated"]
    assert read(D4rlFile(str(tmp_path / "hopper.hdf5"))) == [
        row(*part) for part in zip(x, u, r, y, endings, strict=True)
    ]


def test_d4rl_without_arrivals_drops_the_last_rows_of_trajectories(tmp_path: Path) -> None:
    held = write_d4rl(
        tmp_path / "hopper.hdf5", terminals=[0, 0, 1, 0, 0, 0, 0], timeouts=[0, 0, 0, 0, 1, 0, 0], arrivals=False
    )
    x, u, r = (held[k] for k in ("observations", "actions", "rewards"))
    layout = D4rlFile(str(tmp_path / "hopper.hdf5"))
    assert read(layout) == [
        row(x[0], u[0], r[0], x[1]),
        row(x[1], u[1], r[1], x[2], "truncated"),
        row(x[3], u[3], r[3], x[4], "truncated"),
        row(x[5], u[5], r[5], x[6], "truncated"),
    ]
    (remark,) = layout.describe().provenance["remarks"]
    assert remark.startswith("1 termination")


def test_exorl_filler_row_may_hold_anything(tmp_path: Path) -> None:
    episode = write_exorl(tmp_path / "buffer", {0: 2})[0]
    for name in ("action", "reward", "discount"):
        episode[name][0] = np.nan
    np.savez(tmp_path / "buffer" / "episode_0_2.npz", **episode)
    x, u, r = (episode[name] for name in ("observation", "action", "reward"))
    assert read(ExorlEpisodes(str(tmp_path / "buffer"))) == [
        row(x[0], u[1], r[1], x[1]),
        row(x[1], u[2], r[2], x[2], "truncated"),
    ]


def test_d4rl_without_timeouts_ends_trajectories_where_the_next_row_starts_elsewhere(tmp_path: Path) -> None:
    held = write_d4rl(tmp_path / "a.hdf5", terminals=[0, 1, 0, 0, 0], timeouts=[0] * 5, arrivals=True)
    del held["timeouts"]
    x = held["observations"]
    held["next_observations"] = np.concatenate([x[1:], x[:1]])
    held["next_observations"][[1, 2]] += 1.0  # the second row ends in a terminal state, the third at a time limit
    write_hdf5(tmp_path / "a.hdf5", held)
    endings = ["", "terminated", "truncated", "", "truncated"]
    u, r, y = (held[name] for name in ("actions", "rewards", "next_observations"))
    layout = D4rlFile(str(tmp_path / "a.hdf5"))
    assert read(layout) == [row(*part) for part in zip(x, u, r, y, endings, strict=True)]
    assert "timeouts" in layout.describe().provenance["remarks"][0]


def test_d4rl_without_timeouts_and_arrivals_takes_the_length_of_trajectories(tmp_path: Path) -> None:
    held = write_d4rl(tmp_path / "a.hdf5", terminals=[0, 1, 0, 0, 0, 0, 0], timeouts=[0] * 7, arrivals=False)
    del held["timeouts"]
    write_hdf5(tmp_path / "a.hdf5", held)
    x, u, r = (held[name] for name in ("observations", "actions", "rewards"))
    layout = D4rlFile(str(tmp_path / "a.hdf5"), max_episode_steps=3)
    # Trajectories are rows 0 and 1, which ends early, rows 2 to 4, and rows 5 and 6.
    assert read(layout) == [
        row(x[0], u[0], r[0], x[1], "truncated"),
        row(x[2], u[2], r[2], x[3]),
        row(x[3], u[3], r[3], x[4], "truncated"),
        row(x[5], u[5], r[5], x[6], "truncated"),
    ]


def test_minari_episodes_without_steps_are_left_out_and_counted(tmp_path: Path) -> None:
    episodes = {0: minari_episode(2, terminated=True), 1: minari_episode(0, terminated=False)}
    write_minari(tmp_path / "v0", episodes)
    x, u, r = (episodes[0][name] for name in ("observations", "actions", "rewards"))
    layout = MinariFolder(str(tmp_path / "v0"))
    assert read(layout) == [row(x[0], u[0], r[0], x[1]), row(x[1], u[1], r[1], x[2], "terminated")]
    assert layout.describe().provenance["remarks"] == ["1 episode without steps is left out"]


def test_minari_cameras_are_left_to_those_who_name_the_entries(tmp_path: Path) -> None:
    parts = {"q": numbers(3, 2), "camera": np.zeros((3, 4, 4, 3), np.uint8)}
    write_minari(tmp_path / "v0", {0: minari_episode(2, terminated=False, observations=parts)})
    layout = MinariFolder(str(tmp_path / "v0"), observation_keys=["q"])
    assert [r["observation"] for r in read(layout)] == np.float32(parts["q"][:2]).tolist()


@pytest.mark.parametrize("kind", ["d4rl", "minari"])
def test_hdf5_files_may_be_compressed_by_gzip(kind: str, tmp_path: Path) -> None:
    if kind == "d4rl":
        write_d4rl(tmp_path / "a.hdf5", [0, 0, 1], [0, 0, 0], arrivals=True)
        file, layout = tmp_path / "a.hdf5", D4rlFile(str(tmp_path / "a.hdf5"))
    else:
        write_minari(tmp_path / "v0", {0: minari_episode(2, terminated=False)})
        file, layout = tmp_path / "v0" / "data" / "main_data.hdf5", MinariFolder(str(tmp_path / "v0"))
    wanted = read(layout)
    file.write_bytes(gzip.compress(file.read_bytes()))
    assert read(layout) == wanted


def test_minari_episodes_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    episodes = {10: minari_episode(2, terminated=True), 9: minari_episode(1, terminated=False)}
    write_minari(tmp_path / "v0", episodes)
    a, b = ((e["observations"], e["actions"], e["rewards"]) for e in (episodes[9], episodes[10]))
    assert read(MinariFolder(str(tmp_path / "v0"))) == [
        row(a[0][0], a[1][0], a[2][0], a[0][1], "truncated"),
        row(b[0][0], b[1][0], b[2][0], b[0][1]),
        row(b[0][1], b[1][1], b[2][1], b[0][2], "terminated"),
    ]


def test_minari_dictionaries_are_concatenated_by_name(tmp_path: Path) -> None:
    parts = {
        "observation": numbers(3, 2),
        "desired_goal": numbers(3, 1),
        "achieved": {"x": numbers(3), "b": numbers(3, 1)},
    }
    episode = minari_episode(2, terminated=False, observations=parts)
    write_minari(tmp_path / "v0", {0: episode})
    whole = MinariFolder(str(tmp_path / "v0"))
    assert whole.describe().columns == (
        "achieved/b_0",
        "achieved/x",
        "desired_goal_0",
        "observation_0",
        "observation_1",
    )
    x = np.column_stack([parts["achieved"]["b"], parts["achieved"]["x"], parts["desired_goal"], parts["observation"]])
    u, r = episode["actions"], episode["rewards"]
    assert read(whole) == [row(x[0], u[0], r[0], x[1]), row(x[1], u[1], r[1], x[2], "truncated")]
    chosen = MinariFolder(str(tmp_path / "v0"), observation_keys=["observation", "desired_goal"])
    assert chosen.describe().columns == ("observation_0", "observation_1", "desired_goal_0")
    assert [r["observation"] for r in read(chosen)] == np.float32(x[:2, [3, 4, 2]]).tolist()


def test_minari_episode_without_a_flag_at_its_end_is_truncated(tmp_path: Path) -> None:
    write_minari(tmp_path / "v0", {0: minari_episode(2, terminated=False) | {"truncations": np.zeros(2, bool)}})
    assert [r["next/truncated"] for r in read(MinariFolder(str(tmp_path / "v0")))] == [[False], [True]]


TABLE = {
    "x": [0.0, 1.0, 5.0],
    "y": [0.5, 0.25, 0.125],
    "force": [1.0, 2.0, 3.0],
    "gain": [7.0, 8.0, 9.0],
    "x_after": [1.0, 2.0, 6.0],
    "y_after": [0.25, 0.75, 0.5],
    "force_after": [3.0, 2.0, 1.0],
    "over": [0, 0, 1],
}
NAMES = {"observations": ["x", "y"], "actions": ["force"], "next_observations": ["x_after", "y_after"]}


def test_table_of_text_may_name_its_signs(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x;u;y\nm;N;m\n0,125;0,500;0,250\n0,250;0,750;0,375\n")
    names = {"observations": ["x"], "actions": ["u"], "next_observations": ["y"]}
    plain = TransitionTable(str(tmp_path / "t.csv"), **names)
    assert read(plain) == [row([0.125], [0.5], 0.0, [0.25]), row([0.25], [0.75], 0.0, [0.375])]
    assert "line 2 (m, N, m) is taken for units" in plain.describe().provenance["remarks"]
    (tmp_path / "t.csv").write_text("x;u;y\n1,125;0.5;1,250\n1,250;0.75;1,375\n")
    named = TransitionTable(str(tmp_path / "t.csv"), **names, separator=";", decimal=".")
    assert [r["observation"] for r in read(named)] == [[1125.0], [1250.0]]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_table_gives_a_transition_per_row(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    write = {
        "csv": lambda frame: frame.to_csv(path, index=False),
        "parquet": lambda frame: frame.to_parquet(path),
        "npz": lambda frame: np.savez(path, **{name: frame[name].to_numpy() for name in frame}),
    }
    write[suffix](pd.DataFrame(TABLE))
    more = {"reward": "gain", "terminated": "over", "next_actions": ["force_after"]}
    layout = TransitionTable(str(path), **NAMES, **more, action_low=1.0, action_high=3.0)
    wanted = [
        row([0.0, 0.5], [-1.0], 7.0, [1.0, 0.25]) | {"next/action": [1.0]},
        row([1.0, 0.25], [0.0], 8.0, [2.0, 0.75]) | {"next/action": [0.0]},
        row([5.0, 0.125], [1.0], 9.0, [6.0, 0.5], "terminated") | {"next/action": [-1.0]},
    ]
    assert read(layout) == wanted
    assert not layout.describe().ordered
    assert layout.describe().columns == ("x", "y")


def test_ordered_table_cuts_trajectories_where_the_next_row_starts_elsewhere(tmp_path: Path) -> None:
    pd.DataFrame(TABLE).to_csv(tmp_path / "t.csv", index=False)
    layout = TransitionTable(str(tmp_path / "t.csv"), **NAMES, ordered=True, action_low=1.0, action_high=3.0)
    assert [(r["next/truncated"], r["next/reward"]) for r in read(layout)] == [
        ([False], [0.0]),
        ([True], [0.0]),
        ([True], [0.0]),
    ]
    assert layout.describe().ordered


@each_value
@pytest.mark.parametrize("arrivals", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_slices_of_a_long_file_join_without_a_seam(size: int, arrivals: bool, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "hopper.hdf5"
    write_d4rl(file, terminals=[0, 0, 1, 0, 0, 0, 0], timeouts=[0, 0, 0, 0, 0, 1, 0], arrivals=arrivals)
    whole = read(D4rlFile(str(file)))
    monkeypatch.setattr(steps, "BLOCK_ROWS", size)
    assert read(D4rlFile(str(file))) == whole


def test_actions_are_scaled_by_their_bounds_and_rounded_off_at_them(tmp_path: Path) -> None:
    held = write_ogbench(
        tmp_path / "a.npz", [0, 0, 1], actions=np.array([[-2.0, 10.0], [2.0 + 1e-6, 15.0], [0.0, 0.0]])
    )
    layout = OgbenchFile(str(tmp_path / "a.npz"), action_low=[-2.0, 10.0], action_high=[2.0, 20.0])
    assert [r["action"] for r in read(layout)] == [[-1.0, -1.0], [1.0, 0.0]]
    assert (layout.describe().action_low, layout.describe().action_high) == ((-2.0, 10.0), (2.0, 20.0))
    assert held["actions"].shape == (3, 2)


def test_one_bound_serves_all_dimensions(tmp_path: Path) -> None:
    write_ogbench(tmp_path / "a.npz", [0, 1], actions=np.array([[-3.0, 1.5], [0.0, 0.0]]))
    layout = OgbenchFile(str(tmp_path / "a.npz"), action_low=-3.0, action_high=3.0)
    assert [r["action"] for r in read(layout)] == [[-1.0, 0.5]]
    assert layout.describe().action_high == (3.0, 3.0)


def test_columns_name_the_entries_of_an_observation(tmp_path: Path) -> None:
    write_ogbench(tmp_path / "a.npz", [0, 1])
    assert OgbenchFile(str(tmp_path / "a.npz")).describe().columns == tuple(f"observation_{i}" for i in range(3))
    assert OgbenchFile(str(tmp_path / "a.npz"), columns=["x", "y", "z"]).describe().columns == ("x", "y", "z")


def test_large_files_of_many_steps_agree_with_their_arrays(tmp_path: Path) -> None:
    arrays = step_arrays(120_000) | {"terminals": (np.arange(120_000) % 1001 == 1000).astype(float)}
    np.savez(tmp_path / "a.npz", **arrays)
    blocks = list(OgbenchFile(str(tmp_path / "a.npz")).blocks())
    assert len(blocks) == 3
    kept = np.flatnonzero(arrays["terminals"][:-1] == 0.0)
    whole = TensorDict.cat(blocks)
    np.testing.assert_array_equal(whole["observation"], arrays["observations"][kept])
    np.testing.assert_array_equal(whole["next", "observation"], arrays["observations"][kept + 1])
    np.testing.assert_array_equal(whole["next", "reward"][:, 0], arrays["rewards"][kept])
