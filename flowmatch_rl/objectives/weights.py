"""Weights of a loss by flow time."""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath
from flowmatch_rl.types import Prediction


@dataclass(frozen=True)
class TimeWeight(abc.ABC):
    """Weight of a squared error by flow time."""

    @abc.abstractmethod
    def weight(self, path: AffinePath, t: Tensor, prediction: Prediction = "velocity") -> Tensor:
        """Weight at each flow time.

        Args:
            path: The path.
            t: Flow time, any shape.
            prediction: What the error is an error of.

        Returns:
            Weight, same shape as ``t``.
        """


@dataclass(frozen=True)
class UniformWeight(TimeWeight):
    """Weight 1 at every flow time."""

    def weight(self, path: AffinePath, t: Tensor, prediction: Prediction = "velocity") -> Tensor:
        """Weight at each flow time, same shape as ``t``."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class PowerWeight(TimeWeight):
    """Weight ``t ** exponent``: less of the early, noisy targets.

    Args:
        exponent: Power of the flow time.
    """

    exponent: float = 2.0

    def weight(self, path: AffinePath, t: Tensor, prediction: Prediction = "velocity") -> Tensor:
        """Weight at each flow time, same shape as ``t``."""
        return t**self.exponent


@dataclass(frozen=True)
class CappedSignalWeight(TimeWeight):
    """Weight ``min(1, (alpha / sigma)^2)``, the signal-to-noise ratio capped at 1."""

    def weight(self, path: AffinePath, t: Tensor, prediction: Prediction = "velocity") -> Tensor:
        """Weight at each flow time, same shape as ``t``."""
        return (path.schedule.alpha(t) / path.schedule.sigma(t)).square().clamp_max(1.0)


@dataclass(frozen=True)
class ErrorOf(TimeWeight):
    """Measures the error of one prediction as the error of another one.

    A network that predicts noise with ``ErrorOf("velocity")`` has the loss that its velocity would have: the same
    minimum, the same weight on every flow time, another parametrisation.

    Args:
        quantity: The prediction whose squared error counts: ``noise`` gives the simple loss of DDPM, ``data`` the
            truncated signal-to-noise weighting without truncation.
    """

    quantity: Prediction = "noise"

    def weight(self, path: AffinePath, t: Tensor, prediction: Prediction = "velocity") -> Tensor:
        """Weight at each flow time, same shape as ``t``."""
        return path.conversion(t, prediction, self.quantity)[1].square()
