"""Means over all pairs of points, computed in pieces."""

from collections.abc import Callable

import torch
from torch import Tensor

PAIRS_AT_ONCE = 2**22
"""Pairs held in memory at a time, unless one row has more."""


def check_two_samples(x: Tensor, y: Tensor, least: int) -> None:
    """Raise unless two samples have one dimension and enough points.

    Args:
        x: First sample, shape (N, D).
        y: Second sample, shape (M, D).
        least: Smallest N and M allowed.

    Raises:
        ValueError: If a shape does not fit.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        raise ValueError(
            f"expected shapes (N, D) and (M, D), N and M at least {least}, got {tuple(x.shape)} and {tuple(y.shape)}"
        )


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (*batch, N, M) of points (*batch, N, D) and (*batch, M, D); exactly zero from itself."""
    # By differences, not by a matrix product: that one loses the digits of points far from the origin.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def mean_between(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Mean of a function of the distance over all pairs of a point of one sample and a point of the other.

    Args:
        function: Maps distances to values, elementwise, of the same shape.
        x: First sample, shape (N, D).
        y: Second sample, shape (M, D).

    Returns:
        Mean, shape ().
    """
    pieces = x.split(max(1, PAIRS_AT_ONCE // len(y)))
    return torch.stack([function(distances(piece, y)).sum() for piece in pieces]).sum() / (len(x) * len(y))


def mean_within(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Mean of a function of the distance over all pairs of two different points of one sample.

    Args:
        function: Maps distances to values, elementwise, of the same shape.
        x: Sample, shape (N, D), N at least 2.

    Returns:
        Mean, shape ().
    """
    size = max(1, PAIRS_AT_ONCE // len(x))
    sums = []
    for start in range(0, len(x), size):
        # Each pair once: those of two points of the piece, and those of one of them and a later point.
        piece, later = x[start : start + size], x[start + size :]
        sums.append(function(torch.pdist(piece)).sum() + function(distances(piece, later)).sum())
    return torch.stack(sums).sum() / (0.5 * len(x) * (len(x) - 1))
