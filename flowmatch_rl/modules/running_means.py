"""Means of metrics between two loggings."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from flowmatch_rl.checks import RunError


class RunningMeans:
    """Sums named scalars on their device, without waiting for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @torch.no_grad()
    def add(self, values: dict[str, Tensor]) -> None:
        """Add one observation of each scalar.

        Args:
            values: Scalars by name, shape ().
        """
        for name, value in values.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, Tensor]:
        """Means since the last call, by name; starts afresh."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def log(self, module: LightningModule, advice: str = "lower the learning rate") -> None:
        """Log the means on the progress bar and to the loggers, at the logging interval only.

        Args:
            module: The module in training.
            advice: What to do about a loss that is not finite.

        Raises:
            RunError: If the loss is not finite.
        """
        interval: int = module.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if module.global_step % interval:
            return
        means = self.take()
        if not bool(torch.isfinite(means["train/loss"])):
            raise RunError(f"the loss is not finite after {module.global_step} updates; {advice}")
        module.log_dict(means, prog_bar=True)
