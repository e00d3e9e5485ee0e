"""How far transitions are expanded in a one-step model, and where expansions end early."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.evaluation.curves import CurvePoint
from flowmatch_rl.schema import TableSchema


@dataclass(frozen=True)
class ExpansionPoint(CurvePoint):
    """How far expansions get at one step of a training.

    Attributes:
        gradient_steps: Gradient steps so far.
        full_expansions: Fraction that reached the length drawn for them, or a terminal state, in [0, 1].
        expansion_length: Mean length, in steps.
    """

    gradient_steps: int
    full_expansions: float
    expansion_length: float


@dataclass(frozen=True)
class ExpansionSample:
    """Expansions of N transitions, on the CPU.

    Attributes:
        schema: Entries of the whole state, with their units.
        start: States that the transitions lead to, where the one-step model begins, in the units of the environment,
            shape (N, S).
        length: Steps of each expansion, the observed one included, integer, shape (N,).
        wanted: Steps drawn for it, integer, shape (N,).
        ended: Whether it reached a terminal state, boolean, shape (N,).
    """

    schema: TableSchema
    start: Tensor
    length: Tensor
    wanted: Tensor
    ended: Tensor

    @property
    def early(self) -> Tensor:
        """Whether an expansion ended because the members of the model disagreed, boolean, shape (N,)."""
        return (self.length < self.wanted) & ~self.ended

    @property
    def full_fraction(self) -> float:
        """Fraction that did not end early, in [0, 1]."""
        return 1.0 - float(self.early.double().mean())

    @property
    def mean_length(self) -> float:
        """Mean length, in steps."""
        return float(self.length.double().mean())

    def survival(self) -> tuple[Tensor, Tensor]:
        """Fractions of the expansions that have at least k steps, and that were drawn to, for k = 1, 2, ....

        Returns:
            Fractions in [0, 1], both of shape (n,) for the largest number n of steps drawn.
        """
        steps = torch.arange(1, int(self.wanted.max()) + 1)
        reached, drawn = ((part >= steps[:, None]).double().mean(1) for part in (self.length, self.wanted))
        return reached, drawn
