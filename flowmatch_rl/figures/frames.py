"""Noise becoming data, frame by frame."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.patches import StepPatch

from flowmatch_rl.evaluation import FlowSample
from flowmatch_rl.evaluation.view import limits, limits_along_path
from flowmatch_rl.figures.clouds import (
    Palette,
    density_in_bins,
    edges_of,
    fit,
    height_for,
    label_axes,
    outline,
    scatter,
)
from flowmatch_rl.figures.style import BLUE, ORANGE, new_figure, tidy

_INCHES = 4.0


def flow_frames(sample: FlowSample, title: str, number: int, side: int) -> np.ndarray:
    """Draw samples at evenly spaced flow times, in the plane of ``FlowSample.view`` or as a histogram.

    Args:
        sample: Samples and data.
        title: Title.
        number: How many frames, at least 2.
        side: Longest side in pixels, about.

    Returns:
        Frames, RGB, shape (number, height, width, 3), bytes.
    """
    times = np.linspace(float(sample.t[0]), float(sample.t[-1]), number)
    clouds = _between(sample, times)
    frames = limits_along_path(clouds, limits(sample.view.show(sample.data)))
    height = 3.2 if clouds.shape[2] == 1 else 0.3 + height_for(frames[-1], _INCHES - 0.8, _INCHES)
    figure = new_figure(_INCHES, height, title)
    figure.set_dpi(side / max(_INCHES, height))
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    moving = _Cloud(axes, sample, clouds[0]) if clouds.shape[2] == 2 else _Histogram(axes, sample, frames[0])
    label = axes.set_title("flow time 0.00", fontsize=10, family="monospace")
    for artist in (moving.artist, label):
        artist.set_animated(True)  # left out of what stands still
    background, drawn, pictures = None, None, []
    for cloud, frame, t in zip(clouds, frames, times, strict=True):
        label.set_text(f"flow time {t:.2f}")
        if drawn is None or not np.array_equal(frame, drawn):
            # All that stands still is drawn once, and once more wherever the limits move.
            moving.frame(frame)
            canvas.draw()
            figure.set_layout_engine("none")
            background, drawn = canvas.copy_from_bbox(figure.bbox), frame
        canvas.restore_region(background)
        moving.move(cloud)
        for artist in (moving.artist, label):
            axes.draw_artist(artist)
        pictures.append(np.array(canvas.buffer_rgba())[..., :3])
    return np.stack(pictures)


class _Cloud:
    """Points in the plane."""

    def __init__(self, axes: Axes, sample: FlowSample, cloud: np.ndarray) -> None:
        self.axes = axes
        self.artist: PathCollection = scatter(axes, cloud, Palette(sample.groups).colors(len(cloud)), limits(cloud))
        label_axes(axes, sample.view)

    def frame(self, frame: np.ndarray) -> None:
        fit(self.axes, frame)

    def move(self, cloud: np.ndarray) -> None:
        self.artist.set_offsets(cloud)


class _Histogram:
    """The histogram of a single column, before that of the data."""

    def __init__(self, axes: Axes, sample: FlowSample, frame: np.ndarray) -> None:
        self.axes = axes
        self._data = sample.view.show(sample.data)[:, 0]
        edges = edges_of(frame[:, 0])
        self._outline = outline(axes, self._data, edges, BLUE, "data")
        self.artist: StepPatch = outline(axes, self._data, edges, ORANGE, "samples", filled=True)
        tidy(axes, sample.view.labels[0], "density")
        axes.legend(fontsize=8, frameon=False, loc="upper right")

    def frame(self, frame: np.ndarray) -> None:
        self._edges = edges_of(frame[:, 0], 40)
        heights = density_in_bins(self._data, self._edges)
        self._outline.set_data(heights, self._edges)
        self.axes.set_xlim(*frame[:, 0])
        self.axes.set_ylim(0.0, 1.5 * float(heights.max()))

    def move(self, cloud: np.ndarray) -> None:
        self.artist.set_data(density_in_bins(cloud[:, 0], self._edges), self._edges)


def _between(sample: FlowSample, times: np.ndarray) -> np.ndarray:
    """Coordinates of the samples at any times, on straight lines between the sampler's own, shape (F, K, 1 or 2)."""
    t = sample.t.double().numpy()
    after = np.searchsorted(t, times, side="left").clip(1, len(t) - 1)
    share = torch.from_numpy((times - t[after - 1]) / np.maximum(t[after] - t[after - 1], 1e-12))
    before, later = sample.points[after - 1].double(), sample.points[after].double()
    return sample.view.show(torch.lerp(before, later, share[:, None, None]))
