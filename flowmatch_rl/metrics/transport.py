"""Distances between two samples by optimal transport."""

import torch
from torch import Tensor

from flowmatch_rl import metrics
from flowmatch_rl.checks import RunError
from flowmatch_rl.metrics.pairs import check_two_samples, distances


def sliced_wasserstein_distance(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Root of the mean over directions of the squared Wasserstein-2 distance between the projected samples.

    Each projection is solved exactly, by its quantile function. The mean over directions is unbiased, but the
    distance between finite samples is biased upward: for equal distributions it is not zero but falls like one over the
    root of the sample size. Compare with the distance between two samples of the true distribution, of the same sizes.

    Args:
        x: First sample, shape (N, D).
        y: Second sample, shape (M, D).
        directions: Standard normal noise, one row per direction, shape (K, D); normalised here.

    Returns:
        Distance, in units of the data, shape ().

    Raises:
        ValueError: If a sample is empty, or the dimensions of the samples and the directions differ.

    Reference:
        Bonneel et al., Sliced and Radon Wasserstein barycenters of measures, J. Math. Imaging Vis. 51 (2015).
    """
    check_two_samples(x, y, least=1)
    if directions.dim() != 2 or len(directions) == 0 or directions.shape[1] != x.shape[1]:
        raise ValueError(f"expected directions of shape (K, {x.shape[1]}), got {tuple(directions.shape)}")
    n, m = len(x), len(y)
    unit = torch.nn.functional.normalize(directions.to(x), dim=1)
    on_x, on_y = x @ unit.T, y @ unit.T  # (N, K), (M, K)
    # Quantile functions are constant between the levels i / N and j / M: counted in units of 1 / (N M), exactly.
    levels = torch.cat([m * torch.arange(1, n + 1), n * torch.arange(1, m + 1)]).unique().to(x.device)
    length = torch.diff(levels, prepend=levels.new_zeros(1)).to(x.dtype) / (n * m)
    gap = on_x.sort(0).values[(levels - 1) // m] - on_y.sort(0).values[(levels - 1) // n]
    return (length @ gap.square()).mean().sqrt()


def wasserstein_distance(x: Tensor, y: Tensor) -> Tensor:
    """Wasserstein-1 distance: the least mean Euclidean distance over all ways to move one sample onto the other.

    Exact, by the network simplex; time grows about with the cube of the size and memory with its square, so that a few
    thousand points are the limit. As an estimate for the distributions it is biased upward, more so in many dimensions.

    Args:
        x: First sample, shape (N, D).
        y: Second sample, shape (M, D).

    Returns:
        Distance, in units of the data, shape ().

    Raises:
        ValueError: If a sample is empty or not finite, or the dimensions differ.
        RunError: If the network simplex fails.

    Reference:
        Bonneel et al., Displacement interpolation using Lagrangian mass transport, ACM Trans. Graph. 30 (2011).
    """
    return _least_mean_cost(x, y, power=1)


def squared_wasserstein_distance(x: Tensor, y: Tensor) -> Tensor:
    """Square of the Wasserstein-2 distance: the least mean squared Euclidean distance over all ways to move the sample.

    No root is taken: this is W2 squared. Exact, with the cost and the bias of ``wasserstein_distance``.

    Args:
        x: First sample, shape (N, D).
        y: Second sample, shape (M, D).

    Returns:
        Squared distance, in squared units of the data, shape ().

    Raises:
        ValueError: If a sample is empty or not finite, or the dimensions differ.
        RunError: If the network simplex fails.

    Reference:
        Bonneel et al., Displacement interpolation using Lagrangian mass transport, ACM Trans. Graph. 30 (2011).
    """
    return _least_mean_cost(x, y, power=2)


def _least_mean_cost(x: Tensor, y: Tensor, power: int) -> Tensor:
    """Optimal transport cost between uniform weights for a power of the Euclidean distance, shape ()."""
    check_two_samples(x, y, least=1)
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("expected finite samples, got NaN or infinity")
    cost = distances(x.detach().cpu().double(), y.detach().cpu().double()).pow(power)
    # The simplex has absolute tolerances: costs are scaled to about 1, whatever their unit.
    scale = cost.mean().clamp(min=torch.finfo(cost.dtype).tiny)
    least, failure = metrics.least_cost((cost / scale).numpy())
    if failure is not None:
        raise RunError(f"optimal transport between {len(x)} and {len(y)} points failed: {failure}")
    return (scale * least).to(x)
