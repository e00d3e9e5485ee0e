"""A policy that maps noise to latent points by one evaluation of a network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.models.policy import LatentPolicy, check_particles
from flowmatch_rl.nets import FlowNetwork, VelocityArchitecture
from flowmatch_rl.paths import ClipSquash, Squash
from flowmatch_rl.samplers import Draw


class OneStepPolicy(LatentPolicy):
    """Latent points ``mu(z, observation)`` of standard normal noise z.

    Args:
        network: Called as ``network(z, t, observation)``, at flow time 0.
        action_dim: Dimension A of the action.
        squash: Map from latent points to actions.

    Reference:
        Park et al., arXiv:2502.02538.
    """

    def __init__(self, network: FlowNetwork, action_dim: int, squash: Squash) -> None:
        super().__init__(action_dim, squash)
        self.network = network

    @property
    def noise_dim(self) -> int:
        """One normal per entry."""
        return self.action_dim

    @property
    def num_draws(self) -> int:
        """0."""
        return 0

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Latent points with gradient.

        Args:
            observation: Shape (*batch, S), where a size of 1 is shared.
            noise: Standard normal, shape (*batch, A).

        Returns:
            Latent points, shape (*batch, A).
        """
        return self.network(noise, torch.zeros((), device=noise.device, dtype=noise.dtype), observation)

    @torch.no_grad()
    def sample_latents(self, observation: Tensor, noise: Tensor, draw: Draw = torch.randn_like) -> Tensor:
        """Latent points of N particles per state, shape (B, N, A), without gradient."""
        check_particles(observation, noise)
        return self(observation[:, None], noise)

    @torch.no_grad()
    def trajectories(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The noise at time 0 and the latent points at time 1: shapes (2,) and (2, B, N, A)."""
        return torch.tensor([0.0, 1.0], device=noise.device), torch.stack(
            [noise, self.sample_latents(observation, noise)]
        )

    def compile_sampling(self) -> None:
        """Compile the network."""
        self.network.compile()


@dataclass(frozen=True)
class OneStepPolicyArchitecture:
    """What a policy of one evaluation is made of.

    Args:
        network: Shape of the network.
        squash: Map from latent points to actions.
    """

    network: VelocityArchitecture = VelocityArchitecture()
    squash: Squash = ClipSquash()

    def build(self, observation_dim: int, action_dim: int) -> OneStepPolicy:
        """Build the policy.

        Args:
            observation_dim: Dimension S of the observation.
            action_dim: Dimension A of the action.
        """
        return OneStepPolicy(self.network.build(action_dim, observation_dim), action_dim, self.squash)
