"""Discounts between two horizons, and what they mean at terminal states."""

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


def terminal_fraction(arriving: Tensor, discount: float | Tensor) -> Tensor:
    """Probability that a draw of the discounted future states is a terminal state, given where it lies.

    A terminal state takes all the weight that is still to be given when it is arrived in, another state the fraction
    ``1 - discount`` of it. With probability h that an arrival there is terminal, the fraction is
    ``h / (h + (1 - h) (1 - discount))``: h itself where states are always terminal or never.

    Args:
        arriving: Probability h that an arrival where the draw lies is terminal, shape (*batch).
        discount: Discount of the draws, in [0, 1), a number or of shape (*batch).

    Returns:
        Probabilities, shape (*batch).
    """
    return arriving / (arriving + (1.0 - arriving) * (1.0 - discount))
