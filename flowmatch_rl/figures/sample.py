"""Samples of a policy and the values its critic gives, gathered for a figure."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class FlowActorCritic(Protocol):
    """What a module must offer to have its policy drawn."""

    policy: Any
    critics: Any
    temperature: Any


@dataclass(frozen=True)
class PolicySample:
    """Particles of a policy at B states, and values of the actions around the chosen one. All on the CPU.

    Attributes:
        t: Flow times, shape (K,).
        actions: Particles along the flow, squashed to actions, shape (K, B, N, A).
        chosen: Actions that the evaluation took, shape (B, A).
        grid: Values in [-1, 1] of the action entries that vary, shape (G,).
        values: Action values on the grid, units of the return: shape (B, G) if A is 1, else (B, G, G) with the first
            entry of the action along the last axis and the second along the one before, others as chosen.
        temperature: Temperature of the policy, units of the return.
    """

    t: Tensor
    actions: Tensor
    chosen: Tensor
    grid: Tensor
    values: Tensor
    temperature: float

    def density(self) -> Tensor:
        """Boltzmann density ``exp(Q / temperature)`` of a single action entry, normalised on [-1, 1], shape (B, G)."""
        weights = torch.softmax(self.values / self.temperature, dim=1)
        return weights / torch.trapezoid(weights, self.grid)[:, None]


@torch.no_grad()
def sample_policy(
    module: FlowActorCritic, observation: Tensor, chosen: Tensor, num_particles: int = 1000
) -> PolicySample:
    """Sample a policy and evaluate its critic, with noise of its own that leaves the global one alone.

    Args:
        module: Policy and critic.
        observation: States on the module's device, shape (B, S).
        chosen: Actions that the evaluation took there, shape (B, A).
        num_particles: Particles N per state.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (len(observation), num_particles, module.policy.noise_dim)
    noise = torch.randn(shape, generator=generator).to(observation)
    t, latents = module.policy.trajectories(observation, noise)
    grid = torch.linspace(-1.0, 1.0, 2001 if chosen.shape[1] == 1 else 61, device=observation.device)
    values = module.critics.values(observation, _around(chosen, grid))
    return PolicySample(
        t.cpu().float(),
        module.policy.squash.action(latents).cpu().float(),
        chosen.cpu().float(),
        grid.cpu(),
        values.cpu().float().unflatten(1, (len(grid),) * min(chosen.shape[1], 2)),
        float(module.temperature),
    )


def differing_states(observation: Tensor, number: int) -> list[int]:
    """Steps of an episode whose states differ most from one another, the first step among them.

    Each next one is the state farthest from those chosen, in units of the standard deviation of every entry.

    Args:
        observation: States of an episode, shape (T, S).
        number: How many, at least 1; fewer if the episode is shorter.

    Returns:
        Steps in ascending order.
    """
    states = observation / observation.std(0, correction=0).clamp(min=1e-6)
    steps = [0]
    distance = torch.full((len(states),), torch.inf, device=states.device)
    for _ in range(min(number, len(states)) - 1):
        distance = torch.minimum(distance, (states - states[steps[-1]]).norm(dim=1))
        distance[steps] = -1.0  # of states that are all alike none is taken twice
        steps.append(int(distance.argmax()))
    return sorted(steps)


def _around(chosen: Tensor, grid: Tensor) -> Tensor:
    """Actions whose first one or two entries run over the grid, the others as chosen, shape (B, G or G * G, A)."""
    entries = min(chosen.shape[1], 2)
    axes = torch.meshgrid(*[grid] * entries, indexing="ij")[::-1]  # the first entry runs fastest
    varied = torch.stack([axis.flatten() for axis in axes], dim=-1).to(chosen)
    actions = chosen[:, None].repeat(1, len(varied), 1)
    actions[..., :entries] = varied
    return actions
