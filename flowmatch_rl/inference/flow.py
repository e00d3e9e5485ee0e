"""A trained flow for use outside training."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.inference.kinds import read_kind
from flowmatch_rl.models import GenerativeModel
from flowmatch_rl.modules.flow_matching import FlowMatchingModel
from flowmatch_rl.modules.loading import build_module

Conditions = Mapping[str, Sequence[float] | Sequence[str] | np.ndarray]


class TrainedFlow:
    """Samples and log-densities as NumPy arrays, in the units of the data.

    Args:
        model: The trained model.
        seed: Seed of the noise.
    """

    def __init__(self, model: GenerativeModel, seed: int = 0) -> None:
        self.model = model.eval()
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the D columns."""
        return self.model.schema.columns

    def sample(self, number: int, conditions: Conditions | None = None) -> np.ndarray:
        """Draw samples.

        Args:
            number: How many.
            conditions: For a conditional model, ``number`` values by column name, numbers or classes.

        Returns:
            Samples, shape (number, D).

        Raises:
            KeyError: If a condition column is missing.
            UserError: If there are conditions too many, a class is unknown, or a length differs.
        """
        condition = self._condition(number, conditions)
        noise = self.model.draw_noise(number, self._generator)
        sample = self.model.sample(noise, condition, self._generator)
        return self.model.schema.restore(sample).cpu().numpy()

    def log_prob(self, samples: np.ndarray, conditions: Conditions | None = None) -> np.ndarray:
        """Log-density in nats.

        Args:
            samples: Samples in the units of the data, shape (N, D).
            conditions: As in ``sample``.

        Returns:
            Log-density per volume in the units of the data, shape (N,).

        Raises:
            KeyError: If a condition column is missing.
            UserError: If there are other than D columns, a class is unknown, or a length differs.
        """
        points = self.model.schema.standardise(torch.as_tensor(samples)).float().to(self.model.device)
        condition = self._condition(len(points), conditions)
        return self.model.log_prob(points, condition, self._generator).cpu().numpy()

    def _condition(self, number: int, conditions: Conditions | None) -> Tensor | None:
        schema = self.model.schema
        given, wanted = conditions or {}, (*schema.condition_columns, *schema.class_columns)
        if unknown := [name for name in given if name not in wanted]:
            raise UserError(f"the model knows no condition {unknown[0]!r}; it has {', '.join(wanted) or 'none'}")
        if not wanted:
            return None
        for name in wanted:
            if name not in given:
                raise KeyError(f"the condition {name!r} is missing; the model takes {', '.join(wanted)}")
            if len(given[name]) != number:
                raise UserError(f"expected {number} values of {name!r}, got {len(given[name])}")
        return schema.condition(given).float().to(self.model.device)


def load_flow(checkpoint: str | Path, device: str = "cpu", allow: Collection[str] = ()) -> TrainedFlow:
    """Load the flow of a checkpoint.

    Args:
        checkpoint: Path of a ``.ckpt`` file, or ``zoo:NAME`` for a trained model of the package.
        device: Where to run it.
        allow: Packages whose classes it may name, beside this one and those that were imported.

    Returns:
        The flow.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is not a checkpoint of a flow, or names a class of another package.
    """
    content = read_kind("a flow", checkpoint, allow)
    return TrainedFlow(build_module(FlowMatchingModel, content, checkpoint).to(device).model)
