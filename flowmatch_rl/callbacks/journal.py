"""What MLflow is to have of a run, written down at once in the run's folder and delivered from there."""

import fcntl
import json
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "tracking"
"""Folder of the journals in a run's folder."""

END, OPEN = "end", "open"
"""Kinds of the entries that begin and end a part of a run: an interrupted run that is resumed has several parts."""

METRICS, PARAMETERS, TAGS, INPUT, FILE, MODEL = "metrics", "parameters", "tags", "input", "file", "model"
"""Kinds of the entries between them."""

_UNREADABLE = "unreadable"


class Journal:
    """A file of one line of JSON per entry, each written at once; the writer keeps it locked while it lives.

    An entry that cannot be written, as on a full disk, is counted and warned of once: it stops no training.

    Args:
        path: The file, ``NAME.jsonl``; entries are added to it.

    Attributes:
        lost: Entries that could not be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.lost = path, 0
        self._file = path.open("a+b", buffering=0)
        _lock(self._file, tries=50)
        self._is_torn = _is_torn(self._file)

    def append(self, kind: str, **values: Any) -> None:
        """Add an entry.

        Args:
            kind: Its kind.
            **values: What it holds, as JSON can hold it.
        """
        line = _line(kind, values)
        if self._is_torn:
            line = b"\n" + line  # what a killed process left of a line must not spoil the next one
        try:
            written = self._file.write(line)
        except OSError as error:
            written, reason = 0, error
        else:
            reason = None if written == len(line) else "the disk took a part of a line only"
        self._is_torn = (self._is_torn and written == 0) or 0 < (written or 0) < len(line)
        if reason is not None:
            if not self.lost:
                warnings.warn(f"what is tracked cannot be written to {self.path}: {reason}", stacklevel=1)
            self.lost += 1

    def close(self) -> None:
        """Close the file, and unlock it."""
        self._file.close()


@dataclass(frozen=True)
class Entry:
    """An entry of a journal.

    Attributes:
        kind: Its kind.
        time: When it was written, in milliseconds since 1970.
        values: What it holds.
        offset: Bytes of the file up to its end.
    """

    kind: str
    time: int
    values: dict[str, Any]
    offset: int

    @property
    def is_readable(self) -> bool:
        """Whether it is an entry: False for what a killed process left of one."""
        return self.kind != _UNREADABLE


def read_entries(path: Path, offset: int = 0) -> Iterator[Entry]:
    """The entries of a journal; a last line that is not finished is left out.

    Args:
        path: The journal.
        offset: Bytes to skip, up to the end of an entry.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            if line.strip():
                yield _parse(line, offset)


def _parse(line: bytes, offset: int) -> Entry:
    try:
        values = json.loads(line)
        return Entry(values.pop("kind"), values.pop("time"), values, offset)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Entry(_UNREADABLE, 0, {}, offset)


def add_entry(path: Path, kind: str, **values: Any) -> None:
    """Add an entry to a journal that another process writes; a line is written at once, so that lines stay whole.

    Args:
        path: The journal.
        kind: Kind of the entry.
        **values: What it holds, as JSON can hold it.
    """
    with path.open("ab", buffering=0) as file:
        file.write(_line(kind, values))


def _line(kind: str, values: dict[str, Any]) -> bytes:
    return json.dumps({"kind": kind, "time": round(time.time() * 1000), **values}).encode() + b"\n"


def end_of_killed(path: Path) -> bool:
    """Note in a journal that its run was killed, unless its writer lives or has noted how it ended.

    Args:
        path: The journal.

    Returns:
        Whether the journal says how the run ended.
    """
    with path.open("r+b", buffering=0) as file:
        if not _lock(file):  # or a file system without locks, where nobody knows
            return False
        parts = [entry.kind for entry in read_entries(path) if entry.kind in (OPEN, END)]
        if parts[-1:] == [OPEN]:
            when = round(path.stat().st_mtime * 1000)
            line = json.dumps({"kind": END, "time": when, "status": "KILLED"}).encode() + b"\n"
            line = b"\n" + line if _is_torn(file) else line
            file.seek(0, os.SEEK_END)
            file.write(line)
        return True


def _lock(file: Any, tries: int = 1) -> bool:
    """Lock an open file against other processes; False if one of them keeps it, or there are no locks."""
    for number in range(tries):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1 if number + 1 < tries else 0.0)
        except OSError:
            return False
        else:
            return True
    return False


def _is_torn(file: Any) -> bool:
    """Whether a file ends within a line."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return False
    file.seek(size - 1)
    return file.read(1) != b"\n"


def journals(folder: Path, command: str = "*") -> list[Path]:
    """The journals in a run's folder, in the order in which they were begun.

    Args:
        folder: The run's folder.
        command: Command that they were written by; any if ``*``.
    """
    found = [path for path in (folder / FOLDER).glob(f"{command}-*.jsonl") if path.stem.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: (path.stem.rpartition("-")[0], int(path.stem.rpartition("-")[2])))


def new_journal(folder: Path, command: str) -> Path:
    """Path of a new journal.

    Args:
        folder: The run's folder.
        command: Command that writes it.
    """
    known = journals(folder, command)
    number = int(known[-1].stem.rpartition("-")[2]) + 1 if known else 1
    return folder / FOLDER / f"{command}-{number}.jsonl"


def lock_of(journal: Path) -> Path:
    """The lock of whoever delivers a journal."""
    return journal.with_suffix(".lock")


def log_of(journal: Path) -> Path:
    """The file that the process which delivers a journal prints to."""
    return journal.with_suffix(".log")
