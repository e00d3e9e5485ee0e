"""The field, the density and the accuracy of a flow."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from flowmatch_rl.callbacks.drawing.clouds import label_axes, scatter
from flowmatch_rl.callbacks.drawing.flow_grids import DensityGrid, FieldGrid, StepErrors
from flowmatch_rl.callbacks.drawing.style import BLUE, GREY, RED, VALUE_COLORS, new_figure, tidy
from flowmatch_rl.callbacks.drawing.view import View


def draw_field(field: FieldGrid, view: View, title: str) -> Figure:
    """Draw the direction of a planar field as lines and its speed as their colour, at some flow times.

    Args:
        field: The field.
        view: Names of the columns.
        title: Title.
    """
    figure = new_figure(1.6 + 2.9 * len(field.t), 3.8, title)
    panels = figure.subplots(1, len(field.t), squeeze=False)[0]
    top = float(np.nanquantile(field.speed, 0.98))
    lines = None
    for i, axes in enumerate(panels):
        frame = np.array([[field.x[i, 0], field.y[i, 0]], [field.x[i, -1], field.y[i, -1]]])
        scatter(axes, field.cloud[i], GREY, frame, alpha=0.35)
        u, v = np.nan_to_num(field.velocity[i]).transpose(2, 0, 1)
        lines = axes.streamplot(
            field.x[i], field.y[i], u, v, color=np.nan_to_num(field.speed[i]), density=0.9, linewidth=0.9, arrowsize=0.8
        ).lines
        lines.set_clim(0.0, max(top, 1e-9))
        scatter(axes, field.cloud[i][:0], GREY, frame)
        label_axes(axes, view)
        axes.set_title(f"t = {field.t[i]:.2f}", fontsize=9)
        if i:
            axes.set_ylabel("")
    assert lines is not None
    bar = figure.colorbar(lines, ax=list(panels), aspect=30, shrink=0.9, extend="max")
    bar.set_label("speed, standard deviations\nper unit of flow time", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def draw_density(grid: DensityGrid, data: np.ndarray, view: View, title: str) -> Figure:
    """Draw the density of a planar model beside a histogram of the data, in the same colours.

    Args:
        grid: The density.
        data: Data in their own units, shape (M, 2).
        view: Names of the columns.
        title: Title.
    """
    bins = int(np.clip(len(data) ** 0.5, 16, 64))
    edges = np.linspace(grid.frame[0], grid.frame[1], bins + 1)
    counts, _, _ = np.histogram2d(data[:, 1], data[:, 0], bins=(edges[:, 1], edges[:, 0]))
    measured = counts / (len(data) * np.prod(edges[1] - edges[0]))
    seen = grid.density[grid.density > 0.0]
    top = float(np.quantile(seen, 0.995)) if len(seen) else 1.0
    figure = new_figure(9.6, 4.6, title)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    names = (f"histogram of {len(data):,} held-out samples", f"model: sums to {grid.mass:.3f} over this panel")
    image = None
    for axes, values, name in zip(panels, (measured, grid.density), names, strict=True):
        extent = (*grid.frame[:, 0], *grid.frame[:, 1])
        image = axes.imshow(values, origin="lower", extent=extent, cmap=VALUE_COLORS, vmin=0.0, vmax=top, aspect="auto")
        scatter(axes, data[:0], GREY, grid.frame)
        label_axes(axes, view)
        axes.grid(visible=False)
        axes.set_title(name, fontsize=9)
    panels[1].set_ylabel("")
    assert image is not None
    bar = figure.colorbar(image, ax=list(panels), aspect=30, shrink=0.9, extend="max")
    bar.set_label("density, units of the data", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def draw_steps(errors: StepErrors, title: str) -> Figure:
    """Draw the distance of samples to data by the number of network evaluations, both on log axes.

    Args:
        errors: Distances.
        title: Title.
    """
    figure = new_figure(7.0, 4.4, title)
    axes = figure.subplots()
    floor = max(errors.noise, 1e-9)
    bottom = floor / 4.0
    shown = np.maximum(errors.distance, bottom)
    axes.axhspan(bottom, floor, color="0.92", label="not told from the data by so few samples")
    axes.plot(errors.evaluations, shown, color=BLUE, marker="o", markersize=5, linewidth=1.4, clip_on=False)
    axes.axvline(errors.configured, color=RED, linewidth=1.2, linestyle="--", label="the sampler as configured")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(bottom, 1.6 * max(2.0 * floor, float(np.nanmax(shown, initial=floor))))
    _count(axes, errors)
    tidy(axes, "network evaluations per sample", "energy distance to held-out data")
    axes.legend(fontsize=8, frameon=False)
    return figure


def _count(axes: Axes, errors: StepErrors) -> None:
    axes.set_xticks(errors.evaluations)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
