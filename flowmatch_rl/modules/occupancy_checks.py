"""Whether what a model of future states is given fits its states."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.models.occupancy_inputs import OccupancyInputs
from flowmatch_rl.samplers import Sampler
from flowmatch_rl.types import Policy, Reward


def check_policy(policy: Policy, state: Tensor, columns: tuple[str, ...], action_dim: int) -> None:
    """Raise unless a policy acts in states, by letting it act in one.

    Args:
        policy: The policy.
        state: A state, shape (1, S).
        columns: Names of its S entries.
        action_dim: Dimension A of the actions wanted.

    Raises:
        ValueError: If the policy takes other states, or its actions are of another dimension.
    """
    member = policy.embeddings(torch.full((1, policy.embedding_dim), 0.5))
    name = type(policy).__name__
    try:
        action = policy.act(state, member, torch.Generator().manual_seed(0))
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} cannot act in states of {len(columns)} entries ({', '.join(columns)}): {error}"
        ) from error
    if action.shape != (1, action_dim):
        raise ValueError(f"expected actions of dimension {action_dim}, {name} gives {action.shape[-1]}")


def check_rewards(rewards: Mapping[str, Reward], state: Tensor, columns: tuple[str, ...]) -> None:
    """Raise unless rewards can be had of the modelled entries, by asking for those of one state.

    Args:
        rewards: Rewards by name.
        state: Modelled entries of a state, shape (1, D).
        columns: Names of the D modelled entries.

    Raises:
        ValueError: If one looks at another entry, fails, or is not finite.
    """
    for name, reward in rewards.items():
        if missing := [column for column in reward.needed_columns if column not in columns]:
            raise ValueError(
                f"the reward {name!r} needs {', '.join(map(repr, missing))}, but the model holds {', '.join(columns)}"
            )
        try:
            value = reward.evaluate(state, columns)
        # A function of the user's own may raise anything.
        except Exception as error:
            raise ValueError(f"the reward {name!r} fails in the mean state: {error}") from error
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"the reward {name!r} must be finite, got {float(value)} in the mean state")


def check_sampler(sampler: Sampler) -> None:
    """Raise unless a sampler follows the flow of one velocity without further noise.

    Args:
        sampler: The sampler.

    Raises:
        ValueError: If it adds noise, or needs average velocities.
    """
    if sampler.needs_normal_source or sampler.needs_average_velocity:
        raise ValueError(f"future states need a deterministic sampler of velocities, such as OdeSampler, got {sampler}")


def check_discounts(discounts: tuple[float, ...] | None, inputs: OccupancyInputs) -> None:
    """Raise unless the model knows the discounts of its tests.

    Args:
        discounts: Discounts, or None for the highest.
        inputs: What the model knows.

    Raises:
        ValueError: If one is unknown.
    """
    low, high = inputs.discount if inputs.min_discount is None else inputs.min_discount, inputs.discount
    for discount in discounts or ():
        if not low <= discount <= high:
            wanted = f"{high}" if low == high else f"in [{low}, {high}]"
            raise ValueError(f"tests.discounts must be {wanted}, which the model is trained at, got {discount}")


def check_same(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Raise unless a checkpoint is of the same occupancy: other numbers would give its weights another meaning.

    Args:
        saved: Arguments of the model of the checkpoint.
        present: Arguments of the model that takes its weights.

    Raises:
        ValueError: If they differ in what the weights stand for.
    """
    for name in ("discount", "min_discount", "first_state", "columns"):
        if saved[name] != present[name]:
            raise ValueError(f"the checkpoint was trained with {name} {saved[name]}, got {present[name]}")
