"""Data sets of transitions on disk: what is opened, what stays there, and what is refused."""

import dataclasses
import json
import os
import re

import pytest
import torch
from tensordict import TensorDict
from tensordict.memmap import MemoryMappedTensor

from flowmatch_rl.data import StoreInfo, TransitionStore
from flowmatch_rl.data.transitions.store import entries_of
from tests.combinations import each_value, one_test
from tests.data.toy_rows import COLUMNS, PROVENANCE, assert_rows_equal, toy_rows, toy_store, toy_writer


@each_value
@pytest.mark.parametrize("number", [1, 10])
@pytest.mark.parametrize(("embedding_dim", "next_action"), [(0, False), (2, True), (1, False)])
def test_what_is_written_is_read_again(tmp_path, number, embedding_dim, next_action) -> None:
    toy_store(tmp_path / "a" / "set", number, embedding_dim=embedding_dim, has_next_action=next_action)
    store = TransitionStore.open(str(tmp_path / "a" / "set"))
    assert len(store) == store.info.num_transitions == number
    assert store.transitions.batch_size == (number,)
    assert_rows_equal(store.transitions, toy_rows(number, embedding_dim, next_action))


def test_info_is_what_the_writer_was_told(tmp_path) -> None:
    bounds = {"action_low": [-1.0, -2.5, 0.0], "action_high": (1.0, 2.0, 3.0)}
    info = toy_store(tmp_path / "set", 4, embedding_dim=2, has_next_action=True, **bounds).info
    assert (info.columns, info.observation_dim, info.action_dim) == (COLUMNS, 2, 3)
    assert (info.action_low, info.action_high) == ((-1.0, -2.5, 0.0), (1.0, 2.0, 3.0))
    assert (info.embedding_dim, info.has_next_action, info.ordered) == (2, True, False)
    assert PROVENANCE.items() < info.provenance.items()
    assert {"package_version", "date"} <= info.provenance.keys()
    unbounded = toy_store(tmp_path / "other").info
    assert unbounded.action_low is unbounded.action_high is None


def test_rows_stay_in_the_files_of_the_data_set(tmp_path) -> None:
    store = toy_store(tmp_path / "set")
    for value in store.transitions.values(True, True):
        assert isinstance(value, MemoryMappedTensor)
        assert value.filename.startswith(str(tmp_path / "set" / "transitions"))
    # Numbers that get into a file later are seen: nothing was read ahead.
    with (tmp_path / "set" / "transitions" / "observation.memmap").open("r+b") as file:
        file.write(torch.tensor([42.0, 43.0]).numpy().tobytes())
    assert store.transitions["observation"][0].tolist() == [42.0, 43.0]


def test_a_data_set_larger_than_the_memory_opens_and_yields_rows(tmp_path) -> None:
    number = 2_000_000_000
    info = dataclasses.replace(toy_store(tmp_path / "small").info, num_transitions=number)
    entries = entries_of(2, 3, 0, False)
    like = {entry.key: torch.zeros((), dtype=entry.dtype).expand(number, entry.width) for entry in entries}
    TensorDict(like, [number]).memmap_like(str(tmp_path / "set" / "transitions"))  # sparse files
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(dataclasses.asdict(info)))
    with (tmp_path / "set" / "transitions" / "next" / "reward.memmap").open("r+b") as file:
        file.seek(4 * 1_900_000_000)
        file.write(torch.tensor(7.0).numpy().tobytes())
    store = TransitionStore.open(tmp_path / "set")
    batch = store.transitions[torch.tensor([0, 1_900_000_000, number - 1])]
    assert batch["next", "reward"].tolist() == [[0.0], [7.0], [0.0]]


def test_a_missing_folder_is_not_found(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data set .*nothing_here"):
        TransitionStore.open(tmp_path / "nothing_here")


def test_a_folder_of_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"not a data set of transitions.*no dataset\.json"):
        TransitionStore.open(tmp_path)


@pytest.mark.parametrize("name", ["set", "set.partial"])
def test_a_half_written_data_set_is_refused_with_what_to_do(tmp_path, name) -> None:
    with toy_writer(tmp_path / "set", 10) as writer:
        writer.append(toy_rows(7))
    with pytest.raises(ValueError, match=r"set.* is not finished \(7 rows .*again"):
        TransitionStore.open(tmp_path / name)


def change_info(path, **changes) -> None:
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (fields | changes).items() if v != "delete"}))


@one_test
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99, wanted 1"),
        ({"format_version": "delete"}, "format version None, wanted 1"),
        ({"colour": "red"}, "an unknown entry 'colour'"),
        ({"reward_std": "delete"}, "no entry 'reward_std'"),
        ({"num_transitions": 11}, "has 80 bytes (10 rows), but dataset.json says 11 rows, which take 88 bytes"),
        ({"columns": ["a", "b", "c"]}, "observation.memmap has 80 bytes"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(tmp_path, changes, message) -> None:
    toy_store(tmp_path / "set")
    change_info(tmp_path / "set" / "dataset.json", **changes)
    with pytest.raises(ValueError) as caught:
        TransitionStore.open(tmp_path / "set")
    assert message in str(caught.value)
    assert str(tmp_path / "set") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_description_is_refused(tmp_path) -> None:
    toy_store(tmp_path / "set")
    (tmp_path / "set" / "dataset.json").write_text('{"format_version": 1,')
    with pytest.raises(ValueError, match=r"cannot read .*dataset\.json"):
        TransitionStore.open(tmp_path / "set")


@one_test
@pytest.mark.parametrize("size", [None, 0, 39, 41])
def test_a_file_of_another_size_is_refused_and_left_as_it_is(tmp_path, size) -> None:
    toy_store(tmp_path / "set")
    file = tmp_path / "set" / "transitions" / "next" / "reward.memmap"
    file.unlink() if size is None else os.truncate(file, size)
    with pytest.raises(ValueError, match=r"damaged: next/reward\.memmap") as caught:
        TransitionStore.open(tmp_path / "set")
    assert ("is missing" if size is None else f"has {size} bytes") in str(caught.value)
    assert (file.stat().st_size if file.exists() else None) == size


@pytest.mark.parametrize(
    ("places", "message"),
    [(["."], "TensorDict cannot read it"), ([".", "next"], "batch size (9,), wanted (10,)")],
)
def test_a_tensordict_of_another_size_is_refused(tmp_path, places, message) -> None:
    toy_store(tmp_path / "set")
    for place in places:
        meta = tmp_path / "set" / "transitions" / place / "meta.json"
        meta.write_text(meta.read_text().replace("[10", "[9"))
    with pytest.raises(ValueError, match=re.escape(message)):
        TransitionStore.open(tmp_path / "set")


def test_a_data_set_without_the_description_of_its_tensors_is_refused(tmp_path) -> None:
    toy_store(tmp_path / "set")
    (tmp_path / "set" / "transitions" / "meta.json").unlink()
    with pytest.raises(ValueError, match=r"set' is damaged: TensorDict cannot read it: .*meta\.json"):
        TransitionStore.open(tmp_path / "set")


def test_units_and_names_of_actions_are_kept(tmp_path) -> None:
    changes = {"action_columns": ("left", "right", "lift"), "units": {"speed": "m/s", "lift": "N m"}}
    toy_store(tmp_path / "set", **changes)
    info = TransitionStore.open(tmp_path / "set").info
    assert info.column_units == ("", "m/s")
    assert info.labels == ("position", "speed [m/s]")
    assert info.action_labels == ("left", "right", "lift [N m]")


def test_a_data_set_of_before_units_opens(tmp_path) -> None:
    info = toy_store(tmp_path / "set").info
    fields = dataclasses.asdict(info)
    for name in ("action_columns", "units", "has_rewards"):
        del fields[name]
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(fields))
    opened = TransitionStore.open(tmp_path / "set")
    assert opened.info == info
    assert (opened.info.labels, opened.info.action_labels, opened.info.has_rewards) == (COLUMNS, (), True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": {"sped": "m/s"}}, "units has 'sped', which is no column; wanted some of position, speed"),
        ({"action_columns": ("left",)}, "action_columns must be 3 names or none, got ['left']"),
        ({"action_columns": ("left", "up", "left")}, "two columns are named 'left'"),
    ],
)
def test_units_and_names_that_do_not_fit_are_refused(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError) as caught:
        toy_writer(tmp_path / "set", **changes)
    assert str(caught.value) == message


def test_a_data_set_without_rewards_says_so_where_they_are_required(tmp_path) -> None:
    toy_store(tmp_path / "a").require_rewards()
    toy_store(tmp_path / "b", has_rewards=False)
    with pytest.raises(ValueError, match=r"b' has no rewards to learn values from; name their column"):
        TransitionStore.open(tmp_path / "b").require_rewards()


def test_fields_of_the_description_survive_the_file(tmp_path) -> None:
    info = toy_store(tmp_path / "set", action_low=[-1.0] * 3, action_high=[1.0] * 3, ordered=True).info
    assert all(not isinstance(getattr(info, field.name), list) for field in dataclasses.fields(StoreInfo))
    assert info == TransitionStore.open(tmp_path / "set").info
