"""Flow policies: from noise to actions, and the actor that chooses among several of their particles."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from flowmatch_rl.nets.chunks import map_in_chunks
from flowmatch_rl.nets.critic import CriticEnsemble, ValueReduction
from flowmatch_rl.nets.selection import Selection
from flowmatch_rl.nets.velocity import VelocityNetwork
from flowmatch_rl.paths import Squash
from flowmatch_rl.solvers import Solver


class FlowPolicy(nn.Module):
    """A policy that integrates a flow from noise to a latent point and squashes it to an action.

    Args:
        velocity: Velocity network conditioned on the observation.
        solver: Solver of the flow.
        squash: Map from latent points to actions.
        t_min: The flow is integrated from t_min to 1 - t_min; in (0, 0.5).

    Raises:
        ValueError: If ``t_min`` is outside (0, 0.5).
    """

    def __init__(self, velocity: VelocityNetwork, solver: Solver, squash: Squash, t_min: float) -> None:
        super().__init__()
        if not 0.0 < t_min < 0.5:
            raise ValueError(f"t_min must lie in (0, 0.5), got {t_min}")
        self.velocity = velocity
        self.solver = solver
        self.squash = squash
        self.t_min = t_min

    @torch.no_grad()
    def sample_latents(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Latent points of N particles per state, without gradient.

        Args:
            observation: Shape (B, S).
            noise: Standard normal, shape (B, N, A).

        Returns:
            Latent points at the end of the flow, shape (B, N, A).

        Raises:
            ValueError: If the batches differ.
        """
        if observation.dim() != 2 or noise.dim() != 3 or len(observation) != len(noise):
            raise ValueError(f"expected (B, S) and (B, N, A), got {tuple(observation.shape)} and {tuple(noise.shape)}")

        return map_in_chunks(self._integrate, noise.shape[1], observation, noise)[0]

    def compile_sampling(self) -> None:
        """Compile the integration of the flow."""
        self._integrate = torch.compile(self._integrate)

    def _integrate(self, observation: Tensor, noise: Tensor) -> tuple[Tensor]:
        velocity = self.velocity.bind(observation[:, None])
        return (self.solver.integrate(velocity, noise, self.t_min, 1.0 - self.t_min),)

    @torch.no_grad()
    def trajectories(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Latent points along the flow, for figures.

        Args:
            observation: Shape (B, S).
            noise: Standard normal, shape (B, N, A).

        Returns:
            Flow times, shape (num_steps + 1,), and latent points, shape (num_steps + 1, B, N, A).
        """
        velocity = self.velocity.bind(observation[:, None])
        return self.solver.trajectory(velocity, noise, self.t_min, 1.0 - self.t_min)


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
        temperature: Temperature of the choice, units of the return, positive.

    Raises:
        ValueError: If ``num_particles`` is below 1.
    """

    policy: FlowPolicy
    critic: CriticEnsemble
    action_dim: int
    num_particles: int
    selection: Selection
    reduction: ValueReduction
    temperature: float

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {self.num_particles}")

    @torch.no_grad()
    def particles(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latent points of N particles per state.

        Args:
            observation: Shape (B, S).
            generator: Source of the noise; the global one if None.

        Returns:
            Latent points, shape (B, N, A).
        """
        shape = (len(observation), self.num_particles, self.action_dim)
        return self.policy.sample_latents(observation, _draw(torch.randn, shape, observation, generator))

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
        return self.policy.squash.action(latents).reshape(*observation.shape[:-1], self.action_dim)


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
