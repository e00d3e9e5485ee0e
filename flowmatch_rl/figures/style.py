"""The look of the figures: colours that colour-blind readers tell apart, light axes, no global state."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
FLOW_COLORS = "viridis"
VALUE_COLORS = "Blues"
STEPS = {"env_steps": "environment steps", "gradient_steps": "gradient steps"}
"""What the steps of curves are called, by the names of their columns."""


class PlainFigure(Figure):
    """A figure whose text is drawn as it is.

    Names of columns, classes, methods and tasks come from users, and two dollar signs would be read as mathematics.
    Only the numbers of axes that are not linear are: they are powers.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draw everything."""
        for text in self.findobj(Text):
            text.set_parse_math(False)  # pyright: ignore[reportAttributeAccessIssue] - of a Text
        for axes in self.axes:
            for axis in (axes.xaxis, axes.yaxis):
                for label in axis.get_ticklabels(which="both"):
                    label.set_parse_math(axis.get_scale() != "linear")
        super().draw(renderer)


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure on a canvas of its own, of no interest to ``pyplot``.

    Args:
        width: Inches.
        height: Inches.
        title: Title above all panels.
    """
    figure = PlainFigure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    return figure


def tidy(axes: Axes, x_label: str = "", y_label: str = "") -> None:
    """Label a panel and take away what draws the eye from its data.

    Args:
        axes: The panel.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
    """
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def count_steps(axes: Axes) -> None:
    """Write the numbers of a horizontal axis of counts as 10k, 1M."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def scale_around_zero(axes: Axes, noise: float, values: np.ndarray) -> None:
    """Make a vertical axis logarithmic above a noise level and linear below, where numbers scatter around zero.

    An axis that ends not far above the noise stays linear.

    Args:
        axes: The panel.
        noise: Level of the noise, positive.
        values: What is drawn.
    """
    low, top = float(np.nanmin(values, initial=0.0)), float(np.nanmax(values, initial=noise))
    logarithmic = top > 4.0 * noise
    if logarithmic:
        axes.set_yscale("symlog", linthresh=noise)
    axes.set_ylim(1.2 * low - 0.4 * noise, 1.6 * top)
    if logarithmic:
        axes.set_yticks([tick for tick in axes.get_yticks() if tick == 0.0 or noise < tick < 1.6 * top])


def widened(low: float, high: float, fraction: float) -> tuple[float, float]:
    """An interval made longer at both ends by a fraction of its length; by 1 where it has none."""
    margin = fraction * (high - low) if high > low else 1.0
    return low - margin, high + margin


def action_name(dimension: int, action_dim: int) -> str:
    """Name of one entry of the action, in [-1, 1]."""
    return "action" if action_dim == 1 else f"action[{dimension}]"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG.

    Args:
        figure: The figure.
        path: Target; its folder exists.
    """
    figure.savefig(path, format="png", facecolor="white")
