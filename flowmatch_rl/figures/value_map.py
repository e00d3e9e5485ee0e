"""Reward and value of a policy over a plane, with samples of its actions."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flowmatch_rl.evaluation import ValueMap
from flowmatch_rl.figures.occupancy_plane import Plane, draw_walls
from flowmatch_rl.figures.style import ORANGE, RED, VALUE_COLORS, new_figure, tidy

_ARROW = 0.75
"""Length of the longest arrow, in distances of two neighbouring places."""


def draw_value_map(found: ValueMap, title: str) -> Figure:
    """Draw the reward over the plane, and beside it the value of the policy, arrows of its actions, and roll-outs.

    Args:
        found: What is drawn.
        title: Title.
    """
    figure = new_figure(9.6, 4.7, title)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, cells, heading in (
        (left, found.rewards, "reward of arriving at rest"),
        (right, found.values, "value of the policy at rest"),
    ):
        _draw_cells(figure, axes, cells, found, heading)
    _draw_arrows(right, found)
    for number, path in enumerate(found.paths):
        _draw_path(right, path.numpy(), "roll-out, from the ring" if number == 0 else "")
    right.set_ylabel("")
    right.tick_params(labelleft=False)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _draw_cells(figure: Figure, axes: Axes, cells: Tensor, found: ValueMap, heading: str) -> None:
    half = found.half_width
    image = axes.imshow(cells.numpy(), origin="lower", extent=(-half, half, -half, half), cmap=VALUE_COLORS, zorder=0.5)
    tidy(axes, *found.labels)
    axes.grid(visible=False)
    axes.set_title(heading, fontsize=10)
    draw_walls(axes, Plane((0, 1), found.labels, found.walls.double().numpy()))
    bar = figure.colorbar(image, ax=axes, aspect=25, shrink=0.8)
    bar.ax.tick_params(labelsize=8)


def _draw_arrows(axes: Axes, found: ValueMap) -> None:
    places, moves = found.places.double().numpy(), found.moves.double().numpy()
    longest, spacing = np.linalg.norm(moves, axis=-1).max(initial=0.0), _spacing(places)
    if longest == 0.0:
        return
    x, y = (np.repeat(places[:, i], moves.shape[1]) for i in range(2))
    arrows = _ARROW * spacing / longest * moves.reshape(-1, 2)
    axes.quiver(
        x,
        y,
        *arrows.T,
        angles="xy",
        scale_units="xy",
        scale=1.0,
        color=ORANGE,
        edgecolor="black",
        linewidth=0.25,
        width=0.0045,
        zorder=3,
        label="samples of the policy's action",
    )


def _spacing(places: np.ndarray) -> float:
    """Distance between neighbouring places."""
    distances = np.diff(np.unique(places[:, 0]))
    return float(distances.min()) if len(distances) else 1.0


def _draw_path(axes: Axes, path: np.ndarray, label: str) -> None:
    axes.plot(path[:, 0], path[:, 1], color=RED, linewidth=1.6, zorder=4, label=label)
    axes.plot(*path[0], "o", color="white", markeredgecolor=RED, markersize=6, zorder=5)
