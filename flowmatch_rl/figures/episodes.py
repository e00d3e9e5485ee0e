"""The best and the worst of some episodes, over time."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowmatch_rl.evaluation import Episodes
from flowmatch_rl.figures.style import BLUE, GREEN, action_name, new_figure, tidy, widened
from flowmatch_rl.schema import ActionBounds

_MAX_ENTRIES = 6
_DENSE = 250


def draw_episodes(episodes: Episodes, bounds: ActionBounds, title: str) -> Figure:
    """Draw the rewards and actions of the best and of the worst episode; of the only one if there is one.

    Args:
        episodes: The episodes, with actions in the environment's unit, the first six entries of which are drawn.
        bounds: Bounds of the action.
        title: Title.
    """
    number, action_dim = len(episodes.returns), episodes.action.shape[-1]
    named = [("best", int(episodes.returns.argmax())), ("worst", int(episodes.returns.argmin()))][:number]
    rows = 1 + min(_MAX_ENTRIES, action_dim)
    figure = new_figure(1.0 + 5.0 * len(named), 2.0 + 1.15 * rows, title)
    panels = figure.subplots(
        rows, len(named), squeeze=False, sharex="col", sharey="row", height_ratios=[1.6] + [1.0] * (rows - 1)
    )
    for column, (name, index) in zip(panels.T, named, strict=True):
        result = f"return {float(episodes.returns[index]):.1f}, {int(episodes.lengths[index])} steps"
        column[0].set_title(f"{name} of {number} episodes: {result}", fontsize=9)
        _draw_episode(list(column), episodes, index, bounds, labelled=column[0] is panels[0, 0])
    return figure


def _draw_episode(panels: list[Axes], episodes: Episodes, index: int, bounds: ActionBounds, labelled: bool) -> None:
    mask, action_dim = episodes.mask[index], episodes.action.shape[-1]
    reward, action = episodes.reward[index][mask].numpy(), episodes.action[index][mask].numpy()
    _draw_series(panels[0], reward, BLUE)
    if len(reward) > _DENSE:
        panels[0].legend(fontsize=8, frameon=False, ncols=2)
    tidy(panels[0], y_label="reward" if labelled else "")
    for entry, axes in enumerate(panels[1:]):
        _draw_series(axes, action[:, entry], GREEN)
        axes.set_ylim(*widened(bounds.low[entry], bounds.high[entry], 0.06))
        tidy(axes, y_label=action_name(entry, action_dim) if labelled else "")
    panels[-1].set_xlabel("environment step", fontsize=9)


def _draw_series(axes: Axes, values: np.ndarray, color: str) -> None:
    """Draw one number over time; where the steps of a long episode would merge, with a moving average."""
    steps = np.arange(len(values))
    if len(values) <= _DENSE:
        axes.step(steps, values, where="post", color=color, linewidth=1.0)
        return
    window = len(values) // 40
    axes.step(steps, values, where="post", color="0.75", linewidth=0.5, label="each step")
    average = np.convolve(values, np.full(window, 1.0 / window), mode="valid")
    axes.plot(steps[: len(average)] + window / 2, average, color=color, linewidth=1.4, label=f"mean of {window} steps")
