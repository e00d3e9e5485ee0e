"""Writing data sets: statistics, refusals, and interruptions at any moment."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.data import TransitionStore
from flowmatch_rl.data.transitions.moments import column_moments, read_chunks
from tests.combinations import one_test
from tests.data.toy_rows import assert_rows_equal, toy_rows, toy_store, toy_writer


@pytest.mark.parametrize("blocks", [[1000], [1, 999], [400, 0, 350, 250]])
def test_statistics_are_those_of_all_rows(tmp_path, blocks) -> None:
    rows = toy_rows(1000)
    rows["observation"][:, 1] = 0.1
    writer = toy_writer(tmp_path / "set", 1000)
    for block in rows.split(blocks):
        writer.append(block)
    info = writer.finish().info
    observation, reward = rows["observation"].double(), rows["next", "reward"].double()
    mean, std = observation.mean(0), observation.std(0, correction=0)
    std[1] = 1.0
    torch.testing.assert_close(torch.tensor(info.observation_mean, dtype=torch.float64), mean, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(torch.tensor(info.observation_std, dtype=torch.float64), std, rtol=1e-12, atol=0.0)
    assert info.reward_mean == pytest.approx(reward.mean().item(), rel=1e-12)
    assert info.reward_std == pytest.approx(reward.std(correction=0).item(), rel=1e-12)
    assert info.num_trajectories is None


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 1000])
def test_moments_do_not_depend_on_the_parts_and_survive_a_large_mean(tmp_path, chunk_rows) -> None:
    table = np.random.default_rng(0).normal([1e8, 0.0, 3.0], [1.0, 1e-3, 0.0], (64, 3))
    table.tofile(tmp_path / "table")
    mean, std = column_moments(read_chunks(tmp_path / "table", np.float64, 64, 3, chunk_rows))
    np.testing.assert_allclose(mean, table.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, [*table.std(0)[:2], 1.0], rtol=1e-7)


def test_trajectories_of_ordered_rows_are_counted_with_the_last_one_closed(tmp_path) -> None:
    rows = toy_rows(40)
    for flag in ("terminated", "truncated", "done"):
        rows["next", flag][-1] = False
    ends = int(rows["next", "done"].sum())
    writer = toy_writer(tmp_path / "set", 40, ordered=True)
    writer.append(rows)
    store = writer.finish()
    assert store.info.num_trajectories == ends + 1
    last = store.transitions["next"][-1]
    assert (last["truncated"].item(), last["done"].item(), last["terminated"].item()) == (True, True, False)
    assert_rows_equal(store.transitions[:-1], rows[:-1])


def test_a_termination_at_the_end_stays_one(tmp_path) -> None:
    rows = toy_rows(3)
    rows["next", "terminated"][-1] = rows["next", "done"][-1] = True
    rows["next", "truncated"][-1] = False
    writer = toy_writer(tmp_path / "set", 3, ordered=True)
    writer.append(rows)
    assert_rows_equal(writer.finish().transitions, rows)


def test_entries_that_are_not_declared_are_left_out(tmp_path) -> None:
    writer = toy_writer(tmp_path / "set", 5)
    writer.append(toy_rows(5).set("step_count", torch.zeros(5, 1)))
    assert_rows_equal(writer.finish().transitions, toy_rows(5))


def test_a_data_set_with_missing_rows_is_not_finished(tmp_path) -> None:
    writer = toy_writer(tmp_path / "set", 10)
    with pytest.raises(UserError, match="only 0 of 10 rows"):
        writer.finish()
    writer.append(toy_rows(7))
    with pytest.raises(UserError, match="only 7 of 10 rows"):
        writer.finish()
    assert not (tmp_path / "set").exists()


def test_more_rows_than_declared_are_refused(tmp_path) -> None:
    writer = toy_writer(tmp_path / "set", 10)
    writer.append(toy_rows(7))
    with pytest.raises(ValueError, match=r"7 rows are written and 4 more were given.* declared to have 10"):
        writer.append(toy_rows(4))
    assert writer.rows_written == 7


def put(key, row, value):
    def change(rows):
        rows[key][row] = value
        return rows

    return change


@one_test
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("observation", (3, 1), float("nan")), "observation is nan in row 8, wanted finite numbers"),
        (put(("next", "observation"), (0, 0), float("inf")), "next/observation is inf in row 5, wanted finite"),
        (put(("next", "reward"), 4, -float("inf")), "next/reward is -inf in row 9, wanted finite"),
        (put("action", (1, 2), 1.5), "action is 1.5 in row 6, wanted numbers in [-1, 1]"),
        (put("action", (1, 0), float("nan")), "action is nan in row 6, wanted numbers in [-1, 1]"),
        (put(("next", "action"), (2, 0), -2.0), "next/action is -2.0 in row 7, wanted numbers in [-1, 1]"),
        (put("embedding", (2, 0), float("nan")), "embedding is nan in row 7, wanted finite numbers"),
        (put(("next", "done"), slice(None), True), "next/done is True in row 5, wanted terminated or truncated"),
        (lambda rows: rows.exclude("action"), "the block lacks action; it holds embedding, next/action"),
        (lambda rows: rows.exclude(("next", "done")), "the block lacks next/done"),
        (
            lambda rows: rows.set("action", torch.zeros(5, 2)),
            "action is float32 of shape (5, 2), wanted float32 of shape (5, 3)",
        ),
        (
            lambda rows: rows.set(("next", "reward"), torch.zeros(5)),
            "next/reward is float32 of shape (5,), wanted float32 of shape (5, 1)",
        ),
        (lambda rows: rows.set("observation", rows["observation"].double()), "observation is float64 of shape (5, 2)"),
        (lambda rows: rows.unsqueeze(0), "expected a block of batch size (B,), got (1, 5)"),
    ],
)
def test_rows_that_do_not_fit_are_named_and_not_written(tmp_path, change, message) -> None:
    good = toy_rows(5, embedding_dim=2, next_action=True)
    for flag in ("terminated", "truncated", "done"):
        good["next", flag][:] = False
    writer = toy_writer(tmp_path / "set", 10, embedding_dim=2, has_next_action=True)
    writer.append(good)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        writer.append(change(good.clone()))
    assert "\n" not in str(caught.value)
    assert writer.rows_written == 5
    writer.append(good)
    assert_rows_equal(writer.finish().transitions, torch.cat([good, good]))


def test_the_first_of_several_bad_rows_is_named(tmp_path) -> None:
    rows = put("observation", (4, 0), float("nan"))(put(("next", "reward"), 2, float("nan"))(toy_rows(10)))
    with pytest.raises(ValueError, match="next/reward is nan in row 2"):
        toy_writer(tmp_path / "set").append(rows)


@one_test
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_transitions": 0}, "num_transitions must be at least 1, got 0"),
        ({"columns": ()}, "the number of columns must be at least 1, got 0"),
        ({"columns": ("a", "b", "a")}, "two columns are named 'a'"),
        ({"action_dim": 0}, "action_dim must be at least 1, got 0"),
        ({"embedding_dim": -1}, "embedding_dim must be at least 0, got -1"),
        ({"action_low": [0.0] * 3}, "action_low and action_high"),
        ({"action_low": [0.0] * 3, "action_high": [1.0] * 2}, "action_low and action_high"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        toy_writer(tmp_path / "set", **changes)
    assert not list(tmp_path.iterdir())


def contents(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_finished_data_set_is_not_overwritten(tmp_path) -> None:
    toy_store(tmp_path / "set")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="set' exists and is not overwritten"):
        toy_writer(tmp_path / "set")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", ["set/notes.txt", "set.partial/notes.txt", "set"])
def test_what_is_somebody_elses_is_left_untouched(tmp_path, place) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")
    with pytest.raises(ValueError, match=r"set.*(not overwritten|move it away)"):
        toy_writer(tmp_path / "set")
    assert contents(tmp_path) == {place: b"mine"}


@pytest.mark.parametrize("place", ["set", "set.partial"])
def test_an_empty_folder_may_be_filled(tmp_path, place) -> None:
    (tmp_path / place).mkdir()
    assert_rows_equal(toy_store(tmp_path / "set").transitions, toy_rows(10))
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


def append_to(path, rows, **changes) -> None:
    """Write some rows, as a process that ends before the data set is complete."""
    with toy_writer(path, **changes) as writer:
        writer.append(rows)


def test_a_writer_resumes_after_the_rows_that_were_written(tmp_path) -> None:
    rows = toy_rows(10)
    append_to(tmp_path / "set", rows[:4])
    append_to(tmp_path / "set", rows[4:6])
    with toy_writer(tmp_path / "set") as last:
        assert last.rows_written == 6
        last.append(rows[6:])
        assert_rows_equal(last.finish().transitions, rows)


def test_a_data_set_that_was_begun_before_units_is_resumed(tmp_path) -> None:
    rows = toy_rows(10)
    append_to(tmp_path / "set", rows[:4])
    file = tmp_path / "set.partial" / "progress.json"
    progress = json.loads(file.read_text())
    for name in ("action_columns", "units", "has_rewards"):
        del progress["description"][name]
    file.write_text(json.dumps(progress))
    with toy_writer(tmp_path / "set") as writer:
        writer.append(rows[4:])
        assert_rows_equal(writer.finish().transitions, rows)


def test_a_writer_that_is_refused_does_not_keep_the_folder(tmp_path) -> None:
    append_to(tmp_path / "set", toy_rows(4))
    with pytest.raises(UserError) as caught:
        toy_writer(tmp_path / "set", 11)
    with toy_writer(tmp_path / "set") as writer:
        assert writer.rows_written == 4
    assert "num_transitions is 10" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"num_transitions": 11}, "its num_transitions is 10, here it is 11"),
        ({"columns": ("position", "velocity")}, "its columns is ['position', 'speed'], here it is"),
        ({"ordered": True}, "its ordered is False, here it is True"),
        ({"embedding_dim": 1}, "its embedding_dim is 0, here it is 1"),
        ({"units": {"speed": "m/s"}}, "its units.speed is None, here it is 'm/s'"),
        ({"has_rewards": False}, "its has_rewards is True, here it is False"),
        ({"has_next_action": True}, "its has_next_action is False, here it is True"),
        ({"action_low": [0.0] * 3, "action_high": [1.0] * 3}, "its action_low is None, here it is [0.0, 0.0, 0.0]"),
        ({"provenance": {"made_by": "a test", "seed": 1}}, "its provenance.seed is 0, here it is 1"),
        ({"provenance": {"made_by": "a test"}}, "its provenance.seed is 0, here it is None"),
    ],
)
def test_the_beginning_of_another_data_set_is_not_continued(tmp_path, changes, difference) -> None:
    append_to(tmp_path / "set", toy_rows(4))
    with pytest.raises(UserError, match=re.escape(difference)):
        toy_writer(tmp_path / "set", **changes)
    with toy_writer(tmp_path / "set") as writer:
        assert writer.rows_written == 4


def test_a_trajectory_that_an_interruption_cut_is_marked_as_truncated(tmp_path) -> None:
    rows = toy_rows(10)
    for flag in ("terminated", "truncated", "done"):
        rows["next", flag][:] = False
    append_to(tmp_path / "set", rows[:4], ordered=True)
    with toy_writer(tmp_path / "set", ordered=True) as again:
        again.append(rows[4:])
        store = again.finish()
    ends = [3, 9]
    assert store.transitions["next", "truncated"].flatten().nonzero().flatten().tolist() == ends
    assert store.transitions["next", "done"].flatten().nonzero().flatten().tolist() == ends
    assert not store.transitions["next", "terminated"].any()
    assert store.info.num_trajectories == 2


def test_two_processes_do_not_write_the_same_data_set(tmp_path) -> None:
    writer = toy_writer(tmp_path / "set")
    code = f"from tests.data.toy_rows import toy_writer; toy_writer({str(tmp_path / 'set')!r})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UserError: another process is writing the data set" in other.stderr
    writer.append(toy_rows(10))
    assert_rows_equal(writer.finish().transitions, toy_rows(10))


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_block_that_was_half_written_is_no_part_of_the_rows(tmp_path, monkeypatch) -> None:
    def killed(descriptor: int) -> None:
        raise Killed

    rows = toy_rows(10)
    with toy_writer(tmp_path / "set") as writer:
        writer.append(rows[:4])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", killed)
            with pytest.raises(Killed):
                writer.append(toy_rows(3))
    with toy_writer(tmp_path / "set") as writer:
        writer.append(rows[4:])
        assert_rows_equal(writer.finish().transitions, rows)


def test_written_rows_that_went_missing_are_not_made_up(tmp_path) -> None:
    append_to(tmp_path / "set", toy_rows(4))
    (tmp_path / "set.partial" / "data" / "transitions" / "action.memmap").unlink()
    with pytest.raises(ValueError, match=r"action\.memmap' is too short for the 4 rows that were written"):
        toy_writer(tmp_path / "set")


def write_all(path, rows) -> None:
    with toy_writer(path, len(rows)) as writer:
        while writer.rows_written < len(rows):
            writer.append(rows[writer.rows_written :][:4])
        writer.finish()


def test_an_interruption_at_any_moment_loses_one_block_at_most_and_leaves_no_data_set(tmp_path, monkeypatch) -> None:
    rows = toy_rows(10)
    calls, deadline = 0, 0

    def mortal(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == deadline:
                raise Killed
            return function(*args, **kwargs)

        return call

    for owner, name in [
        (os, "fsync"),
        (os, "truncate"),
        (shutil, "rmtree"),
        (Path, "mkdir"),
        (Path, "touch"),
        (Path, "replace"),
        (Path, "rename"),
    ]:
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    outcomes = []
    while True:
        path = tmp_path / str(deadline)
        calls, deadline = 0, deadline + 1
        try:
            write_all(path, rows)
        except Killed:
            calls = -1_000_000
        else:
            break
        outcomes.append(path.exists())
        if not path.exists():
            with pytest.raises((ValueError, FileNotFoundError)):
                TransitionStore.open(path)
            write_all(path, rows)
        assert_rows_equal(TransitionStore.open(path).transitions, rows)
    assert len(outcomes) > 50
    # Only after the very last move is the data set there, though its leftovers are not yet gone.
    assert outcomes == [False] * (len(outcomes) - 1) + [True]
    calls, path = -1_000_000, tmp_path / str(len(outcomes) - 1)
    shutil.rmtree(path)
    write_all(path, rows)
    assert_rows_equal(TransitionStore.open(path).transitions, rows)
    assert not path.with_name(f"{path.name}.partial").exists()
