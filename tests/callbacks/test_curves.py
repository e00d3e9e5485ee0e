from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn, TrainerState

from flowmatch_rl.callbacks.curves import LossCurve
from flowmatch_rl.evaluation import LossPoint
from flowmatch_rl.figures import draw_loss_curve
from tests.callbacks.stand_ins import stand_in_trainer
from tests.callbacks.test_figures import is_drawn, read_table

MODULE: Any = None


def evaluate(curve: LossCurve, folder: Path, step: int, **changes: Any) -> Any:
    """Let an evaluation at some step end; returns the trainer."""
    metrics = {
        "train/loss": torch.tensor(2.0 / step),
        "val/loss": torch.tensor(3.0 / step),
        "val/energy_distance": torch.tensor(1.0 / step - 0.1),
    }
    arguments = {"callback_metrics": metrics, "datamodule": SimpleNamespace(label="some data"), "global_step": step}
    trainer = stand_in_trainer(folder, **arguments | changes)
    curve.on_validation_end(trainer, MODULE)
    return trainer


@pytest.mark.parametrize("broken", [False, True])
def test_a_training_leaves_its_losses_as_a_figure_and_a_table(tmp_path: Path, broken: bool) -> None:
    curve, trainer = LossCurve(), None
    for step in (1, 4, 8, 20):
        trainer = evaluate(curve, tmp_path, step)
    if broken:
        curve.on_exception(trainer, MODULE, RuntimeError())
    else:
        curve.on_fit_end(trainer, MODULE)
    rows = read_table(tmp_path)
    assert [int(row["gradient_steps"]) for row in rows] == [1, 4, 8, 20]
    assert [float(row["val_loss"]) for row in rows] == pytest.approx([3.0, 0.75, 0.375, 0.15])
    assert float(rows[-1]["energy_distance"]) == pytest.approx(-0.05)
    assert is_drawn(tmp_path / "figures" / "learning_curve.png")


def test_a_resumed_training_keeps_its_earlier_points_and_replaces_those_seen_again(tmp_path: Path) -> None:
    curve, again = LossCurve(), LossCurve()
    evaluate(curve, tmp_path, 10)
    evaluate(curve, tmp_path, 20)
    torch.save(curve.state_dict(), tmp_path / "state")
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    evaluate(again, tmp_path, 20, callback_metrics={})
    evaluations = again.state_dict()["evaluations"]
    assert evaluations[0] == curve.state_dict()["evaluations"][0]
    unknown = {"train_loss": None, "val_loss": None, "energy_distance": None}
    assert evaluations[1] == {"gradient_steps": 20, "seconds": evaluations[1]["seconds"]} | unknown


@pytest.mark.parametrize("changes", [{"is_global_zero": False}, {"state": TrainerState(fn=TrainerFn.VALIDATING)}])
def test_other_processes_and_evaluations_outside_training_add_nothing(tmp_path: Path, changes: Any) -> None:
    curve = LossCurve()
    trainer = evaluate(curve, tmp_path, 10, **changes)
    curve.on_fit_end(trainer, MODULE)
    assert list(tmp_path.iterdir()) == []


def test_distances_around_zero_are_all_shown() -> None:
    values = (0.5, 0.1, 0.002, -0.001)
    figure = draw_loss_curve([LossPoint(i, 1.0, 1.0, value) for i, value in enumerate(values)], "title")
    panel = figure.axes[1]
    assert panel.get_yscale() == "symlog"
    low, high = panel.get_ylim()
    assert low < min(values) < max(values) < high
    np.testing.assert_array_equal(panel.lines[0].get_ydata(), values)
