"""A prediction along a path, read as any other one."""

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
    """

    path: AffinePath
    predict: Velocity
    prediction: Prediction = "velocity"
    average_velocity: AverageVelocity | None = None

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
