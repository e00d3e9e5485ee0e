"""A bandit in place of a data set: its single state, and exact samples to compare a policy with."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flowmatch_rl.batches import ACTION, OBSERVATION, REFERENCE
from flowmatch_rl.checks import check_range
from flowmatch_rl.data.base import DataModule, batch_loader
from flowmatch_rl.data.inputs import DataInput, recipe_input
from flowmatch_rl.testbeds import Bandit, FourModes


class BanditData(DataModule):
    """Batches of the single state of a bandit for training, and exact samples of its Boltzmann distribution.

    The temperature of the distribution is the module's own.

    Args:
        bandit: The bandit.
        batch_size: States per batch and process, all the same.
        num_updates: Gradient steps of the whole run.
        epoch_updates: Gradient steps between two evaluations; the updates are divided evenly into epochs of at most
            about this length.
        eval_samples: Exact samples of an evaluation, at least 2.
        eval_seed: Seed of the exact samples.

    Raises:
        UserError: If a number is out of its range.
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
        check_range("[1, inf)", batch_size=batch_size, num_updates=num_updates, epoch_updates=epoch_updates)
        check_range("[2, inf)", eval_samples=eval_samples)
        super().__init__(math.ceil(num_updates / epoch_updates))
        self.bandit = bandit
        self.batch_size, self.num_updates = batch_size, num_updates
        self.eval_samples, self.eval_seed = eval_samples, eval_seed
        self._exact: dict[float, dict[str, Tensor]] = {}

    @property
    def label(self) -> str:
        """Short name of the bandit, for titles and run names."""
        return self.bandit.label

    @property
    def dimensions(self) -> dict[str, Any]:
        """Arguments of a model that the data determine: the ``bandit``."""
        return {"bandit": self.bandit}

    @property
    def outline(self) -> dict[str, str]:
        """The bandit, its dimension, and the updates of the run."""
        return {
            "bandit": f"{self.label}, action of dimension {self.bandit.action_dim}",
            "training": f"{self.num_updates:,} updates of batch {self.batch_size:,}",
        }

    @property
    def inputs(self) -> list[DataInput]:
        """The bandit."""
        return [recipe_input(self.label, self.bandit)]

    def train_dataloader(self) -> DataLoader:
        """Batches of ``OBSERVATION`` (B, 1), zeros."""
        return self.training_loader(self.num_updates, lambda _: {OBSERVATION: torch.zeros(self.batch_size, 1)})

    def val_dataloader(self) -> DataLoader:
        """One batch of exact samples, ``ACTION`` and ``REFERENCE`` (N, D) each."""
        module: Any = self.trainer.lightning_module if self.trainer else None
        return batch_loader(1, lambda _: dict(self.exact_samples(1.0 if module is None else module.temperature)))

    test_dataloader = val_dataloader

    def exact_samples(self, temperature: float) -> dict[str, Tensor]:
        """Exact samples at a temperature, ``ACTION`` and ``REFERENCE`` (N, D) each, independent of each other."""
        if temperature not in self._exact:
            generator = torch.Generator().manual_seed(self.eval_seed)
            shape = (2 * self.eval_samples, self.bandit.action_dim)
            samples = self.bandit.sample(torch.rand(shape, generator=generator, dtype=torch.float64), temperature)
            action, reference = samples.float().chunk(2)
            self._exact[temperature] = {ACTION: action, REFERENCE: reference}
        return self._exact[temperature]
