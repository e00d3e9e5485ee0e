"""Words, limits and marks shared by the figures of future states."""

import numpy as np
from matplotlib.axes import Axes

from flowmatch_rl.evaluation import FutureSample
from flowmatch_rl.evaluation.view import limits
from flowmatch_rl.figures.style import RED

_NEARLY_ALL = 0.995
_ROOM = 0.25


def horizon(discount: float, separator: str = ", ") -> str:
    """A discount and its horizon ``1 / (1 - discount)``, in steps."""
    return f"discount {discount:.4g}{separator}horizon {1.0 / (1.0 - discount):.3g} steps"


def remark_on_cut(observed: float) -> str:
    """A line on trajectories that are cut before they hold nearly all of the discounted weight; else empty.

    Args:
        observed: Smallest fraction of the weight that a trajectory holds, in [0, 1].
    """
    held = f"\nroll-outs are cut, and hold {100.0 * observed:.0f} % of the discounted weight"
    return "" if observed >= _NEARLY_ALL else held


def subject(sample: FutureSample) -> str:
    """What is compared with what."""
    return "modelled only, there are no trajectories" if sample.real is None else "real and modelled"


def frame_around(known: list[np.ndarray], modelled: list[np.ndarray], scale: np.ndarray) -> np.ndarray:
    """Limits that hold all known points, and nearly all modelled ones unless they scatter far.

    A model that is wrong by far would else shrink what it is compared with to a dot.

    Args:
        known: Clouds that must be visible, shape (N, K) each; none if there is nothing to compare with.
        modelled: Clouds that may be cut, shape (N, K) each.
        scale: Spread of the training data, shape (K,); limits reach as far beyond the known points, or further.

    Returns:
        Lower and upper limits, shape (2, K).
    """
    wide = limits(*known, *modelled)
    if not known:
        return wide
    near = limits(*known, outermost=0.0)
    room = np.maximum(_ROOM * (near[1] - near[0]), scale)
    low, high = np.minimum(wide[0], near[0]), np.maximum(wide[1], near[1])
    return np.stack([np.maximum(low, near[0] - room), np.minimum(high, near[1] + room)])


def mark_source(axes: Axes, point: np.ndarray) -> None:
    """Mark the source state, shape (2,), by a ring that hides nothing."""
    axes.plot(
        *point[:, None], "o", fillstyle="none", color=RED, markersize=8, markeredgewidth=1.5, label="source state"
    )
