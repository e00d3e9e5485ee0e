"""The learning curve of a generative model: loss and distance by gradient step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowmatch_rl.figures.learning import columns_of
from flowmatch_rl.figures.style import BLUE, ORANGE, RED, count_steps, new_figure, scale_around_zero, tidy


@dataclass(frozen=True)
class LossPoint:
    """What is known at the end of an evaluation of a generative model; None where it was not measured.

    Attributes:
        gradient_steps: Gradient steps so far.
        train_loss: Loss of the last training batches.
        val_loss: Loss on held-out data.
        energy_distance: Energy distance of samples to held-out data, both standardised; near zero it may be negative.
        seconds: Wall time of the training so far, without evaluations.
    """

    gradient_steps: int
    train_loss: float | None = None
    val_loss: float | None = None
    energy_distance: float | None = None
    seconds: float | None = None


def draw_loss_curve(points: Sequence[LossPoint], title: str) -> Figure:
    """Draw the losses and, below them, the distance, by gradient step.

    Args:
        points: In the order of their gradient steps, at least one.
        title: Title.
    """
    columns = columns_of(points)
    figure = new_figure(8.0, 6.0, title)
    losses, distance = figure.subplots(2, 1, sharex=True)
    for name, color, label in (("train_loss", BLUE, "training"), ("val_loss", ORANGE, "held-out data, lagging copy")):
        _draw_line(losses, columns["gradient_steps"], columns[name], color, label)
    tidy(losses, y_label="loss")
    losses.legend(fontsize=8, frameon=False)
    _draw_distance(distance, columns["gradient_steps"], columns["energy_distance"])
    tidy(distance, "gradient steps", "energy distance to held-out data")
    count_steps(distance)
    return figure


def _draw_distance(axes: Axes, steps: np.ndarray, distance: np.ndarray) -> None:
    _draw_line(axes, steps, distance, RED, "")
    finite = distance[np.isfinite(distance)]
    if len(finite) and finite.min() > 0.0:
        axes.set_yscale("log")
    elif len(finite):
        # Of a good model the unbiased estimate scatters around zero, by about as much as it is below.
        axes.axhline(0.0, color="0.6", linewidth=0.8)
        scale_around_zero(axes, max(-2.0 * float(finite.min()), 1e-9), finite)


def _draw_line(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    axes.plot(steps, values, color=color, marker="o", markersize=3, linewidth=1.4, label=label)
