"""Reverse flow matching: regression of a velocity onto the posterior mean of a density known up to a constant."""

import torch
from torch import Tensor

from flowmatch_rl.estimators import PosteriorMean, PosteriorMeanEstimator
from flowmatch_rl.paths import AffinePath
from flowmatch_rl.shapes import append_dims, check_same_shape
from flowmatch_rl.types import LogDensityAndScore, Velocity


def reverse_flow_target(
    estimator: PosteriorMeanEstimator,
    path: AffinePath,
    log_density_and_score: LogDensityAndScore,
    x_t: Tensor,
    t: Tensor,
    z: Tensor,
) -> tuple[Tensor, PosteriorMean]:
    """Velocity at x_t of the flow to an unnormalised density, by the estimated posterior means.

    Holds for x_t from any proposal whose support contains that of the path's marginal.

    Args:
        estimator: Estimator of the posterior means.
        path: Path from standard normal noise to the density.
        log_density_and_score: Unnormalised log-density (B, K) and its gradient (B, K, D) at x_1 (B, K, D).
        x_t: Points on the path, shape (B, D).
        t: Flow time in (0, 1), shape (B,).
        z: Standard normal noise, shape (B, K, D).

    Returns:
        Velocity target without gradient, shape (B, D), and the posterior means it was made of.

    Raises:
        ValueError: If a shape is not as stated.

    Reference:
        Li et al., arXiv:2601.08136 (alpha, sigma here are alpha, beta there).
    """
    with torch.no_grad():
        posterior = estimator.estimate(path, log_density_and_score, x_t, t, z)
        return path.conditional_velocity(posterior.x_0, posterior.x_1, t), posterior


def velocity_regression_loss(
    velocity: Velocity, x_t: Tensor, t: Tensor, velocity_target: Tensor, condition: Tensor | None = None
) -> Tensor:
    """Squared error of a learned velocity against a target.

    Args:
        velocity: Learned field, called as ``velocity(x, t, condition)``.
        x_t: Points on the path, shape (B, D).
        t: Flow time in [0, 1], shape (B,).
        velocity_target: Target, detached, shape (B, D).
        condition: Context, shape (B, C), or None.

    Returns:
        Loss per sample, mean over dimensions, shape (B,).

    Raises:
        ValueError: If velocity, target and x_t differ in shape, or the shape of t is not a prefix of it.
    """
    append_dims(t, like=x_t)
    predicted = velocity(x_t, t, condition)
    check_same_shape(x_t=x_t, velocity=predicted, velocity_target=velocity_target)
    return (predicted - velocity_target).square().mean(-1)
