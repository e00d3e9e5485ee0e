"""Files of a run, files that are written whole or not at all, and locks between processes."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

from flowmatch_rl.checks import UserError

RESULT = "result.json"
"""What the final test of a run measured, in its folder."""

ACTIONS = "actions.csv"
"""Actions that a policy drew on a bandit, in the folder of the run."""

FIGURES = "figures"
"""Figures, and the tables that they show, in the folder of a run."""

CURVE = "learning_curve.csv"
"""Table of the evaluations of a run, among its figures."""

RUN_LOCK = ".run.lock"
"""Lock of a run's folder, which names the process that writes into it."""

RUN_TIME = "%Y-%m-%d_%H-%M-%S"
"""Time at which a run begins, as its folder and its name in MLflow have it."""

_POLL_S = 0.1

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What file systems of clusters may answer, Lustre without the option flock among them."""

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK)
"""What the system answers where a file cannot have a second name."""

_PARTIAL = re.compile(r".+\.tmp\d+")

_OUT_OF_SPACE = ("database or disk is full", "No space left on device", "Disk quota exceeded")
"""What SQLite and the system say."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Path to write to in place of a file, in a ``with`` block.

    At the end of the block what was written replaces the file in one step; a reader or a killed process finds the old
    content or the new. If the block raises, the old content stays and the partial file is deleted. Partial files are
    named ``NAME.tmpPID``; those that killed processes left in the folder are deleted first.

    Args:
        path: File to write; its folder is made if there is none.

    Yields:
        Path beside the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    delete_partial_files(path.parent)
    partial = path.with_name(f"{path.name}.tmp{os.getpid()}")
    held = _create_locked(partial)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        held.close()


def delete_partial_files(folder: str | Path) -> dict[Path, int]:
    """Delete the partial files of ``atomic_path`` that no process is writing any more.

    Args:
        folder: Folder to look in, without those under it.

    Returns:
        Bytes of each deleted file.
    """
    deleted: dict[Path, int] = {}
    for partial in sorted(Path(folder).glob("*.tmp*")):
        if _PARTIAL.fullmatch(partial.name):
            # Whoever writes it holds its lock; it may be gone, or another user's.
            with contextlib.suppress(OSError), partial.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size = os.fstat(file.fileno()).st_size
                partial.unlink()
                deleted[partial] = size
    return deleted


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file that is never changed a second name, which replaces what has that name in one step.

    Where the file system has no links between the two places, the file is copied.

    Args:
        source: The file.
        target: The other name; its folder is made if there is none.
    """
    with atomic_path(target) as partial:
        partial.unlink()
        try:
            os.link(source, partial)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source, partial)


def _create_locked(partial: Path) -> BinaryIO:
    """A partial file under a lock, from before it has its name for good: another process may just be deleting it."""
    while True:
        file = partial.open("ab")
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if _is_at(file, partial):
            return file
        file.close()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Args:
        path: File to write; its folder is made if there is none.
        text: Its content.
    """
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file, whole or not at all.

    Args:
        path: File to write; its folder is made if there is none.
        content: What ``json.dumps`` takes.
    """
    write_text(path, json.dumps(content, indent=2))


def shown(path: Path) -> str:
    """A path relative to the working folder where that is shorter.

    Args:
        path: The path.
    """
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def lock_file(path: str | Path) -> TextIO | None:
    """Lock a file against other processes, without waiting.

    The lock belongs to the open file: closing it releases the lock, and so does the end of the process. A child
    process that inherits the file's descriptor keeps the lock as long as it lives.

    Args:
        path: File to lock; it is created if there is none, and emptied once it is locked.

    Returns:
        The locked file, open for writing, or None if it is locked already.
    """
    path = Path(path)
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        if _is_at(file, path):
            file.truncate(0)
            return file
        file.close()  # its last owner deleted it after it was opened here


@contextlib.contextmanager
def exclusive(path: str | Path, what: str, advice: str = "wait until it ends", wait: bool = False) -> Iterator[None]:
    """Keep other processes out, in a ``with`` block, by a lock file that names this one.

    The file is deleted at the end of the block. One that a killed process left behind locks nobody out.

    Args:
        path: The lock file; its folder is made if there is none.
        what: What it stands for, for errors.
        advice: What to do about a process that holds it, for errors.
        wait: Whether to wait for a process that holds it.

    Raises:
        UserError: If another process holds it and this one does not wait.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        while (file := lock_file(path)) is None:
            if not wait:
                raise UserError(f"{what} is in use by {_owner(path)}; {advice}")
            time.sleep(_POLL_S)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"the file system of {path.parent} has no locks: nothing keeps others out of {what}", file=sys.stderr)
        yield
        return
    with file:
        file.write(f"{os.getpid()} {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is locked, so that nobody loses a lock on it


def _is_at(file: IO[Any], path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    """The process that a lock file names."""
    try:
        number, _, host = path.read_text(encoding="utf-8").partition(" ")
    except FileNotFoundError:
        number = host = ""
    if not number:
        return "another process"
    return f"process {number}" + ("" if host == socket.gethostname() else f" of {host}")


def out_of_space(error: BaseException) -> BaseException | None:
    """The error which says that a disk or a quota is full: the given one, one that it came from, or None.

    Libraries that do not write by Python's means hide the kind of the error, and some leave its words only.
    """
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is None:
            continue
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return link
        if any(words in str(link) for words in _OUT_OF_SPACE):
            return link
        links += [link.__context__, link.__cause__]
    return None
