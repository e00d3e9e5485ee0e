"""The figures on bandits show what they are given."""

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

from flowmatch_rl.evaluation import EstimatorErrors
from flowmatch_rl.figures import BanditPanels, draw_bandit_samples, draw_estimator_errors, save_figure

T = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


def curve(bias: list[float], deviation: list[float]) -> EstimatorErrors:
    numbers = (torch.tensor(values, dtype=torch.float64) for values in (bias, [0.01] * 3, deviation, bias, bias))
    return EstimatorErrors(T, *numbers)


def test_errors_have_a_column_per_bandit_and_a_line_per_estimator(tmp_path) -> None:
    first, second = curve([3.0, 0.2, 0.015], [1.0, 0.5, 0.0]), curve([1.0, 1.0, 1.0], [0.1, 0.1, 0.1])
    figure = draw_estimator_errors({"flat": {"a": first, "b": second}, "moons": {"a": second, "b": first}})
    panels = figure.axes
    assert len(panels) == 4
    assert [axes.get_title() for axes in panels[:2]] == ["flat", "moons"]
    assert [axes.get_yscale() for axes in panels] == ["log"] * 4
    bias, deviation = panels[0].lines[0], panels[2].lines[0]
    # Bias below twice its resolution, and no deviation, have no place on a logarithmic axis.
    np.testing.assert_array_equal(bias.get_ydata(), [3.0, 0.2, np.nan])
    np.testing.assert_array_equal(deviation.get_ydata(), [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(panels[1].lines[1].get_ydata(), [3.0, 0.2, np.nan])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert [axes.get_xlabel() for axes in panels] == ["", "", "flow time", "flow time"]
    save_figure(figure, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 10_000


def panels_of(action_dim: int, **samples: np.ndarray | None) -> BanditPanels:
    grid = np.linspace(0.0, 1.0, 25).reshape(5, 5)
    distance = {name: 0.125 for name, points in samples.items() if points is not None}
    return BanditPanels(grid, np.zeros((7, 2)), samples, distance, action_dim)


def test_samples_have_a_row_per_bandit_and_a_column_per_method(tmp_path) -> None:
    points = np.array([[0.5, -0.5], [0.25, 1.0]])
    figure = draw_bandit_samples({"moons": panels_of(2, x=points, y=None), "box": panels_of(6, x=-points, y=points)})
    panels = figure.axes
    assert [axes.get_title() for axes in panels[:3]] == ["exact samples", "x: 0.1250", "y: no result"]
    assert panels[0].get_ylabel() == "moons"
    assert panels[3].get_ylabel() == "box\nfirst 2 of 6 actions"
    clouds = [[c for c in axes.collections if isinstance(c, PathCollection)] for axes in panels]
    assert [len(cloud) for cloud in clouds] == [1, 1, 0, 1, 1, 1]
    np.testing.assert_array_equal(clouds[1][0].get_offsets(), points)
    np.testing.assert_array_equal(clouds[4][0].get_offsets(), -points)
    image = panels[0].images[0]
    assert image.origin == "lower"
    assert list(image.get_extent()) == [-1, 1, -1, 1]
    assert image.norm.vmax == pytest.approx(2.0)  # four times the mean, for densities that are nearly flat
    save_figure(figure, tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size > 10_000
