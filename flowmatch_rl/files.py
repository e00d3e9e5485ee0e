"""Files of a run, files that are written whole or not at all, and locks between processes."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

RESULT = "result.json"
"""What the final test of a run measured, in its folder."""

ACTIONS = "actions.csv"
"""Actions that a policy drew on a bandit, in the folder of the run."""

FIGURES = "figures"
"""Figures, and the tables that they show, in the folder of a run."""

CURVE = "learning_curve.csv"
"""Table of the evaluations of a run, among its figures."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Path to write to in place of a file, in a ``with`` block.

    At the end of the block what was written replaces the file in one step; a reader or a killed process finds the old
    content or the new. If the block raises, the old content stays and the partial file is deleted. Partial files are
    named ``NAME.tmpPID``.

    Args:
        path: File to write; its folder is made if there is none.

    Yields:
        Path beside the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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


def lock_file(path: str | Path) -> TextIO | None:
    """Lock a file against other processes, without waiting.

    The lock belongs to the open file: closing it releases the lock, and so does the end of the process. A child
    process that inherits the file's descriptor keeps the lock as long as it lives.

    Args:
        path: File to lock; it is created if there is none, and emptied once it is locked.

    Returns:
        The locked file, open for writing, or None if it is locked already.
    """
    file = Path(path).open("a+", encoding="utf-8")  # noqa: SIM115 - the lock lasts as long as the open file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    return file
