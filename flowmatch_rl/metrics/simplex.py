"""The network simplex, by POT, which takes a second to import."""

import warnings

import numpy as np
import ot

MAX_ITERATIONS = 10**8
"""Pivots after which it gives up; a few thousand points take about a million."""


def least_cost(cost: np.ndarray) -> tuple[float, str | None]:
    """Optimal transport cost between uniform weights, by the network simplex.

    Args:
        cost: Cost of each pair, near 1 since the tolerances are absolute, in float64, shape (N, M).

    Returns:
        The least mean cost, and why it is not to be trusted, or None.
    """
    on_x, on_y = (np.full(size, 1.0 / size) for size in cost.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The reason is in the log.
        least, log = ot.emd2(on_x, on_y, cost, numItermax=MAX_ITERATIONS, log=True)
    return float(least), log["warning"]
