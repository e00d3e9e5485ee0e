"""Rules that choose one of several particles by its value."""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_same_shape

_SAMPLE = "by a sample of the policy, at the temperature"


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

    def description(self, num_particles: int) -> str:
        """How it acts, in some words.

        Args:
            num_particles: Particles N it chooses from.
        """
        return _SAMPLE if num_particles == 1 else self._describe(num_particles)

    @abc.abstractmethod
    def _describe(self, num_particles: int) -> str:
        """How it acts with several particles."""


@dataclass(frozen=True)
class SoftmaxSelection(Selection):
    """Draws particle i with probability proportional to ``exp(value_i / temperature)``.

    Particles of a policy that already follows ``exp(value / temperature)`` are weighted by it once more: the choice
    acts at about ``temperature / (2 - 1 / N)``, half the temperature for many particles. Of two modes of .75 and .25,
    eight particles make .89 and .11. ``FirstSelection`` acts at the temperature itself.
    """

    def choose(self, values: Tensor, temperature: Tensor | float, uniform: Tensor) -> Tensor:
        """Index of the chosen particle."""
        check_same_shape(values=values, uniform=uniform)
        # Gumbel-max: exact, and needs no normalisation of values that differ by thousands of temperatures.
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1.0 - 6e-8)))
        return (values / temperature + gumbel).argmax(dim=1)

    def temperature_factor(self, num_particles: int) -> float:
        """Temperature of the chosen particles over that of the policy, for small differences of value.

        Args:
            num_particles: Particles N per state.
        """
        return 1.0 / (2.0 - 1.0 / num_particles)

    def _describe(self, num_particles: int) -> str:
        """How it acts with several particles."""
        factor = self.temperature_factor(num_particles)
        return f"by softmax among {num_particles} particles, at about {factor:.2g} of the temperature"


@dataclass(frozen=True)
class GreedySelection(Selection):
    """Takes the particle of highest value."""

    def choose(self, values: Tensor, temperature: Tensor | float, uniform: Tensor) -> Tensor:
        """Index of the chosen particle."""
        return values.argmax(dim=1)

    def _describe(self, num_particles: int) -> str:
        """How it acts with several particles."""
        return f"by the best of {num_particles} particles"


@dataclass(frozen=True)
class FirstSelection(Selection):
    """Takes the first particle, a plain sample of the policy: acts at the temperature that the policy is trained at."""

    needs_values = False

    def choose(self, values: Tensor, temperature: Tensor | float, uniform: Tensor) -> Tensor:
        """Index of the chosen particle."""
        return torch.zeros(uniform.shape[0], dtype=torch.long, device=uniform.device)

    def _describe(self, num_particles: int) -> str:
        """How it acts with several particles."""
        return _SAMPLE
