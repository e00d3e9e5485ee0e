"""The field, the density and the accuracy of a flow."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from flowmatch_rl.evaluation import DensityGrid, FieldGrid, StepErrors
from flowmatch_rl.evaluation.view import View
from flowmatch_rl.figures.clouds import fit, height_for, hide_repeats, label_axes, scatter
from flowmatch_rl.figures.style import BLUE, FLOW_COLORS, GREY, RED, VALUE_COLORS, new_figure, scale_around_zero, tidy


def draw_field(field: FieldGrid, view: View, title: str) -> Figure:
    """Draw the direction of a planar field as lines and its speed as their colour, at some flow times.

    Args:
        field: The field.
        view: Names of the columns.
        title: Title.
    """
    frames = [np.stack([ends[[0, -1]] for ends in (x, y)], axis=1) for x, y in zip(field.x, field.y, strict=True)]
    height = 0.4 + max(height_for(frame, 2.6, 4.0) for frame in frames)
    figure = new_figure(1.8 + 2.7 * len(field.t), height, title)
    panels = figure.subplots(1, len(field.t), squeeze=False)[0]
    colors, lines = _speed_colors(field.speed), None
    for i, axes in enumerate(panels):
        scatter(axes, field.cloud[i], GREY, frames[i], alpha=0.35)
        u, v = np.nan_to_num(field.velocity[i]).transpose(2, 0, 1)
        lines = axes.streamplot(
            field.x[i],
            field.y[i],
            u,
            v,
            color=np.nan_to_num(field.speed[i]),
            cmap=FLOW_COLORS,
            norm=colors,
            density=0.8,
            linewidth=0.9,
            arrowsize=0.8,
        ).lines
        fit(axes, frames[i])
        label_axes(axes, view)
        axes.set_title(f"t = {field.t[i]:.2f}", fontsize=9)
    hide_repeats(panels)
    assert lines is not None
    bar = figure.colorbar(lines, ax=list(panels), aspect=30, shrink=0.9, extend="max")
    bar.set_label("speed, standard deviations\nper unit of flow time", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _speed_colors(speed: np.ndarray) -> Normalize:
    """Colours of speeds, shape (F, G, G): logarithmic if they differ much between the flow times."""
    low, *_, high = np.sort(np.quantile(np.nan_to_num(speed, posinf=0.0), 0.98, axis=(1, 2)))
    return LogNorm(0.1 * low, high) if high > 10.0 * low > 0.0 else Normalize(0.0, max(float(high), 1e-9))


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
    # The highest peaks of either would leave the rest pale.
    tops = [np.quantile(x[x > 0.0], share) for x, share in ((measured, 0.95), (grid.density, 0.995)) if (x > 0.0).any()]
    top = float(max(tops, default=1.0))
    figure = new_figure(9.6, 0.4 + height_for(grid.frame, 3.9, 5.0), title)
    panels = figure.subplots(1, 2)
    names = (f"histogram of {len(data):,} held-out samples", f"model: sums to {grid.mass:.3f} over this panel")
    image = None
    for axes, values, name in zip(panels, (measured, grid.density), names, strict=True):
        smooth = "bilinear" if axes is panels[1] else "nearest"
        extent = (*grid.frame[:, 0], *grid.frame[:, 1])
        image = axes.imshow(
            values,
            origin="lower",
            extent=extent,
            cmap=VALUE_COLORS,
            vmin=0.0,
            vmax=top,
            aspect="auto",
            interpolation=smooth,
        )
        fit(axes, grid.frame)
        label_axes(axes, view)
        axes.grid(visible=False)
        axes.set_title(name, fontsize=9)
    hide_repeats(panels)
    assert image is not None
    bar = figure.colorbar(image, ax=list(panels), aspect=30, shrink=0.9, extend="max")
    bar.set_label("density, units of the data", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def draw_steps(errors: StepErrors, title: str) -> Figure:
    """Draw the distance of samples to data by the number of network evaluations.

    Args:
        errors: Distances.
        title: Title.
    """
    figure = new_figure(7.0, 4.4, title)
    axes = figure.subplots()
    axes.axhspan(-10.0 * errors.noise, errors.noise, color="0.92", label="as close as two halves of the data (95 %)")
    axes.plot(errors.evaluations, errors.distance, color=BLUE, marker="o", markersize=5, linewidth=1.4)
    axes.axvline(errors.configured, color=RED, linewidth=1.2, linestyle="--", label="the sampler as configured")
    axes.set_xscale("log", base=2)
    scale_around_zero(axes, errors.noise, errors.distance)
    _count(axes, errors)
    tidy(axes, "network evaluations per sample", "energy distance to held-out data")
    axes.legend(fontsize=8, frameon=False, loc="best")
    return figure


def _count(axes: Axes, errors: StepErrors) -> None:
    axes.set_xticks(errors.evaluations)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
