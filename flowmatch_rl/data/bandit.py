"""A bandit in place of a data set: one state again and again, and exact samples to compare a policy with."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from flowmatch_rl.batches import ACTION, OBSERVATION, REFERENCE
from flowmatch_rl.data.loaders import batch_loader
from flowmatch_rl.testbeds import Bandit, FourModes


class BanditData(LightningDataModule):
    """Batches of the one state of a bandit for training, and exact samples of its Boltzmann law for evaluation.

    The temperature of the law is the module's own.

    Args:
        bandit: The bandit.
        batch_size: States per batch and process, all the same.
        num_updates: Gradient steps of the whole run.
        epoch_updates: Gradient steps between two evaluations; the updates are divided evenly into epochs of at most
            about this length.
        eval_samples: Exact samples of an evaluation, at least 2.
        eval_seed: Seed of the exact samples.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        bandit: Bandit = FourModes(),
        batch_size: int = 256,
        num_updates: int = 1_500,
        epoch_updates: int = 500,
        eval_samples: int = 3_000,
        eval_seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"batch_size": batch_size, "num_updates": num_updates, "epoch_updates": epoch_updates}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if eval_samples < 2:
            raise ValueError(f"eval_samples must be at least 2, got {eval_samples}")
        self.bandit = bandit
        self.batch_size, self.num_updates = batch_size, num_updates
        self.num_epochs = math.ceil(num_updates / epoch_updates)
        self.eval_samples, self.eval_seed = eval_samples, eval_seed
        self._exact: dict[float, dict[str, Tensor]] = {}

    @property
    def label(self) -> str:
        """Short name of the bandit, for titles and run names."""
        return self.bandit.label

    @property
    def dimensions(self) -> dict[str, Any]:
        """What a model needs to know: the ``bandit``."""
        return {"bandit": self.bandit}

    def train_dataloader(self) -> DataLoader:
        """Batches of ``OBSERVATION`` (B, 1), zeros."""
        number = max(1, round(self.num_updates / self.num_epochs))
        return batch_loader(_Repeated({OBSERVATION: torch.zeros(self.batch_size, 1)}, number))

    def val_dataloader(self) -> DataLoader:
        """One batch of exact samples, ``ACTION`` and ``REFERENCE`` (N, D) each."""
        return batch_loader(_Repeated(self._exact_samples(), 1))

    def test_dataloader(self) -> DataLoader:
        """One batch of exact samples, ``ACTION`` and ``REFERENCE`` (N, D) each, the same as in validation."""
        return batch_loader(_Repeated(self._exact_samples(), 1))

    def _exact_samples(self) -> dict[str, Tensor]:
        module: Any = self.trainer.lightning_module if self.trainer else None
        temperature = float(getattr(module, "temperature", 1.0))
        if temperature not in self._exact:
            generator = torch.Generator().manual_seed(self.eval_seed)
            shape = (2 * self.eval_samples, self.bandit.action_dim)
            samples = self.bandit.sample(torch.rand(shape, generator=generator, dtype=torch.float64), temperature)
            action, reference = samples.float().chunk(2)
            self._exact[temperature] = {ACTION: action, REFERENCE: reference}
        return self._exact[temperature]


class _Repeated(IterableDataset):
    """One batch, several times."""

    def __init__(self, batch: dict[str, Tensor], number: int) -> None:
        self._batch, self._number = batch, number

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self._number):
            yield dict(self._batch)
