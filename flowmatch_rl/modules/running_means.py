"""Means of metrics between two loggings."""

import torch
from torch import Tensor


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
