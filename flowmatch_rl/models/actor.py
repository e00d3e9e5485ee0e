"""The actor: draws several particles of a policy and acts by one of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.models.policy import LatentPolicy
from flowmatch_rl.models.selection import FirstSelection, GreedySelection, Selection, SoftmaxSelection
from flowmatch_rl.samplers import Draw

ActionValues: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Values (B, N), units of the return, called as ``values(observation, actions)`` for actions (B, N, A)."""


def no_values(observation: Tensor, actions: Tensor) -> Tensor:
    """The values of a policy without critics, for an actor that does not choose by them.

    Raises:
        ValueError: Always.
    """
    raise ValueError("a policy without critics has no values to choose by")


Role: TypeAlias = Literal["train", "collect", "eval"]
"""What an actor acts for."""


@dataclass(frozen=True)
class Acting:
    """How many particles of a policy an action is chosen from, and how, in each role.

    Among several particles ``SoftmaxSelection`` acts, and makes Bellman targets, at about half the temperature that the
    policy is trained at; ``FirstSelection`` acts at the temperature itself.

    Args:
        train_particles: Particles per state for the Bellman target and for x_1.
        collect_particles: Particles per state while collecting.
        eval_particles: Particles per state in evaluation.
        train_selection: How one of the training particles is chosen.
        collect_selection: How one is chosen while collecting.
        eval_selection: How one is chosen in evaluation.
        exploration: Standard deviation of normal noise added to collected actions, in units of the action's range
            [-1, 1].

    Raises:
        UserError: If a number is out of its range.
    """

    train_particles: int = 16
    collect_particles: int = 16
    eval_particles: int = 32
    train_selection: Selection = SoftmaxSelection()
    collect_selection: Selection = SoftmaxSelection()
    eval_selection: Selection = GreedySelection()
    exploration: float = 0.0

    def __post_init__(self) -> None:
        check_range(
            "[1, inf)",
            train_particles=self.train_particles,
            collect_particles=self.collect_particles,
            eval_particles=self.eval_particles,
        )
        check_range("[0, inf)", exploration=self.exploration)

    def actor(
        self, role: Role, policy: LatentPolicy, values: ActionValues, temperature: Tensor | float
    ) -> "ParticleActor":
        """The actor of a role.

        Args:
            role: What it acts for.
            policy: The policy.
            values: Values that the choice depends on.
            temperature: Temperature of the choice, units of the return.
        """
        num_particles, selection = {
            "train": (self.train_particles, self.train_selection),
            "collect": (self.collect_particles, self.collect_selection),
            "eval": (self.eval_particles, self.eval_selection),
        }[role]
        exploration = self.exploration if role == "collect" else 0.0
        return ParticleActor(policy, values, num_particles, selection, temperature, exploration=exploration)


@dataclass(frozen=True)
class ParticleActor:
    """Draws several particles of a policy and acts by one of them, chosen by its value.

    Args:
        policy: The policy.
        values: Values that the choice depends on.
        num_particles: Particles N per state, at least 1.
        selection: Rule of choice.
        temperature: Temperature of the choice, units of the return, positive; a tensor of shape () may change.
        noise_scale: Scale of the noise that particles start from, at least 0; 0 for a policy without noise.
        exploration: Standard deviation of the normal noise added to actions, which are clipped to [-1, 1] then.

    Raises:
        UserError: If a number is out of its range.
    """

    policy: LatentPolicy
    values: ActionValues
    num_particles: int
    selection: Selection
    temperature: Tensor | float
    noise_scale: float = 1.0
    exploration: float = 0.0

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_particles=self.num_particles)
        check_range("[0, inf)", noise_scale=self.noise_scale, exploration=self.exploration)

    def sampling(self) -> "ParticleActor":
        """The actor that acts by plain samples of the policy."""
        return replace(self, num_particles=1, selection=FirstSelection(), noise_scale=1.0)

    def greedy(self) -> "ParticleActor":
        """The actor that leaves nothing to chance but the noise that particles start from.

        It takes the particle of highest value, or the only one where values are not looked at.
        """
        chooses = self.selection.needs_values and self.num_particles > 1
        kept = {"num_particles": self.num_particles, "selection": GreedySelection()} if chooses else {}
        return replace(self, **({"num_particles": 1, "selection": FirstSelection()} | kept), exploration=0.0)

    def compiled(self) -> "ParticleActor":
        """The same actor with ``torch.compile``; the sampling of its policy is compiled for every use of the policy."""
        self.policy.compile_sampling()
        return replace(self, values=torch.compile(self.values) if self.selection.needs_values else self.values)

    @property
    def description(self) -> str:
        """How it acts, in some words."""
        return self.selection.description(self.num_particles) if self.noise_scale else "by the mode of the policy"

    def particles(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latent points of N particles per state.

        Args:
            observation: Shape (B, S).
            generator: Source of the noise; the global one if None.

        Returns:
            Latent points, shape (B, N, A).
        """
        shape = (len(observation), self.num_particles, self.policy.noise_dim)
        noise = _draw(torch.randn, shape, observation, generator)
        if self.noise_scale != 1.0:
            noise = self.noise_scale * noise

        def draw(like: Tensor) -> Tensor:
            return _draw(torch.randn, tuple(like.shape), like, generator)

        with torch.no_grad():  # a decorator here would break a graph of torch.compile
            return self.policy.sample_latents(observation, noise, draw)

    @torch.no_grad()
    def from_noise(self, observation: Tensor, noise: Tensor, draw: Draw = torch.randn_like) -> Tensor:
        """Act greedily by particles that start from given noise.

        Args:
            observation: Shape (B, S).
            noise: Standard normal, shape (B, N, noise_dim); it is multiplied by ``noise_scale``.
            draw: More noise, for policies with a stochastic sampler.

        Returns:
            Actions, shape (B, A).
        """
        started = noise if self.noise_scale == 1.0 else self.noise_scale * noise
        latents = self.policy.sample_latents(observation, started, draw)
        if self.num_particles == 1 or not self.selection.needs_values:
            return self.policy.squash.action(latents[:, 0])
        actions = self.policy.squash.action(latents)
        index = self.values(observation, actions).argmax(dim=1)
        return actions.gather(1, index[:, None, None].expand(-1, 1, actions.shape[-1]))[:, 0]

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
        with torch.no_grad():
            if self.selection.needs_values:
                values = self.values(observation, self.policy.squash.action(latents))
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
        action = self.policy.squash.action(latents).reshape(*observation.shape[:-1], latents.shape[-1])
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
