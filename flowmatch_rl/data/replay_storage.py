"""Where the transitions of a replay buffer lie: in memory, or in files that are mapped into it."""

import abc
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, Storage


class ReplayStorage(abc.ABC):
    """Where the transitions of a replay buffer lie, and how checkpoints hold them.

    Attributes:
        is_logged: Whether checkpoints name files of transitions, each of which is written once, see ``ReplayLog``;
            otherwise each holds all transitions itself.
    """

    is_logged: ClassVar[bool]

    @abc.abstractmethod
    def begin(self, capacity: int, rows: TensorDictBase, device: torch.device, folder: Path) -> Storage:
        """An empty storage.

        Args:
            capacity: Transitions that it holds.
            rows: One transition or more, whose entries those that follow have.
            device: Device of the trained module.
            folder: Folder of the run for its transitions.
        """


@dataclass(frozen=True)
class MemoryStorage(ReplayStorage):
    """Transitions in memory, on the device of the trained module. Each checkpoint holds all of them."""

    is_logged: ClassVar[bool] = False

    def begin(self, capacity: int, rows: TensorDictBase, device: torch.device, folder: Path) -> Storage:
        """An empty storage; it grows as it is filled."""
        return LazyTensorStorage(capacity, device=device)


@dataclass(frozen=True)
class DiskStorage(ReplayStorage):
    """Transitions in memory-mapped files, of which the system keeps in memory what it has room for.

    A checkpoint writes what was collected since the last one to a file beside it, and names the files that it needs.

    Attributes:
        folder: Folder for the memory-mapped files, best on a disk of the machine itself; None for the folder of the
            run. They have no name there once they are mapped, so that they are gone with their process, however it
            ends. What checkpoints need is in ``replay`` in the folder of the run.

    Raises:
        OSError: If the disk has no room for the whole buffer, when the first transition is stored.
    """

    folder: str | None = None

    is_logged: ClassVar[bool] = True

    def begin(self, capacity: int, rows: TensorDictBase, device: torch.device, folder: Path) -> Storage:
        """An empty storage, for which the room on the disk is taken."""
        place = folder if self.folder is None else Path(self.folder)
        place.mkdir(parents=True, exist_ok=True)
        logging.getLogger("torchrl").setLevel(logging.WARNING)  # it would name the size
        with tempfile.TemporaryDirectory(prefix="buffer_", dir=place) as home:
            storage = LazyMemmapStorage(capacity, scratch_dir=Path(home) / "rows", auto_cleanup=False)
            storage.set(range(1), rows[:1], set_cursor=False)  # makes the files; it remains empty
            for path in Path(home).rglob("*.memmap"):
                with path.open("r+b") as file:  # a disk that is full later would end the process without a word
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return storage
