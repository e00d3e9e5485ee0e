"""Values by a model of future states against those of roll-outs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowmatch_rl.evaluation import ValueComparison
from flowmatch_rl.evaluation.view import limits
from flowmatch_rl.figures.occupancy_parts import remark_on_cut
from flowmatch_rl.figures.style import BLUE, GREY, new_figure, tidy

_PER_ROW = 3


def draw_values(values: Sequence[ValueComparison], title: str) -> Figure:
    """Draw a panel per reward: modelled value over that of roll-outs, a point per source state, and where they agree.

    Args:
        values: Values beside those of roll-outs, at least one.
        title: Title.
    """
    per_row = min(_PER_ROW, len(values))
    rows = -(-len(values) // per_row)
    figure = new_figure(max(5.5, 0.4 + 3.7 * per_row), 0.9 + 4.2 * rows, title + remark_on_cut(values[0].observed))
    panels = list(figure.subplots(rows, per_row, squeeze=False).flat)
    for axes, value in zip(panels, values, strict=False):
        _draw_value(axes, value)
    for axes in panels[len(values) :]:
        axes.set_axis_off()
    for axes in panels[: len(values) : per_row]:
        axes.set_ylabel("modelled value", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _draw_value(axes: Axes, value: ValueComparison) -> None:
    assert value.real is not None
    x, y, y_error = (part.cpu().numpy() for part in (value.real, value.value, value.standard_error))
    x_error = None if value.real_error is None else value.real_error.cpu().numpy()
    spread = np.zeros_like(x) if x_error is None else x_error
    ends = np.concatenate([x - spread, x + spread, y - y_error, y + y_error])
    low, high = limits(ends[:, None], outermost=0.0)[:, 0]
    axes.plot([low, high], [low, high], color=GREY, linewidth=1.0, linestyle="--", label="equal")
    axes.errorbar(
        x,
        y,
        xerr=x_error,
        yerr=y_error,
        fmt="o",
        color=BLUE,
        markersize=4,
        alpha=0.8,
        elinewidth=1.0,
        label="a source state, ± 1 standard error",
    )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_box_aspect(1)
    axes.set_title(value.name, fontsize=10)
    tidy(axes, "value by one roll-out" if x_error is None else "mean value by roll-outs")
