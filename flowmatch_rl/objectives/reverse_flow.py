"""Reverse flow matching: regression onto the posterior means of a density known up to a constant."""

import torch
from torch import Tensor

from flowmatch_rl.estimators import EndPointEstimator, PathPoints, PosteriorMean
from flowmatch_rl.paths import AffinePath, Source
from flowmatch_rl.shapes import append_dims, check_same_shape
from flowmatch_rl.types import LogDensityAndScore, Velocity


def reverse_flow_target(
    estimator: EndPointEstimator,
    path: AffinePath,
    source: Source,
    log_density_and_score: LogDensityAndScore,
    points: PathPoints,
    z: Tensor,
) -> PosteriorMean:
    """Estimated posterior means of the end points at points of a path, without gradient.

    What a network regresses on is ``path.target(prediction, means.x_0, means.x_1, points.t)``: velocity, data, noise
    and score are linear in the end points. Holds for points from any proposal whose support contains that of the
    path's marginal, unless the estimator says otherwise.

    Args:
        estimator: Estimator of the posterior means.
        path: Path from noise to the density.
        source: Law of the noise.
        log_density_and_score: Unnormalised log-density (B, K) and its gradient (B, K, D) at x_1 (B, K, D).
        points: Points on the path.
        z: Standard normal noise, shape (B, estimator.num_samples, source.noise_dim(D)).

    Returns:
        Posterior means, the weight of each sample's loss, and diagnostics.

    Raises:
        ValueError: If a shape is not as stated.

    Reference:
        Li et al., arXiv:2601.08136 (alpha, sigma here are alpha, beta there).
    """
    with torch.no_grad():
        return estimator.estimate(path, source, log_density_and_score, points, z)


def prediction_loss(
    predict: Velocity, x_t: Tensor, t: Tensor, target: Tensor, condition: Tensor | None = None
) -> Tensor:
    """Squared error of a network's prediction along a path against a target.

    Args:
        predict: Network for any of the path's predictions, called as ``predict(x, t, condition)``.
        x_t: Points on the path, shape (B, D).
        t: Flow time in [0, 1], shape (B,).
        target: What is to be predicted, detached, shape (B, D).
        condition: Context, shape (B, C), or None.

    Returns:
        Loss per sample, mean over dimensions, shape (B,).

    Raises:
        ValueError: If prediction, target and x_t differ in shape, or the shape of t is not a prefix of it.
    """
    append_dims(t, like=x_t)
    predicted = predict(x_t, t, condition)
    check_same_shape(x_t=x_t, prediction=predicted, target=target)
    return (predicted - target).square().mean(-1)
