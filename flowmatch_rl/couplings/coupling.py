"""Couplings: joint distributions of noise and data within a minibatch."""

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_same_shape, check_shape


@dataclass(frozen=True)
class Coupling(abc.ABC):
    """Pairs each row of the data with a row of the noise."""

    is_independent: ClassVar[bool]
    """Whether every row keeps its own noise, so that there is nothing to pair."""

    @torch.no_grad()
    def pair(self, x_0: Tensor, x_1: Tensor, uniform: Tensor, condition: Tensor | None = None) -> Tensor:
        """Row of the noise for each row of the data.

        Data and conditions keep their order: ``x_0[index]`` is the noise paired with ``x_1``. Deterministic, given
        its arguments.

        Args:
            x_0: Noise, shape (B, D).
            x_1: Data, shape (B, D).
            uniform: Independent uniform noise in [0, 1), shape (B,).
            condition: Conditions of the data, shape (B, C), or None.

        Returns:
            Index into the rows of the noise, int64, shape (B,).

        Raises:
            ValueError: If a shape does not fit, or a coupling that uses the values finds one that is not finite.
            RunError: If the solver of a coupling fails.
        """
        if x_1.dim() != 2 or len(x_1) == 0:
            raise ValueError(f"expected x_1 of shape (B, D), B at least 1, got {tuple(x_1.shape)}")
        check_same_shape(x_0=x_0, x_1=x_1)
        check_shape("uniform", uniform, (len(x_1),))
        if condition is not None and (condition.dim() != 2 or len(condition) != len(x_1)):
            raise ValueError(f"expected condition of shape ({len(x_1)}, C), got {tuple(condition.shape)}")
        return self._index(x_0, x_1, uniform, condition)

    @abc.abstractmethod
    def _index(self, x_0: Tensor, x_1: Tensor, uniform: Tensor, condition: Tensor | None) -> Tensor:
        """Row of the noise for each row of the data, for arguments of checked shapes."""


@dataclass(frozen=True)
class IndependentCoupling(Coupling):
    """Independent noise and data: each row of the data keeps its own row of the noise."""

    is_independent: ClassVar[bool] = True

    def _index(self, x_0: Tensor, x_1: Tensor, uniform: Tensor, condition: Tensor | None) -> Tensor:
        """Its own row for every row."""
        return torch.arange(len(x_1), device=x_1.device)
