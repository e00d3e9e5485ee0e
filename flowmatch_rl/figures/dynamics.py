"""How far a one-step model departs from the environment over many steps."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from flowmatch_rl.evaluation import RolloutErrors
from flowmatch_rl.figures.style import BLUE, GREY, new_figure, tidy


def draw_rollout_errors(errors: RolloutErrors, title: str) -> Figure:
    """Draw the error of a one-step model by the number of steps, and its energy distance where that is known.

    Args:
        errors: Departures from real trajectories, after at least one number of steps.
        title: Title.
    """
    panels = 1 if errors.distance is None else 2
    figure = new_figure(1.0 + 5.0 * panels, 4.2, title)
    first, *others = figure.subplots(1, panels, squeeze=False)[0]
    first.plot(
        errors.steps, errors.unmoved.tolist(), color=GREY, linestyle="--", linewidth=1.2, label="nothing changes"
    )
    first.plot(errors.steps, errors.error.tolist(), color=BLUE, marker="o", markersize=4, linewidth=1.4, label="model")
    if bool((errors.error > 0.0).all()):
        first.set_yscale("log")
    first.legend(fontsize=8, frameon=False)
    _steps(first, errors.steps)
    tidy(first, "steps", "error of the mean (unit: deviation of the state)")
    for axes in others:
        assert errors.distance is not None
        axes.axhline(0.0, color=GREY, linestyle="--", linewidth=1.2)
        axes.plot(errors.steps, errors.distance.tolist(), color=BLUE, marker="o", markersize=4, linewidth=1.4)
        _steps(axes, errors.steps)
        tidy(axes, "steps", "squared energy distance (unit: deviation of the state)")
    return figure


def _steps(axes: Axes, steps: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(steps))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
