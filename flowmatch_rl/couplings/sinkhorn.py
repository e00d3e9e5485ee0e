"""Sinkhorn's iteration, by POT, which takes a second to import."""

from typing import cast

import ot
from torch import Tensor


def sinkhorn_plan(cost: Tensor, regularisation: float, tolerance: float, num_iterations: int) -> Tensor:
    """Entropic plan between uniform weights; it may not have converged.

    Args:
        cost: Cost of each pair, shape (B, B).
        regularisation: Strength of the entropy, in units of the cost, positive.
        tolerance: Norm of the error of a marginal at which to stop, positive.
        num_iterations: Most sweeps.

    Returns:
        Probability of each pair, shape (B, B).
    """
    weight = cost.new_full((len(cost),), 1.0 / len(cost))
    plan = ot.sinkhorn(
        weight,
        weight,
        cost,
        regularisation,
        method="sinkhorn",
        numItermax=num_iterations,
        stopThr=tolerance,
        warn=False,
    )
    return cast("Tensor", plan)
