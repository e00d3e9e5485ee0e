"""A squashed Gaussian policy, the actor of plain actor-critics."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.models.policy import LatentPolicy, check_particles
from flowmatch_rl.nets import GaussianArchitecture, GaussianNetwork
from flowmatch_rl.paths import Squash, TanhSquash
from flowmatch_rl.samplers import Draw
from flowmatch_rl.shapes import check_same_shape


class GaussianPolicy(LatentPolicy):
    """A normal distribution in the latent space, independent per entry, whose points are squashed to actions.

    Args:
        network: Maps observations to mean and log standard deviation.
        action_dim: Dimension A of the action.
        squash: Map from latent points to actions.

    Reference:
        Haarnoja et al., arXiv:1801.01290.
    """

    def __init__(self, network: GaussianNetwork, action_dim: int, squash: Squash) -> None:
        super().__init__(action_dim, squash)
        self.network = network

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
        mean, log_std = self.network(observation)
        check_same_shape(noise=noise, mean=mean)
        latent = mean + log_std.exp() * noise
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        return latent, normal.sum(-1) - self.squash.log_jacobian(latent)

    @property
    def noise_dim(self) -> int:
        """One normal per entry."""
        return self.action_dim

    @property
    def num_draws(self) -> int:
        """0."""
        return 0

    @torch.no_grad()
    def sample_latents(self, observation: Tensor, noise: Tensor, draw: Draw = torch.randn_like) -> Tensor:
        """Latent points of N particles per state, shape (B, N, A), without gradient."""
        check_particles(observation, noise)
        mean, log_std = self.network(observation[:, None])
        return mean + log_std.exp() * noise

    @torch.no_grad()
    def trajectories(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The noise at time 0 and the latent points at time 1: shapes (2,) and (2, B, N, A)."""
        latents = self.sample_latents(observation, noise)
        return torch.tensor([0.0, 1.0], device=noise.device), torch.stack([noise, latents])

    def compile_sampling(self) -> None:
        """Compile the network."""
        self.network.compile()


@dataclass(frozen=True)
class GaussianPolicyArchitecture:
    """What a Gaussian policy is made of.

    Args:
        network: Shape of the network.
        squash: Map from latent points to actions.
    """

    network: GaussianArchitecture = GaussianArchitecture()
    squash: Squash = TanhSquash()

    def build(self, observation_dim: int, action_dim: int) -> GaussianPolicy:
        """Build the policy.

        Args:
            observation_dim: Dimension S of the observation.
            action_dim: Dimension A of the action.
        """
        return GaussianPolicy(self.network.build(observation_dim, action_dim), action_dim, self.squash)
