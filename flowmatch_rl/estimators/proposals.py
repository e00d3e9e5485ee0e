"""Proposals: where the samples of the end point x_1 given x_t are drawn from.

The posterior of x_1 given x_t is proportional to ``p_1(x_1) N(x_t; alpha x_1, sigma^2 I)`` for standard normal noise.
"""

import abc
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Proposal(abc.ABC):
    """A Gaussian from which end points are drawn and then weighted toward the posterior."""

    @abc.abstractmethod
    def draw(self, z: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pairs of end points that pass through x_t.

        Args:
            z: Standard normal noise, shape (B, K, D).
            x_t: Points on the path, shape (B, 1, D).
            alpha: Weight of the data at their flow times, shape (B, 1, 1).
            sigma: Weight of the noise at their flow times, shape (B, 1, 1).

        Returns:
            x_1, shape (B, K, D); x_0 with ``alpha x_1 + sigma x_0 = x_t``, shape (B, K, D); and the part of the
            log-weight that must be added to ``log p_1(x_1)``, up to a constant, shape (B, K) or (B, 1).
        """


@dataclass(frozen=True)
class LikelihoodProposal(Proposal):
    """The likelihood of x_1 given x_t: ``x_1 ~ N(x_t / alpha, (sigma / alpha)^2 I)``, the paper's proposal.

    Its scale grows without bound as t goes to 0, where a squashed policy then keeps the sample of least magnitude only.

    Reference:
        Li et al., arXiv:2601.08136.
    """

    def draw(self, z: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pairs of end points that pass through x_t."""
        return (x_t + sigma * z) / alpha, -z, z.new_zeros(z.shape[0], 1)


@dataclass(frozen=True)
class ProductProposal(Proposal):
    """The likelihood times a Gaussian base ``N(0, base_variance I)``; its scale stays bounded at every t.

    It is the exact posterior for data with the law of the base, and tends to ``LikelihoodProposal`` as the base
    widens. The weights grow like ``exp(|u|^2 / (2 base_variance))`` outside the base.

    Args:
        base_variance: Variance of the base per dimension, positive. The latent of a uniform action under tanh has
            variance pi^2 / 12 = 0.82; policies that sit at the bounds want 2 or more.

    Raises:
        ValueError: If ``base_variance`` is not positive.
    """

    base_variance: float = 1.0

    def __post_init__(self) -> None:
        if not self.base_variance > 0.0:
            raise ValueError(f"base_variance must be positive, got {self.base_variance}")

    def draw(self, z: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pairs of end points that pass through x_t."""
        # x_t has variance q when x_1 has the law of the base; written so, nothing divides by alpha or sigma.
        q = sigma.square() + alpha.square() * self.base_variance
        scale = (self.base_variance / q).sqrt()
        x_1 = (alpha * self.base_variance / q) * x_t + sigma * scale * z
        x_0 = (sigma / q) * x_t - alpha * scale * z
        return x_1, x_0, x_1.square().sum(-1) / (2.0 * self.base_variance)
