"""A squashed Gaussian policy, the actor of plain actor-critics."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmatch_rl.models.policy import LatentPolicy, check_particles
from flowmatch_rl.nets.architecture import ACTIVATIONS, Activation
from flowmatch_rl.paths import Squash
from flowmatch_rl.samplers import Draw
from flowmatch_rl.shapes import check_same_shape


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
        ValueError: If a number is out of its range.
    """

    hidden_dim: int = 256
    num_layers: int = 2
    activation: Activation = "relu"
    log_std_min: float = -5.0
    log_std_max: float = 2.0

    def __post_init__(self) -> None:
        if min(self.hidden_dim, self.num_layers) < 1:
            raise ValueError(f"expected hidden_dim and num_layers of at least 1, got {self}")
        if not self.log_std_min < self.log_std_max:
            raise ValueError(f"expected log_std_min < log_std_max, got {self.log_std_min} and {self.log_std_max}")


class GaussianPolicy(LatentPolicy):
    """A normal law in the latent space, independent per entry, whose points are squashed to actions.

    Args:
        architecture: Shape of the network.
        observation_dim: Dimension S.
        action_dim: Dimension A.
        squash: Map from latent points to actions.

    Reference:
        Haarnoja et al., arXiv:1801.01290.
    """

    def __init__(
        self, architecture: GaussianArchitecture, observation_dim: int, action_dim: int, squash: Squash
    ) -> None:
        super().__init__(squash)
        activation = ACTIVATIONS[architecture.activation]
        widths = [observation_dim, *[architecture.hidden_dim] * architecture.num_layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.to_moments = nn.Linear(widths[-1], 2 * action_dim)
        self._activation = activation
        self._bounds = (architecture.log_std_min, architecture.log_std_max)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the latent point.

        Args:
            observation: Shape (*batch, S).

        Returns:
            Both of shape (*batch, A). The log standard deviation is squashed smoothly into its bounds.
        """
        h = observation
        for layer in self.layers:
            h = self._activation(layer(h))
        mean, raw = self.to_moments(h).chunk(2, dim=-1)
        low, high = self._bounds
        return mean, low + 0.5 * (high - low) * (raw.tanh() + 1.0)

    def sample_with_log_prob(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Latent points with gradient, and the log-density of their actions.

        Args:
            observation: Shape (*batch, S).
            noise: Standard normal, shape (*batch, A).

        Returns:
            Latent points, shape (*batch, A), and log-density over actions in nats, shape (*batch).

        Raises:
            ValueError: If noise and action differ in shape.
        """
        mean, log_std = self(observation)
        check_same_shape(noise=noise, mean=mean)
        latent = mean + log_std.exp() * noise
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        return latent, normal.sum(-1) - self.squash.log_jacobian(latent)

    def noise_dim(self, action_dim: int) -> int:
        """One normal per entry."""
        return action_dim

    @torch.no_grad()
    def sample_latents(self, observation: Tensor, noise: Tensor, draw: Draw = torch.randn_like) -> Tensor:
        """Latent points of N particles per state, shape (B, N, A), without gradient."""
        return self.trajectories(observation, noise)[1][1]

    @torch.no_grad()
    def trajectories(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The noise at time 0 and the latent points at time 1: shapes (2,) and (2, B, N, A)."""
        check_particles(observation, noise)
        mean, log_std = self(observation[:, None])
        latent = mean + log_std.exp() * noise
        return torch.tensor([0.0, 1.0], device=noise.device), torch.stack([noise, latent])

    def compile_sampling(self) -> None:
        """Compile the network."""
        self.forward = torch.compile(self.forward)
