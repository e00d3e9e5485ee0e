"""Policies that map noise to actions, and the actor that chooses among several of their particles."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from flowmatch_rl.models.selection import Selection
from flowmatch_rl.nets.architecture import FlowNetwork
from flowmatch_rl.nets.chunks import map_in_chunks
from flowmatch_rl.nets.critic import CriticEnsemble, ValueReduction
from flowmatch_rl.paths import AffinePath, Field, GaussianSource, Preconditioner, Source, Squash
from flowmatch_rl.samplers import Draw, Sampler
from flowmatch_rl.solvers import Divergence, Solver, log_likelihood
from flowmatch_rl.types import Prediction


class LatentPolicy(nn.Module, abc.ABC):
    """A policy that carries standard normal noise to latent points, which a squash turns into actions.

    Args:
        squash: Map from latent points to actions.
    """

    def __init__(self, squash: Squash) -> None:
        super().__init__()
        self.squash = squash

    @abc.abstractmethod
    def noise_dim(self, action_dim: int) -> int:
        """Number of standard normals that make an action of dimension ``action_dim``."""

    @abc.abstractmethod
    def sample_latents(self, observation: Tensor, noise: Tensor, draw: Draw = torch.randn_like) -> Tensor:
        """Latent points of N particles per state, without gradient.

        Args:
            observation: Shape (B, S).
            noise: Standard normal, shape (B, N, noise_dim(A)).
            draw: More noise, for policies that sample with noise on the way.

        Returns:
            Latent points, shape (B, N, A).

        Raises:
            ValueError: If the batches differ.
        """

    @abc.abstractmethod
    def trajectories(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Latent points on their way from noise, for figures.

        Args:
            observation: Shape (B, S).
            noise: Standard normal, shape (B, N, noise_dim(A)).

        Returns:
            Flow times, shape (P,), and latent points, shape (P, B, N, A).
        """

    @abc.abstractmethod
    def compile_sampling(self) -> None:
        """Compile the sampling of latent points."""


class FlowPolicy(LatentPolicy):
    """A policy that carries noise along a flow or a diffusion to a latent point, and squashes it to an action.

    A network that predicts noise, data or score answers with the deviation from what is exact for standard normal
    latent points, near which the latent of a uniform action lies; one that predicts velocities, with the velocity.

    Args:
        network: Network conditioned on the observation.
        path: Path from noise to the latent action.
        sampler: How noise is carried along.
        squash: Map from latent points to actions.
        t_min: The path is followed from t_min to 1 - t_min; in (0, 0.5).
        prediction: What the network predicts.
        source: Law of x_0.
        scales: Whether the network sees points at unit variance and answers in units of what it predicts.
        averages: Whether the network is told durations and predicts average velocities over them.

    Raises:
        ValueError: If ``t_min`` is outside (0, 0.5), or sampler, prediction, source and network don't go together.
    """

    def __init__(
        self,
        network: FlowNetwork,
        path: AffinePath,
        sampler: Sampler,
        squash: Squash,
        t_min: float,
        prediction: Prediction = "velocity",
        source: Source = GaussianSource(),
        scales: bool = False,
        averages: bool = False,
    ) -> None:
        super().__init__(squash)
        if not 0.0 < t_min < 0.5:
            raise ValueError(f"t_min must lie in (0, 0.5), got {t_min}")
        if sampler.needs_normal_source and not source.is_standard_normal:
            raise ValueError(f"{sampler} needs a standard normal source, got {source}")
        if prediction == "score" and not source.is_standard_normal:
            raise ValueError(f"a policy that predicts scores needs a standard normal source, got {source}")
        if sampler.needs_average_velocity and not averages:
            raise ValueError(f"{sampler} needs a policy that learns average velocities, by the objective MeanFlow")
        self.network = network
        self.path, self.sampler, self.source, self.t_min = path, sampler, source, t_min
        self.prediction: Prediction = prediction
        self.averages = averages
        self._preconditioner = Preconditioner(path, prediction, scales, guesses=prediction != "velocity")
        self._start_scale = float(path.schedule.sigma(torch.tensor(t_min, dtype=torch.float64)))

    def predict(
        self, x: Tensor, t: Tensor, observation: Tensor | None = None, duration: Tensor | None = None
    ) -> Tensor:
        """What the policy predicts at points of the path, with gradient.

        Args:
            x: Points, shape (*batch, A).
            t: Flow time, its shape a prefix of the batch shape.
            observation: Shape (*batch, S), where a batch size of 1 is shared.
            duration: Length of the interval that the velocity is averaged over, or None.

        Returns:
            Prediction, shape (*batch, A).
        """
        return self._preconditioner.complete(self.network)(x, t, observation, duration)

    def field(self, observation: Tensor) -> Field:
        """The policy's field at given states, whose features are computed once.

        Args:
            observation: Shape (*batch, S), where a batch size of 1 is shared.
        """
        bound = self._preconditioner.complete(self.network.bind(observation))

        def average_velocity(x: Tensor, t: Tensor, duration: Tensor, _: Tensor | None) -> Tensor:
            return bound(x, t, None, duration)

        return Field(self.path, bound, self.prediction, average_velocity if self.averages else None)

    def noise_dim(self, action_dim: int) -> int:
        """As many normals as the source takes."""
        return self.source.noise_dim(action_dim)

    @torch.no_grad()
    def sample_latents(self, observation: Tensor, noise: Tensor, draw: Draw = torch.randn_like) -> Tensor:
        """Latent points of N particles per state, shape (B, N, A), without gradient."""
        check_particles(observation, noise)

        def run(states: Tensor, rows: Tensor) -> tuple[Tensor]:
            return (self._carry(states, rows, draw),)

        return map_in_chunks(run, noise.shape[1], observation, noise)[0]

    @torch.no_grad()
    def trajectories(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Flow times (P,) and latent points (P, B, N, A) along the flow."""
        check_particles(observation, noise)
        field = self.field(observation[:, None])
        return self.sampler.trajectory(field, self._start(noise), *self._ends, None, torch.randn_like)

    @torch.no_grad()
    def log_prob(
        self,
        observation: Tensor,
        latent: Tensor,
        solver: Solver,
        divergence: Divergence,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Log-density of latent points under the flow, by its probability-flow equation.

        It is that of plain samples, before any choice among particles, in the latent space: that of the action follows
        by ``squash.log_jacobian``.

        Args:
            observation: Shape (B, S).
            latent: Latent points, shape (B, A).
            solver: Solver.
            divergence: How the divergence is computed.
            noise: Standard normal noise of the probes, shape (needed_probes, B, A); None where there are none.

        Returns:
            Log-density in nats, shape (B,).

        Reference:
            Chen et al., arXiv:1806.07366 (instantaneous change of variables).
        """
        velocity = self.field(observation).velocity
        value, _ = log_likelihood(velocity, latent, self._start_log_prob, solver, divergence, *self._ends, None, noise)
        return value

    def compile_sampling(self) -> None:
        """Compile the sampling of latent points."""
        self._carry = torch.compile(self._carry)

    @property
    def _ends(self) -> tuple[float, float]:
        return self.t_min, 1.0 - self.t_min

    def _start(self, noise: Tensor) -> Tensor:
        return self._start_scale * self.source.transform(noise)

    def _start_log_prob(self, x: Tensor) -> Tensor:
        scale = self._start_scale
        return self.source.log_prob(x / scale) - x.shape[-1] * math.log(scale)

    def _carry(self, observation: Tensor, noise: Tensor, draw: Draw) -> Tensor:
        field = self.field(observation[:, None])
        return self.sampler.sample(field, self._start(noise), *self._ends, None, draw)


def check_particles(observation: Tensor, noise: Tensor) -> None:
    """Raise unless there is noise for several particles of every state.

    Args:
        observation: States, shape (B, S).
        noise: Noise, shape (B, N, A).

    Raises:
        ValueError: If a shape is not as stated.
    """
    if observation.dim() != 2 or noise.dim() != 3 or len(observation) != len(noise):
        raise ValueError(f"expected (B, S) and (B, N, A), got {tuple(observation.shape)} and {tuple(noise.shape)}")


@dataclass(frozen=True)
class ParticleActor:
    """Draws several particles of a policy and acts by one of them, chosen by its value.

    Args:
        policy: The policy.
        critic: Critic whose values the choice depends on.
        action_dim: Dimension A.
        num_particles: Particles N per state, at least 1.
        selection: Rule of choice.
        reduction: How the critic's members are reduced to one value.
        temperature: Temperature of the choice, units of the return, positive; a tensor of shape () may change.
        noise_scale: Scale of the noise that particles start from, at least 0; 0 for a policy without noise.
        exploration: Standard deviation of the normal noise added to actions, which are clipped to [-1, 1] then.

    Raises:
        ValueError: If a number is out of its range.
    """

    policy: LatentPolicy
    critic: CriticEnsemble
    action_dim: int
    num_particles: int
    selection: Selection
    reduction: ValueReduction
    temperature: Tensor | float
    noise_scale: float = 1.0
    exploration: float = 0.0

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {self.num_particles}")
        for name in ("noise_scale", "exploration"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    @torch.no_grad()
    def particles(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latent points of N particles per state.

        Args:
            observation: Shape (B, S).
            generator: Source of the noise; the global one if None.

        Returns:
            Latent points, shape (B, N, A).
        """
        shape = (len(observation), self.num_particles, self.policy.noise_dim(self.action_dim))
        noise = _draw(torch.randn, shape, observation, generator)
        if self.noise_scale != 1.0:
            noise = self.noise_scale * noise

        def draw(like: Tensor) -> Tensor:
            return _draw(torch.randn, tuple(like.shape), like, generator)

        return self.policy.sample_latents(observation, noise, draw)

    @torch.no_grad()
    def latent(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latent point of the chosen particle.

        Args:
            observation: Shape (B, S).
            generator: Source of the noise; the global one if None.

        Returns:
            Latent points, shape (B, A).
        """
        latents = self.particles(observation, generator)
        if self.num_particles == 1:
            return latents[:, 0]
        values = latents.new_zeros(latents.shape[:2])
        if self.selection.needs_values:
            values = self.critic.action_values(observation, self.policy.squash.action(latents), self.reduction)
        uniform = _draw(torch.rand, values.shape, observation, generator)
        index = self.selection.choose(values.float(), self.temperature, uniform)
        return latents[torch.arange(len(latents), device=latents.device), index]

    @torch.no_grad()
    def __call__(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Act.

        Args:
            observation: Shape (*batch, S).
            generator: Source of the noise; the global one if None.

        Returns:
            Actions, shape (*batch, A).
        """
        latents = self.latent(observation.reshape(-1, observation.shape[-1]), generator)
        action = self.policy.squash.action(latents).reshape(*observation.shape[:-1], self.action_dim)
        if self.exploration == 0.0:
            return action
        noise = _draw(torch.randn, tuple(action.shape), action, generator)
        return (action + self.exploration * noise).clamp(-1.0, 1.0)


class ActorModule(TensorDictModuleBase):
    """An actor as TorchRL's collectors call it: reads ``observation``, writes ``action``.

    Args:
        actor: The actor.
        generator: Source of its noise; the global one if None.
    """

    def __init__(self, actor: ParticleActor, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.in_keys = ["observation"]
        self.out_keys = ["action"]
        self.actor = actor
        self.generator = generator

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write ``action`` for ``observation``, wherever either lies."""
        observation = tensordict.get("observation")
        device = next(self.actor.policy.parameters()).device
        return tensordict.set("action", self.actor(observation.to(device), self.generator).to(observation.device))


def _draw(
    distribution: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    device = like.device if generator is None else generator.device
    return distribution(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
