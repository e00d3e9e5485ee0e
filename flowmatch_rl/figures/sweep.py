"""Sweeps: the values of trials in their order, their evaluations, what the values depend on, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

from flowmatch_rl.figures.style import BLUE, FLOW_COLORS, GREY, ORANGE, RED, STEPS, count_steps, new_figure, tidy

_WIDTH = 12.0
_COLUMNS = 4
_MOST_NAMES = 24
"""Letters of a name on an axis; longer ones are cut."""


@dataclass(frozen=True)
class SearchedKey:
    """A key of the configuration, and its value in each trial.

    Attributes:
        name: The key.
        values: Its value in each trial, numbers or names, N of them.
        choices: Names of all choices in their order; None for numbers.
        is_log: Whether it was searched on a logarithmic scale.
        importance: Fraction of the variance of the trials' values that it explains; NaN if not known.
    """

    name: str
    values: Sequence[Any]
    choices: Sequence[str] | None
    is_log: bool
    importance: float


@dataclass(frozen=True)
class SweepView:
    """The trials of a sweep, N of them. What is not known is NaN.

    Attributes:
        objective: What trials are compared by, in words.
        maximizes: Whether the highest value is the best.
        numbers: Numbers of the trials, shape (N,).
        values: Their values, of complete ones only, shape (N,).
        pruned: Whether they were given up early, shape (N,).
        failed: Whether they failed, shape (N,).
        curves: Evaluations of each trial during its training, steps and values, shape (P, 2); P may be 0.
        counts: What these steps are, ``env_steps`` or ``gradient_steps``; empty if there are none.
        curve_label: What was evaluated, in words.
        keys: The keys that were searched.
    """

    objective: str
    maximizes: bool
    numbers: np.ndarray
    values: np.ndarray
    pruned: np.ndarray
    failed: np.ndarray
    curves: Sequence[np.ndarray]
    counts: str
    curve_label: str
    keys: Sequence[SearchedKey]

    @property
    def best(self) -> int | None:
        """Place of the best trial; None if none is complete."""
        if np.isnan(self.values).all():
            return None
        return int(np.nanargmax(self.values) if self.maximizes else np.nanargmin(self.values))


def draw_history(view: SweepView) -> Figure:
    """The values of the trials in their order, and the evaluations during their training.

    Args:
        view: The trials, at least one.
    """
    figure = new_figure(_WIDTH, 3.8, "")
    _draw_history(figure, view)
    return figure


def draw_keys(view: SweepView) -> Figure:
    """How much each key matters, and the values of the trials by each.

    Args:
        view: The trials, at least one.
    """
    figure = new_figure(_WIDTH, _keys_height(view), "")
    _draw_keys(figure, view)
    return figure


def draw_sweep(view: SweepView, title: str, note: str) -> Figure:
    """Everything in one picture.

    Args:
        view: The trials, at least one.
        title: Title.
        note: A sentence below the title.
    """
    heights = [3.8, _keys_height(view)]
    figure = new_figure(_WIDTH, sum(heights) + 0.9, f"{title}\n{note}")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_history(above, view)
    _draw_keys(below, view)
    return figure


def _keys_height(view: SweepView) -> float:
    return 3.0 * _grid(view)[0]


def _grid(view: SweepView) -> tuple[int, int]:
    """Rows and columns of the panels of keys, about as many in each row."""
    panels = len(view.keys) + _has_importances(view)
    rows = -(-panels // _COLUMNS)
    return rows, -(-panels // rows)


def _has_importances(view: SweepView) -> bool:
    return any(not np.isnan(key.importance) for key in view.keys)


def _draw_history(figure: FigureBase, view: SweepView) -> None:
    history, curves = figure.subplots(1, 2)
    _draw_values(history, view)
    _draw_curves(curves, view)
    handles: dict[str, Any] = {}
    for axes in (history, curves):
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def _draw_values(axes: Axes, view: SweepView) -> None:
    if view.best is not None:
        running = np.fmax.accumulate(view.values) if view.maximizes else np.fmin.accumulate(view.values)
        axes.step(view.numbers, running, where="post", color=ORANGE, linewidth=1.6, label="best so far")
    axes.plot(view.numbers, view.values, "o", color=BLUE, markersize=4.5, label="complete")
    _focus(axes, view.values)
    _mark_others(axes, view, view.numbers)
    if view.best is not None:
        place = view.best
        style: dict[str, Any] = {"markersize": 13, "markeredgecolor": "black", "color": ORANGE, "label": "best"}
        axes.plot(view.numbers[place], view.values[place], "*", **style)
    tidy(axes, "trial", f"{view.objective}, final test")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("trials in their order", fontsize=10)


def _focus(axes: Axes, values: np.ndarray) -> None:
    """Let the vertical axis hold the complete trials; a few far worse than the others would leave no room for these."""
    finite = values[np.isfinite(values)]
    if len(finite):
        low, high = float(finite.min()), float(finite.max())
        if _spans_decades(finite):
            axes.set_yscale("log")
            axes.set_ylim(low / (high / low) ** 0.08, high * (high / low) ** 0.08)
            return
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _spans_decades(values: np.ndarray) -> bool:
    """Whether numbers are positive and so different that a logarithmic axis shows them better."""
    return bool(values.min() > 0.0 and values.max() > 20.0 * values.min())


def _mark_others(axes: Axes, view: SweepView, x: np.ndarray) -> None:
    """Show trials without a value at the edge of the panel where the worst values are."""
    height = 0.03 if view.maximizes else 0.97
    edge = axes.get_xaxis_transform()
    style: dict[str, Any] = {"transform": edge, "clip_on": False, "linestyle": "none", "zorder": 5}
    if view.pruned.any():
        heights = np.full(int(view.pruned.sum()), height)
        axes.plot(x[view.pruned], heights, "v", color=GREY, markersize=5, fillstyle="none", label="pruned", **style)
    if view.failed.any():
        heights = np.full(int(view.failed.sum()), height)
        axes.plot(x[view.failed], heights, "x", color=RED, markersize=5, label="failed", **style)


def _draw_curves(axes: Axes, view: SweepView) -> None:
    for place, curve in enumerate(view.curves):
        if len(curve) == 0 or place == view.best:
            continue
        color = RED if view.failed[place] else GREY if view.pruned[place] else BLUE
        marker = "x" if view.failed[place] else "v" if view.pruned[place] else "o"
        axes.plot(*curve.T, color=color, linewidth=1.0, alpha=0.55)
        axes.plot(*curve[-1:].T, color=color, marker=marker, markersize=4, fillstyle="none", linestyle="none")
    if view.best is not None and len(view.curves[view.best]):
        axes.plot(*view.curves[view.best].T, color=ORANGE, linewidth=2.2, marker="o", markersize=3)
    tidy(axes, STEPS.get(view.counts, "steps"), f"{view.curve_label}, evaluations")
    count_steps(axes)
    axes.set_title("evaluations during training", fontsize=10)
    points = np.concatenate([*view.curves, np.zeros((0, 2))])
    if len(points) == 0:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=GREY, fontsize=9)
    elif _spans_decades(points[:, 1]):
        axes.set_yscale("log")


def _draw_keys(figure: FigureBase, view: SweepView) -> None:
    axes = list(figure.subplots(*_grid(view), squeeze=False).flat)
    if _has_importances(view):
        _draw_importances(axes.pop(0), {key.name: key.importance for key in view.keys})
    axes[0].set_title("values by each key, later trials lighter", fontsize=10)
    for key in view.keys:
        _draw_slice(axes.pop(0), view, key)
    for rest in axes:
        rest.set_axis_off()


def _draw_importances(axes: Axes, importances: Mapping[str, float]) -> None:
    names = sorted(importances, key=lambda name: importances[name])
    values = [importances[name] for name in names]
    axes.barh(range(len(names)), values, color=BLUE, height=0.6)
    for place, value in enumerate(values):
        axes.text(value + 0.02, place, f"{value:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_xlim(0.0, 1.15)
    tidy(axes, "fraction of the variance")
    axes.grid(visible=False, axis="y")
    axes.set_title("importance", fontsize=10)


def _draw_slice(axes: Axes, view: SweepView, key: SearchedKey) -> None:
    if key.choices is None:
        x = np.array(key.values, dtype=float)
        if not key.is_log and (x == x.round()).all():
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        places = {name: place for place, name in enumerate(key.choices)}
        x = np.array([places[value] for value in key.values], dtype=float)
        # Trials of one choice lie beside each other, the later ones further right.
        x = x + (np.linspace(-0.2, 0.2, len(x)) if len(x) > 1 else 0.0)
        axes.set_xticks(range(len(places)), [_short(name) for name in places])
        axes.set_xlim(-0.5, len(places) - 0.5)
    if key.is_log:
        axes.set_xscale("log")
    axes.scatter(x, view.values, c=view.numbers, cmap=FLOW_COLORS, s=22, edgecolors="0.3", linewidths=0.4)
    _focus(axes, view.values)
    _mark_others(axes, view, x)
    if view.best is not None:
        axes.plot(x[view.best], view.values[view.best], "*", color=ORANGE, markersize=13, markeredgecolor="black")
    tidy(axes, _short(key.name, 40), view.objective)


def _short(name: str, most: int = _MOST_NAMES) -> str:
    """A name as long as an axis has room for; of a key the end tells more."""
    return name if len(name) <= most else "..." + name[-most + 3 :]
