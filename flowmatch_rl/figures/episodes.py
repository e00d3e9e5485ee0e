"""The best and the worst of some episodes, over time."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flowmatch_rl.figures.style import BLUE, GREEN, action_name, new_figure, tidy
from flowmatch_rl.metrics import episode_returns

_MAX_ENTRIES = 6
_DENSE = 250


@dataclass(frozen=True)
class _Episode:
    title: str
    reward: np.ndarray  # (T,)
    action: np.ndarray  # (T, A)


def draw_episodes(reward: Tensor, action: Tensor, mask: Tensor, title: str) -> Figure:
    """Draw the rewards and actions of the best and of the worst episode; of the only one if there is one.

    Args:
        reward: Rewards, shape (N, T).
        action: Actions in [-1, 1], shape (N, T, A); the first six entries are drawn.
        mask: Whether a step belongs to the episode, boolean, shape (N, T).
        title: Title.
    """
    returns = episode_returns(reward, mask)
    named = [("best", int(returns.argmax())), ("worst", int(returns.argmin()))][: len(returns)]
    episodes = [
        _Episode(
            f"{name} of {len(returns)} episodes: return {float(returns[n]):.1f}, {int(mask[n].sum())} steps",
            reward[n][mask[n]].numpy(),
            action[n][mask[n]][:, :_MAX_ENTRIES].numpy(),
        )
        for name, n in named
    ]
    rows = 1 + episodes[0].action.shape[1]
    figure = new_figure(1.0 + 5.0 * len(episodes), 2.0 + 1.15 * rows, title)
    panels = figure.subplots(
        rows, len(episodes), squeeze=False, sharex="col", sharey="row", height_ratios=[1.6] + [1.0] * (rows - 1)
    )
    for column, episode in enumerate(episodes):
        _draw_episode(list(panels[:, column]), episode, action.shape[-1], labelled=column == 0)
    return figure


def _draw_episode(panels: list[Axes], episode: _Episode, action_dim: int, labelled: bool) -> None:
    panels[0].set_title(episode.title, fontsize=9)
    _draw_series(panels[0], episode.reward, BLUE)
    if len(episode.reward) > _DENSE:
        panels[0].legend(fontsize=8, frameon=False, ncols=2)
    tidy(panels[0], y_label="reward" if labelled else "")
    for entry, axes in enumerate(panels[1:]):
        _draw_series(axes, episode.action[:, entry], GREEN)
        axes.set_ylim(-1.12, 1.12)
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
