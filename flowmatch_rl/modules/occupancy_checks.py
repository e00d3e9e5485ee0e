"""Whether what a model of future states is given fits its states."""

from collections.abc import Mapping

import torch

from flowmatch_rl.modules.occupancy_inputs import OccupancyInputs
from flowmatch_rl.samplers import Sampler
from flowmatch_rl.types import Policy, Reward


def check_policy(policy: Policy | None, inputs: OccupancyInputs) -> None:
    """Raise unless a policy acts in the states of the data, by letting it act in their mean.

    Args:
        policy: The policy, or None.
        inputs: States and actions of the data.

    Raises:
        ValueError: If the policy takes other states, or its actions are of another dimension.
    """
    if policy is None:
        return
    state = inputs.state_shift[None]
    member = policy.embeddings(torch.full((1, policy.embedding_dim), 0.5))
    name, columns = type(policy).__name__, inputs.schema.columns
    try:
        action = policy.act(state, member, torch.Generator().manual_seed(0))
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} cannot act in the states of the data, which have {len(columns)} entries ({', '.join(columns)}): "
            f"{error}"
        ) from error
    if action.shape != (1, inputs.action_dim):
        raise ValueError(
            f"the data have actions of dimension {inputs.action_dim}, {name} gives actions of dimension "
            f"{action.shape[-1]}"
        )


def check_rewards(rewards: Mapping[str, Reward], columns: tuple[str, ...]) -> None:
    """Raise unless rewards can be had of the modelled entries.

    Args:
        rewards: Rewards by name.
        columns: Names of the modelled entries.

    Raises:
        ValueError: If one looks at another entry.
    """
    for name, reward in rewards.items():
        if missing := [column for column in reward.needed_columns if column not in columns]:
            raise ValueError(
                f"the reward {name!r} needs {', '.join(map(repr, missing))}, but the model holds {', '.join(columns)}"
            )
        reward.evaluate(torch.zeros(1, len(columns)), columns)


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
