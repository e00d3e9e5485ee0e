"""Checks that the parts of a model go together, and that policies and rewards fit its states."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.models import Occupancy
from flowmatch_rl.modules.segments import Segments
from flowmatch_rl.objectives import OccupancyObjective
from flowmatch_rl.trust import UntrustedNameError
from flowmatch_rl.types import Policy, Reward


def check_parts(model: Occupancy, objective: OccupancyObjective, segments: Segments, tests: FutureTests) -> None:
    """Raise where the parts of a model do not go together.

    Args:
        model: The model.
        objective: How it is learned.
        segments: How transitions become segments.
        tests: What evaluations measure.

    Raises:
        UserError: If two do not.
    """
    policy, inputs = model.policy, model.inputs
    if model.encoder is not None and policy is not None:
        raise UserError(f"intentions are of policies known by data alone: expected policy null, got {policy}")
    if inputs.horizon.consistency > 0.0:
        for holds, wanted, got in (
            (policy is not None, "a policy that acts in modelled states", None),
            (inputs.is_whole, "a model of the whole state", "columns"),
            (objective.bootstraps, "an objective that bootstraps", objective),
        ):
            if not holds:
                raise UserError(f"consistency of horizons needs {wanted}, got {got}")
    segments.check(policy, objective.bootstraps)
    if policy is not None:
        check_policy(policy, inputs.state_shift[None], inputs.schema.columns, inputs.action_dim)
    inputs.horizon.check(torch.tensor(tests.discounts or [inputs.horizon.discount]), "tests.discounts")


def check_same_occupancy(checkpoint: Mapping[str, Any], columns: tuple[str, ...], own: Mapping[str, Any]) -> None:
    """Raise unless a checkpoint is of the same states and the same occupancy.

    Args:
        checkpoint: The checkpoint.
        columns: Columns of the states of this run.
        own: What tells this run's occupancy from others, by name.

    Raises:
        UserError: If they differ.
    """
    saved = checkpoint["hyper_parameters"]["schema"].columns
    if saved != columns:
        raise UserError(
            f"the checkpoint was trained on states ({', '.join(saved)}), this data set has ({', '.join(columns)})"
        )
    for name, value in checkpoint["occupancy"].items():
        if value != own[name]:
            raise UserError(f"the checkpoint was trained with {name} {value}, got {own[name]}")


def check_policy(policy: Policy, state: Tensor, columns: tuple[str, ...], action_dim: int) -> None:
    """Raise unless a policy acts in states, by letting it act in one.

    Args:
        policy: The policy.
        state: A state, shape (1, S).
        columns: Names of its S entries.
        action_dim: Dimension A of the actions wanted.

    Raises:
        UserError: If the policy takes other states, or its actions are of another dimension.
    """
    member = policy.embeddings(torch.full((1, policy.embedding_dim), 0.5))
    name = type(policy).__name__
    try:
        action = policy.act(state, member, torch.Generator().manual_seed(0))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{name} cannot act in states of {len(columns)} entries ({', '.join(columns)}): {error}"
        ) from error
    if action.shape != (1, action_dim):
        raise UserError(f"expected actions of dimension {action_dim}, {name} gives {action.shape[-1]}")


def check_rewards(rewards: Mapping[str, Reward], state: Tensor, columns: tuple[str, ...], needed: bool = True) -> None:
    """Raise unless rewards are defined for the modelled entries, by evaluating them in one state.

    Args:
        rewards: Rewards by name.
        state: Modelled entries of a state, shape (1, D).
        columns: Names of the D modelled entries.
        needed: Whether those that a checkpoint names, and that may not be imported, are an error; otherwise they pass.

    Raises:
        UserError: If one looks at another entry, fails, or is not finite.
    """
    for name, reward in rewards.items():
        if missing := [column for column in reward.needed_columns if column not in columns]:
            raise UserError(
                f"the reward {name!r} needs {', '.join(map(repr, missing))}, but the model holds {', '.join(columns)}"
            )
        try:
            value = reward.evaluate(state, columns)
        except UntrustedNameError as error:
            if needed:
                raise UntrustedNameError(f"the reward {name!r}: {error}") from error
            continue
        # A function of the user's own may raise anything.
        except Exception as error:
            raise UserError(f"the reward {name!r} fails in the mean state: {error}") from error
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"the reward {name!r} must be finite, got {float(value)} in the mean state")
