"""A prediction along a path, read as any other one."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from flowmatch_rl.paths.affine import AffinePath
from flowmatch_rl.types import AverageVelocity, Prediction, Velocity


@dataclass(frozen=True)
class Field:
    """What a model predicts along its path.

    Args:
        path: The path.
        predict: The prediction, called as ``predict(x, t, condition)``.
        prediction: What it is.
        average_velocity: Velocity averaged over an interval, for models that have learned it.
        bind: Makes the prediction at one condition, for networks that compute its features once; the prediction is
            then called as ``predict(x, t, None)``.
    """

    path: AffinePath
    predict: Velocity
    prediction: Prediction = "velocity"
    average_velocity: AverageVelocity | None = None
    bind: Callable[[Tensor | None], Velocity] | None = None

    def at(self, condition: Tensor | None) -> "Field":
        """The field at one condition, which its methods then ignore; cheaper where it is evaluated many times.

        Average velocities are left behind.

        Args:
            condition: Context, or None.
        """

        def here(x: Tensor, t: Tensor, _: Tensor | None = None) -> Tensor:
            return self.predict(x, t, condition)

        return Field(self.path, self.bind(condition) if self.bind else here, self.prediction)

    def read_as(self, target: Prediction, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction at x, converted.

        Args:
            target: What is wanted.
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
