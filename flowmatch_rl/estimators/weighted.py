"""The pair of endpoints that weighted samples give, with a control variate."""

import torch
from torch import Tensor

from flowmatch_rl.estimators.base import EndpointEstimate
from flowmatch_rl.estimators.control_variates import ControlVariate


def weighted_estimate(
    x_0: Tensor,
    x_1: Tensor,
    log_density: Tensor,
    correction: Tensor | float,
    r: Tensor,
    rho: Tensor,
    t: Tensor,
    control_variate: ControlVariate,
) -> EndpointEstimate:
    """Self-normalised weighted means of samples of the endpoints, minus the weighted mean score.

    Args:
        x_0: Samples of the noise, shape (B, K, D).
        x_1: Samples of the data on the same paths through x_t, shape (B, K, D).
        log_density: Log-density of x_1 up to a constant per point, nats, shape (B, K).
        correction: What it takes to make it the logarithm of importance weights, shape (B, K), or a number.
        r: Negative posterior score of x_0 at the samples, shape (B, K, D); of no use without a control variate.
        rho: Ratio ``sigma / alpha``, shape (B, 1).
        t: Flow time, shape (B,).
        control_variate: Rule for the coefficient of the score.
    """
    weights = torch.softmax(log_density + correction, dim=1)[..., None]  # (B, K, 1)
    return mean_estimate(weights, x_0, x_1, log_density, r, rho, t, control_variate)


def mean_estimate(
    weights: Tensor,
    x_0: Tensor,
    x_1: Tensor,
    log_density: Tensor,
    r: Tensor,
    rho: Tensor,
    t: Tensor,
    control_variate: ControlVariate,
) -> EndpointEstimate:
    """Means of samples of the endpoints by given weights, minus the weighted mean score.

    Args:
        weights: Weights that sum to 1 over the samples, shape (B, K, 1), or (B, K, D) where each coordinate has its
            own.
        x_0: Samples of the noise, shape (B, K, D).
        x_1: Samples of the data on the same paths through x_t, shape (B, K, D).
        log_density: Log-density of x_1 up to a constant per point, nats, shape (B, K).
        r: Negative posterior score of x_0 at the samples, shape (B, K, D); of no use without a control variate.
        rho: Ratio ``sigma / alpha``, shape (B, 1).
        t: Flow time, shape (B,).
        control_variate: Rule for the coefficient of the score.
    """
    eta = control_variate.coefficient(weights, x_0, r, rho, t)
    shift = eta * (weights * r).sum(1)
    return EndpointEstimate(
        x_0=(weights * x_0).sum(1) - shift,
        x_1=(weights * x_1).sum(1) + rho * shift,
        weight=torch.ones_like(t),
        eta=eta,
        effective_sample_size=(1.0 / weights.square().sum(1)).mean(1),
        log_density_spread=log_density.std(dim=1, correction=0),
    )
