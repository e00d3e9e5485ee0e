"""How far transitions are expanded, and from where expansions end early."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from flowmatch_rl.evaluation import ExpansionPoint, ExpansionSample, columns_of
from flowmatch_rl.evaluation.view import limits
from flowmatch_rl.figures.clouds import edges_of
from flowmatch_rl.figures.occupancy_plane import Plane, draw_walls
from flowmatch_rl.figures.style import BLUE, GREY, ORANGE, count_steps, new_figure, tidy

_CELLS = 25
_MOST_ENTRIES = 12


def draw_expansion(
    points: Sequence[ExpansionPoint], sample: ExpansionSample | None, plane: Plane | None, title: str
) -> Figure:
    """Draw how far expansions get over the training, and of the last ones their lengths and where they end early.

    Where they end early is a map of the plane, or means of the entries of the states that they start from.

    Args:
        points: In the order of their steps, at least one.
        sample: The last expansions, or None to leave their panels out.
        plane: Two entries of the state that are a position, or None.
        title: Title.
    """
    figure = new_figure(5.5 if sample is None else 13.0, 4.6, title)
    widths = (1.0,) if sample is None else (1.0, 2.0)
    parts = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)[0]
    _draw_training(parts[0].subplots(2, 1, sharex=True), points)
    if sample is not None:
        lengths, starts = parts[1].subplots(1, 2, width_ratios=(1.0, 1.15))
        _draw_lengths(lengths, sample)
        if plane is None:
            _draw_entries(starts, sample)
        else:
            _draw_map(starts, sample, plane)
    return figure


def _draw_training(panels: Sequence[Axes], points: Sequence[ExpansionPoint]) -> None:
    columns = columns_of(points)
    for axes, name, label in zip(
        panels, ("full_expansions", "expansion_length"), ("not ended early", "mean length, steps"), strict=True
    ):
        axes.plot(columns["gradient_steps"], columns[name], color=BLUE, marker="o", markersize=3, linewidth=1.4)
        tidy(axes, y_label=label)
    panels[0].set_ylim(-0.03, 1.03)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[1].set_ylim(0.0, 1.1 * float(columns["expansion_length"].max()))
    tidy(panels[1], "gradient steps", panels[1].get_ylabel())
    count_steps(panels[1])


def _draw_lengths(axes: Axes, sample: ExpansionSample) -> None:
    """Fraction of the expansions that have at least as many steps."""
    reached, drawn = (part.numpy() for part in sample.survival())
    steps = np.arange(1, len(reached) + 1)
    axes.step(steps, drawn, where="mid", color=GREY, linewidth=1.2, linestyle="--", label="drawn")
    axes.step(steps, reached, where="mid", color=BLUE, linewidth=1.6, label="reached")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(f"the last {len(sample.length):,} expansions", fontsize=9)
    tidy(axes, "steps", "fraction of at least as many steps")
    axes.legend(fontsize=8, frameon=False, loc="best")


def _draw_map(axes: Axes, sample: ExpansionSample, plane: Plane) -> None:
    """Fraction of the expansions from each cell of the plane that ended early."""
    points, early = sample.start[:, plane.entries].double().numpy(), sample.early.double().numpy()
    frame = limits(points, plane.walls.reshape(-1, 2), outermost=0.0)
    edges = [edges_of(frame[:, i], _CELLS) for i in range(2)]
    count, _, _ = np.histogram2d(points[:, 0], points[:, 1], edges)
    ended, _, _ = np.histogram2d(points[:, 0], points[:, 1], edges, weights=early)
    fraction = np.ma.masked_where(count == 0.0, ended / np.maximum(count, 1.0))
    norm = Normalize(0.0, 1.0)
    axes.pcolormesh(edges[0], edges[1], fraction.T, cmap="viridis_r", norm=norm, zorder=2)
    draw_walls(axes, plane)
    axes.set_xlim(*frame[:, 0])
    axes.set_ylim(*frame[:, 1])
    axes.set_aspect("equal")
    axes.set_title("ended early, by the state they start from", fontsize=9)
    tidy(axes, *plane.labels)
    bar = axes.figure.colorbar(ScalarMappable(norm, "viridis_r"), ax=axes, format=PercentFormatter(1.0), shrink=0.8)
    bar.ax.tick_params(labelsize=8)


def _draw_entries(axes: Axes, sample: ExpansionSample) -> None:
    """Mean and standard deviation of the entries of the states that expansions start from, standardised."""
    standard, early = sample.schema.standardise(sample.start).numpy(), sample.early.numpy()
    groups = {"not ended early": standard[~early], "ended early": standard[early]}
    means = [group.mean(0) for group in groups.values() if len(group)]
    # In their order, those in which the groups differ most.
    chosen = np.sort(np.argsort(-np.abs(means[0] - means[-1]), kind="stable")[:_MOST_ENTRIES])
    rows = np.arange(len(chosen))
    for (label, group), offset, color in zip(groups.items(), (-0.12, 0.12), (BLUE, ORANGE), strict=True):
        if len(group):
            mean, spread = group.mean(0)[chosen], group.std(0)[chosen]
            axes.errorbar(mean, rows + offset, xerr=spread, fmt="o", color=color, markersize=4, label=label)
    axes.set_yticks(rows, labels=[sample.schema.columns[i] for i in chosen])
    axes.invert_yaxis()
    number = standard.shape[1]
    left_out = f", the {len(chosen)} of {number} entries that differ most" if len(chosen) < number else ""
    axes.set_title(f"states they start from{left_out}", fontsize=9)
    tidy(axes, "standard deviations of the data, mean ± 1 std")
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
