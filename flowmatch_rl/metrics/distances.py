"""Distances between two samples."""

import torch
from torch import Tensor


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared energy distance ``2 E|X - Y| - E|X - X'| - E|Y - Y'|``, unbiased.

    Pairs of a point with itself are left out, so that the expectation is zero for equal laws and the estimate may be
    slightly negative.

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
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"expected shapes (N, D) and (M, D), N and M at least 2, got {tuple(x.shape)} and {tuple(y.shape)}"
        )

    def within(z: Tensor) -> Tensor:
        n = len(z)
        return 2.0 * torch.pdist(z).sum() / (n * (n - 1))

    # By differences, not by a matrix product: that one loses the digits of points far from the origin.
    between = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").mean()
    return 2.0 * between - within(x) - within(y)
