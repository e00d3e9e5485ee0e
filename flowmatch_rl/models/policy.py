"""Policies that map noise to actions."""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import check_range
from flowmatch_rl.models.flow import Flow, Likelihood
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.objectives import FlowObjective
from flowmatch_rl.paths import AffinePath, GaussianSource, Source, Squash, TanhSquash
from flowmatch_rl.samplers import Draw, OdeSampler, Sampler
from flowmatch_rl.solvers import Euler


class LatentPolicy(nn.Module, abc.ABC):
    """A policy that carries standard normal noise to latent points, which a squash turns into actions.

    Args:
        action_dim: Dimension A of the action.
        squash: Map from latent points to actions.
    """

    def __init__(self, action_dim: int, squash: Squash) -> None:
        super().__init__()
        self.action_dim, self.squash = action_dim, squash

    @property
    @abc.abstractmethod
    def noise_dim(self) -> int:
        """Number of standard normals that make one action."""

    @property
    @abc.abstractmethod
    def num_draws(self) -> int:
        """Times that sampling draws noise on its way, beside the noise that it starts from."""

    @abc.abstractmethod
    def sample_latents(self, observation: Tensor, noise: Tensor, draw: Draw = torch.randn_like) -> Tensor:
        """Latent points of N particles per state, without gradient.

        Args:
            observation: Shape (B, S).
            noise: Standard normal, shape (B, N, noise_dim).
            draw: More noise, for policies with a stochastic sampler.

        Returns:
            Latent points, shape (B, N, A).

        Raises:
            ValueError: If the batches differ.
        """

    @abc.abstractmethod
    def trajectories(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Latent points along the path from noise, for figures.

        Args:
            observation: Shape (B, S).
            noise: Standard normal, shape (B, N, noise_dim).

        Returns:
            Flow times, shape (P,), and latent points, shape (P, B, N, A).
        """

    @abc.abstractmethod
    def compile_sampling(self) -> None:
        """Compile the sampling of latent points."""


class FlowPolicy(LatentPolicy):
    """A flow or a diffusion from noise to latent points, given the observation.

    A network that predicts noise, data or score predicts the deviation from what is exact for standard normal latent
    points, near which the latent of a uniform action lies; one that predicts velocities, the velocity.

    Args:
        flow: Flow of latent points of dimension A on conditions of dimension S; ``t_min`` above 0.
        action_dim: Dimension A of the action.
        sampler: How noise is carried to latent points.
        squash: Map from latent points to actions.

    Raises:
        UserError: If ``t_min`` is 0, or sampler and flow do not go together.
    """

    def __init__(self, flow: Flow, action_dim: int, sampler: Sampler, squash: Squash) -> None:
        super().__init__(action_dim, squash)
        check_range("(0, 0.5)", t_min=flow.t_min)
        flow.check_sampler(sampler)
        self.flow, self.sampler = flow, sampler

    @property
    def noise_dim(self) -> int:
        """As many normals as the source takes."""
        return self.flow.source.noise_dim(self.action_dim)

    @property
    def num_draws(self) -> int:
        """One in each step of a stochastic sampler."""
        return (self.sampler.steps or 0) if self.sampler.adds_noise else 0

    def sample_latents(self, observation: Tensor, noise: Tensor, draw: Draw = torch.randn_like) -> Tensor:
        """Latent points of N particles per state, shape (B, N, A), without gradient."""
        check_particles(observation, noise)
        return self.flow.sample(noise, self.sampler, observation[:, None], draw=draw)

    def trajectories(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Flow times (P,) and latent points (P, B, N, A) along the flow."""
        check_particles(observation, noise)
        return self.flow.trajectory(noise, self.sampler, observation[:, None])

    def log_prob(
        self, observation: Tensor, latent: Tensor, likelihood: Likelihood, noise: Tensor | None = None
    ) -> Tensor:
        """Log-density of the actions of latent points under plain samples, before any choice among particles.

        Args:
            observation: Shape (B, S).
            latent: Latent points of the actions, shape (B, A).
            likelihood: How it is computed.
            noise: Standard normal noise of the probes, shape (B, needed_probes, A); None where there are none.

        Returns:
            Log-density over actions in nats, shape (B,).
        """
        return self.flow.log_prob(latent, likelihood, observation, noise) - self.squash.log_jacobian(latent)

    def cloning_loss(self, objective: FlowObjective, observation: Tensor, action: Tensor) -> Tensor:
        """Loss of flow matching on given actions; draws flow times and noise.

        Args:
            objective: The objective, of this policy's prediction.
            observation: Shape (B, S).
            action: Actions in [-1, 1], shape (B, A).

        Returns:
            Loss per action, shape (B,).
        """
        x_1, size, device = self.squash.latent(action), len(action), action.device
        uniform = torch.rand(objective.num_uniforms, size, device=device)
        x_0 = self.flow.source.transform(torch.randn(size, self.noise_dim, device=device))
        points = objective.points(self.flow.path, x_0, x_1, uniform, self.flow.t_min)
        return self.flow.loss(objective, points, observation)

    def compile_sampling(self) -> None:
        """Compile the sampling of latent points."""
        self.flow.compile_sampling()


@dataclass(frozen=True)
class FlowPolicyArchitecture:
    """What a flow policy is made of.

    Args:
        path: Path from noise to the latent action.
        source: Distribution of x_0.
        squash: Map from latent points to actions.
        sampler: How the policy carries noise to actions.
        t_min: Flow times lie in [t_min, 1 - t_min]; in (0, 0.5).
        network: Shape of the network, whatever it predicts.
        normalise: Whether the network takes x_t at unit variance and returns units of what it predicts; for paths that
            explode.
    """

    path: AffinePath = AffinePath()
    source: Source = GaussianSource()
    squash: Squash = TanhSquash()
    sampler: Sampler = OdeSampler(Euler(num_steps=10))
    t_min: float = 0.01
    network: VelocityArchitecture = VelocityArchitecture()
    normalise: bool = False

    def build(self, observation_dim: int, action_dim: int, objective: FlowObjective) -> FlowPolicy:
        """Build the policy.

        Args:
            observation_dim: Dimension S of the observation.
            action_dim: Dimension A of the action.
            objective: What its network predicts.

        Raises:
            UserError: If parts do not go together.
        """
        flow = Flow(
            self.network.build(action_dim, observation_dim, takes_duration=objective.uses_duration),
            self.path,
            self.source,
            objective.prediction,
            self.t_min,
            scales=self.normalise,
            guesses=objective.prediction != "velocity",
            averages=objective.uses_duration,
        )
        return FlowPolicy(flow, action_dim, self.sampler, self.squash)


def check_particles(observation: Tensor, noise: Tensor) -> None:
    """Raise unless there is noise for several particles of every state.

    Args:
        observation: States, shape (B, S).
        noise: Noise, shape (B, N, A).

    Raises:
        ValueError: If a shape is not as stated.
    """
    if observation.dim() != 2 or noise.dim() != 3 or observation.shape[0] != noise.shape[0]:
        raise ValueError(f"expected (B, S) and (B, N, A), got {tuple(observation.shape)} and {tuple(noise.shape)}")
