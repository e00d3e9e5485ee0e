"""Figures on bandits: errors of estimators along the path, and samples of policies over exact densities."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowmatch_rl.evaluation import EstimatorErrors
from flowmatch_rl.figures.style import BLUE, GREEN, GREY, ORANGE, RED, VALUE_COLORS, new_figure, tidy

_COLORS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#5D3A9B", GREY)
_MARKERS = "osD^vP*X"
_LINES = ("-", "--", ":")


@dataclass(frozen=True)
class BanditPanels:
    """The Boltzmann distribution of a bandit, and samples of policies that were trained toward it.

    Attributes:
        density: Density of the first two actions on an even grid over [-1, 1]^2, rows by the second, shape (G, G).
        exact: Exact samples of the first two actions, shape (N, 2).
        samples: Samples by method, shape (N, 2) each; None where no run has ended.
        distance: Energy distance to exact samples, by method.
        action_dim: Dimension of the action.
    """

    density: np.ndarray
    exact: np.ndarray
    samples: Mapping[str, np.ndarray | None]
    distance: Mapping[str, float]
    action_dim: int


def draw_estimator_errors(errors: Mapping[str, Mapping[str, EstimatorErrors]]) -> Figure:
    """Draw bias and standard deviation of estimators against flow time, a column per bandit.

    Args:
        errors: Errors by estimator, by bandit; at least one each. Bias that is not above twice its resolution is left
            out.
    """
    figure = new_figure(
        max(7.4, 1.0 + 3.4 * len(errors)),
        6.2,
        "Errors of the estimated mean of x_1 given x_t, in latent units per dimension",
    )
    panels = figure.subplots(2, len(errors), squeeze=False, sharex=True, sharey=True)
    for column, (bandit, curves) in zip(panels.T, errors.items(), strict=True):
        for i, (name, curve) in enumerate(curves.items()):
            looks = {
                "color": _COLORS[i % len(_COLORS)],
                "marker": _MARKERS[i % len(_MARKERS)],
                "linestyle": _LINES[i // len(_COLORS) % len(_LINES)],
                "markersize": 3.5,
                "linewidth": 1.3,
                "label": name,
            }
            bias = curve.bias.where(curve.bias > 2.0 * curve.resolution, torch.nan)
            column[0].plot(curve.t.numpy(), bias.numpy(), **looks)
            deviation = curve.deviation.where(curve.deviation > 0.0, torch.nan)
            column[1].plot(curve.t.numpy(), deviation.numpy(), **looks)
        column[0].set_title(bandit, fontsize=10)
        for axes in column:
            axes.set_yscale("log")
            axes.set_xlim(0.0, 1.0)
    names = "bias, where it can be told from zero", "standard deviation"
    for row, name, label in zip(panels, names, ("", "flow time"), strict=True):
        for i, axes in enumerate(row):
            tidy(axes, label, "" if i else name)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), fontsize=8, frameon=False)
    return figure


def draw_bandit_samples(bandits: Mapping[str, BanditPanels]) -> Figure:
    """Draw samples of policies over exact densities: a row per bandit, a column per method.

    Args:
        bandits: Panels by bandit, the same methods in each; at least one.
    """
    methods = list(next(iter(bandits.values())).samples)
    figure = new_figure(0.9 + 1.9 * (1 + len(methods)), 0.5 + 2.15 * len(bandits), "Samples over the exact density")
    panels = figure.subplots(len(bandits), 1 + len(methods), squeeze=False)
    for row, (name, bandit) in zip(panels, bandits.items(), strict=True):
        _draw_panel(row[0], bandit, bandit.exact, "exact samples")
        for axes, method in zip(row[1:], methods, strict=True):
            points = bandit.samples[method]
            note = f"{bandit.distance[method]:.4f}" if method in bandit.distance else "no result"
            _draw_panel(axes, bandit, points, f"{method}: {note}")
        more = "" if bandit.action_dim == 2 else f"\nfirst 2 of {bandit.action_dim} actions"
        row[0].set_ylabel(f"{name}{more}", fontsize=9)
        for axes in row[1:]:
            axes.tick_params(labelleft=False)
    for axes in panels[:-1].flat:
        axes.tick_params(labelbottom=False)
    figure.supxlabel("number in each title: energy distance to exact samples over all actions", fontsize=8)
    return figure


def _draw_panel(axes: Axes, bandit: BanditPanels, points: np.ndarray | None, title: str) -> None:
    # A flat density is pale, so that points show on it.
    top = max(1.4 * float(bandit.density.max()), 4.0 * float(bandit.density.mean()))
    axes.imshow(bandit.density, origin="lower", extent=(-1, 1, -1, 1), cmap=VALUE_COLORS, vmin=0.0, vmax=top, zorder=0)
    if points is not None:
        axes.scatter(points[:, 0], points[:, 1], s=2.0, color=RED, alpha=0.5, linewidths=0.0)
    tidy(axes)
    axes.grid(visible=False)
    # A little beyond the box: what sits on its edge would be cut in half.
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xticks([-1, 0, 1])
    axes.set_yticks([-1, 0, 1])
    axes.set_box_aspect(1.0)
    axes.set_title(title, fontsize=8)
