"""The journal of a run: whole lines, and what remains of it when a process is killed."""

import errno
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from flowmatch_rl.callbacks.delivered import Delivered, remainder, what_is_left
from flowmatch_rl.callbacks.journal import (
    END,
    METRICS,
    OPEN,
    Journal,
    end_of_killed,
    journals,
    new_journal,
    read_entries,
)


def test_entries_are_in_the_file_as_soon_as_they_are_added(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "tracking" / "fit-1.jsonl")
    for step in range(3):
        journal.append(METRICS, values={"a": float(step)}, step=step)
        lines = journal.path.read_bytes().splitlines(keepends=True)
        assert len(lines) == step + 1
        assert json.loads(lines[-1])["values"] == {"a": step}
    entries = list(read_entries(journal.path))
    assert [entry.values["step"] for entry in entries] == [0, 1, 2]
    assert [entry.values["step"] for entry in read_entries(journal.path, entries[0].offset)] == [1, 2]
    assert entries[-1].offset == journal.path.stat().st_size


def test_numbers_that_are_none_survive(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "fit-1.jsonl")
    journal.append(METRICS, values={"a": float("nan"), "b": float("-inf")}, step=0)
    (entry,) = read_entries(journal.path)
    assert entry.values["values"]["a"] != entry.values["values"]["a"]
    assert entry.values["values"]["b"] == float("-inf")


@pytest.mark.parametrize("length", [1, 20, 60])
def test_a_line_that_a_killed_process_left_half_written_spoils_no_other_and_is_named(
    tmp_path: Path, length: int
) -> None:
    path = tmp_path / "tracking" / "fit-1.jsonl"
    first = Journal(path)
    first.append(METRICS, values={"a": 1.0}, step=1)
    whole = path.read_bytes()
    first.append(METRICS, values={"a": 2.0}, step=2)
    first.close()
    path.write_bytes(path.read_bytes()[: len(whole) + length])
    assert [entry.values["step"] for entry in read_entries(path)] == [1]
    assert remainder(path, Delivered()).unreadable == 1
    second = Journal(path)
    second.append(METRICS, values={"a": 3.0}, step=3)
    entries = [entry for entry in read_entries(path) if entry.is_readable]
    assert [entry.values["step"] for entry in entries] == [1, 3]
    left = remainder(path, Delivered())
    assert (left.metrics, left.unreadable) == (2, 1)
    assert f"1 lines of {path} are broken off" in what_is_left(path, Delivered(), left, "http://host")


def test_a_full_disk_loses_entries_with_one_warning_and_the_next_are_whole(tmp_path: Path) -> None:
    journal: Any = Journal(tmp_path / "fit-1.jsonl")
    file = journal._file

    class FullDisk:
        def write(self, line: bytes) -> int:
            if journal.lost:
                raise OSError(errno.ENOSPC, "No space left on device")
            return file.write(line[:10])  # as much as there was room for

    journal._file = FullDisk()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            journal.append(METRICS, values={"a": 1.0}, step=step)
    assert len(caught) == 1
    assert journal.lost == 3
    journal._file = file
    journal.append(METRICS, values={"a": 1.0}, step=3)
    assert [entry.values["step"] for entry in read_entries(journal.path) if entry.is_readable] == [3]


def test_a_run_that_was_killed_is_noted_as_such_once_and_one_that_lives_or_ended_is_not(tmp_path: Path) -> None:
    def ends(path: Path) -> list[str]:
        end_of_killed(path)
        return [entry.values["status"] for entry in read_entries(path) if entry.kind == END]

    journal = Journal(tmp_path / "fit-1.jsonl")
    journal.append(OPEN, address="")
    assert ends(journal.path) == []
    journal.close()
    assert ends(journal.path) == ["KILLED"]
    assert ends(journal.path) == ["KILLED"]
    again = Journal(journal.path)
    again.append(OPEN, address="")
    again.append(END, status="FINISHED")
    again.close()
    assert ends(journal.path) == ["KILLED", "FINISHED"]


def test_each_command_in_a_folder_has_journals_of_its_own(tmp_path: Path) -> None:
    for command, number in (("fit", 1), ("fit", 2), ("test", 1), ("fit", 3)):
        path = new_journal(tmp_path, command)
        assert path == tmp_path / "tracking" / f"{command}-{number}.jsonl"
        Journal(path).close()
    (tmp_path / "tracking" / "notes.jsonl").touch()
    assert [path.stem for path in journals(tmp_path, "fit")] == ["fit-1", "fit-2", "fit-3"]
    assert [path.stem for path in journals(tmp_path)] == ["fit-1", "fit-2", "fit-3", "test-1"]


def test_a_damaged_record_of_what_was_delivered_means_to_deliver_again(tmp_path: Path) -> None:
    path = tmp_path / "fit-1.jsonl"
    known = Delivered(run_id="a", offset=7, files=[("x", "y")], status=("KILLED", 3))
    known.write(path)
    read = Delivered.read(path)
    assert (read.run_id, read.offset, read.files) == ("a", 7, [("x", "y")])
    path.with_suffix(".delivered.json").write_text('{"run_id": "a"')
    assert Delivered.read(path) == Delivered()
