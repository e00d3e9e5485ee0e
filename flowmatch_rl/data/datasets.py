"""Where samples come from: tables, and densities that can be evaluated."""

import abc
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor


@dataclass(frozen=True)
class Dataset(abc.ABC):
    """A recipe for a table of samples, one per row, with named columns."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """Short name, for titles and run names."""

    @abc.abstractmethod
    def load(self) -> pd.DataFrame:
        """Read or draw the table; the same one at each call. Columns hold numbers or text.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file cannot be read as a table.
        """


@dataclass(frozen=True)
class Density(Dataset):
    """A law that can be drawn from and whose density is known.

    Args:
        num_samples: Rows of the table, at least 1.
        seed: Seed that they are drawn with.
    """

    num_samples: int = 100_000
    seed: int = 0

    @property
    @abc.abstractmethod
    def coordinates(self) -> tuple[str, ...]:
        """Names of the D columns that ``log_prob`` is a density of; further columns say what a row is a part of."""

    @abc.abstractmethod
    def sample(self, number: int, generator: torch.Generator) -> pd.DataFrame:
        """Draw independent rows.

        Args:
            number: How many.
            generator: Source of randomness, on the CPU.

        Returns:
            The rows, coordinates as float64.
        """

    @abc.abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of points.

        Args:
            x: Points in the order of ``coordinates`` and in their own units, shape (B, D).

        Returns:
            Log-density in nats, float64, shape (B,); minus infinity where the density is zero.

        Raises:
            ValueError: If ``x`` has another shape.
        """

    def load(self) -> pd.DataFrame:
        """Draw the table; the same one at each call."""
        return self.sample(self.num_samples, torch.Generator().manual_seed(self.seed))
