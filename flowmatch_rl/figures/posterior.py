"""Targets of a policy by flow time, over the course of a training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from flowmatch_rl.evaluation import PosteriorProfile
from flowmatch_rl.figures.style import BLUE, new_figure, tidy

MAX_CURVES = 8
"""Stretches of training that are drawn at most."""
_COLUMNS = 3
_PANELS = {
    "effective_sample_fraction": ("effective samples", "fraction of the samples", "fraction"),
    "eta": ("control variate", "coefficient eta", "number"),
    "target_rms": ("what the network regresses on", "root mean square", "scale"),
    "saturated": ("endpoints at a bound", "fraction of the entries", "fraction"),
    "log_density_spread": ("log-density over the samples", "standard deviation, nats", "scale"),
}
"""Title, label and kind of the axis by quantity; one that is not listed is drawn under its own name."""


def draw_posterior(profiles: Sequence[PosteriorProfile], title: str, unit: str = "environment steps") -> Figure:
    """Draw a panel per quantity against flow time: the last stretch in full colour, earlier ones fading.

    Of a long training, stretches at equal distances are drawn, the first and the last among them.

    Args:
        profiles: In the order of their steps, at least one.
        title: Title.
        unit: What the steps count.

    Raises:
        ValueError: If there is no profile.
    """
    if not profiles:
        raise ValueError("expected at least one profile, got none")
    chosen = np.linspace(0, len(profiles) - 1, min(MAX_CURVES, len(profiles))).round().astype(int)
    drawn = [profiles[index] for index in chosen]
    names = list(dict.fromkeys(name for profile in drawn for name in profile.means))
    rows = -(-(len(names) + 1) // _COLUMNS)  # and a place for the legend
    figure = new_figure(3.4 * _COLUMNS, 0.5 + 2.6 * rows, title)
    panels = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    colors = _fading(len(drawn))
    for index, name in enumerate(names):
        _draw_quantity(panels[index], name, drawn, colors)
        lowest = index + _COLUMNS >= len(names)
        tidy(panels[index], "flow time" if lowest else "", panels[index].get_ylabel())
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    number = EngFormatter(sep="")
    lines = [Line2D([], [], color=color, linewidth=1.8) for color in colors]
    labels = [f"until {number(profile.step)}" for profile in drawn]
    panels[len(names)].legend(
        lines[::-1], labels[::-1], title=unit, title_fontsize=9, fontsize=8, frameon=False, loc="upper left"
    )
    return figure


def _fading(number: int) -> list[str]:
    """Colours from pale to full, the last one full."""
    strength = np.linspace(0.2, 0.8, number) if number > 1 else np.ones(1)
    strength[-1] = 1.0
    red, green, blue = to_rgb(BLUE)
    return [to_hex((1.0 - s * (1.0 - red), 1.0 - s * (1.0 - green), 1.0 - s * (1.0 - blue))) for s in strength]


def _draw_quantity(axes: Axes, name: str, profiles: Sequence[PosteriorProfile], colors: Sequence[str]) -> None:
    title, label, kind = _PANELS.get(name, (name, "", "number"))
    values = np.array([], dtype=float)
    for profile, color in zip(profiles, colors, strict=True):
        if name in profile.means:
            last = profile is profiles[-1]
            mean = np.array(profile.means[name], dtype=float)
            axes.plot(
                profile.t, mean, color=color, marker="o", markersize=3.5 if last else 0, linewidth=2 if last else 1.2
            )
            values = np.append(values, mean[np.isfinite(mean)])
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(label)
    axes.set_xlim(0.0, 1.0)
    if kind == "fraction":
        axes.set_ylim(-0.03, 1.03)
    elif kind == "scale" and len(values) and values.min() > 0.0 and values.max() > 10.0 * values.min():
        axes.set_yscale("log")
    elif kind == "scale":
        axes.set_ylim(bottom=0.0)
