"""Tables of samples: the base class, and the table that is drawn from a known density."""

import abc
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from flowmatch_rl.checks import check_range
from flowmatch_rl.testbeds.densities import PlanarDensity, TwoMoons


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
            MissingFileError: If there is no such file.
            UserError: If the file cannot be read as a table.
        """


@dataclass(frozen=True)
class DensityTable(Dataset):
    """Samples of a density in the plane: columns ``x``, ``y`` and, as text, ``part``.

    Args:
        density: The density.
        num_samples: Rows of the table, at least 1.
        seed: Seed that they are drawn with.

    Raises:
        UserError: If ``num_samples`` is less than 1.
    """

    density: PlanarDensity = TwoMoons()
    num_samples: int = 100_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_samples=self.num_samples)

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return self.density.label

    def load(self) -> pd.DataFrame:
        """Draw the table; the same one at each call."""
        points, part = self.density.sample(self.num_samples, torch.Generator().manual_seed(self.seed))
        x, y = points.numpy().T
        return pd.DataFrame({"x": x, "y": y, "part": np.array(self.density.parts)[part.numpy()]})
