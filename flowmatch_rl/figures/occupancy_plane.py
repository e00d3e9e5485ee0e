"""Real and modelled future states in the plane, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter
from torch import Tensor

from flowmatch_rl.evaluation import FutureSample
from flowmatch_rl.figures.clouds import count_outside, edges_of, fit, height_for, hide_repeats
from flowmatch_rl.figures.occupancy_parts import frame_around, horizon, mark_source, remark_on_cut
from flowmatch_rl.figures.style import new_figure, tidy
from flowmatch_rl.schema import TableSchema

_CELLS = 40
"""Cells of the densities along each axis."""
_COLORS = colormaps["viridis_r"]
_WALL = "0.6"


@dataclass(frozen=True)
class Plane:
    """Two of the modelled entries of a state that are drawn as a position.

    Attributes:
        entries: Which of the modelled entries.
        labels: Their names.
        walls: Walls as boxes (x_low, y_low, x_high, y_high), shape (W, 4).
    """

    entries: tuple[int, int]
    labels: tuple[str, str]
    walls: np.ndarray


def plane_of(sample: FutureSample, walls: Tensor | None) -> Plane | None:
    """The position among the modelled entries of a state, if there is one; see ``plane_among``."""
    return plane_among(sample.schema, sample.modelled_entries, walls)


def plane_among(schema: TableSchema, entries_of_state: Sequence[int], walls: Tensor | None) -> Plane | None:
    """The position among some entries of a state, if there is one.

    Walls stand in the plane of the first two entries of the state. Without them the entries x and y are a position, and
    so are the two of a model of two.

    Args:
        schema: The entries and their units.
        entries_of_state: Which entries of the state they are.
        walls: Walls in the plane of the first two entries of the state, shape (W, 4); None if there are none.
    """
    modelled, columns = list(entries_of_state), schema.columns
    boxes = np.empty((0, 4))
    if walls is not None and {0, 1} <= set(modelled):
        entries, boxes = (modelled.index(0), modelled.index(1)), walls.double().cpu().numpy()
    elif {"x", "y"} <= set(columns):
        entries = (columns.index("x"), columns.index("y"))
    elif len(columns) == 2:
        entries = (0, 1)
    else:
        return None
    return Plane(entries, (schema.labels[entries[0]], schema.labels[entries[1]]), boxes)


def draw_future_states(sample: FutureSample, plane: Plane, title: str) -> Figure:
    """Draw densities of future states: a row per source state, and for each discount real ones beside modelled ones.

    Limits and colours are the same in all panels.

    Args:
        sample: Future states.
        plane: Where they are drawn.
        title: Title.
    """
    kinds = {"modelled": sample.modelled} if sample.real is None else {"real": sample.real, "modelled": sample.modelled}
    clouds = {kind: cloud[..., plane.entries].double().numpy() for kind, cloud in kinds.items()}  # (G, N, K, 2) each
    source = sample.source[:, plane.entries].double().numpy()
    frame = _frame(sample, plane, clouds, source)
    norm = _scale_of_colors(clouds, frame)
    columns = [(group, kind) for group in range(len(sample.discounts)) for kind in clouds]
    width = 3.0 if len(columns) <= 2 else 1.8
    height = height_for(frame, width, 1.5 * width) - 0.5
    figure = new_figure(
        1.6 + width * len(columns), 1.5 + height * len(source), title + remark_on_cut(min(sample.observed))
    )
    grid = figure.subplots(len(source), len(columns), squeeze=False, sharex=True, sharey=True)
    for row, panels in enumerate(grid):
        for axes, (group, kind) in zip(panels, columns, strict=True):
            points = clouds[kind][group, row]
            _draw_cells(axes, points, frame, norm)
            _draw_surroundings(axes, plane, source[row], frame)
            heading = horizon(sample.discounts[group], "\n") + "\n" if row == 0 else ""
            axes.set_title(f"{heading}{kind}{count_outside(points, frame)}", fontsize=8)
        hide_repeats(list(panels))
        panels[0].set_ylabel(f"source state {row + 1}\n{plane.labels[1]}", fontsize=9)
    for axes in grid[:-1].flat:
        axes.set_xlabel("")
    _explain(figure, grid, norm, sample.modelled.shape[2])
    return figure


def fractions(points: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Fractions of points by cell; points outside the limits count, so that their loss shows.

    Args:
        points: Coordinates, shape (K, 2).
        frame: Lower and upper limits, shape (2, 2).

    Returns:
        Fractions in [0, 1], shape (_CELLS, _CELLS), by x and y.
    """
    finite = points[np.isfinite(points).all(1)]
    counts, _, _ = np.histogram2d(finite[:, 0], finite[:, 1], [edges_of(frame[:, i], _CELLS) for i in range(2)])
    return counts / len(points)


def _frame(sample: FutureSample, plane: Plane, clouds: dict[str, np.ndarray], source: np.ndarray) -> np.ndarray:
    flat = {kind: cloud.reshape(-1, 2) for kind, cloud in clouds.items()}
    modelled, scale = flat.pop("modelled"), np.array(sample.schema.scale)[list(plane.entries)]
    corners = plane.walls.reshape(-1, 2)
    known = [*flat.values(), source, corners] if flat or len(corners) else []
    return frame_around(known, [modelled, source], scale)


def _scale_of_colors(clouds: dict[str, np.ndarray], frame: np.ndarray) -> LogNorm:
    """From a single state in a cell to the fullest cell of all panels."""
    panels = [points for cloud in clouds.values() for row in cloud for points in row]
    one = 1.0 / len(panels[0])
    return LogNorm(one, max(10.0 * one, *(float(fractions(points, frame).max()) for points in panels)))


def _draw_cells(axes: Axes, points: np.ndarray, frame: np.ndarray, norm: LogNorm) -> None:
    x, y = (edges_of(frame[:, i], _CELLS) for i in range(2))
    filled = np.ma.masked_equal(fractions(points, frame).T, 0.0)
    axes.pcolormesh(x, y, filled, cmap=_COLORS, norm=norm, zorder=2)


def _draw_surroundings(axes: Axes, plane: Plane, source: np.ndarray, frame: np.ndarray) -> None:
    fit(axes, frame)
    tidy(axes, *plane.labels)
    axes.tick_params(labelsize=7)
    draw_walls(axes, plane)
    mark_source(axes, source)


def draw_walls(axes: Axes, plane: Plane) -> None:
    """Draw walls below what lies in them, and their outlines above it."""
    for x_low, y_low, x_high, y_high in plane.walls:
        box = {"xy": (x_low, y_low), "width": x_high - x_low, "height": y_high - y_low}
        axes.add_patch(Rectangle(**box, color=_WALL, linewidth=0.0, zorder=1))
        axes.add_patch(Rectangle(**box, fill=False, edgecolor="black", linewidth=0.7, zorder=2.5))


def _explain(figure: Figure, grid: np.ndarray, norm: LogNorm, number: int) -> None:
    """Draw the scale of the colours and a legend beside all panels."""
    bar = figure.colorbar(ScalarMappable(norm, _COLORS), ax=grid, aspect=30, shrink=0.8, format=FuncFormatter(_percent))
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label(f"fraction of {number:,} states in a cell", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=9, frameon=False)


def _percent(fraction: float, position: int) -> str:
    return f"{100.0 * fraction:g} %"
