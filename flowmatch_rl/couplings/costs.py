"""Transport costs between noise and data, and potentials that shorten the search for the optimal pairing."""

import math

import torch
from torch import Tensor

LADDER = (0.1, 0.03, 0.01, 0.003)
"""Decreasing regularisations that potentials are computed with, in units of the mean cost."""


def transport_cost(
    x_0: Tensor, x_1: Tensor, condition: Tensor | None, condition_weight: float
) -> tuple[Tensor, Tensor]:
    """Squared distance of every data row from every noise row, and a penalty for unequal conditions.

    Noise and data are centred first. That adds a term per row and a term per column and so changes no optimal plan,
    exact or entropic, but keeps the digits of samples that lie far away. Noise row j
    carries the condition of row j.

    Args:
        x_0: Noise, shape (B, D).
        x_1: Data, shape (B, D).
        condition: Conditions, shape (B, C), or None.
        condition_weight: Cost of a squared distance between conditions, at least 0; infinity forbids any.

    Returns:
        Cost in double precision, rows the data and columns the noise, shape (B, B); and the mean of its part that is
        the squared distance, or 1 where that is zero, shape ().

    Raises:
        ValueError: If a value is not finite.
    """
    given = [x_0, x_1] if condition is None else [x_0, x_1, condition]
    if not all(torch.isfinite(x).all() for x in given):
        raise ValueError("expected finite noise, data and conditions, got NaN or infinity")
    x_0, x_1 = x_0.double(), x_1.double()
    x_0, x_1 = x_0 - x_0.mean(0), x_1 - x_1.mean(0)
    norm_0, norm_1 = x_0.square().sum(1), x_1.square().sum(1)
    cost = torch.addmm(norm_0.expand(len(x_1), -1), x_1, x_0.T, alpha=-2.0).add_(norm_1[:, None])
    scale = norm_0.mean() + norm_1.mean()
    if condition is not None and condition_weight > 0.0:
        condition = condition.double()
        # By differences, so that equal conditions are at distance zero exactly and infinity never multiplies a zero.
        distance = torch.cdist(condition, condition, compute_mode="donot_use_mm_for_euclid_dist")
        cost += torch.where(distance > 0.0, condition_weight * distance.square(), 0.0)
    return cost, torch.where(scale > 0.0, scale, 1.0)


def potentials(
    cost: Tensor, scale: Tensor, regularisations: tuple[float, ...], sweeps: int = 8
) -> tuple[Tensor, Tensor]:
    """Nearly optimal potentials of the rows and columns, by a few Sinkhorn sweeps at each of a few regularisations.

    Subtracted from the cost they change no optimal plan, whatever their quality, but leave a problem whose solution
    lies near its row minima: few steps for an exact solver, and for an entropic one no underflow.

    Args:
        cost: Cost, double precision, shape (B, B).
        scale: Unit of the regularisations, in units of the cost, positive, shape ().
        regularisations: Strengths in turn, decreasing, each positive.
        sweeps: Sinkhorn sweeps at each.

    Returns:
        Potentials of the rows and of the columns, in units of the cost, each of shape (B,).

    Reference:
        Schmitzer, arXiv:1610.06519 (absorbing the scaling factors into the potentials; lowering the regularisation).
    """
    unit_cost = (cost / scale).float()
    # Every row and every column then has an entry of 1 in the first kernel: none underflows, however far an outlier.
    row = unit_cost.amin(1)
    column = (unit_cost - row[:, None]).amin(0)
    kernel = torch.empty_like(unit_cost)
    # Half precision would lose the small entries.
    with torch.autocast(cost.device.type, enabled=False):
        for regularisation in regularisations:
            torch.sub(column, unit_cost, out=kernel)
            # No entry is above 1. The floor keeps out denormal numbers, which are slow.
            kernel.add_(row[:, None]).div_(regularisation).clamp_(min=-40.0).exp_()
            row_factor = torch.ones_like(row)
            column_factor = torch.ones_like(column)
            for _ in range(sweeps):
                column_factor = torch.mv(kernel.T, row_factor).reciprocal_()
                row_factor = torch.mv(kernel, column_factor).reciprocal_()
            row = row + regularisation * row_factor.log()
            column = column + regularisation * column_factor.log()
    return scale * row, scale * column


def ladder_to(regularisation: float) -> tuple[float, ...]:
    """Decreasing regularisations, the last of which is the given one."""
    return (*(step for step in LADDER if step > math.sqrt(3.0) * regularisation), regularisation)
