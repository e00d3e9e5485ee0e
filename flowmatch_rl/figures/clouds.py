"""Panels that hold points in the plane or on a line, the building blocks of the figures of a flow."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.patches import StepPatch

from flowmatch_rl.evaluation.view import Groups, View
from flowmatch_rl.figures.style import BLUE, GREEN, GREY, ORANGE, RED, tidy

_LEVEL_COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", RED, "#5D3A9B", GREY)
_BINS = 60
_MOST_UNEQUAL = 3.0


class Palette:
    """The colours of the rows of some groups, the same in every panel.

    Args:
        groups: What rows are coloured by, or None for one colour.
        plain: That colour.
    """

    def __init__(self, groups: Groups | None, plain: str = ORANGE) -> None:
        self.groups = groups
        self._plain = plain
        if groups is not None and not groups.levels:
            low, high = np.quantile(groups.values, [0.01, 0.99])
            self._norm, self._map = Normalize(low, max(high, low + 1e-9), clip=True), colormaps["viridis"]
        elif groups is not None:
            count = len(groups.levels)
            self._norm, self._map = Normalize(-0.5, count - 0.5), ListedColormap(_LEVEL_COLORS[:count])

    def colors(self, number: int) -> Any:
        """Colours of the first rows."""
        return self._plain if self.groups is None else self._map(self._norm(self.groups.values[:number]))

    def explain(self, panels: list[Axes]) -> None:
        """Draw the scale of the colours beside some panels."""
        if self.groups is None:
            return
        colors: Colormap = self._map
        bar = panels[0].figure.colorbar(ScalarMappable(self._norm, colors), ax=panels, aspect=25, shrink=0.7)
        bar.ax.tick_params(labelsize=8)
        bar.set_label(self.groups.name, fontsize=9)
        if self.groups.levels:
            bar.set_ticks(list(range(len(self.groups.levels))), labels=list(self.groups.levels))
            bar.ax.tick_params(length=0)


def scatter(axes: Axes, points: np.ndarray, colors: Any, frame: np.ndarray, **style: Any) -> PathCollection:
    """Draw points in the plane.

    Args:
        axes: The panel.
        points: Coordinates, shape (N, 2).
        colors: One colour, or one per point.
        frame: Limits of the panel, shape (2, 2).
        **style: Looks other than the usual ones.

    Returns:
        What was drawn.
    """
    size = float(np.clip(6000.0 / max(1, len(points)), 1.5, 9.0))
    key = "color" if isinstance(colors, str) else "c"
    looks: dict[str, Any] = {"s": size, "alpha": 0.6, "linewidths": 0.0, key: colors} | style
    fit(axes, frame)
    return axes.scatter(points[:, 0], points[:, 1], **looks)


def fit(axes: Axes, frame: np.ndarray) -> None:
    """Set the limits of a panel and its shape, see ``shape_of``.

    Args:
        axes: The panel.
        frame: Lower and upper limits, shape (2, 2).
    """
    axes.set_xlim(*frame[:, 0])
    axes.set_ylim(*frame[:, 1])
    axes.set_box_aspect(shape_of(frame))


def shape_of(frame: np.ndarray) -> float:
    """Height over width of a panel: that of equal axes, or 1 if they would make it a strip.

    Args:
        frame: Lower and upper limits, shape (2, 2).
    """
    width, height = frame[1] - frame[0]
    return float(height / width) if 1.0 / _MOST_UNEQUAL <= height / width <= _MOST_UNEQUAL else 1.0


def height_for(frame: np.ndarray, width: float, most: float) -> float:
    """Inches that a panel of some width takes with its labels, at most about ``most``."""
    return min(width * shape_of(frame), most) + 0.8


def label_axes(axes: Axes, view: View) -> None:
    """Name the two coordinates of a panel."""
    tidy(axes, view.labels[0], view.labels[1])


def hide_repeats(panels: Sequence[Axes]) -> None:
    """Take the vertical label from all but the first of a row of panels, and its numbers where they are the same."""
    for axes in panels[1:]:
        axes.set_ylabel("")
        axes.tick_params(labelleft=axes.get_ylim() != panels[0].get_ylim())


def edges_of(frame: np.ndarray, number: int = _BINS) -> np.ndarray:
    """Edges of the bins of a histogram between two limits, shape (number + 1,)."""
    return np.linspace(frame[0], frame[1], number + 1)


def density_in_bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Fraction of all values in each bin over its width; values outside count, so that their loss shows."""
    counts, _ = np.histogram(values[np.isfinite(values)], edges)
    return counts / (len(values) * np.diff(edges))


def outline(
    axes: Axes, values: np.ndarray, edges: np.ndarray, color: str, label: str, filled: bool = False
) -> StepPatch:
    """Draw a histogram as an outline or as an area.

    Args:
        axes: The panel.
        values: Values, shape (N,).
        edges: Edges of the bins.
        color: Colour.
        label: Name in the legend.
        filled: Whether to draw an area.

    Returns:
        What was drawn.
    """
    looks: dict[str, Any] = {"alpha": 0.35, "linewidth": 0.0, "fill": True} if filled else {"linewidth": 1.5}
    return axes.stairs(density_in_bins(values, edges), edges, color=color, label=label, **looks)


def count_outside(points: np.ndarray, frame: np.ndarray) -> str:
    """A remark on how many points lie outside the limits of a panel; empty if none does."""
    inside = ((points >= frame[0]) & (points <= frame[1])).all(1)
    outside = len(points) - int(inside.sum())
    return f", {outside} outside" if outside else ""
