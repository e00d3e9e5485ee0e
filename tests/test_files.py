"""Files are written whole or not at all, and locks keep other processes out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flowmatch_rl.files import atomic_path, lock_file, write_json, write_text


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "made" / "table.csv"
    write_text(path, "old")
    with atomic_path(path) as partial:
        partial.write_bytes(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_text(path, "old")
    with pytest.raises(TypeError), atomic_path(path) as partial:
        json.dump(["half", object()], partial.open("w"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"a": [1, None, "ü"]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, None, "ü"]}


def test_a_lock_is_given_once_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("123")
    held = lock_file(path)
    assert held is not None
    assert path.read_text() == ""
    assert lock_file(path) is None
    held.close()
    again = lock_file(path)
    assert again is not None
    again.close()


def test_a_child_that_inherits_a_lock_holds_it_while_it_lives(tmp_path: Path) -> None:
    held = lock_file(tmp_path / "lock")
    assert held is not None
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[held.fileno()], text=True
    )
    held.close()
    assert lock_file(tmp_path / "lock") is None
    child.communicate("\n")
    free = lock_file(tmp_path / "lock")
    assert free is not None
    free.close()
