"""Processes (ranks) that train together: the states of all of them in one checkpoint, and an end that they share."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import RunError
from flowmatch_rl.files import atomic_path

_RANKS = "ranks"
"""Name of the list of the states of all processes, in the state of a part of a run."""

_PART = "rank{}.part"
"""File with the states of a process, from when it is written until the first process has read it."""


@contextlib.contextmanager
def together(agree: Callable[[bool], bool]) -> Iterator[None]:
    """A ``with`` block that ends alike on all processes: where it fails on one, it raises an error on all.

    Without it the others would wait for the one that failed.

    Args:
        agree: Returns whether what it is given is true on all processes.

    Raises:
        RunError: If the block failed on another process.
    """
    failure = None
    try:
        yield
    except (RunError, OSError, RuntimeError) as error:
        failure = error
    is_fine = agree(failure is None)
    if failure is not None:
        raise failure
    if not is_fine:
        raise RunError("another process of the run failed at this point; its message says why")


def gather_states(
    checkpoint: dict[str, Any],
    names: Sequence[str],
    folder: Path,
    rank: int,
    world_size: int,
    agree: Callable[[bool], bool],
) -> None:
    """Put the states of all processes into the checkpoint of the first one, which is the one that is written.

    The others write theirs to files, which the first process maps into its memory and deletes: its memory holds them
    only while they are copied, and a checkpoint is one file, whatever the moment that a process is killed.

    Args:
        checkpoint: What Lightning made of this process. Each entry named becomes ``{"ranks": [state, ...]}`` on the
            first one.
        names: Entries that each process has of its own.
        folder: Folder that all processes see.
        rank: Global rank of this process.
        world_size: Number of processes.
        agree: See ``together``.

    Raises:
        RunError: If a process cannot write its part, or the first one cannot see it.
    """
    if world_size == 1:
        return
    with together(agree):
        if rank > 0:
            with atomic_path(folder / _PART.format(rank)) as partial, partial.open("wb") as file:
                torch.save({name: checkpoint[name] for name in names}, file)
    with together(agree):
        if rank == 0:
            parts = [_read_part(folder / _PART.format(other), names) for other in range(1, world_size)]
            for name in names:
                checkpoint[name] = {_RANKS: [checkpoint[name], *(part[name] for part in parts)]}
            for old in folder.glob(_PART.format("*")):  # of more processes, which were killed
                old.unlink()


def states_of_ranks(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all processes that a checkpoint holds of a part of a run, by rank.

    Args:
        state: An entry of a checkpoint; of a single process it is the state itself.
    """
    return state.get(_RANKS, [state])


def own_state(state: dict[str, Any], rank: int) -> dict[str, Any]:
    """The state of one process, in memory of its own.

    Args:
        state: An entry of a checkpoint that holds the states of as many processes as there are.
        rank: Global rank of the process.
    """
    return copy.deepcopy(state[_RANKS][rank]) if _RANKS in state else state


def in_memory(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint in memory of its own, but for the states of processes: each takes what it needs.

    Args:
        content: What was read, whose tensors may be mapped from the file.
    """
    parts = [part[_RANKS] for part in content.values() if isinstance(part, dict) and _RANKS in part]
    return copy.deepcopy(content, {id(part): part for part in parts})


def _read_part(path: Path, names: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(
            f"{path}, which another process has written, is not there: all processes of a run must see its folder; "
            "choose one on a file system that the nodes share, with --trainer.default_root_dir"
        )
    return read_checkpoint(path, memory_map=True, parts=names)
