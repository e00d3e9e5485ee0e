"""Learning curves: a point per evaluation, kept in checkpoints, drawn at the end."""

import abc
import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from flowmatch_rl.callbacks.artifacts import file_path, publish, write_figure, writes_files
from flowmatch_rl.callbacks.stopwatch import Stopwatch
from flowmatch_rl.evaluation import CurvePoint, LossPoint, names_of
from flowmatch_rl.figures import Figure, draw_loss_curve
from flowmatch_rl.files import CURVE, FIGURES, atomic_path

_Point = TypeVar("_Point", bound=CurvePoint)


class Curve(Callback, abc.ABC, Generic[_Point]):
    """Adds a point at every evaluation of a training; draws a figure, and writes a table of the numbers.

    Both lie in ``figures``. The table is written at every evaluation, so that a run in progress, or one that was
    killed, has one too. Points are kept in checkpoints, so that the curve of a resumed run is whole. So is the wall
    time of the training, which leaves out evaluations and what other callbacks do after them.

    Args:
        kind: Class of the points.
    """

    table: ClassVar[str] = CURVE
    picture: ClassVar[str] = "learning_curve.png"

    def __init__(self, kind: type[_Point]) -> None:
        self._kind = kind
        self._points: list[_Point] = []
        self._stopwatch = Stopwatch()

    @abc.abstractmethod
    def measure(self, trainer: Trainer, seconds: float | None) -> _Point | None:
        """The point of the evaluation that has just ended; None if there is nothing to add.

        Args:
            trainer: The run's trainer.
            seconds: Wall time of the training so far, None if it is not known.
        """

    @abc.abstractmethod
    def draw(self, points: Sequence[_Point], trainer: Trainer) -> Figure:
        """Draw the curve.

        Args:
            points: At least one, in the order of their steps.
            trainer: The run's trainer.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the stopwatch; warm-up comes after this."""
        self._stopwatch.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume the stopwatch after an evaluation."""
        self._stopwatch.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Resume the stopwatch after an evaluation in the middle of an epoch."""
        self._stopwatch.start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the stopwatch."""
        self._stopwatch.stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a point, and write the table."""
        if writes_files(trainer) and trainer.state.fn == TrainerFn.FITTING:
            point = self.measure(trainer, self._stopwatch.seconds)
            if point is None:
                return
            # A run resumed from within an epoch evaluates at a step that may have a point already.
            self._points = [*(known for known in self._points if _step(known) < _step(point)), point]
            write_table(self._points, file_path(trainer, FIGURES, self.table))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the stopwatch."""
        self._stopwatch.stop()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curve."""
        self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the curve up to where training broke off."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The points and the wall time so far."""
        points = [dataclasses.asdict(point) for point in self._points]
        return {"evaluations": points, "seconds": self._stopwatch.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the points of a checkpoint. One of an earlier version holds no time: it stays unknown."""
        self._stopwatch.go_on_from(state_dict.get("seconds"))
        self._points = [self._kind(**point) for point in state_dict["evaluations"]]

    def _write(self, trainer: Trainer) -> None:
        if not (writes_files(trainer) and self._points):
            return
        table = file_path(trainer, FIGURES, self.table)
        write_table(self._points, table)
        publish(trainer, table, FIGURES)
        write_figure(trainer, self.draw(self._points, trainer), self.picture)


class LossCurve(Curve[LossPoint]):
    """Draws ``figures/learning_curve.png`` of a generative model, and writes its numbers to ``learning_curve.csv``.

    Every evaluation during training adds a point: the loss, its value on held-out data, and the distance of samples
    to them. It is drawn when training ends, and when it breaks off.
    """

    def __init__(self) -> None:
        super().__init__(LossPoint)

    def measure(self, trainer: Trainer, seconds: float | None) -> LossPoint:
        """Losses and distance at the present gradient step."""
        metrics = trainer.callback_metrics
        return LossPoint(
            gradient_steps=trainer.global_step,
            train_loss=metric(metrics, "train/loss"),
            val_loss=metric(metrics, "val/loss"),
            energy_distance=metric(metrics, "val/energy_distance"),
            seconds=seconds,
        )

    def draw(self, points: Sequence[LossPoint], trainer: Trainer) -> Figure:
        """Losses and distance by gradient step."""
        return draw_loss_curve(points, data_label(trainer))


def data_label(trainer: Trainer) -> str:
    """Short name of the data of a run, for titles; empty if it has none."""
    return getattr(trainer.datamodule, "label", "")  # pyright: ignore[reportAttributeAccessIssue]


def walls_of(trainer: Trainer) -> Tensor | None:
    """Walls in the plane of the first two entries of the state, shape (W, 4); None where there are none."""
    return getattr(trainer.datamodule, "walls", None)  # pyright: ignore[reportAttributeAccessIssue]


def metric(metrics: Mapping[str, Any], name: str) -> float | None:
    """A metric as a number, or None if it was not measured."""
    return float(metrics[name]) if name in metrics else None


def write_table(points: Sequence[CurvePoint], path: Path) -> None:
    """Write the points of a curve as CSV, one row each, an empty field for what was not measured.

    Args:
        points: In the order of their steps, all of one class, at least one.
        path: Target.
    """
    with atomic_path(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names_of(points[0]))
        writer.writeheader()
        writer.writerows(dataclasses.asdict(point) for point in points)


def _step(point: CurvePoint) -> int:
    return getattr(point, names_of(point)[0])
