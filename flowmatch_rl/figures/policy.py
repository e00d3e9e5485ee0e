"""The policy at a few states: its flow from noise to actions, and the actions beside the values of the critic."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from flowmatch_rl.evaluation import PolicySample
from flowmatch_rl.figures.style import (
    BLUE,
    FLOW_COLORS,
    ORANGE,
    RED,
    VALUE_COLORS,
    action_name,
    new_figure,
    tidy,
    widened,
)

_LINES = 150
_POINTS = 400
_CHOSEN: dict[str, Any] = {"color": RED, "markersize": 14, "markeredgecolor": "white", "zorder": 5}


def draw_policy(sample: PolicySample, steps: Sequence[int], title: str) -> Figure:
    """Draw, for each state, the flow from noise to action, and below it the actions beside the critic's values.

    Args:
        sample: The policy at B states.
        steps: Steps of the episode at which the states were visited, length B.
        title: Title.
    """
    num_states, action_dim = sample.chosen.shape
    figure = new_figure(1.0 + 3.0 * num_states, 6.4, title)
    panels = figure.subplots(2, num_states, squeeze=False, sharey="row" if action_dim > 1 else False)
    for state, step in enumerate(steps):
        _draw_flow(panels[0, state], sample, state)
        panels[0, state].set_title(f"step {step} of the episode", fontsize=9)
        if action_dim == 1:
            _draw_density(panels[1, state], sample, state)
        else:
            _draw_values(figure, panels[1, state], sample, state)
        for row in panels[:, state] if state else ():
            row.set_ylabel("")
    marks = [mark for axes in panels[:, 0] for mark in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def _draw_flow(axes: Axes, sample: PolicySample, state: int) -> None:
    paths = sample.actions[:, state, :_LINES, 0].numpy()  # (K, lines)
    t = sample.t.numpy()
    low, high = _bounds(sample, 0)
    colors = colormaps[FLOW_COLORS](0.9 * Normalize(low, high, clip=True)(paths[-1]))
    lines = [np.column_stack([t, path]) for path in paths.T]
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=0.7, alpha=0.6))
    chosen = float(sample.chosen[state, 0])
    axes.plot([t[-1]], [chosen], "*", **_CHOSEN, clip_on=False, label="action taken")
    axes.set_xlim(float(t[0]), float(t[-1]))
    axes.set_ylim(*widened(low, high, 0.025))
    tidy(axes, "flow time (noise to action)", action_name(0, sample.chosen.shape[1]))


def _draw_density(axes: Axes, sample: PolicySample, state: int) -> None:
    actions, density = sample.actions[-1, state, :, 0].numpy(), sample.density()[state].numpy()
    low, high = _bounds(sample, 0)
    heights, _, _ = axes.hist(
        actions,
        bins=50,
        range=(low, high),
        density=True,
        histtype="stepfilled",  # one outline: fifty bars take several times as long to draw
        color=ORANGE,
        alpha=0.75,
        label="samples of the flow",
    )
    axes.plot(sample.grid[0].numpy(), density, color=BLUE, linewidth=1.6, label="exp(Q / temperature), normalised")
    chosen = float(sample.chosen[state, 0])
    axes.axvline(chosen, color=RED, linewidth=1.4, linestyle="--")
    # The density of a low temperature is a spike far above any histogram.
    tallest = float(np.max(np.asarray(heights)))
    axes.set_ylim(0.0, 1.15 * max(tallest, min(float(density.max()), 3.0 * tallest)))
    axes.set_xlim(*widened(low, high, 0.025))
    tidy(axes, "action", "density")


def _bounds(sample: PolicySample, entry: int) -> tuple[float, float]:
    return float(sample.grid[entry, 0]), float(sample.grid[entry, -1])


def _draw_values(figure: Figure, axes: Axes, sample: PolicySample, state: int) -> None:
    (first, second), values = sample.grid.numpy(), sample.values[state].numpy()
    low, high = float(values.min()), float(values.max())
    levels = np.linspace(low, max(high, low + 1e-6 * max(1.0, abs(low))), 15)
    # The darkest quarter of the colours would hide the points.
    colors = colormaps[VALUE_COLORS](np.linspace(0.0, 0.75, len(levels) - 1))
    filled = axes.contourf(first, second, values, levels=levels, colors=list(colors))
    bar = figure.colorbar(filled, ax=axes, location="bottom", shrink=0.85, aspect=25, ticks=levels[[0, 7, 14]])
    bar.ax.xaxis.set_major_formatter(FormatStrFormatter("%.3g"))
    bar.set_label("Q, other entries as taken" if sample.chosen.shape[1] > 2 else "Q", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    points = sample.actions[-1, state, :_POINTS].numpy()
    axes.scatter(
        points[:, 0],
        points[:, 1],
        s=9,
        color=ORANGE,
        edgecolors="black",
        linewidths=0.25,
        alpha=0.8,
        label="samples of the flow",
    )
    x, y = sample.chosen[state, :2].tolist()
    axes.plot([x], [y], "*", **_CHOSEN)
    axes.set_xlim(*widened(*_bounds(sample, 0), 0.035))
    axes.set_ylim(*widened(*_bounds(sample, 1), 0.035))
    axes.set_box_aspect(1)
    tidy(axes, action_name(0, 2), action_name(1, 2))
