"""The transitions that checkpoints name: files that are written once, and deleted when no checkpoint names them."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from tensordict import TensorDict, TensorDictBase

from flowmatch_rl.checkpoints import damage, read_checkpoint
from flowmatch_rl.checks import UserError
from flowmatch_rl.files import atomic_path, link_or_copy
from flowmatch_rl.ranks import states_of_ranks

FILES = "replay_files"
"""Name of what a checkpoint says about its transitions, in the state of a data module."""

_ROWS = "rows"
_MOST_BYTES = 2**28
"""Size of a file, at most."""


class Buffer(Protocol):
    """A replay buffer, of which the log writes what is new."""

    added: int
    """Transitions that were added to it, also those that it has dropped."""

    def __len__(self) -> int:
        """Transitions that it holds."""
        ...

    def read(self, first: int, stop: int) -> TensorDictBase:
        """Transitions by their age, 0 for the oldest, on the CPU."""
        ...


@dataclass(frozen=True)
class Named:
    """Transitions of a checkpoint, oldest first.

    Attributes:
        folder: Folder of the files.
        names: Their names.
        counts: Transitions in each.
        first: Transitions at the beginning of the first one that the checkpoint has dropped.
    """

    folder: Path
    names: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    first: int = 0

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Named":
        """What a checkpoint says."""
        return cls(Path(state["folder"]), tuple(state["names"]), tuple(state["counts"]), state["first"])

    def state_dict(self) -> dict[str, Any]:
        """The same as a checkpoint holds it."""
        names, counts = list(self.names), list(self.counts)
        return {"folder": str(self.folder), "names": names, "counts": counts, "first": self.first}

    def __len__(self) -> int:
        return sum(self.counts) - self.first

    def read(self, first: int, stop: int) -> Iterator[TensorDictBase]:
        """Transitions by their age, 0 for the oldest, file by file.

        Raises:
            UserError: If a file is damaged.
        """
        ends = list(accumulate(self.counts))
        first, stop = first + self.first, stop + self.first
        for name, count, end in zip(self.names, self.counts, ends, strict=True):
            begin = end - count
            if first < end and stop > begin:
                yield _read_file(self.folder / name)[max(first - begin, 0) : stop - begin]

    def found(self, others: Sequence[Path]) -> "Named":
        """The same files where they are: in the folder that the checkpoint names, or in another if they were moved.

        Args:
            others: Other folders.

        Raises:
            UserError: If a file is missing or damaged.
        """
        for folder in (*others, self.folder):
            if all((folder / name).is_file() for name in self.names):
                for name in self.names:
                    if problem := damage(folder / name):
                        raise UserError(problem)
                return replace(self, folder=folder)
        lost = [name for name in self.names if not (self.folder / name).is_file()]
        raise UserError(
            f"the checkpoint needs {len(self.names)} files of transitions in {self.folder}, where {lost[0]} is "
            "missing; put the folder back, or set checkpoint_replay to false to begin with an empty buffer"
        )


class ReplayLog:
    """Writes the transitions of a replay buffer so that a checkpoint names those of its own moment for ever.

    A file is never changed and has a name that no other one has or will have. A checkpoint names files: rows that are
    overwritten in the buffer stay in theirs, and a run that is resumed from an older checkpoint writes files of its own
    beside those that newer ones name. A checkpoint costs what was added since the last one.

    Args:
        folder: Folder of the files, of one process.
    """

    def __init__(self, folder: Path) -> None:
        self.held = Named(folder.absolute())
        self._seen = 0
        self._known: dict[Path, tuple[tuple[int, int], set[str]]] = {}

    def adopt(self, named: Named) -> None:
        """Continue with the transitions of a checkpoint, whose files are given a name in this folder too.

        Args:
            named: What ``Named.found`` returned.
        """
        for name in named.names if named.folder != self.held.folder else ():
            link_or_copy(named.folder / name, self.held.folder / name)
        self.held = replace(named, folder=self.held.folder)
        self._seen = len(named)

    def save(self, buffer: Buffer) -> None:
        """Write what was added to a buffer since the last time, and name what it holds.

        Args:
            buffer: The same as before; at first one that was filled from ``held``, or that it knows nothing of.
        """
        number = len(buffer)
        new = min(buffer.added - self._seen, number)
        kept = self.held if new < number else Named(self.held.folder)
        names, counts = list(kept.names), list(kept.counts)
        first = number - new
        while first < number:
            rows = buffer.read(first, min(number, first + _rows_per_file(buffer)))
            names.append(f"{secrets.token_hex(8)}.pt")
            with atomic_path(kept.folder / names[-1]) as partial, partial.open("wb") as file:
                torch.save({_ROWS: dict(rows.flatten_keys("/").items())}, file)
            counts.append(len(rows))
            first += len(rows)
        dropped = sum(counts) - number
        while counts and dropped >= counts[0]:
            dropped -= counts.pop(0)
            names.pop(0)
        # Together: a run that is interrupted here writes the same rows again, to other files.
        self.held, self._seen = Named(kept.folder, tuple(names), tuple(counts), dropped), buffer.added

    def prune(self, checkpoints: Sequence[Path], others: Sequence[Path] = ()) -> None:
        """Delete the files that neither this buffer nor a checkpoint needs; none where a checkpoint cannot be read.

        Args:
            checkpoints: Folders of checkpoints.
            others: Folders of files of processes that are no more.
        """
        files = {path.name: path for folder in (self.held.folder, *others) for path in folder.glob("*.pt")}
        unused = files.keys() - set(self.held.names)
        paths = [path for folder in checkpoints for path in folder.glob("*.ckpt")] if unused else []
        try:
            unused = unused.difference(*(self._needs(path) for path in paths))
        except UserError:
            return  # it may be of use once it can be read, such as one that names a class of the user's
        for name in unused:
            files[name].unlink()

    def _needs(self, checkpoint: Path) -> set[str]:
        """Names of the files that a checkpoint names."""
        status = checkpoint.stat()
        version = status.st_ino, status.st_mtime_ns
        if self._known.get(checkpoint, (None,))[0] != version:
            self._known[checkpoint] = version, {name for named in named_files(checkpoint) for name in named.names}
        return self._known[checkpoint][1]


def named_files(checkpoint: str | Path) -> list[Named]:
    """What a checkpoint says about its transitions, of each process that has some; empty where it holds them itself.

    Args:
        checkpoint: Path of the checkpoint.

    Raises:
        UserError: If it cannot be read.
    """
    parts = [part for part in read_checkpoint(checkpoint, memory_map=True).values() if isinstance(part, dict)]
    return [Named.of(state[FILES]) for part in parts for state in states_of_ranks(part) if FILES in state]


def with_rows(state: dict[str, Any], checkpoint: str | Path | None) -> dict[str, Any]:
    """The state of a collection that holds its transitions itself, ``replay``, oldest first, instead of naming them.

    Args:
        state: The state; one that names none is returned as it is.
        checkpoint: Path of its checkpoint; None if it is not known.

    Raises:
        UserError: If a file is missing or damaged.
    """
    if FILES not in state:
        return state
    named = Named.of(state[FILES])
    named = named.found(folders_beside(checkpoint, named))
    rows: Any = torch.cat(list(named.read(0, len(named))))  # pyright: ignore[reportArgumentType]
    kept = {name: part for name, part in state.items() if name != FILES}
    return kept | {"replay": dict(rows.flatten_keys("/").items())}


def folders_beside(checkpoint: str | Path | None, named: Named) -> list[Path]:
    """Folders where the files of a checkpoint may be too: those of a run whose folder was moved.

    Args:
        checkpoint: Path of the checkpoint; None if there is none.
        named: What it says.
    """
    return [] if checkpoint is None else [Path(checkpoint).absolute().parents[1] / "replay" / named.folder.name]


def _rows_per_file(buffer: Buffer) -> int:
    row = buffer.read(0, 1)
    entries = row.values(include_nested=True, leaves_only=True)
    return max(1, _MOST_BYTES // sum(entry.nbytes for entry in entries))


def _read_file(path: Path) -> TensorDictBase:
    """The transitions of a file, which are read as they are used."""
    rows = read_checkpoint(path, memory_map=True, parts=(_ROWS,))[_ROWS]
    entries = {tuple(name.split("/")): entry for name, entry in rows.items()}
    return TensorDict(entries, [len(next(iter(rows.values())))])
