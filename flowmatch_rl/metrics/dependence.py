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
