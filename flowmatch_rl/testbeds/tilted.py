"""A policy that is known relative to a behaviour: a mixture of normals, and a quadratic value that tilts it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.paths import GaussianMixture


@dataclass(frozen=True)
class TiltedMixture:
    """One state, a behaviour that is a mixture of normals, and a quadratic value Q of its actions.

    What a policy learns that aims at ``behaviour exp(Q / temperature)`` is known: that is again a mixture of normals.
    All but a few in 100,000 actions of the default behaviour lie in [-1, 1]^2.

    Args:
        weights: Probabilities of the J normals, positive and of sum 1.
        means: Their means, J of D entries.
        scales: Their standard deviations, positive.
        peak: The action of highest value, D entries; the value is 0 there.
        curvature: Minus the second derivative of the value in every direction, units of the return, at least 0.

    Raises:
        ValueError: If the sizes do not fit, or a number is out of its range.
    """

    weights: tuple[float, ...] = (0.5, 0.5)
    means: tuple[tuple[float, ...], ...] = ((-0.45, 0.2), (0.4, -0.25))
    scales: tuple[float, ...] = (0.12, 0.16)
    peak: tuple[float, ...] = (0.6, 0.2)
    curvature: float = 2.0

    def __post_init__(self) -> None:
        check_range("[0, inf)", curvature=self.curvature)
        if self.behavior.means.shape[1] != len(self.peak):
            raise ValueError(f"peak must have {self.behavior.means.shape[1]} entries as means have, got {self.peak}")

    @property
    def behavior(self) -> GaussianMixture:
        """Distribution of the actions in the data, float64."""
        weights, means, scales = (torch.tensor(x, dtype=torch.float64) for x in (self.weights, self.means, self.scales))
        return GaussianMixture(weights, means, scales)

    def value_and_gradient(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Action value and its gradient.

        Args:
            actions: Actions, shape (..., D).

        Returns:
            Q in units of the return, shape (...), and its gradient with respect to the action, shape (..., D).
        """
        offset = actions - actions.new_tensor(self.peak)
        return -0.5 * self.curvature * offset.square().sum(-1), -self.curvature * offset

    def tilted(self, temperature: float) -> GaussianMixture:
        """The distribution ``behaviour exp(Q / temperature)``, normalised.

        Args:
            temperature: Temperature, in units of the return, positive.
        """
        return self._tilt(temperature)[0]

    def divergence(self, temperature: float) -> float:
        """Kullback-Leibler divergence of the tilted distribution from the behaviour, nats.

        Args:
            temperature: Temperature, in units of the return, positive.
        """
        tilted, log_normaliser = self._tilt(temperature)
        values = self.value_and_gradient(tilted.means)[0]
        values = values - 0.5 * self.curvature * len(self.peak) * tilted.scales.square()
        return float((tilted.weights * values).sum() / temperature - log_normaliser)

    def _tilt(self, temperature: float) -> tuple[GaussianMixture, Tensor]:
        """The tilted distribution, and the logarithm of the mean of ``exp(Q / temperature)`` of the behaviour."""
        check_range("(0, inf)", temperature=temperature)
        behavior, peak = self.behavior, torch.tensor(self.peak, dtype=torch.float64)
        before, added = behavior.scales**-2, self.curvature / temperature
        after = before + added
        means = (before[:, None] * behavior.means + added * peak) / after[:, None]
        apart = (behavior.means - peak).square().sum(1)
        log_mass = behavior.weights.log() + 0.5 * len(peak) * (before / after).log()
        log_mass = log_mass - 0.5 * before * added / after * apart
        return GaussianMixture(log_mass.softmax(0), means, after**-0.5), log_mass.logsumexp(0)
