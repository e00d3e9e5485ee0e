"""Noise becoming data, frame by frame."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from flowmatch_rl.callbacks.drawing.clouds import Palette, density_in_bins, edges_of, outline, scatter
from flowmatch_rl.callbacks.drawing.flow_sample import FlowSample
from flowmatch_rl.callbacks.drawing.style import BLUE, ORANGE, new_figure, tidy
from flowmatch_rl.callbacks.drawing.view import limits, limits_on_the_way

_INCHES = 4.0


def flow_frames(sample: FlowSample, title: str, number: int, side: int) -> np.ndarray:
    """Draw samples at evenly spaced flow times, in the plane of ``FlowSample.view`` or as a histogram.

    Args:
        sample: Samples and data.
        title: Title.
        number: How many frames, at least 2.
        side: Height and width in pixels, about.

    Returns:
        Frames, RGB, shape (number, height, width, 3), bytes.
    """
    times = np.linspace(float(sample.t[0]), float(sample.t[-1]), number)
    clouds = _between(sample, times)
    frames = limits_on_the_way(clouds, limits(sample.view.show(sample.data)))
    figure = new_figure(_INCHES, _INCHES, title)
    figure.set_dpi(side / _INCHES)
    axes = figure.subplots()
    canvas = FigureCanvasAgg(figure)
    pictures = []
    for cloud, frame, t in zip(clouds, frames, times, strict=True):
        axes.clear()
        _draw_moment(axes, sample, cloud, frame)
        axes.set_title(f"flow time {t:.2f}", fontsize=10, family="monospace")
        canvas.draw()
        figure.set_layout_engine("none")  # the first frame has found room for everything
        pictures.append(np.array(canvas.buffer_rgba())[..., :3])
    return np.stack(pictures)


def _draw_moment(axes: Axes, sample: FlowSample, cloud: np.ndarray, frame: np.ndarray) -> None:
    if cloud.shape[1] == 2:
        scatter(axes, cloud, Palette(sample.groups).colors(len(cloud)), frame)
        tidy(axes, sample.view.labels[0], sample.view.labels[1])
        return
    edges = edges_of(frame[:, 0], 40)
    data = sample.view.show(sample.data)[:, 0]
    outline(axes, data, edges, BLUE, "data")
    outline(axes, cloud[:, 0], edges, ORANGE, "samples", filled=True)
    axes.set_xlim(*frame[:, 0])
    axes.set_ylim(0.0, 1.5 * float(density_in_bins(data, edges).max()))
    tidy(axes, sample.view.labels[0], "density")
    axes.legend(fontsize=8, frameon=False, loc="upper right")


def _between(sample: FlowSample, times: np.ndarray) -> np.ndarray:
    """Coordinates of the samples at any times, on straight lines between the sampler's own, shape (F, K, 1 or 2)."""
    t = sample.t.double().numpy()
    after = np.searchsorted(t, times, side="left").clip(1, len(t) - 1)
    share = torch.from_numpy((times - t[after - 1]) / np.maximum(t[after] - t[after - 1], 1e-12))
    return sample.view.show(
        torch.lerp(sample.points[after - 1].double(), sample.points[after].double(), share[:, None, None])
    )
