"""Writes the canonical data set of transitions in blocks, so that an interrupted process can resume."""

import dataclasses
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from tqdm import tqdm

from flowmatch_rl.batches import ACTION, DONE, NEXT_ACTION, OBSERVATION, REWARD, TERMINATED, TRUNCATED
from flowmatch_rl.checks import UserError
from flowmatch_rl.data.transitions.checksums import write_checksums
from flowmatch_rl.data.transitions.moments import column_moments, read_chunks
from flowmatch_rl.data.transitions.store import (
    ADDED_ENTRIES,
    INFO_FILE,
    PROGRESS_FILE,
    TRANSITIONS_FOLDER,
    Entry,
    StoreInfo,
    TransitionStore,
    partial_path,
)
from flowmatch_rl.files import lock_file, write_json

_LOCK_FILE = "writer.lock"
_STAGED = "data"
"""Sub-folder of the partial folder that becomes the data set."""


class TransitionWriter:
    """Writes a data set block by block; a context manager that releases the folder at its end.

    A folder that no row was written to is deleted then.

    The blocks go to ``NAME.partial`` beside the target; ``finish`` moves the complete data set to its place. A process
    killed at any moment loses no more than the block it was writing: constructing the same writer again resumes after
    ``rows_written`` rows. In ordered data the trajectory that the interruption cut is then marked as truncated.

    Args:
        path: Folder of the data set, which must not exist or be empty.
        info: Description of the data set, without its statistics. Equal when the same data set is continued, hence its
            provenance holds neither the time nor the version of the package; ``finish`` adds them.

    Raises:
        UserError: If the target is occupied, another process writes the same data set, or the one that was begun there
            is another.
    """

    def __init__(self, path: str | Path, info: StoreInfo) -> None:
        self.path = Path(path)
        self.info = info
        self.rows_written = 0
        self._description: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(info)))
        self._entries = {entry.key: entry for entry in info.entries}
        self._partial = partial_path(self.path)
        self._staged = self._partial / _STAGED
        self._transitions = self._staged / TRANSITIONS_FOLDER
        self._lock = self._take_folder()
        try:
            self._resume()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "TransitionWriter":
        return self

    def __exit__(self, *error: object) -> None:
        if self.rows_written == 0:
            shutil.rmtree(self._partial, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Release the folder; what was written stays for another writer to resume."""
        self._lock.close()

    def append(self, block: TensorDictBase) -> None:
        """Write rows and record that they are written.

        Args:
            block: Rows, batch size (B,), with the keys of ``TransitionStore``; others are left out.

        Raises:
            UserError: If an entry is missing, of another shape or type, not finite, an action outside [-1, 1], or
                ``done`` is not the disjunction of ``terminated`` and ``truncated``; the message names the row.
        """
        if len(block.batch_size) != 1:
            raise UserError(f"expected a block of batch size (B,), got {tuple(block.batch_size)}")
        if self.rows_written + len(block) > self.info.num_transitions:
            raise UserError(
                f"{self.rows_written} rows are written and {len(block)} more were given, but the data set "
                f"{str(self.path)!r} was declared to have {self.info.num_transitions}"
            )
        values = {entry: _read(block, entry) for entry in self._entries.values()}
        _check_rows({entry.key: value for entry, value in values.items()}, self.rows_written)
        for entry, value in values.items():
            self._write(entry, self.rows_written, value)
        self.rows_written += len(block)
        self._record()

    def finish(self) -> TransitionStore:
        """Compute the statistics, describe the data set and move it to its place.

        Returns:
            The data set.

        Raises:
            UserError: If rows are missing.
        """
        if self.rows_written < self.info.num_transitions:
            raise UserError(
                f"only {self.rows_written} of {self.info.num_transitions} rows of {str(self.path)!r} are written"
            )
        self._end_trajectory()
        for entry in self._entries.values():
            os.truncate(self._transitions / entry.file, self.rows_written * entry.row_bytes)
        self._describe_tensors()
        write_json(self._staged / INFO_FILE, dataclasses.asdict(self._finished_info()))
        write_checksums(self._staged)
        self._staged.rename(self.path)
        self.close()
        shutil.rmtree(self._partial)
        return TransitionStore.open(self.path)

    def _take_folder(self) -> TextIO:
        if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise UserError(f"{str(self.path)!r} exists and is not overwritten; name another folder or delete it")
        held = {file.name for file in self._partial.iterdir()} if self._partial.is_dir() else set()
        if PROGRESS_FILE not in held and any(not name.startswith((_LOCK_FILE, PROGRESS_FILE)) for name in held):
            raise UserError(f"{str(self._partial)!r} holds something else than a data set being written; move it away")
        self._partial.mkdir(parents=True, exist_ok=True)
        lock = lock_file(self._partial / _LOCK_FILE)
        if lock is None:
            raise UserError(f"another process is writing the data set {str(self.path)!r}; wait for it")
        return lock

    def _resume(self) -> None:
        # Without the folder nothing was written yet, or the data set has been moved to its place.
        if (self._partial / PROGRESS_FILE).is_file() and self._transitions.is_dir():
            progress = json.loads((self._partial / PROGRESS_FILE).read_text(encoding="utf-8"))
            if difference := _first_difference({**ADDED_ENTRIES, **progress["description"]}, self._description):
                name, begun, given = difference
                raise UserError(
                    f"{str(self._partial)!r} holds the beginning of another data set: its {name} is {begun!r}, here it "
                    f"is {given!r}; resume with the same arguments, or delete that folder to begin again"
                )
            self.rows_written = progress["rows_written"]
        self._record()
        for entry in self._entries.values():
            file = self._transitions / entry.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            if file.stat().st_size < self.rows_written * entry.row_bytes:
                raise UserError(
                    f"{str(file)!r} is too short for the {self.rows_written} rows that were written; delete the folder "
                    f"{str(self._partial)!r} to begin again"
                )
        self._end_trajectory()

    def _record(self) -> None:
        progress = {"rows_written": self.rows_written, "description": self._description}
        write_json(self._partial / PROGRESS_FILE, progress)

    def _write(self, entry: Entry, row: int, value: Tensor) -> None:
        """Write values from a row on, and wait until they are on the disk."""
        # Not through a memory map: on a full disk that kills the process, while this raises.
        with (self._transitions / entry.file).open("r+b") as file:
            file.seek(row * entry.row_bytes)
            file.write(value.numpy().data)
            file.flush()
            os.fsync(file.fileno())

    def _end_trajectory(self) -> None:
        """Mark the last row of ordered data as truncated unless a trajectory ends there: what follows is lost."""
        if not self.info.ordered or self.rows_written == 0:
            return
        with (self._transitions / self._entries[DONE].file).open("rb") as file:
            file.seek(self.rows_written - 1)
            if file.read(1) == b"\x01":
                return
        for key in (TRUNCATED, DONE):
            self._write(self._entries[key], self.rows_written - 1, torch.ones(1, 1, dtype=torch.bool))

    def _describe_tensors(self) -> None:
        """Write what TensorDict needs to find the files; they are left as they are."""
        rows = self.rows_written
        like = TensorDict(
            {key: torch.zeros((), dtype=e.dtype).expand(rows, e.width) for key, e in self._entries.items()}, [rows]
        )
        empty = self._partial / "empty"
        like.memmap_like(str(empty))
        for file in empty.rglob("meta.json"):
            file.replace(self._transitions / file.relative_to(empty))
        shutil.rmtree(empty)

    def _finished_info(self) -> StoreInfo:
        mean, std = column_moments(self._chunks(OBSERVATION, np.float32))
        reward_mean, reward_std = column_moments(self._chunks(REWARD, np.float32))
        ends = sum(int(np.count_nonzero(chunk)) for chunk in self._chunks(DONE, np.bool_))
        made = {
            "package_version": importlib.metadata.version("flowmatch_rl"),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return dataclasses.replace(
            self.info,
            observation_mean=tuple(mean.tolist()),
            observation_std=tuple(std.tolist()),
            reward_mean=reward_mean.item(),
            reward_std=reward_std.item(),
            num_trajectories=ends if self.info.ordered else None,
            provenance=self.info.provenance | made,
        )

    def _chunks(self, key: str | tuple[str, ...], dtype: type[np.generic]) -> Iterator[np.ndarray]:
        entry = self._entries[key]
        return read_chunks(self._transitions / entry.file, dtype, self.rows_written, entry.width)


def progress_bar(writer: TransitionWriter, label: str, shown: bool) -> tqdm:
    """A bar that counts the rows of a data set.

    Args:
        writer: Writer of the data set.
        label: What is written.
        shown: Whether to show it.
    """
    return tqdm(
        total=writer.info.num_transitions,
        initial=writer.rows_written,
        unit="row",
        unit_scale=True,
        desc=label,
        disable=not shown,
    )


def _read(block: TensorDictBase, entry: Entry) -> Tensor:
    value = block.get(entry.key, None)
    if value is None:
        held = ", ".join(sorted("/".join(key) if isinstance(key, tuple) else key for key in block.keys(True, True)))
        raise UserError(f"the block lacks {entry.name}; it holds {held}")
    wanted = (len(block), entry.width)
    if tuple(value.shape) != wanted or value.dtype != entry.dtype:
        raise UserError(
            f"{entry.name} is {str(value.dtype)[6:]} of shape {tuple(value.shape)}, wanted "
            f"{str(entry.dtype)[6:]} of shape {wanted}"
        )
    return value.detach().cpu().contiguous()


def _check_rows(values: Mapping[str | tuple[str, ...], Tensor], first_row: int) -> None:
    """Raise for the first row that holds a number that does not fit."""
    faults: list[tuple[int, str]] = []
    for key, value in values.items():
        name = key if isinstance(key, str) else "/".join(key)
        if key in (ACTION, NEXT_ACTION):
            bad, wanted = ~(value.abs() <= 1.0), "numbers in [-1, 1]"
        elif key == DONE:
            bad, wanted = value != values[TERMINATED] | values[TRUNCATED], "terminated or truncated"
        else:
            bad, wanted = ~torch.isfinite(value), "finite numbers"
        rows = bad.any(1).nonzero()
        if len(rows):
            row = int(rows[0])
            got = value[row][bad[row]][0].item()
            faults.append((row, f"{name} is {got} in row {first_row + row}, wanted {wanted}"))
    if faults:
        raise UserError(min(faults)[1])


def _first_difference(begun: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Name and values of the first entry in which two descriptions differ, or None."""
    for name in [*given, *(name for name in begun if name not in given)]:
        mine, theirs = given.get(name), begun.get(name)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            if inner := _first_difference(theirs, mine):
                return f"{name}.{inner[0]}", *inner[1:]
        elif mine != theirs:
            return name, theirs, mine
    return None
