"""Means of metrics between two loggings."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_REMEMBERED = 1_000
"""Most values of a watched metric that are kept to tell when it ceased to be finite."""


class RunningMeans:
    """Sums named scalars on their device, without waiting for it.

    Args:
        watched: Names of scalars of which one that is not finite is traced back to its update.
    """

    def __init__(self, watched: Iterable[str] = ()) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._recent: dict[str, deque[Tensor]] = {name: deque(maxlen=_REMEMBERED) for name in watched}

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
            if name in self._recent:
                self._recent[name].append(value)

    def ages_not_finite(self) -> dict[str, int]:
        """Watched scalars that have not been finite since the last ``take``. Waits for the device.

        Returns:
            By name, the number of observations after the first one that was not finite; at most 999.
        """
        names = [name for name in self._recent if name in self._sums]
        # One of all that are watched suffices to see that nothing is wrong: sums keep what is not finite.
        if not names or bool(torch.stack([self._sums[name] for name in names]).isfinite().all()):
            return {}
        ages = {}
        for name in names:
            bad = (~torch.stack(list(self._recent[name])).isfinite()).nonzero()
            if len(bad):
                ages[name] = len(self._recent[name]) - 1 - int(bad[0])
        return ages

    def state_dict(self) -> dict[str, Any]:
        """What was added since the last ``take``."""
        recent = {name: torch.stack(list(values)) for name, values in self._recent.items() if values}
        return {"sums": dict(self._sums), "counts": dict(self._counts), "recent": recent}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from what another object had added.

        Args:
            state: What its ``state_dict`` returned.
            device: Device of what will be added.
        """
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self._counts = dict(state["counts"])
        for name, values in self._recent.items():
            values.clear()
            values.extend(state["recent"].get(name, torch.empty(0)).to(device).unbind())

    def take(self) -> dict[str, Tensor]:
        """Means since the last call, by name; starts afresh."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        for values in self._recent.values():
            values.clear()
        return means
