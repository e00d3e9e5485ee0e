"""Rules that choose one of several particles by its value."""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_same_shape


@dataclass(frozen=True)
class Selection(abc.ABC):
    """Chooses one of N particles per state."""

    needs_values = True
    """Whether the choice depends on the values; if not, they need not be computed."""

    @abc.abstractmethod
    def choose(self, values: Tensor, temperature: Tensor | float, uniform: Tensor) -> Tensor:
        """Index of the chosen particle.

        Args:
            values: Action values, units of the return, shape (B, N).
            temperature: Temperature, same unit, positive.
            uniform: Noise, uniform on [0, 1), shape (B, N).

        Returns:
            Index in 0..N-1, shape (B,).

        Raises:
            ValueError: If values and noise differ in shape.
        """


@dataclass(frozen=True)
class SoftmaxSelection(Selection):
    """Draws particle i with probability proportional to ``exp(value_i / temperature)``."""

    def choose(self, values: Tensor, temperature: Tensor | float, uniform: Tensor) -> Tensor:
        """Index of the chosen particle."""
        check_same_shape(values=values, uniform=uniform)
        # Gumbel-max: exact, and needs no normalisation of values that differ by thousands of temperatures.
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1.0 - 6e-8)))
        return (values / temperature + gumbel).argmax(dim=1)


@dataclass(frozen=True)
class GreedySelection(Selection):
    """Takes the particle of highest value."""

    def choose(self, values: Tensor, temperature: Tensor | float, uniform: Tensor) -> Tensor:
        """Index of the chosen particle."""
        return values.argmax(dim=1)


@dataclass(frozen=True)
class FirstSelection(Selection):
    """Takes the first particle, a plain sample of the flow."""

    needs_values = False

    def choose(self, values: Tensor, temperature: Tensor | float, uniform: Tensor) -> Tensor:
        """Index of the chosen particle."""
        return torch.zeros(uniform.shape[0], dtype=torch.long, device=uniform.device)
