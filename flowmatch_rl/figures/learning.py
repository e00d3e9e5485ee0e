"""The learning curve: returns and losses by environment step."""

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowmatch_rl.figures.style import BLUE, GREEN, ORANGE, RED, count_steps, new_figure, tidy
from flowmatch_rl.files import atomic_path


@dataclass(frozen=True)
class Evaluation:
    """What is known at the end of an evaluation during training; None where it was not measured.

    Attributes:
        env_steps: Environment steps so far.
        return_mean: Mean return of the evaluation episodes.
        return_std: Standard deviation of their returns.
        training_return: Mean return of the last episodes of the training itself.
        critic_loss: Critic loss, in squared units of the return.
        policy_loss: Policy loss, squared velocity.
        seconds: Wall time of the training so far, warm-up included, evaluations excluded.
    """

    env_steps: int
    return_mean: float | None = None
    return_std: float | None = None
    training_return: float | None = None
    critic_loss: float | None = None
    policy_loss: float | None = None
    seconds: float | None = None


class Point(Protocol):
    """A dataclass whose first field is the step at which the others were measured."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def write_table(points: Sequence[Point], path: Path) -> None:
    """Write the points of a curve as CSV, one row each, an empty field for what was not measured.

    The file is renamed into place: a reader never sees half of it.

    Args:
        points: In the order of their steps, all of one class, at least one.
        path: Target; its folder exists.
    """
    with atomic_path(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(points[0])])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(point) for point in points)


def columns_of(points: Sequence[Point]) -> dict[str, np.ndarray]:
    """The fields of the points of a curve, one row per point; NaN for what was not measured."""
    names = [field.name for field in dataclasses.fields(points[0])]
    return {name: np.array([getattr(point, name) for point in points], dtype=float) for name in names}


def draw_learning_curve(evaluations: Sequence[Evaluation], title: str) -> Figure:
    """Draw returns by environment step and, below them, the losses on a log axis.

    Args:
        evaluations: In the order of their environment steps, at least one.
        title: Title.
    """
    columns = columns_of(evaluations)
    losses = {name: columns[name] for name in ("critic_loss", "policy_loss") if np.nanmax(columns[name], initial=0) > 0}
    figure = new_figure(8.0, 6.0 if losses else 4.0, title)
    rows = 2 if losses else 1
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=(2, 1)[:rows])[:, 0]
    _draw_returns(panels[0], columns)
    if losses:
        _draw_losses(panels[1], columns["env_steps"], losses)
    tidy(panels[-1], "environment steps", panels[-1].get_ylabel())
    count_steps(panels[-1])
    return figure


def _draw_returns(axes: Axes, columns: dict[str, np.ndarray]) -> None:
    steps, mean = columns["env_steps"], columns["return_mean"]
    std = np.nan_to_num(columns["return_std"])
    if len(steps) > 1:
        axes.fill_between(steps, mean - std, mean + std, color=BLUE, alpha=0.18, linewidth=0, label="± 1 std")
    else:
        axes.errorbar(steps, mean, std, color=BLUE, alpha=0.4, linewidth=6, label="± 1 std")
    axes.plot(steps, mean, color=BLUE, marker="o", markersize=3, linewidth=1.6, label="evaluation, mean")
    training = columns["training_return"]
    if not np.isnan(training).all():
        axes.plot(steps, training, ".--", color=ORANGE, linewidth=1.4, label="training, mean of last episodes")
    tidy(axes, y_label="return")
    axes.legend(fontsize=8, frameon=False, loc="best")


def _draw_losses(axes: Axes, steps: np.ndarray, losses: dict[str, np.ndarray]) -> None:
    for name, color in (("critic_loss", RED), ("policy_loss", GREEN)):
        if name in losses:
            positive = np.where(losses[name] > 0, losses[name], np.nan)
            axes.plot(steps, positive, color=color, marker="o", markersize=2.5, linewidth=1.2, label=name.split("_")[0])
    axes.set_yscale("log")
    tidy(axes, y_label="loss")
    axes.legend(fontsize=8, frameon=False, loc="best")
