"""Real and modelled future states entry by entry, and in the plane of their principal components."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from flowmatch_rl.evaluation import FutureSample
from flowmatch_rl.evaluation.view import view_of
from flowmatch_rl.figures.clouds import count_outside, edges_of, hide_repeats, outline, scatter
from flowmatch_rl.figures.occupancy_parts import frame_around, horizon, mark_source, remark_on_cut
from flowmatch_rl.figures.style import BLUE, ORANGE, RED, new_figure, tidy
from flowmatch_rl.schema import TableSchema

_MOST_ENTRIES = 12
_MOST_STATES = 2
_PER_ROW = 4
_BINS = 50
_REAL, _MODELLED = "real", "modelled"


@dataclass(frozen=True)
class _State:
    """Future states of one source state, in the units of the environment.

    Attributes:
        schema: The D modelled entries.
        source: The source state, shape (D,).
        modelled: Samples of the model, shape (K, D).
        real: As many real ones, or None.
    """

    schema: TableSchema
    source: Tensor
    modelled: Tensor
    real: Tensor | None


def draw_future_marginals(sample: FutureSample, title: str) -> Figure:
    """Draw histograms of the entries of future states, for one or two source states at the highest discount.

    Of more than two entries also the plane of the first two principal components of the standardised real states.

    Args:
        sample: Future states.
        title: Title.
    """
    dim, number = sample.schema.sample_dim, min(_MOST_STATES, len(sample.source))
    shown = min(_MOST_ENTRIES, dim)
    rows = -(-shown // _PER_ROW)
    left_out = f", the first {shown} of {dim} entries" if shown < dim else ""
    heading = f"{title}{left_out}, {horizon(sample.discounts[-1])}{remark_on_cut(sample.observed[-1])}"
    figure = new_figure(12.5 if dim > 2 else 7.0, 0.7 + number * (0.7 + max(2.2 * rows, 2.4)), heading)
    parts = figure.subfigures(number, 1, squeeze=False)[:, 0]
    for i, part in enumerate(parts):
        part.suptitle(f"source state {i + 1}", fontsize=10)
        real = None if sample.real is None else sample.real[-1, i]
        _draw_state(part, _State(sample.schema, sample.source[i], sample.modelled[-1, i], real), rows)
    handles, labels = parts[0].axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _draw_state(part: SubFigure, state: _State, rows: int) -> None:
    shown = min(_MOST_ENTRIES, state.schema.sample_dim)
    clouds = 0 if state.schema.sample_dim <= 2 else 1 if state.real is None else 2
    per_row = min(_PER_ROW, shown)
    grid = part.add_gridspec(rows, per_row + clouds, width_ratios=[1.0] * per_row + [1.1 + 0.4 * (rows - 1)] * clouds)
    for i in range(shown):
        axes = part.add_subplot(grid[divmod(i, per_row)])
        _draw_entry(axes, state, i)
        if i % per_row == 0:
            axes.set_ylabel("density", fontsize=9)
    if clouds:
        _draw_projections([part.add_subplot(grid[:, per_row + i]) for i in range(clouds)], state)


def _draw_entry(axes: Axes, state: _State, entry: int) -> None:
    """Histograms of one entry over one another."""
    source, modelled = float(state.source[entry]), state.modelled[:, entry].double().numpy()
    real = [] if state.real is None else [state.real[:, entry].double().numpy()]
    known = [*(part[:, None] for part in real), np.array([[source]])] if real else []
    frame = frame_around(known, [modelled[:, None]], np.array(state.schema.scale[entry : entry + 1]))
    edges = edges_of(frame[:, 0], _BINS)
    for values in real:
        outline(axes, values, edges, BLUE, _REAL, filled=True)
    outline(axes, modelled, edges, ORANGE, _MODELLED)
    axes.axvline(source, color=RED, linewidth=1.2, linestyle="--", label="source state")
    outside = count_outside(modelled[:, None], frame)
    axes.set_title(f"modelled{outside}" if outside else "", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    tidy(axes, state.schema.labels[entry])


def _draw_projections(panels: list[Axes], state: _State) -> None:
    schema, reference = state.schema, state.modelled if state.real is None else state.real
    view = view_of(schema, schema.standardise(reference))
    clouds = {_MODELLED: state.modelled} if state.real is None else {_REAL: state.real, _MODELLED: state.modelled}
    shown = {kind: view.show(schema.standardise(cloud)) for kind, cloud in clouds.items()}
    source = view.show(schema.standardise(state.source))
    known = [] if state.real is None else [shown[_REAL], source[None]]
    frame = frame_around(known, [shown[_MODELLED], source[None]], np.ones(2))
    for axes, (kind, points) in zip(panels, shown.items(), strict=True):
        scatter(axes, points, BLUE if kind == _REAL else ORANGE, frame, alpha=0.4)
        mark_source(axes, source)
        axes.set_box_aspect(1)
        axes.set_title(f"{kind}{count_outside(points, frame)}", fontsize=9)
        tidy(axes, *view.labels)
    hide_repeats(panels)
