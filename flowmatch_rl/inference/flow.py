"""A trained flow for use outside training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.modules.flow_matching import FlowMatchingModel

Conditions = Mapping[str, Sequence[float] | Sequence[str] | np.ndarray]


class TrainedFlow:
    """Samples and log-densities as NumPy arrays, in the units of the data.

    Args:
        module: The trained module.
        seed: Seed of the noise.
    """

    def __init__(self, module: FlowMatchingModel, seed: int = 0) -> None:
        self.module = module.eval()
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the D columns."""
        return self.module.schema.columns

    def sample(self, number: int, conditions: Conditions | None = None) -> np.ndarray:
        """Draw samples.

        Args:
            number: How many.
            conditions: For a conditional model, ``number`` values by column name, numbers or classes.

        Returns:
            Samples, shape (number, D).

        Raises:
            KeyError: If a condition column is missing.
            ValueError: If there are conditions too many, a class is unknown, or a length differs.
        """
        condition = self._condition(number, conditions)
        noise = self.module.draw_noise(number, self._generator)
        sample = self.module.sample(noise, condition, self._generator)
        return self.module.schema.restore(sample).cpu().numpy()

    def log_prob(self, samples: np.ndarray, conditions: Conditions | None = None) -> np.ndarray:
        """Log-density in nats.

        Args:
            samples: Samples in the units of the data, shape (N, D).
            conditions: As in ``sample``.

        Returns:
            Log-density per volume in the units of the data, shape (N,).

        Raises:
            KeyError: If a condition column is missing.
            ValueError: If there are other than D columns, a class is unknown, or a length differs.
        """
        points = self.module.schema.standardise(torch.as_tensor(samples)).float().to(self.module.device)
        condition = self._condition(len(points), conditions)
        return self.module.log_prob(points, condition, self._generator).cpu().numpy()

    def _condition(self, number: int, conditions: Conditions | None) -> Tensor | None:
        schema = self.module.schema
        given, wanted = conditions or {}, (*schema.condition_columns, *schema.class_columns)
        if unknown := [name for name in given if name not in wanted]:
            raise ValueError(f"the model knows no condition {unknown[0]!r}; it has {', '.join(wanted) or 'none'}")
        if not wanted:
            return None
        for name in wanted:
            if name not in given:
                raise KeyError(f"the condition {name!r} is missing; the model takes {', '.join(wanted)}")
            if len(given[name]) != number:
                raise ValueError(f"expected {number} values of {name!r}, got {len(given[name])}")
        return schema.condition(given).float().to(self.module.device)


def load_flow(checkpoint: str | Path, device: str = "cpu") -> TrainedFlow:
    """Load the flow of a checkpoint.

    Args:
        checkpoint: Path of a ``.ckpt`` file.
        device: Where to run it.

    Returns:
        The flow.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    return TrainedFlow(FlowMatchingModel.load_from_checkpoint(checkpoint, map_location=device))
