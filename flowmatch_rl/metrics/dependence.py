"""How much one quantity depends on another."""

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_shape

_FEWEST_POINTS = 3
"""Two points always lie on a line."""

_ROUNDING = 1e-5
"""Standard deviation, as a fraction of the largest magnitude, below which numbers of single precision are equal."""


def correlation(x: Tensor, y: Tensor) -> Tensor | None:
    """Pearson's correlation of two quantities.

    Args:
        x: First quantity at N points, shape (N,).
        y: Second quantity at the same points, shape (N,).

    Returns:
        Correlation in [-1, 1], float64, shape (); None for less than three points, or if either quantity is the same
        at all points up to the rounding of single precision.

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shape("x", x, (len(x),))
    check_shape("y", y, (len(x),))
    both = torch.stack([x.double(), y.double()])
    if len(x) < _FEWEST_POINTS or bool((both.std(1) <= _ROUNDING * both.abs().amax(1)).any()):
        return None
    return torch.corrcoef(both)[0, 1]


def variance_of_means(groups: Tensor) -> Tensor:
    """Variance over groups of their expected values, without the noise of the finite samples; unbiased.

    The sample variance of the groups' means is too large by what the samples scatter. Sample k of all groups may share
    its noise, which makes the groups' differences more precise: what is subtracted is the mean square of the
    interaction of group and sample in an analysis of variance with two factors, which is what noise leaves of the
    differences, whether it is shared wholly, in part or not at all. Groups are drawn from a population; samples of
    different k are independent given the group.

    Args:
        groups: K samples of M groups, shape (*batch, M, K, D), both at least 2.

    Returns:
        Variance of each entry, shape (*batch, D); negative at times, since it is unbiased.

    Raises:
        ValueError: If there are less than two groups or samples.

    Reference:
        Scheffe, The Analysis of Variance, 1959, chapter 7, for the expected mean squares.
    """
    if groups.dim() < 3 or min(groups.shape[-3:-1]) < 2:
        raise ValueError(f"expected shape (*batch, M, K, D), M and K at least 2, got {tuple(groups.shape)}")
    num_groups, number = groups.shape[-3:-1]
    means = groups.mean(-2, keepdim=True)
    differences = groups - means
    interaction = differences - differences.mean(-3, keepdim=True)
    noise = interaction.square().sum((-3, -2)) / ((num_groups - 1) * (number - 1))
    return means.squeeze(-2).var(-2) - noise / number
