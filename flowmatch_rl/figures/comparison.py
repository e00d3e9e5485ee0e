"""Methods beside each other: their learning curves, their final returns, and both over all tasks."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from flowmatch_rl.evaluation import MeanCurve
from flowmatch_rl.figures.style import BLUE, GREEN, GREY, ORANGE, RED, STEPS, count_steps, new_figure, tidy

_OTHERS = ("#CC79A7", "#56B4E9", "#000000", "#8A7A00", "#882255", "#44AA99", "#DDCC77", "#999999")
_COLORS = (BLUE, ORANGE, GREEN, RED, *_OTHERS)
_MARKERS = ("o", "s", "^", "D", "v")
_WIDTH = 12.0
_BAR: dict[str, Any] = {"linewidth": 7, "alpha": 0.3, "solid_capstyle": "butt"}


@dataclass(frozen=True)
class MethodCurves:
    """One method on one task.

    Attributes:
        name: Method.
        by_steps: Return of evaluations by steps; None without any.
        by_seconds: The same by wall time in seconds; None where it is not known.
        scores: Scores of the final tests of the runs that ended, shape (N,), perhaps of none.
        interval: Bootstrap interval of their mean, shape (2,); None with fewer than two runs.
    """

    name: str
    by_steps: MeanCurve | None
    by_seconds: MeanCurve | None
    scores: Tensor
    interval: Tensor | None


@dataclass(frozen=True)
class TaskCurves:
    """All methods on one task.

    Attributes:
        name: Task.
        steps: What the steps of its runs are, ``env_steps`` or ``gradient_steps``; none before the first evaluation,
            and both where there are no curves by steps because runs count different ones.
        score: What the scores are, in words.
        methods: Methods, in the order of the legend; the same on all tasks of a comparison.
        level: Level of the intervals.
    """

    name: str
    steps: Sequence[str]
    score: str
    methods: Sequence[MethodCurves]
    level: float = 0.95


@dataclass(frozen=True)
class Aggregate:
    """Methods compared over all tasks. What is not known is NaN.

    Attributes:
        methods: Names, M of them.
        score: What the scores are once they are brought to one scale, in words.
        interquartile_mean: Interquartile mean of these over tasks and runs, and bounds of its interval, shape (M, 3);
            None without a scale.
        mean: Mean over tasks of their means over runs, and bounds of its interval, shape (M, 3); None without a scale.
        area: Interquartile mean of the mean return over the training, the area under the learning curve divided by its
            steps, and bounds, shape (M, 3); None without a scale, or where scores are not returns.
        improvement: Probability that the method of a row beats that of a column, and bounds, shape (M, M, 3); None
            with a single method.
    """

    methods: Sequence[str]
    score: str
    interquartile_mean: Tensor | None
    mean: Tensor | None
    area: Tensor | None
    improvement: Tensor | None


def draw_task(task: TaskCurves) -> Figure:
    """Learning curves by steps and by wall time, and the final returns, of all methods on one task.

    Args:
        task: The methods on it.
    """
    figure = new_figure(_WIDTH, _task_height(task), "")
    _draw_task(figure, task)
    return figure


def draw_aggregate(aggregate: Aggregate) -> Figure:
    """Interquartile means with their intervals, and the matrix of probabilities of improvement.

    Args:
        aggregate: At least the interquartile means or the probabilities must be there.

    Raises:
        ValueError: If neither is.
    """
    if aggregate.interquartile_mean is None and aggregate.improvement is None:
        raise ValueError("an aggregate with a mean or probabilities of improvement is wanted, got neither")
    figure = new_figure(_WIDTH, _aggregate_height(aggregate), "")
    _draw_aggregate(figure, aggregate)
    return figure


def draw_comparison(tasks: Sequence[TaskCurves], aggregate: Aggregate, title: str, note: str) -> Figure:
    """Everything on one page: the aggregate above, a row for each task below.

    Args:
        tasks: At least one.
        aggregate: What is known over all tasks; left out if empty.
        title: Title.
        note: A sentence below the title, such as what is missing; may be empty.
    """
    shown = aggregate.interquartile_mean is not None or aggregate.improvement is not None
    heights = [_aggregate_height(aggregate)] * shown + [_task_height(task) for task in tasks]
    figure = new_figure(_WIDTH, sum(heights) + 0.9, f"{title}\n{note}" if note else title)
    rows = list(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if shown:
        _draw_aggregate(rows.pop(0), aggregate)
    for row, task in zip(rows, tasks, strict=True):
        _draw_task(row, task)
    return figure


def encode_figure(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file.

    Args:
        figure: The figure.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()


def percent(level: float) -> str:
    """A level in words, such as ``95 %``.

    Args:
        level: The level, such as 0.95.
    """
    return f"{100.0 * level:g} %"


def _task_height(task: TaskCurves) -> float:
    return 3.0 + 0.16 * len(task.methods)


def _aggregate_height(aggregate: Aggregate) -> float:
    return 1.6 + 0.42 * len(aggregate.methods)


def _draw_task(figure: FigureBase, task: TaskCurves) -> None:
    steps, seconds, final = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 0.8))
    for place, method in enumerate(task.methods):
        _draw_curve(steps, method.by_steps, place, 1.0)
        _draw_curve(seconds, method.by_seconds, place, 60.0)
        _draw_scores(final, method, place)
    tidy(steps, " or ".join(STEPS[counts] for counts in task.steps) or "steps", "return of evaluations")
    count_steps(steps)
    steps.set_title(task.name, fontsize=11, loc="left", fontweight="bold")
    tidy(seconds, "minutes of training")
    seconds.set_xlim(left=0.0)
    tidy(final, f"{task.score}, final test (mean, {percent(task.level)})")
    final.xaxis.set_major_locator(MaxNLocator(5))
    final.set_yticks(range(len(task.methods)), [method.name for method in task.methods])
    final.set_ylim(len(task.methods) - 0.5, -0.5)
    no_curve = "runs count different steps" if len(task.steps) > 1 else "not known yet"
    for axes, known, reason in (
        (steps, any(method.by_steps is not None for method in task.methods), no_curve),
        (seconds, any(method.by_seconds is not None for method in task.methods), "not known yet"),
        (final, any(len(method.scores) for method in task.methods), "not known yet"),
    ):
        if not known:
            axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", color=GREY, fontsize=9)
    handles, labels = _legend(steps, task)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8), fontsize=8, frameon=False)


def _draw_curve(axes: Axes, curve: MeanCurve | None, place: int, unit: float) -> None:
    if curve is None:
        return
    color = _color(place)
    x, mean = curve.x.numpy() / unit, curve.mean.numpy()
    whole = (curve.num_runs == curve.total_runs).numpy()
    # Where runs are missing the mean is of others, and jumps: it is dashed, and has no interval.
    axes.plot(x, mean, color=color, linewidth=0.9, linestyle=(0, (2, 2)))
    every = max(1, len(x) // 12)
    marker = _MARKERS[place // len(_COLORS) % len(_MARKERS)] if len(x) <= 40 else None
    axes.plot(
        x, np.where(whole, mean, np.nan), color=color, linewidth=1.7, marker=marker, markersize=3, markevery=every
    )
    axes.fill_between(x, curve.interval[0].numpy(), curve.interval[1].numpy(), color=color, alpha=0.16, linewidth=0)


def _draw_scores(axes: Axes, method: MethodCurves, place: int) -> None:
    if len(method.scores) == 0:
        return
    color, scores = _color(place), method.scores.numpy()
    if method.interval is not None:
        axes.plot(method.interval.numpy(), [place, place], color=color, **_BAR)
    axes.plot(scores, np.full(len(scores), place), "o", color=color, markersize=3.5, fillstyle="none", linewidth=0)
    axes.plot([scores.mean()], [place], "|", color=color, markersize=13, markeredgewidth=2.2)


def _draw_aggregate(figure: FigureBase, aggregate: Aggregate) -> None:
    parts = [part for part in (aggregate.interquartile_mean, aggregate.improvement) if part is not None]
    panels = list(figure.subplots(1, len(parts), squeeze=False, width_ratios=(1.0, 1.25)[: len(parts)])[0])
    if aggregate.interquartile_mean is not None:
        _draw_means(panels.pop(0), aggregate.methods, aggregate.score, aggregate.interquartile_mean.numpy())
    if aggregate.improvement is not None:
        _draw_improvement(panels.pop(0), aggregate.methods, aggregate.improvement.numpy())


def _draw_means(axes: Axes, methods: Sequence[str], score: str, mean: np.ndarray) -> None:
    for place, (value, low, high) in enumerate(mean):
        axes.plot([low, high], [place, place], color=_color(place), **_BAR)
        axes.plot([value], [place], "|", color=_color(place), markersize=13, markeredgewidth=2.2)
        if np.isnan(value):
            text = {"transform": axes.get_yaxis_transform(), "va": "center", "color": GREY, "fontsize": 8}
            axes.text(0.02, place, "some task has no run that ended", **text)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    tidy(axes, score)
    axes.set_title("interquartile mean over tasks and runs", fontsize=10)


def _draw_improvement(axes: Axes, methods: Sequence[str], improvement: np.ndarray) -> None:
    size = len(methods)
    axes.imshow(improvement[..., 0], cmap="RdBu", vmin=-0.4, vmax=1.4, aspect="auto")
    for row, column in np.ndindex(size, size):
        value, low, high = improvement[row, column]
        if not np.isnan(value):
            text = f"{value:.2f}" + ("" if np.isnan(low) else f"\n{low:.2f} to {high:.2f}")
            axes.text(column, row, text, ha="center", va="center", fontsize=8 if size < 6 else 6.5)
    axes.set_yticks(range(size), methods)
    axes.set_xticks(range(size), methods, rotation=0 if size < 6 else 30, ha="center" if size < 6 else "right")
    tidy(axes, "than the method of the column")
    axes.grid(visible=False)
    axes.set_title("probability that a run of the row's method ends higher", fontsize=10)


def _legend(axes: Axes, task: TaskCurves) -> tuple[list[Any], list[str]]:
    lines = [
        axes.plot([], [], color=_color(place), linewidth=2.2, marker=_MARKERS[place // len(_COLORS) % len(_MARKERS)])[0]
        for place in range(len(task.methods))
    ]
    labels = [method.name for method in task.methods]
    curves = [curve for method in task.methods for curve in (method.by_steps, method.by_seconds) if curve is not None]
    if any(bool((curve.num_runs < curve.total_runs).any()) for curve in curves):
        lines.append(axes.plot([], [], color=GREY, linewidth=0.9, linestyle=(0, (2, 2)))[0])
        labels.append("some runs missing")
    return lines, labels


def _color(place: int) -> str:
    return _COLORS[place % len(_COLORS)]
