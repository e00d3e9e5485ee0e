"""Samples of a flow beside the data, the clouds between noise and data, and trajectories of single samples."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowmatch_rl.evaluation import FlowSample
from flowmatch_rl.evaluation.view import Groups, limits, limits_along_path
from flowmatch_rl.figures.clouds import (
    Palette,
    count_outside,
    edges_of,
    fit,
    height_for,
    hide_repeats,
    label_axes,
    outline,
    scatter,
)
from flowmatch_rl.figures.style import BLUE, GREY, ORANGE, new_figure, tidy

_MAX_MARGINALS = 6
_LINES = 150


@dataclass(frozen=True)
class _Planes:
    data: np.ndarray
    generated: np.ndarray
    labels: tuple[str, ...]
    groups: Groups | None = None

    @property
    def frame(self) -> np.ndarray:
        return limits(self.data, self.generated)


@dataclass(frozen=True)
class _Marginal:
    name: str
    data: np.ndarray
    generated: np.ndarray
    title: str = ""


def draw_samples(sample: FlowSample, title: str) -> Figure:
    """Draw data and samples side by side in the plane, and below them each column's histograms over one another.

    Of more than two columns the plane is that of the first two principal components, and six have histograms. A single
    column is drawn over the number it is conditioned on, or has a histogram per class.

    Args:
        sample: Samples and data.
        title: Title.
    """
    marginals = _marginals(sample)
    planes = _planes(sample)
    per_row = 3 if len(marginals) in (3, 5, 6) else min(2, len(marginals))
    rows = -(-len(marginals) // per_row)
    heights = [] if planes is None else [height_for(planes.frame, 4.3, 5.0)]
    heights.append((2.4 if heights else 3.4) * rows)
    figure = new_figure(9.6 if planes is not None or per_row > 1 else 7.0, 0.4 + sum(heights), title)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if planes is not None:
        _draw_planes(list(parts[0].subplots(1, 2, sharex=True, sharey=True)), planes)
    panels = parts[-1].subplots(rows, per_row, squeeze=False).flatten()
    for axes, marginal in zip(panels, marginals, strict=False):
        _draw_marginal(axes, marginal)
    for axes in panels[len(marginals) :]:
        axes.set_axis_off()
    panels[0].legend(fontsize=8, frameon=False)
    for axes in panels[::per_row]:
        axes.set_ylabel("density", fontsize=9)
    return figure


def draw_path(sample: FlowSample, title: str, number: int = 6) -> Figure:
    """Draw the cloud of samples at some times from noise to data.

    Args:
        sample: Samples and data.
        title: Title.
        number: How many times; fewer if the sampler knows fewer.
    """
    moments = np.unique(np.abs(sample.t.numpy()[:, None] - np.linspace(*_ends(sample), number)).argmin(0))
    clouds = sample.view.show(sample.points[moments])
    frames = limits_along_path(clouds, limits(sample.view.show(sample.data)))
    palette, flat = Palette(sample.groups), clouds.shape[2] == 1
    height = 3.1 if flat else 0.4 + max(height_for(frame, 2.2, 3.6) for frame in frames)
    figure = new_figure(0.9 + 2.4 * len(moments), height, title)
    panels = figure.subplots(1, len(moments), squeeze=False, sharey=flat)[0]
    for axes, cloud, frame, t in zip(panels, clouds, frames, sample.t[moments].tolist(), strict=True):
        if flat:
            outline(axes, cloud[:, 0], edges_of(frame[:, 0], 40), ORANGE, "samples", filled=True)
            tidy(axes, sample.view.labels[0], "density")
        else:
            scatter(axes, cloud, palette.colors(len(cloud)), frame)
            label_axes(axes, sample.view)
        axes.set_title(f"t = {t:.2f}", fontsize=9)
    hide_repeats(panels)
    if not flat:
        palette.explain(list(panels))
    return figure


def draw_trajectories(sample: FlowSample, title: str) -> Figure:
    """Draw trajectories of some samples, and how straight they are; of a single column over flow time.

    Args:
        sample: Samples and data.
        title: Title.
    """
    lines = sample.view.show(sample.points[:, :_LINES])  # (P, lines, 1 or 2)
    flat = lines.shape[2] == 1
    if flat:
        lines = np.concatenate([np.broadcast_to(sample.t.numpy()[:, None, None], lines.shape), lines], axis=2)
    frame = limits(*lines, outermost=0.0)
    figure = new_figure(7.0, 4.8 if flat else 0.6 + height_for(frame, 6.3, 6.4), title)
    axes = figure.subplots()
    axes.add_collection(LineCollection(list(lines.swapaxes(0, 1)), colors="0.6", linewidths=0.6, alpha=0.7))
    for points, color, label in ((lines[0], GREY, "noise"), (lines[-1], ORANGE, "samples")):
        axes.scatter(*points.T, s=12, color=color, linewidths=0.0, zorder=3, label=label, clip_on=not flat)
    if flat:
        axes.set_xlim(*_ends(sample))
        tidy(axes, "flow time", sample.view.labels[0])
    else:
        fit(axes, frame)
        label_axes(axes, sample.view)
        # On a line every trajectory is straight; how much it bends shows over time only.
        note = f"on average {sample.straightness:.2f} times as long as the distance of their endpoints"
        axes.set_title(note, fontsize=9)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False, markerscale=1.5)
    return figure


def _ends(sample: FlowSample) -> tuple[float, float]:
    return float(sample.t[0]), float(sample.t[-1])


def _planes(sample: FlowSample) -> _Planes | None:
    """The planes of data and of samples, or None if a single column has no number beside it."""
    number = len(sample.generated)  # of both, for equal numbers look alike
    data, generated = sample.view.show(sample.data[:number]), sample.view.show(sample.generated)
    if data.shape[1] == 2:
        return _Planes(data, generated, sample.view.labels, sample.groups)
    if sample.groups is None or sample.groups.levels:
        return None
    beside = sample.groups.values[:number, None]
    return _Planes(np.hstack([beside, data]), np.hstack([beside, generated]), (sample.groups.name, *sample.view.labels))


def _draw_planes(panels: list[Axes], planes: _Planes) -> None:
    palette = Palette(planes.groups)
    for axes, points, name, plain in (
        (panels[0], planes.data, "held-out rows of data", BLUE),
        (panels[1], planes.generated, "samples", ORANGE),
    ):
        colors = plain if planes.groups is None else palette.colors(len(points))
        scatter(axes, points, colors, planes.frame)
        axes.set_title(f"{len(points):,} {name}{count_outside(points, planes.frame)}", fontsize=9)
        tidy(axes, planes.labels[0], planes.labels[1])
    hide_repeats(panels)
    palette.explain(panels)


def _marginals(sample: FlowSample) -> list[_Marginal]:
    """Columns in their own units; a single column also by class."""
    data, generated = (sample.schema.restore(x).numpy().T for x in (sample.data, sample.generated))
    columns = zip(sample.schema.labels, data, generated, strict=True)
    marginals = [_Marginal(name, x, y) for name, x, y in columns][:_MAX_MARGINALS]
    if len(data) > 1 or sample.groups is None or not sample.groups.levels:
        return marginals
    kinds, name = sample.groups.values, sample.groups.name
    all_of_them = [_Marginal(sample.schema.labels[0], data[0], generated[0], "all")]
    by_class = [
        _Marginal(
            sample.schema.labels[0],
            data[0][kinds == i],
            generated[0][kinds[: len(generated[0])] == i],
            f"{name} = {level}",
        )
        for i, level in enumerate(sample.groups.levels)
    ]
    return (all_of_them + by_class)[:_MAX_MARGINALS]


def _draw_marginal(axes: Axes, marginal: _Marginal) -> None:
    frame, bins = limits(marginal.data[:, None], marginal.generated[:, None])[:, 0], len(marginal.generated) ** 0.5
    edges = edges_of(frame, int(np.clip(bins, 12, 60)))
    outline(axes, marginal.data, edges, BLUE, "data", filled=True)
    if len(marginal.generated):
        outline(axes, marginal.generated, edges, ORANGE, "samples")
    axes.set_title(marginal.title, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    tidy(axes, marginal.name)
