"""Curves of a training: a point per evaluation, kept in checkpoints, drawn at the end."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure

from flowmatch_rl.callbacks.artifacts import FIGURES, file_path, publish, write_figure, writes_files
from flowmatch_rl.callbacks.drawing import LossPoint, Point, draw_loss_curve, write_table

_Point = TypeVar("_Point", bound=Point)


class Curve(Callback, abc.ABC, Generic[_Point]):
    """Adds a point at every evaluation of a training; draws ``learning_curve.png`` and writes ``learning_curve.csv``.

    Both lie in ``figures``. Points are kept in checkpoints, so that the curve of a resumed run is whole.

    Args:
        kind: Class of the points.
    """

    def __init__(self, kind: type[_Point]) -> None:
        self._kind = kind
        self._points: list[_Point] = []

    @abc.abstractmethod
    def measure(self, trainer: Trainer) -> _Point:
        """The point of the evaluation that has just ended.

        Args:
            trainer: The run's trainer.
        """

    @abc.abstractmethod
    def draw(self, points: Sequence[_Point], trainer: Trainer) -> Figure:
        """Draw the curve.

        Args:
            points: At least one, in the order of their steps.
            trainer: The run's trainer.
        """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a point."""
        if writes_files(trainer) and trainer.state.fn == TrainerFn.FITTING:
            point = self.measure(trainer)
            # A run resumed from within an epoch evaluates at a step that it may have seen already.
            self._points = [*(known for known in self._points if _step(known) < _step(point)), point]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curve."""
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the curve up to where training broke off."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The points so far."""
        return {"evaluations": [dataclasses.asdict(point) for point in self._points]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the points of a checkpoint."""
        self._points = [self._kind(**point) for point in state_dict["evaluations"]]

    def _write(self, trainer: Trainer) -> None:
        if not (writes_files(trainer) and self._points):
            return
        table = file_path(trainer, FIGURES, "learning_curve.csv")
        write_table(self._points, table)
        publish(trainer, table, FIGURES)
        write_figure(trainer, self.draw(self._points, trainer), "learning_curve.png")


class LossCurve(Curve[LossPoint]):
    """Draws ``figures/learning_curve.png`` of a generative model, and writes its numbers to ``learning_curve.csv``.

    Every evaluation during training adds a point: the loss, its value on held-out data, and the distance of samples
    to them. It is drawn when training ends, and when it breaks off.
    """

    def __init__(self) -> None:
        super().__init__(LossPoint)

    def measure(self, trainer: Trainer) -> LossPoint:
        """Losses and distance at the present gradient step."""
        metrics = trainer.callback_metrics
        return LossPoint(
            gradient_steps=trainer.global_step,
            train_loss=metric(metrics, "train/loss"),
            val_loss=metric(metrics, "val/loss"),
            energy_distance=metric(metrics, "val/energy_distance"),
        )

    def draw(self, points: Sequence[LossPoint], trainer: Trainer) -> Figure:
        """Losses and distance by gradient step."""
        return draw_loss_curve(points, data_label(trainer))


def data_label(trainer: Trainer) -> str:
    """Short name of the data of a run, for titles; empty if it has none."""
    return getattr(trainer.datamodule, "label", "")  # pyright: ignore[reportAttributeAccessIssue]


def metric(metrics: Mapping[str, Any], name: str) -> float | None:
    """A metric as a number, or None if it was not measured."""
    return float(metrics[name]) if name in metrics else None


def _step(point: Point) -> int:
    return getattr(point, dataclasses.fields(point)[0].name)
