"""Modelled and real future states, and the values they give, gathered for figures."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from flowmatch_rl.batches import Rollouts
from flowmatch_rl.figures.sample import differing_states
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.types import Reward

_HORIZONS = 4
"""Discounts drawn of a model of many horizons."""


class StateEntries(Protocol):
    """What a model is told, and what it holds."""

    modelled: list[int]
    discount: float
    min_discount: float | None


class OccupancyModel(Protocol):
    """What a module must offer to have its future states drawn."""

    first_state: Literal["arrival", "current"]
    rewards: dict[str, Reward]

    @property
    def inputs(self) -> StateEntries:
        """Which entries of the state are modelled, for what discounts."""
        ...

    @property
    def schema(self) -> TableSchema:
        """Modelled entries of the state."""
        ...

    def draw_normal(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Noise on the model's device."""
        ...

    def sample(
        self,
        noise: Tensor,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None = None,
        discount: Tensor | float | None = None,
    ) -> Tensor:
        """Future states."""
        ...


@dataclass(frozen=True)
class FutureSample:
    """Future states of N source states at G discounts, in the units of the environment and on the CPU.

    Attributes:
        schema: The D modelled entries of the state.
        source: Modelled entries of the source states, shape (N, D).
        discounts: Discounts per environment step, ascending.
        modelled: Draws of the model, shape (G, N, K, D).
        real: As many states of trajectories at times drawn by their discounted weight, or None without trajectories.
        seen: Smallest share, in [0, 1], of the discounted weight that trajectories hold before they are cut, at each
            discount; 1 without trajectories.
    """

    schema: TableSchema
    source: Tensor
    discounts: tuple[float, ...]
    modelled: Tensor
    real: Tensor | None
    seen: tuple[float, ...]


@dataclass(frozen=True)
class ValueSample:
    """Values of N source states under a reward, in units of the return and on the CPU.

    Attributes:
        name: The reward.
        modelled: Value by the model, shape (N,).
        modelled_error: Its standard error, shape (N,).
        real: Mean discounted sum of rewards of the roll-outs, shape (N,).
        real_error: Its standard error, shape (N,); None for a single roll-out.
        seen: Smallest share, in [0, 1], of the discounted weight that roll-outs hold before they are cut.
    """

    name: str
    modelled: Tensor
    modelled_error: Tensor
    real: Tensor
    real_error: Tensor | None
    seen: float


@torch.no_grad()
def sample_futures(module: OccupancyModel, rollouts: Rollouts, num_states: int, num_samples: int) -> FutureSample:
    """Draw future states of the source states that differ most, with noise that leaves the global one alone.

    Args:
        module: The model.
        rollouts: Source states, perhaps with trajectories, on the module's device.
        num_states: Source states N, at most.
        num_samples: Future states K of each at each discount.
    """
    generator, chosen = torch.Generator().manual_seed(0), _rows(rollouts, num_states)
    discounts, entries = _discounts(module.inputs), module.inputs.modelled
    modelled = [_modelled(module, chosen, discount, num_samples, generator) for discount in discounts]
    real, seen = None, [1.0] * len(discounts)
    if chosen.states is not None:
        weights = [step_weights(chosen, discount) for discount in discounts]
        seen = [float(weight.sum(-1).min()) for weight in weights]
        drawn = [
            _drawn(chosen, _counted(weight, discount, module.first_state), num_samples, generator)
            for weight, discount in zip(weights, discounts, strict=True)
        ]
        real = torch.stack(drawn)[..., entries].cpu().float()
    source = chosen.observation[:, entries].cpu().float()
    return FutureSample(module.schema, source, discounts, torch.stack(modelled), real, tuple(seen))


@torch.no_grad()
def sample_values(module: OccupancyModel, rollouts: Rollouts, num_samples: int) -> list[ValueSample]:
    """Values of source states under the rewards of a model at its highest discount.

    Args:
        module: The model.
        rollouts: Source states, perhaps with trajectories, on the module's device.
        num_samples: Future states of each source state that its value is estimated from, at least 2.

    Returns:
        Values under each reward; none without trajectories.
    """
    if rollouts.states is None or not module.rewards:
        return []
    discount, columns, entries = module.inputs.discount, module.schema.columns, module.inputs.modelled
    made = _modelled(module, rollouts, discount, num_samples, torch.Generator().manual_seed(1))
    now, weights = rollouts.observation[:, entries].cpu().float(), step_weights(rollouts, discount)
    values, seen = [], float(weights.sum(-1).min())
    for name, reward in module.rewards.items():
        drawn = reward.evaluate(made, columns).double()
        value, error = drawn.mean(-1) / (1.0 - discount), drawn.std(-1) / (num_samples**0.5 * (1.0 - discount))
        if module.first_state == "current":  # the reward of the current state is no part of the value
            value, error = (value - reward.evaluate(now, columns)) / discount, error / discount
        earned = reward.evaluate(rollouts.states[..., entries], columns).double()
        real = ((weights * earned).sum(-1) / (1.0 - discount)).cpu()  # (N, R)
        copies = real.shape[1]
        spread = None if copies == 1 else real.std(-1) / copies**0.5
        values.append(ValueSample(name, value, error, real.mean(-1), spread, seen))
    return values


def step_weights(rollouts: Rollouts, discount: float) -> Tensor:
    """Weights ``(1 - discount) discount^(k - 1)`` of the states of trajectories at times k = 1, ..., T.

    A terminal state is never left, so that the last state of a trajectory that ended has all the weight of later times.
    Where a trajectory only stops, that weight is missing.

    Args:
        rollouts: Source states with trajectories.
        discount: Discount per environment step, in [0, 1).

    Returns:
        Weights, float64, shape (N, R, T), with sums of at most 1.

    Raises:
        ValueError: If there are no trajectories.
    """
    if rollouts.length is None or rollouts.ended is None:
        raise ValueError("expected source states with trajectories, got states alone")
    num_steps = rollouts.ended.shape[-1]
    time = torch.arange(num_steps, dtype=torch.float64, device=rollouts.ended.device)
    known = time < rollouts.length[..., None]
    weights = torch.where(known, (1.0 - discount) * discount**time, 0.0)
    weights[..., -1] += torch.where(rollouts.ended[..., -1], discount**num_steps, 0.0)
    return weights


def _rows(rollouts: Rollouts, number: int) -> Rollouts:
    rows = differing_states(rollouts.observation, number)
    whole = (rollouts.states, rollouts.length, rollouts.ended)
    trajectories = [None if part is None else part[rows] for part in whole]
    source = (rollouts.observation, rollouts.action, rollouts.embedding)
    return Rollouts(*(part[rows] for part in source), *trajectories)


def _discounts(inputs: StateEntries) -> tuple[float, ...]:
    """The discount, or several from the lowest to the highest, even in the logarithm of the horizon."""
    low, high = inputs.min_discount, inputs.discount
    if low is None or low == high:
        return (high,)
    shares = [i / (_HORIZONS - 1) for i in range(1, _HORIZONS - 1)]
    return (low, *(1.0 - (1.0 - low) ** (1.0 - share) * (1.0 - high) ** share for share in shares), high)


def _modelled(
    module: OccupancyModel, rollouts: Rollouts, discount: float, number: int, generator: torch.Generator
) -> Tensor:
    """Draws of the model on the CPU, shape (N, number, D)."""
    noise = module.draw_normal((len(rollouts.observation), number, module.schema.sample_dim), generator)
    source = [part[:, None] for part in (rollouts.observation, rollouts.action, rollouts.embedding)]
    return module.sample(noise, *source, discount=discount).cpu().float()


def _counted(weights: Tensor, discount: float, first_state: str) -> Tensor:
    """Weights of the states at times 0, ..., T that an occupancy counts, shape (N, R, T + 1)."""
    now = torch.ones_like(weights[..., :1])
    if first_state == "current":
        return torch.cat([(1.0 - discount) * now, discount * weights], dim=-1)
    return torch.cat([0.0 * now, weights], dim=-1)


def _drawn(rollouts: Rollouts, weights: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """States of trajectories by weight, every trajectory of a source state as often, shape (N, number, S)."""
    states: Tensor = rollouts.states  # pyright: ignore[reportAssignmentType]
    now = rollouts.observation[:, None, None].expand(-1, states.shape[1], 1, -1)
    states = torch.cat([now, states], dim=2).flatten(1, 2)
    even = (weights / weights.sum(-1, keepdim=True)).flatten(1).cpu()
    index = torch.multinomial(even, number, replacement=True, generator=generator).to(states.device)
    return states[torch.arange(len(states), device=states.device)[:, None], index]
