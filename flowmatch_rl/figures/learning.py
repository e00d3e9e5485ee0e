"""Learning curves: returns and losses by environment step, loss and distance by gradient step."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowmatch_rl.evaluation import LossPoint, PolicyPoint, ReturnPoint, columns_of
from flowmatch_rl.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    STEPS,
    count_steps,
    new_figure,
    scale_around_zero,
    tidy,
)

_LOSSES = {"critic_loss": RED, "policy_loss": GREEN, "held_out_loss": ORANGE}


def draw_learning_curve(points: Sequence[ReturnPoint] | Sequence[PolicyPoint], title: str) -> Figure:
    """Draw returns by step and, below them, the losses on a log axis.

    Args:
        points: In the order of their steps, at least one.
        title: Title.
    """
    columns = columns_of(points)
    step_name, *others = columns
    losses = {name: columns[name] for name in others if name in _LOSSES and np.nanmax(columns[name], initial=0) > 0}
    figure = new_figure(8.0, 6.0 if losses else 4.0, title)
    rows = 2 if losses else 1
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=(2, 1)[:rows])[:, 0]
    _draw_returns(panels[0], columns[step_name], columns)
    if losses:
        _draw_losses(panels[1], columns[step_name], losses)
    tidy(panels[-1], STEPS[step_name], panels[-1].get_ylabel())
    count_steps(panels[-1])
    return figure


def _draw_returns(axes: Axes, steps: np.ndarray, columns: dict[str, np.ndarray]) -> None:
    mean = columns["return_mean"]
    std = np.nan_to_num(columns["return_std"])
    if len(steps) > 1:
        axes.fill_between(steps, mean - std, mean + std, color=BLUE, alpha=0.18, linewidth=0, label="± 1 std")
    else:
        axes.errorbar(steps, mean, std, color=BLUE, alpha=0.4, linewidth=6, label="± 1 std")
    axes.plot(steps, mean, color=BLUE, marker="o", markersize=3, linewidth=1.6, label="evaluation, mean")
    training = columns.get("training_return")
    if training is not None and not np.isnan(training).all():
        axes.plot(steps, training, ".--", color=ORANGE, linewidth=1.4, label="training, mean of last episodes")
    tidy(axes, y_label="return")
    axes.legend(fontsize=8, frameon=False, loc="best")
    success = columns.get("success_rate")
    if success is not None and not np.isnan(success).all():
        right = axes.twinx()
        right.plot(steps, success, color=GREEN, marker="o", markersize=3, linewidth=1.2)
        right.set_ylim(-0.03, 1.03)
        right.set_ylabel("success rate", color=GREEN, fontsize=9)
        right.tick_params(labelsize=8)
        right.spines["top"].set_visible(False)


def _draw_losses(axes: Axes, steps: np.ndarray, losses: dict[str, np.ndarray]) -> None:
    for name, loss in losses.items():
        positive, label = np.where(loss > 0, loss, np.nan), name.removesuffix("_loss").replace("_", "-")
        axes.plot(steps, positive, color=_LOSSES[name], marker="o", markersize=2.5, linewidth=1.2, label=label)
    axes.set_yscale("log")
    tidy(axes, y_label="loss")
    axes.legend(fontsize=8, frameon=False, loc="best")


def draw_loss_curve(points: Sequence[LossPoint], title: str) -> Figure:
    """Draw the losses and, below them, the distance, by gradient step.

    Args:
        points: In the order of their gradient steps, at least one.
        title: Title.
    """
    columns = columns_of(points)
    figure = new_figure(8.0, 6.0, title)
    losses, distance = figure.subplots(2, 1, sharex=True)
    for name, color, label in (("train_loss", BLUE, "training"), ("val_loss", ORANGE, "held-out data, EMA flow")):
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
