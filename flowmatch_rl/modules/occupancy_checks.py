"""Checks that policies and rewards fit the states of a model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.trust import UntrustedNameError
from flowmatch_rl.types import Policy, Reward


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
