"""Points of a path, with the pair of endpoints that each was made of."""

from dataclasses import dataclass, replace

from torch import Tensor

from flowmatch_rl.paths.affine import AffinePath
from flowmatch_rl.types import Prediction


@dataclass(frozen=True)
class PathPoints:
    """Points of a path, with the pair of endpoints that each was made of.

    Attributes:
        x_0: Noise, shape (B, D).
        x_1: Data, shape (B, D).
        x_t: Points ``alpha x_1 + sigma x_0``, shape (B, D).
        t: Flow times in [0, 1], shape (B,).
        duration: Length of the interval in flow time that begins at each point, for average velocities, shape (B,);
            None for instantaneous predictions.
    """

    x_0: Tensor
    x_1: Tensor
    x_t: Tensor
    t: Tensor
    duration: Tensor | None = None

    @classmethod
    def between(
        cls, path: AffinePath, x_0: Tensor, x_1: Tensor, t: Tensor, duration: Tensor | None = None
    ) -> "PathPoints":
        """Points of a path between given endpoints.

        Args:
            path: Path from noise to data.
            x_0: Noise, shape (B, D).
            x_1: Data, shape (B, D).
            t: Flow times, shape (B,).
            duration: Length of the interval that begins at each point, shape (B,), or None.

        Returns:
            The points and the pair they were made of.

        Raises:
            ValueError: If a shape is not as stated.
        """
        return cls(x_0, x_1, path.sample(x_0, x_1, t), t, duration)

    def with_pair(self, x_0: Tensor, x_1: Tensor) -> "PathPoints":
        """The same points with another pair of endpoints whose path passes through them, such as posterior means.

        Args:
            x_0: Noise, shape (B, D).
            x_1: Data, shape (B, D).
        """
        return replace(self, x_0=x_0, x_1=x_1)

    def target(self, path: AffinePath, prediction: Prediction) -> Tensor:
        """What a network is regressed on at the points, given the pair of endpoints.

        Args:
            path: Path from noise to data.
            prediction: What the network predicts.

        Returns:
            Velocity, data, noise or score, shape (B, D).
        """
        return path.target(prediction, self.x_0, self.x_1, self.t)
