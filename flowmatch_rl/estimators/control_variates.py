"""Control variates: how much of the posterior score is added to the importance-weighted mean.

The posterior score of x_0 given x_t has mean zero. With ``r = x_0 + rho grad log p_1(x_1)``, its negative, and
``rho = sigma / alpha``, every coefficient eta gives an estimator ``sum w x_0 - eta sum w r`` of the posterior mean of
x_0 that is consistent: 0 is the noise expectation, 1 the gradient expectation. The estimator of x_1 is then
``sum w x_1 + rho eta sum w r``, so that in units of x_1 the coefficient is ``c = rho^2 eta``.
"""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ControlVariate(abc.ABC):
    """A rule for the coefficient eta."""

    @abc.abstractmethod
    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor) -> Tensor:
        """Coefficient per state and dimension.

        Args:
            weights: Normalised importance weights, shape (B, K, 1).
            x_0: Samples of the noise end point, shape (B, K, D).
            r: Negative posterior score of x_0 at the samples, shape (B, K, D).
            rho: Ratio ``sigma / alpha``, shape (B, 1).

        Returns:
            eta, shape (B, D).
        """


@dataclass(frozen=True)
class NoControlVariate(ControlVariate):
    """Coefficient 0: the noise expectation."""

    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor) -> Tensor:
        """Coefficient per state and dimension."""
        return torch.zeros_like(x_0[:, 0])


@dataclass(frozen=True)
class GradientControlVariate(ControlVariate):
    """Coefficient 1: the gradient expectation. Below t = 0.5 on the linear path its variance explodes."""

    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor) -> Tensor:
        """Coefficient per state and dimension."""
        return torch.ones_like(x_0[:, 0])


@dataclass(frozen=True)
class FixedControlVariate(ControlVariate):
    """One coefficient everywhere, a mixture of noise and gradient expectation.

    Args:
        eta: Coefficient of the posterior score of x_0.
    """

    eta: float = 0.5

    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor) -> Tensor:
        """Coefficient per state and dimension."""
        return torch.full_like(x_0[:, 0], self.eta)


@dataclass(frozen=True)
class RegressControlVariate(ControlVariate):
    """Regression of x_1 on the posterior score with squared weights, from the same samples: the paper's rule.

    Minimises the estimated asymptotic variance of the self-normalised mean. Fitted to the samples it corrects, it is
    the most accurate rule where many samples count (t above 0.7) and can be far worse than none elsewhere.

    Args:
        limit: Largest magnitude of the coefficient in units of x_1, positive.
        ridge: Added to the score's weighted variance, in units of x_1, at least 0.

    Raises:
        ValueError: If ``limit`` is not positive or ``ridge`` is negative.

    Reference:
        Li et al., arXiv:2601.08136.
    """

    limit: float = 2.0
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        if not self.limit > 0.0 or not self.ridge >= 0.0:
            raise ValueError(f"expected limit > 0 and ridge >= 0, got limit={self.limit}, ridge={self.ridge}")

    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor) -> Tensor:
        """Coefficient per state and dimension."""
        squared = weights.square()
        x_centred = x_0 - (weights * x_0).sum(1, keepdim=True)
        r_centred = r - (weights * r).sum(1, keepdim=True)
        covariance = (squared * x_centred * r_centred).sum(1)
        # In units of x_1 the score is r / rho and the coefficient rho^2 eta: hence the factors.
        variance = (squared * r_centred.square()).sum(1) + self.ridge * rho.square()
        # Without a ridge the variance is 0 where one sample holds all the weight; so is the covariance.
        eta = covariance / variance.clamp_min(torch.finfo(r.dtype).tiny)
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

    Raises:
        ValueError: If a bound is not positive.
    """

    eta_max: float = 2.0
    c_max: float = 2.0

    def __post_init__(self) -> None:
        if not self.eta_max > 0.0 or not self.c_max > 0.0:
            raise ValueError(f"expected positive bounds, got eta_max={self.eta_max}, c_max={self.c_max}")

    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor) -> Tensor:
        """Coefficient per state and dimension."""
        information = (weights * r.square()).sum(1)
        bound = (self.c_max / rho.square()).clamp_max(self.eta_max)
        return torch.minimum(1.0 / information.clamp_min(1e-12), bound)
