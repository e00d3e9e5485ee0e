"""Discounts between two horizons."""

from typing import overload

from torch import Tensor


@overload
def discounts_between(low: float, high: float, fraction: float) -> float: ...
@overload
def discounts_between(low: float, high: Tensor, fraction: Tensor) -> Tensor: ...
def discounts_between(low: float, high: float | Tensor, fraction: float | Tensor) -> float | Tensor:
    """Discounts spaced evenly in the logarithm of the horizon 1 / (1 - discount).

    Args:
        low: Lowest discount, in [0, 1).
        high: Highest discount, at least ``low`` and below 1; a number, or a tensor of shape (B,).
        fraction: Position between the lowest (0) and the highest (1) discount, such as uniform noise; of the type and
            shape of ``high``.

    Returns:
        Discounts, of the type and shape of ``high``.
    """
    return 1.0 - (1.0 - low) ** (1.0 - fraction) * (1.0 - high) ** fraction
