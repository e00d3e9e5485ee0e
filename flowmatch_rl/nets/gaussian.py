"""A network that maps observations to a Gaussian in the latent space of actions."""

import itertools
from dataclasses import dataclass

from torch import Tensor, nn

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.nets.architecture import ACTIVATIONS, Activation
from flowmatch_rl.nets.observations import ObservationFeatures


@dataclass(frozen=True)
class GaussianArchitecture:
    """Shape of a network that maps observations to a mean and a standard deviation per action entry.

    Args:
        hidden_dim: Width of every hidden layer.
        num_layers: Hidden layers, at least 1.
        activation: Nonlinearity.
        log_std_min: Least log standard deviation in the latent space.
        log_std_max: Largest one, above the least.

    Raises:
        UserError: If a number is out of its range.
    """

    hidden_dim: int = 256
    num_layers: int = 2
    activation: Activation = "relu"
    log_std_min: float = -5.0
    log_std_max: float = 2.0

    def __post_init__(self) -> None:
        check_range("[1, inf)", hidden_dim=self.hidden_dim, num_layers=self.num_layers)
        if not self.log_std_min < self.log_std_max:
            raise UserError(f"expected log_std_min < log_std_max, got {self.log_std_min} and {self.log_std_max}")

    def build(self, observation_dim: int, action_dim: int) -> "GaussianNetwork":
        """Build the network.

        Args:
            observation_dim: Dimension S.
            action_dim: Dimension A.
        """
        return GaussianNetwork(self, observation_dim, action_dim)


class GaussianNetwork(nn.Module):
    """Mean and log standard deviation of a Gaussian, independent per entry.

    Args:
        architecture: Shape of the network.
        observation_dim: Dimension S.
        action_dim: Dimension A.
    """

    def __init__(self, architecture: GaussianArchitecture, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.features = ObservationFeatures().build(observation_dim)
        widths = [observation_dim, *[architecture.hidden_dim] * architecture.num_layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.to_moments = nn.Linear(widths[-1], 2 * action_dim)
        self._activation = ACTIVATIONS[architecture.activation]
        self._bounds = (architecture.log_std_min, architecture.log_std_max)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the latent point.

        Args:
            observation: Shape (*batch, S).

        Returns:
            Both of shape (*batch, A). The log standard deviation is squashed smoothly into its bounds.
        """
        h = self.features(observation)
        for layer in self.layers:
            h = self._activation(layer(h))
        mean, raw = self.to_moments(h).chunk(2, dim=-1)
        low, high = self._bounds
        return mean, low + 0.5 * (high - low) * (raw.tanh() + 1.0)
