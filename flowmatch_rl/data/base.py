"""The common part of all data modules: ranks, the shared seed, and loaders of whole batches."""

import abc
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.inputs import DataInput
from flowmatch_rl.endings import SharedEnd, end_is_requested, mark_stage, settle_ending
from flowmatch_rl.rounds import Round

TEST_SEEDS = 1_000_000
"""Distance between the seeds of evaluations during training and of tests."""


class Batches(IterableDataset):
    """Batches that are made when they are needed.

    Args:
        number: Batches per pass.
        make: Returns a batch, given its number in the pass. Its state outlives a pass.
        per_round: Batches of an item of the pass, which is a ``Round`` of them unless it is 1.

    Attributes:
        number: Batches per pass.
        made: Batches of the present pass made so far.
        per_round: Batches of an item.
    """

    def __init__(self, number: int, make: Callable[[int], Any], per_round: int = 1) -> None:
        self.number, self._make, self.per_round = number, make, per_round
        self.made = self._first = 0

    def __len__(self) -> int:
        return math.ceil(self.number / self.per_round)

    def __iter__(self) -> Iterator[Any]:
        self.made, self._first = self._first, 0
        return self._rest()

    def continue_at(self, made: int) -> None:
        """Begin the next pass within it.

        Args:
            made: Batches of it that were made.
        """
        self._first = made

    def _rest(self) -> Iterator[Any]:
        if self.per_round == 1:
            while self.made < self.number:
                yield self._next()
            return
        first = self.made
        while first < self.number:
            last = min(self.number, (first // self.per_round + 1) * self.per_round)
            yield Round(last - first, lambda _: self._next())
            first = last

    def _next(self) -> Any:
        batch = self._make(self.made)
        self.made += 1
        return batch


class BatchLoader(DataLoader):
    """A loader of ``Batches`` whose place in a pass Lightning keeps in checkpoints, and resumes at.

    Attributes:
        world_size: Number of processes. Where another number of them makes passes of another length, a pass continues
            after the same fraction of it.
        on_moved: Takes the place where it continues then.
    """

    dataset: Batches  # pyright: ignore[reportIncompatibleVariableOverride]
    world_size: int = 1
    on_moved: Callable[[int], None] | None = None

    def state_dict(self) -> dict[str, int]:
        """The place."""
        data = self.dataset
        place = {"made": data.made, "of": data.number, "processes": self.world_size}
        return place if data.per_round == 1 else place | {"per_round": data.per_round}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin the next pass at a place."""
        made, here, per_round = state_dict["made"], self.dataset.number, self.dataset.per_round
        length, moved = state_dict.get("of", here), state_dict.get("per_round", 1) != per_round
        if length != here and state_dict["processes"] != self.world_size:
            within = min(max(1, round(made * here / length)), here - 1)  # neither its beginning nor its end
            made, moved = within if 0 < made < length else made * here // length, True
        if moved and self.on_moved is not None:
            self.on_moved(made // per_round if made < here else len(self.dataset))
        self.dataset.continue_at(made)


def batch_loader(number: int, make: Callable[[int], Any], per_round: int = 1) -> BatchLoader:
    """A loader that returns whole batches unchanged, and leaves the global random numbers alone.

    Args:
        number: Batches per pass.
        make: Returns a batch, a dictionary or a TensorDict, given its number in the pass.
        per_round: Batches of an item, which is a ``Round`` of them unless it is 1.
    """
    # The default collate function cannot take a TensorDict apart.
    # Without a generator of its own each iterator would draw from the global one, and evaluation disturb training.
    return BatchLoader(
        Batches(number, make, per_round),
        batch_size=None,
        collate_fn=_identity,
        num_workers=0,
        generator=torch.Generator(),
    )


class TrainingEnd(SharedEnd, SIGTERMException):
    """All processes that train together end before the same batch, since the system has asked one of them to."""


class DataModule(LightningDataModule, abc.ABC):
    """A data module that counts training in virtual epochs, each of which ends with an evaluation.

    Args:
        num_epochs: Virtual epochs of the whole run.
    """

    def __init__(self, num_epochs: int) -> None:
        super().__init__()
        self.num_epochs = num_epochs
        self._common_seed: int | None = None

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """Short name, for titles and run names."""

    @property
    @abc.abstractmethod
    def dimensions(self) -> dict[str, Any]:
        """Arguments of a model that the data determine."""

    @property
    @abc.abstractmethod
    def outline(self) -> dict[str, str]:
        """What a run trains on and how long, a line each by its label, such as ``environment`` and ``training``."""

    @property
    @abc.abstractmethod
    def inputs(self) -> list[DataInput]:
        """What the run takes its data from; files are read for their digests."""

    @property
    def common_seed(self) -> int:
        """Seed that the processes share; the module gives each a noise of its own once training starts."""
        return torch.initial_seed() if self._common_seed is None else self._common_seed

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.trainer.world_size if self.trainer else 1

    @property
    def is_ending(self) -> bool:
        """Whether the system has asked this process to end."""
        return end_is_requested() or bool(self.trainer and self.trainer.received_sigterm)

    def end_if_asked(self) -> None:
        """End if the system has asked for it: all processes that train together, if it has asked one of them.

        Every process must come here as often as the others.

        Raises:
            SIGTERMException: If the run ends; with several processes a ``TrainingEnd``.
        """
        if self.world_size == 1 and self.is_ending:
            raise SIGTERMException
        if self.world_size > 1:
            assert self.trainer is not None
            if self.trainer.strategy.reduce_boolean_decision(self.is_ending, all=False):
                settle_ending()
                raise TrainingEnd

    @property
    def run_folder(self) -> Path:
        """Folder of the run; the working folder without a Trainer."""
        return Path(self.trainer.default_root_dir) if self.trainer else Path()

    @property
    def checkpoint_path(self) -> str | None:
        """Path of the checkpoint that the run continues from; None if it begins."""
        path = self.trainer.ckpt_path if self.trainer else None
        return None if path is None else str(path)

    @property
    def checkpoint_folders(self) -> list[Path]:
        """Folders that the run writes checkpoints to."""
        callbacks = self.trainer.checkpoint_callbacks if self.trainer else []
        folders = [callback.dirpath for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        return [Path(folder) for folder in folders if folder is not None]

    @property
    def rank(self) -> int:
        """Global rank of this process."""
        return self.trainer.global_rank if self.trainer else 0

    def setup(self, stage: str) -> None:
        """Record the common seed."""
        self._common_seed = torch.initial_seed()

    def own_rows(self, number: int, least: int = 1) -> Tensor:
        """This process's part of the rows 0, 1, ..., number - 1.

        Args:
            number: Rows of all processes.
            least: Rows that each process needs.

        Returns:
            Numbers of the rows, shape (B,).

        Raises:
            UserError: If there are too few rows.
        """
        if number < least * self.world_size:
            raise UserError(
                f"{number} rows cannot be divided among {self.world_size} processes, which need {least} each; "
                "use fewer devices"
            )
        return torch.arange(self.rank, number, self.world_size)

    def training_loader(self, num_updates: float, make: Callable[[int], Any], per_round: int = 1) -> DataLoader:
        """Loader of one virtual epoch.

        Args:
            num_updates: Gradient steps of the whole run.
            make: Returns a batch, given its number in the epoch.
            per_round: Batches of one step of the trainer, see ``Round``.
        """
        return self.epoch_loader(epoch_batches(num_updates, self.num_epochs), make, per_round)

    def epoch_loader(self, number: int, make: Callable[[int], Any], per_round: int = 1) -> DataLoader:
        """Loader of a number of training batches.

        Args:
            number: Batches of one virtual epoch.
            make: Returns a batch, given its number in the epoch.
            per_round: Batches of one step of the trainer, see ``Round``.
        """
        ends_here = per_round == 1 and self.world_size == 1  # Lightning ends a single process after each of its steps
        loader = batch_loader(number, make if ends_here else lambda place: self._joint_batch(make, place), per_round)
        loader.world_size, loader.on_moved = self.world_size, self._move_progress
        return loader

    def _joint_batch(self, make: Callable[[int], Any], place: int) -> Any:
        """A batch, if the processes do not end before it."""
        mark_stage()
        self.end_if_asked()
        return make(place)

    def _move_progress(self, made: int) -> None:
        """Let the trainer count its steps of the present epoch from another place on."""
        assert self.trainer is not None
        current: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        current.ready = current.started = current.processed = current.completed = made


def epoch_batches(num_updates: float, num_epochs: int) -> int:
    """Batches of one virtual epoch, at least 1.

    Args:
        num_updates: Gradient steps of all of them.
        num_epochs: Number of epochs.
    """
    return max(1, round(num_updates / num_epochs))


def _identity(batch: Any) -> Any:
    return batch
