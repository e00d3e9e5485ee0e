"""Distances between two samples that average over pairs of points."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowmatch_rl.metrics.pairs import check_two_samples, distances, mean_between, mean_within

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths of the kernels, in units of the median distance."""

MEDIAN_POINTS = 1000
"""Largest number of points of each sample, evenly spaced, in the median distance."""


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared energy distance ``2 E|X - Y| - E|X - X'| - E|Y - Y'|``, unbiased.

    Pairs of a point with itself are left out, so that the expectation is zero for equal distributions and the estimate
    may be slightly negative.

    Args:
        x: First sample, shape (N, D), N at least 2.
        y: Second sample, shape (M, D), M at least 2.

    Returns:
        Distance, in units of the data, shape ().

    Raises:
        ValueError: If a sample has fewer than two points or the dimensions differ.

    Reference:
        Szekely and Rizzo, Energy statistics, J. Stat. Plan. Inference 143 (2013).
    """
    check_two_samples(x, y, least=2)
    return 2.0 * mean_between(_itself, x, y) - mean_within(_itself, x) - mean_within(_itself, y)


def marginal_energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean over dimensions of the squared energy distance between the samples of each dimension, unbiased.

    It compares marginal distributions alone. Distances between points of many dimensions hardly tell apart samples
    whose marginals differ; this number has the same scale in any dimension.

    Args:
        x: First sample, shape (N, D), N at least 2.
        y: Second sample, shape (M, D), M at least 2.

    Returns:
        Distance, in units of the data, shape ().

    Raises:
        ValueError: If a sample has fewer than two points or the dimensions differ.
    """
    check_two_samples(x, y, least=2)
    size, other = len(x), len(y)
    within_x, within_y, all_pairs = (_sum_of_pairs(v.double()) for v in (x, y, torch.cat([x, y])))
    between = (all_pairs - within_x - within_y) / (size * other)
    distance = between - within_x / (size * (size - 1)) - within_y / (other * (other - 1))
    return 2.0 * distance.mean().to(x.dtype)


def _sum_of_pairs(x: Tensor) -> Tensor:
    """Sum of the distances of all pairs of points (N, D) in each dimension, shape (D,)."""
    place = torch.arange(len(x), dtype=x.dtype, device=x.device)
    return ((2.0 * place - len(x) + 1.0)[:, None] * x.sort(0).values).sum(0)


def energy_score(samples: Tensor, observed: Tensor) -> Tensor:
    """Energy score ``E|X - y| - E|X - X'| / 2`` of predicted distributions at what was observed, unbiased.

    In expectation over y it is smallest for samples of the distribution of y, where it is half of ``E|Y - Y'|``. The
    excess over that is half of the squared energy distance between the two.

    Args:
        samples: Independent samples of each prediction, shape (*batch, K, D), K at least 2.
        observed: Observation y of each, shape (*batch, D).

    Returns:
        Score of each prediction, in units of the data, shape (*batch).

    Raises:
        ValueError: If a prediction has fewer than two samples or the shapes do not fit.

    Reference:
        Gneiting and Raftery, Strictly proper scoring rules, JASA 102 (2007).
    """
    count = samples.shape[-2] if samples.dim() > 1 else 0
    if count < 2 or samples.shape[:-2] + samples.shape[-1:] != observed.shape:
        raise ValueError(
            f"expected shapes (*batch, K, D) and (*batch, D), K at least 2, got {tuple(samples.shape)} and "
            f"{tuple(observed.shape)}"
        )
    error = (samples - observed[..., None, :]).norm(dim=-1).mean(-1)
    return error - distances(samples, samples).sum((-1, -2)) / (2.0 * count * (count - 1))


def maximum_mean_discrepancy(x: Tensor, y: Tensor, bandwidths: Sequence[float] | None = None) -> Tensor:
    """Squared maximum mean discrepancy ``E k(X, X') + E k(Y, Y') - 2 E k(X, Y)``, unbiased.

    The kernel k is a sum of Gaussian kernels ``exp(-|x - y|^2 / (2 bandwidth^2))``. Pairs of a point with itself are
    left out, so that the expectation is zero for equal distributions and the estimate may be slightly negative. Without
    bandwidths the value does not depend on the unit of the data, but comparisons between several samples should share
    their bandwidths: the median differs from pair to pair.

    Args:
        x: First sample, shape (N, D), N at least 2.
        y: Second sample, shape (M, D), M at least 2.
        bandwidths: Standard deviations of the kernels, in units of the data, positive; None for 1/4, 1/2, 1, 2 and 4
            times the median distance between two points of both samples together.

    Returns:
        Discrepancy, dimensionless, at most twice the number of bandwidths, shape ().

    Raises:
        ValueError: If a sample has fewer than two points, the dimensions differ, or a bandwidth is not positive.

    Reference:
        Gretton et al., A kernel two-sample test, JMLR 13 (2012).
    """
    check_two_samples(x, y, least=2)
    if bandwidths is None:
        median = _median_distance(torch.cat([_evenly_spaced(x), _evenly_spaced(y)]))
        widths = [multiple * median for multiple in BANDWIDTHS]
    elif len(bandwidths) > 0 and all(width > 0.0 for width in bandwidths):
        widths = [torch.as_tensor(width, dtype=x.dtype, device=x.device) for width in bandwidths]
    else:
        raise ValueError(f"expected positive bandwidths, at least one, got {list(bandwidths)}")

    def kernel(distance: Tensor) -> Tensor:
        square, total = distance.square(), torch.zeros_like(distance)
        for width in widths:
            # The floor, far below any rounding error, keeps out denormal numbers, which are slow.
            total += (square * (-0.5 / width.square())).clamp_(min=-80.0).exp_()
        return total

    return mean_within(kernel, x) + mean_within(kernel, y) - 2.0 * mean_between(kernel, x, y)


def _itself(distance: Tensor) -> Tensor:
    """The distance, unchanged."""
    return distance


def _evenly_spaced(x: Tensor) -> Tensor:
    """At most ``MEDIAN_POINTS`` rows, evenly spaced."""
    return x[:: -(-len(x) // MEDIAN_POINTS)]


def _median_distance(x: Tensor) -> Tensor:
    """Median distance between points that differ, or 1 if none do, shape ()."""
    distance = torch.pdist(x)
    distance = distance[distance > 0.0]
    return distance.median() if len(distance) else x.new_ones(())
