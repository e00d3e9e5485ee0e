"""Writes the canonical data set of transitions, in blocks, so that a killed process can go on."""

import fcntl
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from flowmatch_rl.batches import ACTION, DONE, NEXT_ACTION, OBSERVATION, REWARD, TERMINATED, TRUNCATED
from flowmatch_rl.data.moments import column_moments, read_chunks
from flowmatch_rl.data.store import (
    FORMAT_VERSION,
    INFO_FILE,
    PROGRESS_FILE,
    TRANSITIONS_FOLDER,
    Entry,
    StoreInfo,
    TransitionStore,
    entries_of,
    partial_path,
)

_LOCK_FILE = "writer.lock"
_STAGED = "data"
"""Sub-folder of the partial folder that becomes the data set."""


class TransitionWriter:
    """Writes a data set block by block.

    The blocks go to ``NAME.partial`` beside the target; ``finish`` moves the whole data set to its place. A process
    killed at any moment loses no more than the block it was writing: constructing the same writer again goes on after
    ``rows_written`` rows. In ordered data the trajectory that the interruption cut is then marked as truncated.

    Args:
        path: Folder of the data set, which must not exist or be empty.
        columns: Names of the S entries of an observation.
        action_dim: Dimension A of an action.
        num_transitions: Rows to be written.
        ordered: Whether rows are consecutive steps of trajectories, rather than a shuffled table.
        provenance: How the data are made; JSON. Equal when the same data set is continued, hence without the time,
            which is added together with the version of the package.
        action_low: Lower bounds of the actions in the environment's unit, or None.
        action_high: Upper bounds, or None.
        embedding_dim: Dimension Z of the embedding of the policy that acted; 0 for none.
        has_next_action: Whether rows hold the action taken in the next observation.

    Raises:
        ValueError: If the target is occupied, an argument does not fit, another process writes the same data set, or
            the one that was begun there is another.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Sequence[str],
        action_dim: int,
        num_transitions: int,
        ordered: bool,
        provenance: Mapping[str, Any],
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        embedding_dim: int = 0,
        has_next_action: bool = False,
    ) -> None:
        self.path = Path(path)
        description = {
            "format_version": FORMAT_VERSION,
            "num_transitions": num_transitions,
            "columns": list(columns),
            "action_dim": action_dim,
            "action_low": None if action_low is None else list(action_low),
            "action_high": None if action_high is None else list(action_high),
            "embedding_dim": embedding_dim,
            "has_next_action": has_next_action,
            "ordered": ordered,
            "provenance": dict(provenance),
        }
        _check_description(description)
        self._description: dict[str, Any] = json.loads(json.dumps(description))
        self._entries = entries_of(len(columns), action_dim, embedding_dim, has_next_action)
        self.rows_written = 0
        self.state: dict[str, Any] = {}
        self._partial = partial_path(self.path)
        self._staged = self._partial / _STAGED
        self._transitions = self._staged / TRANSITIONS_FOLDER
        self._begin()

    def append(self, block: TensorDictBase, state: Mapping[str, Any] | None = None) -> None:
        """Write rows and record that they are written.

        Args:
            block: Rows, batch size (B,), with the keys of ``TransitionStore``; others are left out.
            state: What is needed to go on after these rows, JSON; the last one stays if None.

        Raises:
            ValueError: If an entry is missing, of another shape or type, not finite, an action outside [-1, 1], or
                ``done`` is not the disjunction of ``terminated`` and ``truncated``; the message names the row.
        """
        if len(block.batch_size) != 1:
            raise ValueError(f"expected a block of batch size (B,), got {tuple(block.batch_size)}")
        if self.rows_written + len(block) > self._description["num_transitions"]:
            raise ValueError(
                f"{self.rows_written} rows are written and {len(block)} more were given, but the data set "
                f"{str(self.path)!r} was declared to have {self._description['num_transitions']}"
            )
        values = {entry: self._read(block, entry) for entry in self._entries}
        _check_rows({entry.key: value for entry, value in values.items()}, self.rows_written)
        for entry, value in values.items():
            self._write(entry, self.rows_written, value)
        self.rows_written += len(block)
        self.state = self.state if state is None else json.loads(json.dumps(dict(state)))
        self._record()

    def finish(self, allow_fewer: bool = False) -> TransitionStore:
        """Compute the statistics, describe the data set and move it to its place.

        Args:
            allow_fewer: Whether fewer rows than declared make a data set, of as many rows as were written.

        Returns:
            The data set.

        Raises:
            ValueError: If rows are missing and may not be, or none were written.
        """
        wanted = self._description["num_transitions"]
        if self.rows_written == 0 or (self.rows_written < wanted and not allow_fewer):
            raise ValueError(f"only {self.rows_written} of {wanted} rows of {str(self.path)!r} are written")
        self._end_trajectory()
        for entry in self._entries:
            os.truncate(self._transitions / entry.file, self.rows_written * entry.row_bytes)
        self._describe_tensors()
        _write_json(self._staged / INFO_FILE, asdict(self._info()))
        self._staged.rename(self.path)
        self._lock.close()
        shutil.rmtree(self._partial)
        return TransitionStore.open(self.path)

    def _begin(self) -> None:
        """Take the partial folder, and what is written there."""
        if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            raise ValueError(f"{str(self.path)!r} exists and is not overwritten; name another folder or delete it")
        held = {file.name for file in self._partial.iterdir()} if self._partial.is_dir() else set()
        if PROGRESS_FILE not in held and held - {_LOCK_FILE, f"{PROGRESS_FILE}.tmp"}:
            raise ValueError(f"{str(self._partial)!r} holds something else than a data set being written; move it away")
        self._partial.mkdir(parents=True, exist_ok=True)
        # The system releases the lock when the process ends, however it does.
        self._lock = (self._partial / _LOCK_FILE).open("w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process is writing the data set {str(self.path)!r}; wait for it") from error
        if PROGRESS_FILE in held:
            self._resume()
        self._record()
        for entry in self._entries:
            file = self._transitions / entry.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            if file.stat().st_size < self.rows_written * entry.row_bytes:
                raise ValueError(
                    f"{str(file)!r} is too short for the {self.rows_written} rows that were written; delete the folder "
                    f"{str(self._partial)!r} to begin again"
                )
        self._end_trajectory()

    def _resume(self) -> None:
        if not self._transitions.is_dir():  # nothing was written yet, or the data set has been moved to its place
            return
        progress = json.loads((self._partial / PROGRESS_FILE).read_text(encoding="utf-8"))
        if difference := _first_difference(progress["description"], self._description):
            name, begun, given = difference
            raise ValueError(
                f"{str(self._partial)!r} holds the beginning of another data set: its {name} is {begun!r}, here it is "
                f"{given!r}; go on with the same arguments, or delete that folder to begin again"
            )
        self.rows_written, self.state = progress["rows_written"], progress["state"]

    def _record(self) -> None:
        _write_json(
            self._partial / PROGRESS_FILE,
            {"rows_written": self.rows_written, "state": self.state, "description": self._description},
        )

    def _read(self, block: TensorDictBase, entry: Entry) -> Tensor:
        value = block.get(entry.key, None)
        if value is None:
            held = ", ".join(sorted("/".join(key) if isinstance(key, tuple) else key for key in block.keys(True, True)))
            raise ValueError(f"the block lacks {entry.name}; it holds {held}")
        wanted = (len(block), entry.width)
        if tuple(value.shape) != wanted or value.dtype != entry.dtype:
            raise ValueError(
                f"{entry.name} is {str(value.dtype)[6:]} of shape {tuple(value.shape)}, wanted "
                f"{str(entry.dtype)[6:]} of shape {wanted}"
            )
        return value.detach().cpu().contiguous()

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
        if not self._description["ordered"] or self.rows_written == 0:
            return
        entries = {entry.key: entry for entry in self._entries}
        with (self._transitions / entries[DONE].file).open("rb") as file:
            file.seek(self.rows_written - 1)
            if file.read(1) == b"\x01":
                return
        for key in (TRUNCATED, DONE):
            self._write(entries[key], self.rows_written - 1, torch.ones(1, 1, dtype=torch.bool))

    def _describe_tensors(self) -> None:
        """Write what TensorDict needs to find the files; they are left as they are."""
        rows = self.rows_written
        like = TensorDict(
            {entry.key: torch.zeros((), dtype=entry.dtype).expand(rows, entry.width) for entry in self._entries}, [rows]
        )
        empty = self._partial / "empty"
        like.memmap_like(str(empty))
        for file in empty.rglob("meta.json"):
            file.replace(self._transitions / file.relative_to(empty))
        shutil.rmtree(empty)

    def _info(self) -> StoreInfo:
        entries = {entry.key: entry for entry in self._entries}
        mean, std = column_moments(self._chunks(entries[OBSERVATION], np.float32))
        reward_mean, reward_std = column_moments(self._chunks(entries[REWARD], np.float32))
        ends = sum(int(np.count_nonzero(chunk)) for chunk in self._chunks(entries[DONE], np.bool_))
        made = {
            "package_version": importlib.metadata.version("flowmatch_rl"),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return StoreInfo(
            **self._description
            | {
                "num_transitions": self.rows_written,
                "observation_mean": tuple(mean.tolist()),
                "observation_std": tuple(std.tolist()),
                "reward_mean": reward_mean.item(),
                "reward_std": reward_std.item(),
                "num_trajectories": ends if self._description["ordered"] else None,
                "provenance": self._description["provenance"] | made,
            }
        )

    def _chunks(self, entry: Entry, dtype: type[np.generic]) -> Iterator[np.ndarray]:
        return read_chunks(self._transitions / entry.file, dtype, self.rows_written, entry.width)


def _check_description(description: Mapping[str, Any]) -> None:
    columns, action_dim = description["columns"], description["action_dim"]
    for name, value, least in (
        ("num_transitions", description["num_transitions"], 1),
        ("the number of columns", len(columns), 1),
        ("action_dim", action_dim, 1),
        ("embedding_dim", description["embedding_dim"], 0),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if doubled := [name for place, name in enumerate(columns) if name in columns[:place]]:
        raise ValueError(f"two columns are named {doubled[0]!r}")
    bounds = [description[name] for name in ("action_low", "action_high")]
    lengths = [None if bound is None else len(bound) for bound in bounds]
    if lengths not in ([None, None], [action_dim, action_dim]):
        raise ValueError(f"action_low and action_high must both be None or of {action_dim} numbers, got {bounds}")


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
        raise ValueError(min(faults)[1])


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


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file so that at any moment the old content or the new is there."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
