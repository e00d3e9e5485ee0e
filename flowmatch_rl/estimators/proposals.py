"""Proposals: where the samples of x_1 given x_t are drawn from.

The posterior of x_1 given x_t is proportional to ``p_1(x_1) p(x_t | x_1)`` with ``p(x_t | x_1) = sigma^-D p_0(x_0)``
and ``x_0 = (x_t - alpha x_1) / sigma``. A proposal of density q gives a sample the weight ``p_1(x_1) p(x_t | x_1) /
q(x_1)``, whose mean is the density of x_t.
"""

import abc
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.estimators.truncated_normal import log_mass, truncated_normal
from flowmatch_rl.paths import Source


@dataclass(frozen=True)
class Proposal(abc.ABC):
    """A distribution that endpoints are drawn from, to be weighted toward the posterior."""

    @property
    @abc.abstractmethod
    def covers_space(self) -> bool:
        """Whether every x_1 can be drawn, as control variates need."""

    @abc.abstractmethod
    def is_product(self, source: Source) -> bool:
        """Whether each coordinate of x_1 is drawn independently of the others, as block-wise estimators need.

        Args:
            source: Distribution of x_0.
        """

    @abc.abstractmethod
    def check(self, source: Source) -> None:
        """Refuse a source that the proposal does not know.

        Args:
            source: Distribution of x_0.

        Raises:
            ValueError: If the weights would be wrong or could all be zero.
        """

    @abc.abstractmethod
    def draw(self, z: Tensor, source: Source, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Draw pairs (x_0, x_1) whose path passes through x_t.

        Args:
            z: Standard normal noise, shape (B, K, source.noise_dim(D)); not all of it need be used.
            source: Distribution of x_0.
            x_t: Points on the path, shape (B, 1, D).
            alpha: Weight of the data at their flow times, shape (B, 1, 1).
            sigma: Weight of the noise at their flow times, shape (B, 1, 1).

        Returns:
            x_0 and x_1 with ``alpha x_1 + sigma x_0 = x_t``, shape (B, K, D) each.
        """

    @abc.abstractmethod
    def correction(self, x_0: Tensor, x_1: Tensor, source: Source, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The log of ``p(x_t | x_1)`` over the proposal's density of x_1, to be added to ``log p_1(x_1)``.

        Args:
            x_0: Noise, shape (B, K, D).
            x_1: Data, shape (B, K, D).
            source: Distribution of x_0.
            x_t: Points on the path, shape (B, 1, D).
            alpha: Weight of the data at their flow times, shape (B, 1, 1).
            sigma: Weight of the noise at their flow times, shape (B, 1, 1).

        Returns:
            Correction in nats, shape (B, K) or (B, 1); infinite where the proposal has no mass.
        """


@dataclass(frozen=True)
class LikelihoodProposal(Proposal):
    """The likelihood of x_1 given x_t: x_0 has the distribution of the source whatever x_t is, the paper's proposal.

    Its scale ``sigma / alpha`` grows without bound as t goes to 0, where a squashed policy then keeps the sample of
    least magnitude only.

    Reference:
        Li et al., arXiv:2601.08136.
    """

    @property
    def covers_space(self) -> bool:
        """Wherever the source has mass."""
        return True

    def is_product(self, source: Source) -> bool:
        """Known of standard normal noise."""
        return source.is_standard_normal

    def check(self, source: Source) -> None:
        """Any source will do."""

    def draw(self, z: Tensor, source: Source, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Draw pairs (x_0, x_1) whose path passes through x_t."""
        # The sign makes x_1 grow with the noise, as it does in the other proposals.
        x_0 = source.transform(-z)
        return x_0, (x_t - sigma * x_0) / alpha

    def correction(self, x_0: Tensor, x_1: Tensor, source: Source, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """A constant of the state: the weights are those of the data alone."""
        return -x_1.shape[-1] * alpha[..., 0].log()


@dataclass(frozen=True)
class ProductProposal(Proposal):
    """The likelihood times a Gaussian base ``N(0, base_variance I)``; its scale stays bounded at every t.

    It is the exact posterior for data with the distribution of the base, and tends to ``LikelihoodProposal`` as the
    base widens. The weights grow like ``exp(|u|^2 / (2 base_variance))`` outside the base. The likelihood of a source
    that is not Gaussian is replaced by the Gaussian of equal moments, and the weights set it right.

    Args:
        base_variance: Variance of the base per dimension, positive. The latent of a uniform action under tanh has
            variance pi^2 / 12 = 0.82; policies that sit at the bounds want 2 or more.

    Raises:
        ValueError: If ``base_variance`` is not positive.
    """

    base_variance: float = 1.0

    def __post_init__(self) -> None:
        check_range("(0, inf)", base_variance=self.base_variance)

    @property
    def covers_space(self) -> bool:
        """As every Gaussian."""
        return True

    def is_product(self, source: Source) -> bool:
        """True, whatever the source: the base and the Gaussian of equal moments have independent coordinates."""
        return True

    def check(self, source: Source) -> None:
        """Refuse a source of bounded support, outside which all weights may be zero."""
        if not source.is_smooth:
            raise UserError(f"ProductProposal needs a source with a smooth density everywhere, got {source}")

    def draw(self, z: Tensor, source: Source, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Draw pairs (x_0, x_1) whose path passes through x_t."""
        mean, variance = source.moments(x_t)
        # x_t has variance q when x_1 has the distribution of the base; written so, nothing divides by alpha or sigma.
        q = sigma.square() * variance + alpha.square() * self.base_variance
        scale, z = (self.base_variance * variance / q).sqrt(), z[..., : x_t.shape[-1]]
        offset = x_t - sigma * mean
        x_1 = (alpha * self.base_variance / q) * offset + sigma * scale * z
        x_0 = mean + (sigma * variance / q) * offset - alpha * scale * z
        return x_0, x_1

    def correction(self, x_0: Tensor, x_1: Tensor, source: Source, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The inverse of the base, the density of x_t under it, and what the source has over a Gaussian."""
        mean, variance = source.moments(x_t)
        q = sigma.square() * variance + alpha.square() * self.base_variance
        of_state = 0.5 * ((self.base_variance / q).log() - (x_t - sigma * mean).square() / q).sum(-1)
        return x_1.square().sum(-1) / (2.0 * self.base_variance) + of_state + source.log_gaussian_ratio(x_0)


@dataclass(frozen=True)
class TruncatedProposal(Proposal):
    """The likelihood cut to the box ``|x_1| <= limit``, for densities on the box: truncated normal noise.

    Every sample is an action that can be taken. The estimate is that of the density cut to the box, whose jump at the
    edge rules out control variates: the score misses the flux through it.

    Args:
        limit: Half the side of the box, positive.

    Raises:
        ValueError: If ``limit`` is not positive.

    Reference:
        Dong et al., arXiv:2502.11612 (MaxEntDP).
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        check_range("(0, inf)", limit=self.limit)

    @property
    def covers_space(self) -> bool:
        """Only the box."""
        return False

    def is_product(self, source: Source) -> bool:
        """True: so has the box."""
        return True

    def check(self, source: Source) -> None:
        """Refuse a source that is not standard normal."""
        if not source.is_standard_normal:
            raise UserError(f"TruncatedProposal needs a standard normal source, got {source}")

    def draw(self, z: Tensor, source: Source, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Draw pairs (x_0, x_1) whose path passes through x_t."""
        x_1 = truncated_normal(z[..., : x_t.shape[-1]], x_t / alpha, sigma / alpha, self.limit)
        return (x_t - alpha * x_1) / sigma, x_1

    def correction(self, x_0: Tensor, x_1: Tensor, source: Source, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The mass of the likelihood in the box, a constant of the state; infinite outside the box."""
        mass = log_mass(x_t / alpha, sigma / alpha, self.limit) - alpha.log()
        outside = (x_1.abs() > self.limit).any(-1)
        return mass.sum(-1).expand(outside.shape).masked_fill(outside, math.inf)


@dataclass(frozen=True)
class MixtureProposal(Proposal):
    """Part of the samples from one proposal, the others from a second, all weighted by their mixture.

    The deterministic-mixture weights ``p / (f q_1 + (1 - f) q_2)`` are bounded by those of either proposal
    over its fraction, so that the estimate is safe where one of the two is; and it stays consistent. The first
    ``fraction`` of the samples, rounded, come from the first proposal; each gets one at least where there are two.

    Args:
        first: First proposal.
        second: Second proposal.
        fraction: Fraction of the samples from the first, in (0, 1).

    Raises:
        ValueError: If ``fraction`` is outside (0, 1).

    Reference:
        Veach and Guibas, SIGGRAPH 1995 (balance heuristic).
    """

    first: Proposal = field(default_factory=LikelihoodProposal)
    second: Proposal = field(default_factory=ProductProposal)
    fraction: float = 0.5

    def __post_init__(self) -> None:
        check_range("(0, 1)", fraction=self.fraction)

    @property
    def covers_space(self) -> bool:
        """Where one of the two does."""
        return self.first.covers_space or self.second.covers_space

    def is_product(self, source: Source) -> bool:
        """False: a sample comes from one of the two in all its coordinates."""
        return False

    def check(self, source: Source) -> None:
        """Refuse what one of the two refuses."""
        self.first.check(source)
        self.second.check(source)

    def draw(self, z: Tensor, source: Source, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Draw pairs (x_0, x_1) whose path passes through x_t."""
        count = self._first_count(z.shape[1])
        pairs = [
            proposal.draw(part, source, x_t, alpha, sigma)
            for proposal, part in ((self.first, z[:, :count]), (self.second, z[:, count:]))
        ]
        x_0, x_1 = (torch.cat(parts, dim=1) for parts in zip(*pairs, strict=True))
        return x_0, x_1

    def correction(self, x_0: Tensor, x_1: Tensor, source: Source, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The log of the likelihood over the mixture's density."""
        fraction = self._first_count(x_1.shape[1]) / x_1.shape[1]
        first, second = (p.correction(x_0, x_1, source, x_t, alpha, sigma) for p in (self.first, self.second))
        # A fraction of 0 or 1 occurs with one sample, and its logarithm is then minus infinity, as it should be.
        logs = (math.log(part) if part > 0.0 else -math.inf for part in (fraction, 1.0 - fraction))
        return -torch.logaddexp(next(logs) - first, next(logs) - second).expand(x_1.shape[:2])

    def _first_count(self, num_samples: int) -> int:
        """Number of samples from the first proposal."""
        if num_samples == 1:
            return round(self.fraction)
        return min(max(round(self.fraction * num_samples), 1), num_samples - 1)
