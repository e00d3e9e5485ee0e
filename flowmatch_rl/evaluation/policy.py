"""Samples of a policy beside the values of its critic, and what its targets are like by flow time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.models import LatentPolicy
from flowmatch_rl.models.actor import ActionValues
from flowmatch_rl.schema import ActionBounds


@dataclass(frozen=True)
class PolicySample:
    """Particles of a policy at B states, and values of the actions around the chosen one. All on the CPU.

    Actions are in the environment's unit.

    Attributes:
        t: Flow times, shape (K,).
        actions: Particles along the flow, squashed to actions, shape (K, B, N, A).
        chosen: Actions that the evaluation took, shape (B, A).
        grid: Values of the E action entries that vary, one if A is 1 and else two, from bound to bound, shape (E, G).
            An entry whose bounds are equal has one value, around which its grid reaches by 1.
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
        """Boltzmann density ``exp(Q / temperature)`` of a single action entry, normalised on the grid, shape (B, G)."""
        weights = torch.softmax(self.values / self.temperature, dim=1)
        return weights / torch.trapezoid(weights, self.grid[0])[:, None]


@torch.no_grad()
def sample_policy(
    policy: LatentPolicy,
    values: ActionValues,
    temperature: float,
    observation: Tensor,
    chosen: Tensor,
    bounds: ActionBounds,
    num_particles: int = 1000,
) -> PolicySample:
    """Sample a policy and evaluate its critic, with noise of its own that leaves the global one alone.

    Args:
        policy: The policy.
        values: Values of its critic.
        temperature: Temperature of the policy, units of the return.
        observation: States on the policy's device, shape (B, S).
        chosen: Actions in [-1, 1] that the evaluation took there, shape (B, A).
        bounds: Bounds of the action in the environment's unit.
        num_particles: Particles N per state.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (len(observation), num_particles, policy.noise_dim)
    noise = torch.randn(shape, generator=generator).to(observation)
    t, latents = policy.trajectories(observation, noise)
    grid = torch.linspace(-1.0, 1.0, 2001 if chosen.shape[1] == 1 else 61, device=observation.device)
    return PolicySample(
        t.cpu().float(),
        bounds.restore(policy.squash.action(latents)).cpu().float(),
        bounds.restore(chosen).cpu().float(),
        _grids(bounds, grid.cpu())[: min(chosen.shape[1], 2)],
        values(observation, _around(chosen, grid)).cpu().float().unflatten(1, (len(grid),) * min(chosen.shape[1], 2)),
        temperature,
    )


def _grids(bounds: ActionBounds, unit: Tensor) -> Tensor:
    """A grid of [-1, 1], shape (G,), in the unit of each entry, shape (A, G)."""
    low, high = torch.tensor(bounds.low), torch.tensor(bounds.high)
    margin = (low == high).float()
    low, high = low - margin, high + margin
    return low[:, None] + (unit + 1.0) / 2.0 * (high - low)[:, None]


def _around(chosen: Tensor, grid: Tensor) -> Tensor:
    """Actions whose first one or two entries run over the grid, the others as chosen, shape (B, G or G * G, A)."""
    entries = min(chosen.shape[1], 2)
    axes = torch.meshgrid(*[grid] * entries, indexing="ij")[::-1]  # the first entry runs fastest
    varied = torch.stack([axis.flatten() for axis in axes], dim=-1).to(chosen)
    actions = chosen[:, None].repeat(1, len(varied), 1)
    actions[..., :entries] = varied
    return actions


@dataclass(frozen=True)
class PosteriorProfile:
    """Means by flow time over the updates of a stretch of training.

    Attributes:
        step: Environment steps at its end, or gradient steps where the data does not count those.
        t: Middle of each bin of flow time, dimensionless.
        means: Mean in each bin by name of the quantity, NaN where nothing fell in the bin.
    """

    step: int
    t: Sequence[float]
    means: Mapping[str, Sequence[float]]

    def metrics(self, prefix: str) -> dict[str, float]:
        """The means as metrics ``<prefix>/<quantity>/<index of the bin>``, without those of empty bins.

        Args:
            prefix: Start of the names.
        """
        return {
            f"{prefix}/{name}/{index}": value
            for name, values in self.means.items()
            for index, value in enumerate(values)
            if value == value  # not NaN
        }
