"""Files are written whole or not at all, and locks keep other processes out."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flowmatch_rl.checks import UserError
from flowmatch_rl.files import (
    atomic_path,
    delete_partial_files,
    exclusive,
    link_or_copy,
    lock_file,
    out_of_space,
    write_json,
    write_text,
)


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


def test_partial_files_of_killed_processes_are_deleted_and_those_of_others_stay(tmp_path: Path) -> None:
    code = f"""
import os
from flowmatch_rl.files import atomic_path
with atomic_path({str(tmp_path / "best.ckpt")!r}) as partial:
    partial.write_text("half")
    print(partial.name, flush=True)
    input()
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    name = child.stdout.readline().strip()
    own = tmp_path / "notes.tmp"
    own.write_text("the user's")
    write_text(tmp_path / "last.ckpt", "1")
    assert {file.name for file in tmp_path.iterdir()} == {name, "notes.tmp", "last.ckpt"}
    child.kill()
    child.wait()
    write_text(tmp_path / "last.ckpt", "2")
    assert {file.name for file in tmp_path.iterdir()} == {"notes.tmp", "last.ckpt"}


def test_what_was_deleted_is_known_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt.tmp123").write_text("half")
    assert delete_partial_files(tmp_path) == {tmp_path / "last.ckpt.tmp123": 4}
    assert delete_partial_files(tmp_path) == {}


@pytest.mark.parametrize("has_links", [True, False])
def test_a_second_name_keeps_its_content_where_the_first_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    first, second = tmp_path / "first", tmp_path / "second"
    write_text(first, "1")
    write_text(second, "of before")
    link_or_copy(first, second)
    assert first.samefile(second) == has_links
    write_text(first, "2")
    assert second.read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ],
)
def test_a_full_disk_is_found_behind_other_errors(error: Exception) -> None:
    assert out_of_space(error) is error
    raised = RuntimeError("could not write")
    try:
        try:
            raise error
        except (OSError, RuntimeError):
            raise raised  # noqa: B904 - without a cause, as libraries do
    except RuntimeError:
        pass
    assert out_of_space(raised) is error
    assert out_of_space(OSError(errno.ENOENT, "No such file")) is None


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


def test_what_is_in_use_is_refused_in_one_line_that_names_the_process(tmp_path: Path) -> None:
    path = tmp_path / "made" / "lock"
    with exclusive(path, "the folder"):
        with pytest.raises(UserError, match=f"^the folder is in use by process {os.getpid()}; choose another$"):
            exclusive(path, "the folder", "choose another").__enter__()
        assert path.exists()
    assert not list(path.parent.iterdir())
    with exclusive(path, "the folder"):
        pass


def test_a_process_of_another_machine_is_named_with_it(tmp_path: Path) -> None:
    held = lock_file(tmp_path / "lock")
    assert held is not None
    with held:
        for owner, words in (("12 elsewhere", "process 12 of elsewhere;"), ("", "another process;")):
            (tmp_path / "lock").write_text(owner)
            with pytest.raises(UserError, match=words):
                exclusive(tmp_path / "lock", "it").__enter__()


def test_a_lock_that_a_killed_process_left_behind_locks_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = "import os, sys; from flowmatch_rl.files import exclusive\nwith exclusive(sys.argv[1], 'it'): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
    assert path.read_text().split()[0].isdigit()
    with exclusive(path, "it"):
        assert path.read_text().split()[0] == str(os.getpid())
    assert not path.exists()


def test_those_who_wait_take_turns(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            with exclusive(tmp_path / "lock", "it", wait=True):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20
    assert not (tmp_path / "lock").exists()


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive(tmp_path / "lock", "the folder"):
        pass
    assert f"the file system of {tmp_path} has no locks" in capsys.readouterr().err
