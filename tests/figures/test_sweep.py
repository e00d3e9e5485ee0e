"""Figures of sweeps: what is drawn of trials that are complete, pruned or failed."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from flowmatch_rl.figures.sweep import SearchedKey, SweepView, draw_history, draw_keys, draw_sweep

NAN = float("nan")


def view(**changes: Any) -> SweepView:
    """Four trials, of which the second was pruned and the third failed before its first evaluation."""
    curves = [np.array([[10.0, 1.0], [20.0, 3.0]]), np.array([[10.0, 0.5]]), np.zeros((0, 2)), np.array([[10.0, 2.0]])]
    fields: dict[str, Any] = {
        "objective": "return_mean",
        "maximizes": True,
        "numbers": np.arange(4),
        "values": np.array([3.0, NAN, NAN, 2.0]),
        "pruned": np.array([False, True, False, False]),
        "failed": np.array([False, False, True, False]),
        "curves": curves,
        "counts": "env_steps",
        "curve_label": "return_mean",
        "keys": [
            SearchedKey("model.rate", [0.1, 0.01, 0.1, 0.001], None, True, 0.75),
            SearchedKey("preset", ["slow", "fast", "fast", "fast"], ["fast", "slow"], False, 0.25),
        ],
    }
    return SweepView(**fields | changes)


def lines(axes: Axes) -> dict[str, np.ndarray]:
    """Points of the named lines of a panel, shape (P, 2)."""
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}


def test_history_shows_each_trial_once_and_the_best_so_far() -> None:
    values, curves = draw_history(view()).axes
    drawn = lines(values)
    np.testing.assert_array_equal(drawn["best so far"], [[0.0, 3.0], [1.0, 3.0], [2.0, 3.0], [3.0, 3.0]])
    np.testing.assert_array_equal(drawn["best"], [[0.0, 3.0]])
    assert (drawn["pruned"][:, 0].tolist(), drawn["failed"][:, 0].tolist()) == ([1.0], [2.0])
    assert curves.get_xlabel() == "environment steps"
    ends = [np.asarray(line.get_xydata())[-1].tolist() for line in curves.get_lines()]
    assert ends[-1] == [20.0, 3.0]  # the best one, on top of the others
    assert [10.0, 0.5] in ends
    least = lines(draw_history(view(maximizes=False)).axes[0])
    np.testing.assert_array_equal(least["best"], [[3.0, 2.0]])
    # Without a value a trial lies where the worst ones do.
    assert (drawn["pruned"][0, 1] < 0.1, least["pruned"][0, 1] > 0.9) == (True, True)


def test_keys_have_their_importance_and_a_panel_each() -> None:
    importance, rate, preset = draw_keys(view()).axes
    assert [label.get_text() for label in importance.get_yticklabels()] == ["preset", "model.rate"]
    assert [bar.get_width() for bar in importance.patches] == [0.25, 0.75]
    assert (rate.get_xscale(), preset.get_xscale()) == ("log", "linear")
    assert [label.get_text() for label in preset.get_xticklabels()] == ["fast", "slow"]
    assert np.round(lines(preset)["pruned"][:, 0]).tolist() == [0.0]
    keys = [SearchedKey("model.rate", [0.1, 0.01, 0.1, 0.001], None, True, NAN)]
    assert len(draw_keys(view(keys=keys)).axes) == 1


def test_a_sweep_without_any_complete_trial_or_evaluation_is_drawn() -> None:
    nothing = {"values": np.full(4, NAN), "curves": [np.zeros((0, 2))] * 4, "counts": ""}
    figure = draw_sweep(view(**nothing), "title", "4 trials")
    assert view(**nothing).best is None
    figure.canvas.draw()
