"""Files that do not have the layout they should are refused in one line that names the file and what is wrong."""

import gzip
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from flowmatch_rl.data import D4rlFile, ExorlEpisodes, Layout, MinariFolder, OgbenchFile, TransitionTable
from tests.combinations import one_test
from tests.data.layout_files import (
    minari_episode,
    numbers,
    write_d4rl,
    write_exorl,
    write_hdf5,
    write_minari,
    write_ogbench,
)


def read(layout: Layout) -> None:
    layout.describe()
    list(layout.blocks())


def refused(layout: Layout, *words: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(layout)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def exorl(folder: Path, **changes: np.ndarray | None) -> ExorlEpisodes:
    """An episode of 3 steps after a good one; None leaves an array out."""
    episodes = write_exorl(folder / "buffer", {0: 2, 1: 3})
    arrays = {key: value for key, value in (episodes[1] | changes).items() if value is not None}
    np.savez(folder / "buffer" / "episode_1_3.npz", **arrays)
    return ExorlEpisodes(str(folder / "buffer"))


@one_test
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"discount": None}, ["'discount'", "lacks", "physics"]),
        ({"action": numbers(3, 2)}, ["'action'", "(3, 2)", "wanted 4 rows of numbers"]),
        ({"action": numbers(4, 3)}, ["dimensions 3 and 3", "3 and 2", "episode_0_2.npz"]),
        ({"observation": numbers(4, 2)}, ["dimensions 2 and 2", "3 and 2"]),
        ({"observation": numbers(4, 8, 8)}, ["'observation'", "(4, 8, 8)", "wanted rows of numbers"]),
        ({"reward": numbers(4, 2)}, ["'reward'", "(4, 2)"]),
        ({"reward": np.array([0.0, 1.0, np.nan, 0.0])}, ["'reward'", "nan", "row 2"]),
        ({"reward": np.array([0.0, 1.0, 1.0, 1e300])}, ["'reward'", "1e+300", "row 3"]),
        ({"observation": np.full((4, 3), "x")}, ["'observation'", "<U1"]),
        ({"discount": np.array([1.0, 1.0, 0.0, 1.0])}, ["'discount'", "row 2", "row, 3"]),
        ({"discount": np.array([1.0, 1.0, 1.0, 1.5])}, ["'discount'", "1.5", "row 3"]),
        ({"action": numbers(4, 2) * 0 + 2.5}, ["[2.5, 2.5]", "[-1, 1]", "action_low"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_exorl_episode(changes, words, tmp_path: Path) -> None:
    refused(exorl(tmp_path, **changes), "episode_1_3.npz", *words)


def test_exorl_episode_without_a_step(tmp_path: Path) -> None:
    write_exorl(tmp_path / "buffer", {0: 0})
    refused(ExorlEpisodes(str(tmp_path / "buffer")), "episode_0_0.npz", "at least 2")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not an archive"])
def test_damaged_npz(content: bytes, tmp_path: Path) -> None:
    write_exorl(tmp_path / "buffer", {0: 2})
    (tmp_path / "buffer" / "episode_1_3.npz").write_bytes(content)
    refused(ExorlEpisodes(str(tmp_path / "buffer")), "episode_1_3.npz", "cannot read")
    refused(OgbenchFile(str(tmp_path / "buffer" / "episode_1_3.npz")), "episode_1_3.npz", "cannot read")


@pytest.mark.parametrize(
    "damage", [lambda held: held[: len(held) // 2], lambda held: held[:90] + bytes(90) + held[180:]]
)
def test_npz_cut_short_or_overwritten(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    write_ogbench(tmp_path / "a.npz", [0] * 500 + [1])
    (tmp_path / "a.npz").write_bytes(damage((tmp_path / "a.npz").read_bytes()))
    refused(OgbenchFile(str(tmp_path / "a.npz")), "a.npz", "cannot read")


def test_npz_of_objects(tmp_path: Path) -> None:
    arrays = {"observations": numbers(2, 3), "actions": numbers(2, 2), "terminals": np.array([0, None], dtype=object)}
    np.savez(tmp_path / "a.npz", **arrays)
    refused(OgbenchFile(str(tmp_path / "a.npz")), "a.npz")


@one_test
@pytest.mark.parametrize("layout", [ExorlEpisodes, OgbenchFile, D4rlFile, MinariFolder])
def test_missing_files(layout: Callable[[str], Layout], tmp_path: Path) -> None:
    refused(layout(str(tmp_path / "nothing")), "nothing", "wanted")


@pytest.mark.parametrize("layout", [ExorlEpisodes, OgbenchFile, MinariFolder])
def test_empty_folder(layout: Callable[[str], Layout], tmp_path: Path) -> None:
    refused(layout(str(tmp_path)), str(tmp_path))


@one_test
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"terminals": np.array([0, 0.5, 1])}, ["'terminals'", "0.5", "row 1"]),
        ({"terminals": np.array([0, 1])}, ["'terminals'", "(2,)", "3"]),
        ({"actions": numbers(2, 2)}, ["'actions'", "(2, 2)"]),
        ({"rewards": numbers(4)}, ["'rewards'", "(4,)"]),
        ({"masks": numbers(3)}, ["'masks'"]),
        ({"next_observations": numbers(3, 2)}, ["'next_observations'", "(3, 2)", "3 rows of 3 numbers"]),
        ({"observations": np.zeros((0, 3))}, ["no rows"]),
        ({"observations": np.full((3, 3), np.inf)}, ["'observations'", "inf", "row 0"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_ogbench_file(changes, words, tmp_path: Path) -> None:
    write_ogbench(tmp_path / "a.npz", [0, 0, 1], **changes)
    refused(OgbenchFile(str(tmp_path / "a.npz")), "a.npz", *words)


@one_test
@pytest.mark.parametrize("missing", ["observations", "actions", "rewards", "terminals"])
def test_d4rl_file_without_an_array(missing: str, tmp_path: Path) -> None:
    arrays = write_d4rl(tmp_path / "a.hdf5", [0, 0], [0, 1], arrivals=True)
    del arrays[missing]
    write_hdf5(tmp_path / "a.hdf5", arrays)
    refused(D4rlFile(str(tmp_path / "a.hdf5")), "a.hdf5", "lacks", repr(missing))


def test_d4rl_file_that_does_not_tell_where_trajectories_end(tmp_path: Path) -> None:
    arrays = write_d4rl(tmp_path / "a.hdf5", [0, 0], [0, 1], arrivals=False)
    del arrays["timeouts"]
    write_hdf5(tmp_path / "a.hdf5", arrays)
    words = ("a.hdf5", "neither 'timeouts' nor 'next_observations'", "max_episode_steps")
    refused(D4rlFile(str(tmp_path / "a.hdf5")), *words)
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1, got 0"):
        D4rlFile("a.hdf5", max_episode_steps=0).describe()


@pytest.mark.parametrize("kind", ["external", "group", "storage", "virtual", "dangling"])
def test_hdf5_files_that_lead_out_of_themselves(kind: str, tmp_path: Path) -> None:
    arrays = write_d4rl(tmp_path / "a.hdf5", [0, 0], [0, 1], arrivals=True)
    write_hdf5(tmp_path / "secret.hdf5", {"observations": arrays["observations"], "all": arrays})
    (tmp_path / "secret.bin").write_bytes(arrays["observations"].tobytes())
    del arrays["observations"]
    write_hdf5(tmp_path / "a.hdf5", arrays)
    with h5py.File(tmp_path / "a.hdf5", "a") as opened:
        if kind == "storage":
            held = [(str(tmp_path / "secret.bin"), 0, 24)]
            opened.create_dataset("observations", (2, 3), np.float32, external=held)
        elif kind == "virtual":
            layout = h5py.VirtualLayout((2, 3), np.float32)
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.hdf5"), "observations", (2, 3))
            opened.create_virtual_dataset("observations", layout)
        elif kind == "dangling":
            opened["observations"] = h5py.SoftLink("/nowhere")
        else:
            opened["observations"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "observations")
    if kind == "group":
        write_minari(tmp_path / "v0", {})
        with h5py.File(tmp_path / "v0" / "data" / "main_data.hdf5", "a") as opened:
            opened["episode_0"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "all")
        refused(MinariFolder(str(tmp_path / "v0")), "main_data.hdf5", "'episode_0'", "another file")
    else:
        where = "nowhere" if kind == "dangling" else "another file"
        refused(D4rlFile(str(tmp_path / "a.hdf5")), "a.hdf5", "'observations'", where)


def test_minari_camera_beside_the_state(tmp_path: Path) -> None:
    parts = {"q": numbers(3, 2), "camera": np.zeros((3, 4, 4, 3), np.uint8)}
    write_minari(tmp_path / "v0", {0: minari_episode(2, False, observations=parts)})
    words = ("'camera'", "(3, 4, 4, 3)", "wanted 3 rows of numbers", "observation_keys", "such as q")
    refused(MinariFolder(str(tmp_path / "v0")), *words)


def test_minari_data_set_without_a_step(tmp_path: Path) -> None:
    write_minari(tmp_path / "v0", {0: minari_episode(0, False), 1: minari_episode(0, False)})
    refused(MinariFolder(str(tmp_path / "v0")), "v0", "holds no transitions")


def test_hdf5_file_whose_compression_is_cut_short(tmp_path: Path) -> None:
    write_d4rl(tmp_path / "a.hdf5", [0, 0], [0, 1], arrivals=True)
    held = gzip.compress((tmp_path / "a.hdf5").read_bytes())
    (tmp_path / "a.hdf5").write_bytes(held[: len(held) // 2])
    refused(D4rlFile(str(tmp_path / "a.hdf5")), "a.hdf5", "cannot read")


def test_d4rl_file_that_is_not_hdf5(tmp_path: Path) -> None:
    (tmp_path / "a.hdf5").write_bytes(b"not HDF5")
    refused(D4rlFile(str(tmp_path / "a.hdf5")), "a.hdf5", "cannot read")


def test_row_of_a_later_slice_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    rewards = np.zeros(60_000)
    rewards[51_234] = np.nan
    write_ogbench(tmp_path / "a.npz", [0] * 60_000, rewards=rewards)
    refused(OgbenchFile(str(tmp_path / "a.npz")), "'rewards'", "row 51234")


@one_test
@pytest.mark.parametrize(
    ("episode", "options", "words"),
    [
        ({"rewards": numbers(3)}, {}, ["'rewards'", "(3,)"]),
        ({"observations": numbers(2, 2)}, {}, ["'observation'", "(2, 2)"]),
        ({"actions": {"left": numbers(2, 2)}}, {}, ["'actions'", "group"]),
        ({"actions": numbers(2, 3)}, {}, ["dimension 3", "2 as in"]),
        ({"observations": {"a": numbers(3, 2)}}, {}, ["a_0, a_1", "observation_0"]),
        ({"observations": {"a": numbers(3, 2)}}, {"observation_keys": ["b"]}, ["'b'", "a"]),
        ({}, {"observation_keys": ["b"]}, ["observation_keys b", "one array"]),
        ({}, {"columns": ["x"]}, ["1 columns", "wanted 2"]),
    ],
    ids=["rewards", "observations", "group", "actions", "names", "key", "array", "columns"],
)
def test_minari_episode(episode, options, words, tmp_path: Path) -> None:
    good = minari_episode(2, False, numbers(3, 2))
    episodes = {1: good | episode} if options else {0: good, 1: good | episode}
    write_minari(tmp_path / "v0", episodes)
    refused(MinariFolder(str(tmp_path / "v0"), **options), *words)


def test_minari_data_in_another_format(tmp_path: Path) -> None:
    write_minari(tmp_path / "v0", {0: minari_episode(2, False)}, data_format="arrow")
    refused(MinariFolder(str(tmp_path / "v0")), "v0", "'arrow'", "'hdf5'")


def test_minari_file_without_episodes(tmp_path: Path) -> None:
    write_minari(tmp_path / "v0", {})
    refused(MinariFolder(str(tmp_path / "v0")), "main_data.hdf5", "no episodes")
    with h5py.File(tmp_path / "v0" / "data" / "main_data.hdf5", "a") as opened:
        opened["episode_0"] = np.zeros(3)
    refused(MinariFolder(str(tmp_path / "v0")), "episode_0", "group")


@one_test
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observations": ["x", "yy"]}, ["'yy'", "did you mean 'y'"]),
        ({"next_observations": ["x"]}, ["next_observations", "1 columns", "2"]),
        ({"next_actions": ["x", "y"]}, ["next_actions", "2 columns", "1"]),
        ({"observations": [], "next_observations": []}, ["observations", "at least one"]),
        ({"terminated": "x"}, ["'x'", "0 or 1"]),
        ({"reward": "kind"}, ["'kind'", "'ant'"]),
        ({"actions": ["y"]}, ["[0.5, 7]", "action_low"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_table(changes, words, tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [0.25, 0.5], "y": [0.5, 7.0], "kind": ["ant", "bee"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    names = {"observations": ["x", "y"], "actions": ["x"], "next_observations": ["y", "x"]}
    refused(TransitionTable(str(tmp_path / "t.csv"), **(names | changes)), *words)


@one_test
@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"action_low": -1.0}, ["both or none"]),
        ({"action_low": 1.0, "action_high": -1.0}, ["must not exceed"]),
        ({"action_low": [0.0, 0.0], "action_high": [1.0, 0.0]}, ["[-0.5, 0.5]", "[[0.0, 0.0], [1.0, 0.0]]"]),
        ({"action_low": float("nan"), "action_high": 1.0}, ["must not exceed"]),
        ({"action_low": [0.0, 0.0, 0.0], "action_high": 1.0}, ["action_low", "3 values", "1 or 2"]),
        ({"action_low": [0.0, 0.0], "action_high": [1.0, 1.0, 1.0]}, ["action_low", "2 values", "1 or 3"]),
        ({"action_low": 0.0, "action_high": 1.0}, ["[-0.5, 0.5]", "[0.0, 1.0]"]),
    ],
    ids=lambda value: str(list(value.values())) if isinstance(value, dict) else "",
)
def test_bounds_of_actions(bounds, words, tmp_path: Path) -> None:
    write_ogbench(tmp_path / "a.npz", [0, 1], actions=np.array([[-0.5, 0.5], [0.0, 0.0]]))
    with pytest.raises(ValueError) as caught:
        read(OgbenchFile(str(tmp_path / "a.npz"), **bounds))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    write_ogbench(tmp_path / "a.npz", [0, 1])
    refused(OgbenchFile(str(tmp_path / "a.npz"), columns=["x", "y", "x"]), "'x'")
