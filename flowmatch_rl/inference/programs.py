"""Programs made of trained models: functions of tensors alone, noise included, for files that run elsewhere."""

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.models import FlowPolicy, LatentPolicy, ParticleActor
from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.modules.policy_module import PolicyModule
from flowmatch_rl.samplers import Draw, Sampler
from flowmatch_rl.schema import ActionBounds


@dataclass(frozen=True)
class Input:
    """An input of a program.

    Attributes:
        shape: Its shape without the batch.
        num_classes: Classes of each entry, whose indices it holds; empty for an input of numbers.
    """

    shape: tuple[int, ...]
    num_classes: tuple[int, ...] = ()

    def example(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Standard normal numbers, float32, or random indices, int64, shape (batch_size, *shape)."""
        if not self.num_classes:
            return torch.randn(batch_size, *self.shape, generator=generator)
        columns = [torch.randint(number, (batch_size,), generator=generator) for number in self.num_classes]
        return torch.stack(columns, dim=-1)


@dataclass(frozen=True)
class Program:
    """A trained model as a function of tensors that draws no noise.

    Attributes:
        module: What is computed.
        inputs: Its inputs by name.
        output: Name of the output.
        summary: How it computes, in some words.
        metadata: What else is known of it, by name: text, or what JSON holds.
    """

    module: nn.Module
    inputs: Mapping[str, Input]
    output: str
    summary: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def examples(self, batch_size: int, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs by name, shape (batch_size, ...) each.

        Args:
            batch_size: Rows B.
            seed: Seed of the random numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        return {name: given.example(batch_size, generator) for name, given in self.inputs.items()}

    def texts(self, rows: int | str) -> dict[str, str]:
        """All that is known of it as text, by name; lists as JSON.

        Args:
            rows: Rows of a batch, or what stands for any number.
        """
        shapes = {name: [rows, *given.shape] for name, given in self.inputs.items()}
        entries = {"summary": self.summary, "inputs": shapes, "output": self.output, **self.metadata}
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in entries.items()}


class PolicyProgram(nn.Module):
    """Acts greedily from given noise, in the unit of the environment.

    Args:
        module: The trained policy.
        actor: How it acts.
        bounds: Bounds of the action in the environment's unit.
    """

    low: Tensor
    high: Tensor

    def __init__(self, module: PolicyModule, actor: ParticleActor, bounds: ActionBounds) -> None:
        super().__init__()
        # Parts that are registered are parameters of the exported program: none of the target networks are.
        self.policy = actor.policy
        self.critics = module.critics.online if actor.num_particles > 1 and isinstance(module, ActorCritic) else None
        self.register_buffer("low", torch.tensor(bounds.low))
        self.register_buffer("high", torch.tensor(bounds.high))
        self._actor, goals = actor, module.goals
        self._beside = None if goals is None else lambda states, goal: goals.beside(states, goals.embedding(goal))

    def forward(
        self, observation: Tensor, noise: Tensor, step_noise: Tensor | None = None, goal: Tensor | None = None
    ) -> Tensor:
        """Actions.

        Args:
            observation: Shape (B, S).
            noise: Standard normal, shape (B, N, noise_dim).
            step_noise: Standard normal, for a stochastic sampler, shape (B, steps, N, A).
            goal: Goals of a family of policies, in the units of the environment, shape (B, G).

        Returns:
            Actions in the unit of the environment, shape (B, A).
        """
        states = observation if self._beside is None else self._beside(observation, goal)
        action = self._actor.from_noise(states, noise, given_noise(step_noise)).clamp(-1.0, 1.0)
        # In single precision the sum may pass a bound by its last digit.
        return (self.low + (action + 1.0) * (0.5 * (self.high - self.low))).clamp(self.low, self.high)


def policy_program(
    module: PolicyModule, num_particles: int | None = None, num_steps: int | None = None, samples: bool = False
) -> Program:
    """The policy as it acts in evaluations, greedily: that of ``load_policy(deterministic=True)``.

    Args:
        module: The trained policy.
        num_particles: Particles that the best is chosen from; those of evaluations if None.
        num_steps: Steps of its sampler; those that it was trained with if None.
        samples: Whether it acts by one particle, a plain sample of the policy for normal noise.

    Raises:
        UserError: If the policy is of one particle, has no steps, or a sampler that chooses its steps by the error.
    """
    check_range("[1, inf)", num_particles=num_particles, num_steps=num_steps)
    evaluated = module.actor("eval")
    if samples:
        evaluated = evaluated.sampling()
    actor = _with_particles(dataclasses.replace(evaluated.greedy(), noise_scale=1.0), num_particles)
    policy = _with_steps(module.policy, num_steps)
    actor = dataclasses.replace(actor, policy=policy)
    bounds: ActionBounds = module.hparams["action_bounds"] or ActionBounds.unit(module.action_dim)
    particles, goals = actor.num_particles, module.goals
    inputs = {"observation": Input((module.observation_dim,)), "noise": Input((particles, policy.noise_dim))}
    if policy.num_draws:
        inputs["step_noise"] = Input((policy.num_draws, particles, module.action_dim))
    if goals is not None:
        inputs["goal"] = Input((goals.dim,))
    steps = f", {counted(policy.sampler.steps, 'step')}" if isinstance(policy, FlowPolicy) else ""
    noise = "normal" if evaluated.noise_scale else "zeros"
    choice = f"the best of {particles} particles" if particles > 1 else "one particle"
    return Program(
        PolicyProgram(module, actor, bounds),
        inputs,
        "action",
        f"acts by {choice}{steps}" if noise == "normal" else "acts by the mode for noise of zeros",
        {
            "kind": "policy",
            "model": type(module).__name__,
            "evaluation_noise": noise,
            "action_low": bounds.low,
            "action_high": bounds.high,
            **dataclasses.asdict(module.interface),
            "goal_columns": () if goals is None else goals.schema.columns,
        },
    )


def _with_particles(actor: ParticleActor, num_particles: int | None) -> ParticleActor:
    """A greedy actor with a number of particles; its own if None."""
    if num_particles is None:
        return actor
    if actor.num_particles == 1 < num_particles:
        raise UserError(f"the policy acts by one particle, not the best of several; got num_particles {num_particles}")
    return dataclasses.replace(actor, num_particles=num_particles).greedy()


def _with_steps(policy: LatentPolicy, num_steps: int | None) -> LatentPolicy:
    """The policy, with the same weights, and a number of steps that is fixed; its own if None."""
    if isinstance(policy, FlowPolicy):
        stepping = copy.copy(policy)
        stepping.sampler = with_fixed_steps(policy.sampler, num_steps)
        return stepping
    if num_steps is not None:
        raise UserError(f"{type(policy).__name__} takes no steps; num_steps must be null, got {num_steps}")
    return policy


def with_fixed_steps(sampler: Sampler, num_steps: int | None) -> Sampler:
    """A sampler with a number of steps that does not depend on what it samples.

    Args:
        sampler: Sampler.
        num_steps: Number of steps; the sampler's own if None.

    Raises:
        UserError: If the sampler chooses its steps by the error.
    """
    fixed = sampler if num_steps is None else sampler.with_steps(num_steps)
    if fixed is None or fixed.steps is None:
        raise UserError(f"a program has a fixed number of steps, got {sampler}, which chooses them by the error")
    return fixed


def counted(number: int | None, noun: str) -> str:
    """A number with its noun, such as ``2 steps``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def given_noise(step_noise: Tensor | None) -> Draw:
    """A function that returns given noise, one part after the other, in place of drawing it.

    Args:
        step_noise: Standard normal, shape (B, steps, ...); None where there is nothing to draw.
    """
    parts = iter(() if step_noise is None else step_noise.unbind(1))
    return lambda like: next(parts)
