"""The common part of all data modules: ranks, the shared seed, and loaders of whole batches."""

import abc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from flowmatch_rl.checks import UserError

TEST_SEEDS = 1_000_000
"""Distance between the seeds of evaluations during training and of tests."""


class Batches(IterableDataset):
    """Batches that are made when they are needed.

    Args:
        number: Batches per pass.
        make: Returns a batch, given its number in the pass. Its state outlives a pass.

    Attributes:
        made: Batches of the present pass made so far.
    """

    def __init__(self, number: int, make: Callable[[int], Any]) -> None:
        self._number, self._make = number, make
        self.made = self._first = 0

    def __len__(self) -> int:
        return self._number

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
        while self.made < self._number:
            batch = self._make(self.made)
            self.made += 1
            yield batch


class BatchLoader(DataLoader):
    """A loader of ``Batches`` whose place in a pass Lightning keeps in checkpoints, and resumes at."""

    dataset: Batches  # pyright: ignore[reportIncompatibleVariableOverride]

    def state_dict(self) -> dict[str, int]:
        """The place."""
        return {"made": self.dataset.made}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin the next pass at a place."""
        self.dataset.continue_at(state_dict["made"])


def batch_loader(number: int, make: Callable[[int], Any]) -> DataLoader:
    """A loader that returns whole batches unchanged, and leaves the global random numbers alone.

    Args:
        number: Batches per pass.
        make: Returns a batch, a dictionary or a TensorDict, given its number in the pass.
    """
    # The default collate function cannot take a TensorDict apart.
    # Without a generator of its own each iterator would draw from the global one, and evaluation disturb training.
    return BatchLoader(
        Batches(number, make), batch_size=None, collate_fn=_identity, num_workers=0, generator=torch.Generator()
    )


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
    def common_seed(self) -> int:
        """Seed that the processes share; the module gives each a noise of its own once training starts."""
        return torch.initial_seed() if self._common_seed is None else self._common_seed

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.trainer.world_size if self.trainer else 1

    @property
    def is_ending(self) -> bool:
        """Whether the system has asked the run to end."""
        return bool(self.trainer and self.trainer.received_sigterm)

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

    def training_loader(self, num_updates: float, make: Callable[[int], Any]) -> DataLoader:
        """Loader of one virtual epoch.

        Args:
            num_updates: Gradient steps of the whole run.
            make: Returns a batch, given its number in the epoch.
        """
        return batch_loader(epoch_batches(num_updates, self.num_epochs), make)


def epoch_batches(num_updates: float, num_epochs: int) -> int:
    """Batches of one virtual epoch, at least 1.

    Args:
        num_updates: Gradient steps of all of them.
        num_epochs: Number of epochs.
    """
    return max(1, round(num_updates / num_epochs))


def _identity(batch: Any) -> Any:
    return batch
