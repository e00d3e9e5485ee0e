"""Control variates: how much of the posterior score is added to the importance-weighted mean.

The posterior score of x_0 given x_t has mean zero. With ``r = rho grad log p_1(x_1) - grad log p_0(x_0)``, its
negative, where ``rho = sigma / alpha`` and ``-grad log p_0`` is x_0 for standard normal noise, every coefficient eta
gives an estimator ``sum w x_0 - eta sum w r`` of the posterior mean of x_0 that is consistent: 0 is the noise
expectation, 1 the gradient expectation. The estimator of x_1 is then ``sum w x_1 + rho eta sum w r``, so that in units
of x_1 the coefficient is ``c = rho^2 eta``.
"""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.estimators.time_bins import time_bin_average


@dataclass(frozen=True)
class ControlVariate(abc.ABC):
    """A rule for the coefficient eta."""

    @property
    @abc.abstractmethod
    def needs_score(self) -> bool:
        """Whether a coefficient other than 0 is possible, for which r must be known."""

    @abc.abstractmethod
    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor, t: Tensor) -> Tensor:
        """Coefficient per state and dimension.

        Args:
            weights: Normalised importance weights, shape (B, K, 1).
            x_0: Samples of the noise, shape (B, K, D).
            r: Negative posterior score of x_0 at the samples, shape (B, K, D).
            rho: Ratio ``sigma / alpha``, shape (B, 1).
            t: Flow time, shape (B,).

        Returns:
            eta, shape (B, D).
        """


@dataclass(frozen=True)
class NoControlVariate(ControlVariate):
    """Coefficient 0: the noise expectation."""

    @property
    def needs_score(self) -> bool:
        """Whether the score is used."""
        return False

    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor, t: Tensor) -> Tensor:
        """Coefficient per state and dimension."""
        return torch.zeros_like(x_0[:, 0])


@dataclass(frozen=True)
class GradientControlVariate(ControlVariate):
    """Coefficient 1: the gradient expectation. Below t = 0.5 on the linear path its variance explodes."""

    @property
    def needs_score(self) -> bool:
        """Whether the score is used."""
        return True

    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor, t: Tensor) -> Tensor:
        """Coefficient per state and dimension."""
        return torch.ones_like(x_0[:, 0])


@dataclass(frozen=True)
class FixedControlVariate(ControlVariate):
    """One coefficient everywhere, a mixture of noise and gradient expectation.

    Args:
        eta: Coefficient of the posterior score of x_0.
    """

    @property
    def needs_score(self) -> bool:
        """Whether the score is used."""
        return self.eta != 0.0

    eta: float = 0.5

    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor, t: Tensor) -> Tensor:
        """Coefficient per state and dimension."""
        return torch.full_like(x_0[:, 0], self.eta)


@dataclass(frozen=True)
class RegressControlVariate(ControlVariate):
    """Regression of x_1 on the posterior score with squared weights: by default the paper's rule.

    Minimises the estimated asymptotic variance of the self-normalised mean. Fitted to the samples of one state, which
    it then corrects, it is the most accurate rule where many samples count (t above 0.7) and can be far worse than
    none elsewhere; fitted to all states of a batch with like flow times it is safe.

    Args:
        limit: Largest magnitude of the coefficient in units of x_1, positive.
        ridge: Added to the score's weighted variance, in units of x_1, at least 0.
        isotropic: Whether all dimensions share one coefficient.
        num_bins: Number of equal bins of flow time within which all states of the batch share one coefficient per
            dimension, up to its known dependence on rho; None fits each state by itself.

    Raises:
        ValueError: If ``limit`` is not positive, ``ridge`` is negative or ``num_bins`` is below 1.

    Reference:
        Li et al., arXiv:2601.08136.
    """

    @property
    def needs_score(self) -> bool:
        """Whether the score is used."""
        return True

    limit: float = 2.0
    ridge: float = 1e-4
    isotropic: bool = False
    num_bins: int | None = None

    def __post_init__(self) -> None:
        check_range("(0, inf)", limit=self.limit)
        check_range("[0, inf)", ridge=self.ridge)
        check_range("[1, inf)", num_bins=self.num_bins)

    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor, t: Tensor) -> Tensor:
        """Coefficient per state and dimension."""
        squared = weights.square()
        x_centred = x_0 - (weights * x_0).sum(1, keepdim=True)
        r_centred = r - (weights * r).sum(1, keepdim=True)
        covariance = (squared * x_centred * r_centred).sum(1)
        # In units of x_1 the score is r / rho and the coefficient rho^2 eta: hence the factors.
        variance = (squared * r_centred.square()).sum(1) + self.ridge * rho.square()
        eta = _ratio(covariance, variance, rho, t, self.isotropic, self.num_bins)
        bound = self.limit / rho.square()
        return torch.maximum(torch.minimum(eta, bound), -bound)


@dataclass(frozen=True)
class FisherControlVariate(ControlVariate):
    """Coefficient ``1 / E[r^2]``, clipped to [0, eta_max] and to ``c_max`` in units of x_1.

    Integration by parts gives ``Cov(x_0, r) = 1`` under the posterior, so that the coefficient of least variance needs
    no estimate of a covariance, only of the score's variance (the Fisher information).

    Args:
        eta_max: Upper bound of eta, positive.
        c_max: Upper bound of ``rho^2 eta``, positive.
        isotropic: Whether all dimensions share one coefficient.
        num_bins: Number of equal bins of flow time within which all states of the batch share one coefficient per
            dimension, up to its known dependence on rho; None fits each state by itself.

    Raises:
        ValueError: If a bound is not positive or ``num_bins`` is below 1.
    """

    @property
    def needs_score(self) -> bool:
        """Whether the score is used."""
        return True

    eta_max: float = 2.0
    c_max: float = 2.0
    isotropic: bool = False
    num_bins: int | None = None

    def __post_init__(self) -> None:
        check_range("(0, inf)", eta_max=self.eta_max, c_max=self.c_max)
        check_range("[1, inf)", num_bins=self.num_bins)

    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor, t: Tensor) -> Tensor:
        """Coefficient per state and dimension."""
        information = (weights * r.square()).sum(1).clamp_min(1e-12)
        eta = _ratio(torch.ones_like(information), information, rho, t, self.isotropic, self.num_bins)
        return torch.minimum(eta, (self.c_max / rho.square()).clamp_max(self.eta_max))


def _ratio(
    numerator: Tensor, denominator: Tensor, rho: Tensor, t: Tensor, isotropic: bool, num_bins: int | None
) -> Tensor:
    """``numerator / denominator``, shape (B, D), each averaged over dimensions and over states of like flow time."""
    if isotropic:
        numerator, denominator = (v.mean(1, keepdim=True).expand_as(v) for v in (numerator, denominator))
    # Where the variance is 0, as with one sample and no ridge, the covariance is 0 too.
    least = torch.finfo(denominator.dtype).tiny
    if num_bins is None:
        return numerator / denominator.clamp_min(least)
    # Within a bin (1 + rho^2) eta is shared: for standard normal data it is 1 at every t, and its limits are finite.
    scale = 1.0 / (1.0 + rho.square())
    numerator, denominator = (time_bin_average(v, t, num_bins) for v in (numerator, scale * denominator))
    return scale * numerator / denominator.clamp_min(least)
