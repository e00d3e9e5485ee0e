"""A model's prediction along a path, and its conversion to other kinds of prediction."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.paths.affine import AffinePath
from flowmatch_rl.types import AverageVelocity, Prediction, Velocity


@dataclass(frozen=True)
class Field:
    """The prediction of a model along its path.

    Args:
        path: Probability path.
        predict: The prediction, called as ``predict(x, t, condition)``.
        prediction: Kind of prediction.
        average_velocity: Velocity averaged over an interval, for models that have learned it.
        bind: Fixes the condition, for networks that compute its features once; its result is called as
            ``predict(x, t, None)``, or with a duration as fourth argument for average velocities.
    """

    path: AffinePath
    predict: Velocity
    prediction: Prediction = "velocity"
    average_velocity: AverageVelocity | None = None
    bind: Callable[[Tensor | None], Callable[..., Tensor]] | None = None

    def at(self, condition: Tensor | None) -> "Field":
        """The field at a fixed condition; cheaper where it is evaluated many times.

        Its methods ignore the condition they are called with.

        Args:
            condition: Context, or None.
        """
        if self.bind is None:
            average = self.average_velocity
            return Field(
                self.path,
                lambda x, t, _: self.predict(x, t, condition),
                self.prediction,
                None if average is None else lambda x, t, duration, _: average(x, t, duration, condition),
            )
        bound = self.bind(condition)
        averages = self.average_velocity is not None
        return Field(
            self.path,
            bound,
            self.prediction,
            (lambda x, t, duration, _: bound(x, t, None, duration)) if averages else None,
        )

    def read_as(self, target: Prediction, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction at x, converted to another kind.

        Args:
            target: Kind of prediction to return.
            x: Points, shape (*batch, D).
            t: Flow time in [0, 1], its shape a prefix of the batch shape.
            condition: Context, or None.

        Returns:
            Velocity, data, noise or score, shape (*batch, D).
        """
        return self.path.convert(self.predict(x, t, condition), x, t, self.prediction, target)

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The marginal velocity at x, shape (*batch, D)."""
        return self.read_as("velocity", x, t, condition)


def guided(absent: Callable[..., Tensor], present: Callable[..., Tensor], guidance: float) -> Callable[..., Tensor]:
    """Classifier-free guidance: ``absent + guidance (present - absent)``.

    Args:
        absent: Prediction without the condition, called as ``absent(x, t, None)``.
        present: Prediction given the condition.
        guidance: Weight of the condition; above 1 to exaggerate.

    Returns:
        Function of the same arguments.

    Reference:
        Ho and Salimans, arXiv:2207.12598.
    """

    def predict(x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.lerp(absent(x, t, condition), present(x, t, condition), guidance)

    return predict
