"""Future states and values of an occupancy, beside those of real trajectories."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from flowmatch_rl.batches import Rollouts
from flowmatch_rl.checks import RunError
from flowmatch_rl.evaluation.view import differing_states
from flowmatch_rl.metrics import correlation
from flowmatch_rl.models import Occupancy
from flowmatch_rl.planning import monte_carlo_value
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import geometric_steps
from flowmatch_rl.types import Reward

Gather: TypeAlias = Callable[[Tensor], Tensor]
"""Joins one number per source state, shape (N,), with those of the other processes of a run."""

_ENDLESS = 2**31
"""Steps of a trajectory that stays in its terminal state."""

_MARGIN = 0.1
"""A state is outside the range of the data beyond this fraction of its width."""

_HORIZONS = 4
"""Discounts of a model of many horizons at which future states are compared."""


@dataclass(frozen=True)
class FutureSample:
    """Future states of N source states at G discounts, in the units of the environment and on the CPU.

    Attributes:
        schema: The D modelled entries of the state.
        modelled_entries: Which entries of the state they are, length D.
        source: Modelled entries of the source states, shape (N, D).
        discounts: Discounts per environment step, ascending.
        modelled: Samples of the model, shape (G, N, K, D).
        real: As many states of trajectories at geometric times, or None without trajectories.
        observed: Smallest fraction, in [0, 1], of the discounted weight that trajectories hold before they are cut, at
            each discount; 1 without trajectories.
    """

    schema: TableSchema
    modelled_entries: tuple[int, ...]
    source: Tensor
    discounts: tuple[float, ...]
    modelled: Tensor
    real: Tensor | None
    observed: tuple[float, ...]


@dataclass(frozen=True)
class ValueComparison:
    """Values of N source states under a reward, in units of the return.

    Attributes:
        name: The reward.
        value: Value by the model, shape (N,).
        standard_error: Its standard error, shape (N,).
        real: Mean discounted sum of rewards of the roll-outs, shape (N,), or None without roll-outs.
        real_error: Its standard error, shape (N,); None for less than two roll-outs.
        observed: Smallest fraction, in [0, 1], of the discounted weight that roll-outs hold before they are cut.
    """

    name: str
    value: Tensor
    standard_error: Tensor
    real: Tensor | None
    real_error: Tensor | None
    observed: float

    def metrics(self, gather: Gather | None = None) -> dict[str, Tensor]:
        """Means over the source states by name, and the correlation of modelled and real values over them.

        The correlation is that over the source states of all processes, so that each of them has the same one; it is
        left out where there are less than three of them, or values do not differ.

        Args:
            gather: Joins the values of all processes; None if there is one.
        """
        metrics = {
            f"value/{self.name}": self.value.mean(),
            f"value_standard_error/{self.name}": self.standard_error.square().mean().sqrt() / len(self.value) ** 0.5,
        }
        if self.real is not None:
            metrics[f"value_real/{self.name}"] = self.real.mean()
            metrics[f"value_error/{self.name}"] = (self.value - self.real).square().mean()
            both = (self.value, self.real) if gather is None else (gather(self.value), gather(self.real))
            found = correlation(*both)
            if found is not None:
                metrics[f"value_correlation/{self.name}"] = found.float()
        return metrics


@torch.no_grad()
def sample_futures(model: Occupancy, rollouts: Rollouts, num_states: int, num_samples: int) -> FutureSample:
    """Sample future states of the source states that differ most, with noise that leaves the global one alone.

    Args:
        model: The model.
        rollouts: Source states, perhaps with trajectories, on the model's device.
        num_states: Source states N, at most.
        num_samples: Future states K of each at each discount.
    """
    generator, chosen = torch.Generator().manual_seed(0), _rows(rollouts, num_states)
    discounts, entries = model.horizon.spread(_HORIZONS), model.inputs.modelled
    modelled = [modelled_futures(model, chosen, discount, num_samples, generator) for discount in discounts]
    real = None
    if chosen.states is not None:
        drawn = [real_futures(model, chosen, discount, num_samples, generator) for discount in discounts]
        real = torch.stack(drawn).cpu().float()
    return FutureSample(
        model.schema,
        tuple(entries),
        chosen.observation[:, entries].cpu().float(),
        discounts,
        torch.stack(modelled).cpu().float(),
        real,
        tuple(observed_fraction(chosen, discount) for discount in discounts),
    )


@torch.no_grad()
def sample_values(
    model: Occupancy, rollouts: Rollouts, rewards: Mapping[str, Reward], num_samples: int
) -> list[ValueComparison]:
    """Values of source states at the highest discount, with noise that leaves the global one alone.

    Args:
        model: The model.
        rollouts: Source states, perhaps with trajectories, on the model's device.
        rewards: Rewards by name.
        num_samples: Future states of each source state that its value is estimated from, at least 2.

    Returns:
        Values under each reward.
    """
    discount = model.horizon.discount
    made = modelled_futures(model, rollouts, discount, num_samples, torch.Generator().manual_seed(1))
    return compare_values(model, rollouts, rewards, made, discount)


def modelled_futures(
    model: Occupancy, rollouts: Rollouts, discount: float, number: int, generator: torch.Generator
) -> Tensor:
    """Future states of the model, in the units of the environment.

    Args:
        model: The model.
        rollouts: N source states.
        discount: Discount per environment step.
        number: States per source state.
        generator: Source of noise, on the CPU.

    Returns:
        Modelled entries of states, shape (N, number, D).

    Raises:
        RunError: If one is not finite.
    """
    noise = model.draw_noise(len(rollouts.observation), number, generator=generator)
    made = model.futures(noise, rollouts.observation, rollouts.action, rollouts.embedding, discount)
    check_finite(made)
    return made


def check_finite(made: Tensor) -> None:
    """Raise unless modelled states of shape (*batch, D) are finite.

    Raises:
        RunError: If one is not.
    """
    bad = int((~torch.isfinite(made)).any(-1).sum())
    if bad:
        raise RunError(f"{bad} of {made[..., 0].numel()} modelled states are not finite; lower the learning rate")


def stray_fraction(schema: TableSchema, made: Tensor) -> Tensor | None:
    """Fraction of modelled states outside the range of the data, in [0, 1].

    They are outside if an entry is by more than a tenth of the width of its range: bounded entries are smeared a little
    by any flow.

    Args:
        schema: Modelled entries, with their range in the data.
        made: States of the model, shape (*batch, D).

    Returns:
        Fraction, shape (), or None if the range is not known.
    """
    if not schema.low:
        return None
    low, high = (made.new_tensor(bound) for bound in (schema.low, schema.high))
    margin = _MARGIN * torch.maximum(high - low, made.new_tensor(schema.scale))
    return ((made < low - margin) | (made > high + margin)).any(-1).float().mean()


def real_futures(
    model: Occupancy, rollouts: Rollouts, discount: float, number: int, generator: torch.Generator
) -> Tensor:
    """States of real trajectories at geometric times.

    Each is of a trajectory picked at random. A terminal state is never left: it is found at all later times. Where a
    trajectory stops without termination the distribution of its times is cut.

    Args:
        model: The model, whose entries of the state and first state are used.
        rollouts: N source states with trajectories.
        discount: Discount per environment step.
        number: States per source state.
        generator: Source of noise, on the CPU.

    Returns:
        Modelled entries of states, in the units of the environment, shape (N, number, D).

    Raises:
        ValueError: If there are no trajectories.
    """
    if rollouts.states is None or rollouts.length is None or rollouts.ended is None:
        raise ValueError("expected source states with trajectories, got states alone")
    count, copies = rollouts.length.shape
    uniform = torch.rand(2, count, number, generator=generator, dtype=torch.float64).to(rollouts.length.device)
    rows = torch.arange(count, device=uniform.device)[:, None]
    copy = (uniform[0] * copies).long()
    counts_now = model.horizon.first_state == "current"
    last = rollouts.length[rows, copy] + int(counts_now)
    known = last.masked_fill(rollouts.ended[rows, copy, -1], _ENDLESS)
    time = torch.minimum(geometric_steps(uniform[1], discount, known), last) - int(counts_now)
    states = rollouts.states[rows, copy, (time - 1).clamp_min(0)]
    states = torch.where((time == 0)[..., None], rollouts.observation[:, None], states)
    return states[..., model.inputs.modelled]


def observed_fraction(rollouts: Rollouts, discount: float) -> float:
    """Smallest fraction of the discounted weight that a trajectory holds, in [0, 1]; 1 without trajectories.

    A trajectory that ended holds all of it, since a terminal state is never left; one that only stops after T steps
    holds ``1 - discount^T``.

    Args:
        rollouts: Source states, perhaps with trajectories.
        discount: Discount per environment step, in [0, 1).
    """
    if rollouts.length is None or rollouts.ended is None:
        return 1.0
    held = 1.0 - discount ** rollouts.length.double()
    return float(held.masked_fill(rollouts.ended[..., -1], 1.0).min())


def compare_values(
    model: Occupancy, rollouts: Rollouts, rewards: Mapping[str, Reward], made: Tensor, discount: float
) -> list[ValueComparison]:
    """Values of source states by the model, beside those of roll-outs where there are any.

    Args:
        model: The model.
        rollouts: N source states, perhaps with trajectories.
        rewards: Rewards by name.
        made: Future states of the model, shape (N, K, D), K at least 2.
        discount: Their discount.

    Returns:
        Values under each reward.

    Raises:
        RunError: If a reward is not finite.
    """
    return [_compare_value(model, rollouts, name, reward, made, discount) for name, reward in rewards.items()]


def _compare_value(
    model: Occupancy, rollouts: Rollouts, name: str, reward: Reward, made: Tensor, discount: float
) -> ValueComparison:
    columns = model.schema.columns
    estimate = model.value(made, lambda states: reward.evaluate(states, columns), rollouts.observation, discount)
    bad = int((~torch.isfinite(estimate.value)).sum())
    if bad:
        raise RunError(f"the reward {name!r} is not finite in future states of {bad} of {len(made)} source states")
    real = error = None
    if rollouts.states is not None and rollouts.ended is not None:
        earned = reward.evaluate(rollouts.states[..., model.inputs.modelled], columns).movedim(-1, 0)
        sums = monte_carlo_value(earned, rollouts.ended.movedim(-1, 0), discount, rollouts.length).value
        real = sums.mean(-1)
        error = sums.std(-1) / sums.shape[-1] ** 0.5 if sums.shape[-1] > 1 else None
    observed = observed_fraction(rollouts, discount)
    return ValueComparison(name, estimate.value, estimate.standard_error, real, error, observed)


def _rows(rollouts: Rollouts, number: int) -> Rollouts:
    """The source states that differ most."""
    rows = differing_states(rollouts.observation, number)
    return replace(rollouts, **{name: None if part is None else part[rows] for name, part in vars(rollouts).items()})
