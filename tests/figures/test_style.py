"""Text of figures is drawn as it is: names of columns, classes, methods and tasks may hold what mathematics uses."""

import io
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from matplotlib.figure import Figure

from flowmatch_rl.evaluation.view import Groups
from flowmatch_rl.figures import save_figure
from flowmatch_rl.figures.clouds import Palette
from flowmatch_rl.figures.style import new_figure, tidy

NAMES = ["$a_b$", r"$\bad{$", r"50 \$ and 50 $", "rate%", "$^^$ x $"]


def fill(figure: Figure, title: str, names: list[str]) -> bytes:
    """A figure with a name wherever text goes, and numbers on a logarithmic axis."""
    figure.suptitle(title, fontsize=12)
    left, right = figure.subfigures(1, 2)
    axes, other = left.subplots(), right.subplots()
    axes.plot([1.0, 2.0, 3.0], [1.0, 30.0, 9000.0], label=names[0])
    axes.set_yscale("log")
    tidy(axes, names[1], names[2])
    axes.text(1.5, 2.0, names[3])
    axes.legend()
    other.set_yticks(range(len(names)), names)
    Palette(Groups(names[4], np.zeros(3), tuple(names[:2]))).explain([other])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return file.getvalue()


def test_dollar_signs_are_no_mathematics_but_logarithmic_axes_have_their_powers() -> None:
    got = fill(new_figure(8.0, 4.0, ""), NAMES[0], NAMES)
    plain = Figure(figsize=(8.0, 4.0), dpi=120, layout="constrained")
    wanted = fill(plain, NAMES[0].replace("$", r"\$"), [name.replace("$", r"\$") for name in NAMES])
    assert np.array_equal(iio.imread(got), iio.imread(wanted))


@pytest.mark.parametrize("name", NAMES)
def test_a_title_may_be_anything(name: str, tmp_path: Path) -> None:
    save_figure(new_figure(2.0, 1.0, name), tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()
