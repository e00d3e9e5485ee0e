"""A model's prediction along a path, and its conversion to other kinds of prediction."""

from collections.abc import Callable
from dataclasses import dataclass

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
            ``predict(x, t, None)``.
    """

    path: AffinePath
    predict: Velocity
    prediction: Prediction = "velocity"
    average_velocity: AverageVelocity | None = None
    bind: Callable[[Tensor | None], Velocity] | None = None

    def at(self, condition: Tensor | None) -> "Field":
        """The field at a fixed condition; cheaper where it is evaluated many times.

        Its methods ignore the condition they are called with, and it has no average velocity.

        Args:
            condition: Context, or None.
        """

        def here(x: Tensor, t: Tensor, _: Tensor | None = None) -> Tensor:
            return self.predict(x, t, condition)

        return Field(self.path, self.bind(condition) if self.bind else here, self.prediction)

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
