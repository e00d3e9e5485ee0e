"""Values of policies from modelled futures and from roll-outs.

The reward of a state is paid on arrival: the value of an action is ``Q(s, a) = sum_k discount^k E r(S_{k+1})``. With a
draw X of the discounted future states of (s, a), the current state excluded, ``Q(s, a) = E r(X) / (1 - discount)``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.shapes import append_dims, check_shape

Futures: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, float | Tensor], Tensor]
"""A model of futures, called as ``futures(noise, state, action, embedding, discount)`` with shapes (*batch, K, D),
(*batch, S), (*batch, A), (*batch, Z) and a number; returns K future states of each state and action, the current one
excluded, in the units of the environment, shape (*batch, K, D)."""

Act: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""The members of a family of policies, called as ``act(state, embedding)`` with shapes (*batch, S) and (*batch, Z);
returns actions, shape (*batch, A)."""

RewardOfState: TypeAlias = Callable[[Tensor], Tensor]
"""Maps states (*batch, D) in the units of the environment to rewards (*batch)."""


TerminalProbability: TypeAlias = Callable[[Tensor, float], Tensor]
"""Probability (*batch) that future states (*batch, D), drawn with a discount, are terminal and thus never left."""


@dataclass(frozen=True)
class ValueEstimate:
    """Values with their standard errors.

    Attributes:
        value: Value, in units of the return, shape (*batch).
        standard_error: Standard error over the draws, in the same unit, shape (*batch); NaN for a single draw. It
            includes neither the error of the model nor the correlation of values that share their noise.
    """

    value: Tensor
    standard_error: Tensor


@dataclass(frozen=True)
class MonteCarloValue:
    """Discounted sums of rewards along roll-outs.

    Attributes:
        value: Sum, in units of the return, shape (*batch).
        missing_weight: Sum of the discounts of the steps not observed, shape (*batch): 0 where the roll-out terminated.
            Times the largest magnitude of the reward it bounds the error of the value.
    """

    value: Tensor
    missing_weight: Tensor


def estimate_value(
    futures: Tensor, reward: RewardOfState, discount: float | Tensor, current_state: Tensor | None = None
) -> ValueEstimate:
    """Value of a state and an action from draws of their discounted future states.

    Draws that include the current state follow ``(1 - discount) delta_s + discount m``, where m is the distribution
    without it. The reward of the current state is no part of the value and is subtracted:
    ``Q = (E r(X) / (1 - discount) - r(s)) / discount``.

    Args:
        futures: Future states, shape (*batch, K, D).
        reward: Called with shape (*batch, K, D), and with (*batch, D) for a current state.
        discount: Discount per step that the futures were drawn with, in [0, 1); a number or a prefix of (*batch).
        current_state: The current states if the draws include them, shape (*batch, D); None if they do not.

    Returns:
        Estimates, shape (*batch).

    Raises:
        ValueError: If the shapes do not fit, the discount is outside [0, 1), or it is 0 and all draws are thus the
            current state.

    Reference:
        Farebrother et al., arXiv:2503.09817, equation 2, for draws without the current state.
    """
    draws = reward_of(reward, futures)
    if current_state is None:
        return estimate_from_rewards(draws, discount)
    if bool(torch.as_tensor(discount == 0.0).any()):
        raise UserError("futures that include the current state give no value at discount 0; it must be positive")
    check_shape("current_state", current_state, (*futures.shape[:-2], futures.shape[-1]))
    now = reward_of(reward, current_state)
    total = estimate_from_rewards(draws, discount)
    steps = append_dims(discount, like=now) if isinstance(discount, Tensor) else discount
    return ValueEstimate((total.value - now) / steps, total.standard_error / steps)


def estimate_from_rewards(rewards: Tensor, discount: float | Tensor) -> ValueEstimate:
    """Value of a state and an action from the rewards of draws of their discounted future states.

    Args:
        rewards: Rewards of independent draws, shape (*batch, K), K at least 1.
        discount: Discount per step, in [0, 1); a number or a prefix of (*batch).

    Returns:
        Estimates, shape (*batch).

    Raises:
        ValueError: If there are no draws, the discount is outside [0, 1), or its shape is not a prefix of (*batch).
    """
    check_discount(discount)
    if rewards.dim() == 0 or rewards.shape[-1] == 0:
        raise ValueError(f"expected rewards of shape (*batch, K), K at least 1, got {tuple(rewards.shape)}")
    count, mean = rewards.shape[-1], rewards.mean(-1)
    variance = (rewards - mean[..., None]).square().sum(-1) / (count - 1)
    horizon = 1.0 / (1.0 - (append_dims(discount, like=mean) if isinstance(discount, Tensor) else discount))
    return ValueEstimate(horizon * mean, horizon * (variance / count).sqrt())


def monte_carlo_value(rewards: Tensor, ended: Tensor, discount: float, length: Tensor | None = None) -> MonteCarloValue:
    """Discounted sum of the rewards of the states that roll-outs arrive at.

    A terminal state is never left: its reward repeats for ever, and the rest of the roll-out is ignored. A roll-out
    that is cut off has the rest of its rewards missing.

    Args:
        rewards: Rewards of the states at times 1, ..., T, shape (T, *batch), T at least 1.
        ended: Whether a roll-out was in a terminal state at those times, boolean, shape (T, *batch).
        discount: Discount per step, in [0, 1).
        length: How many of the T steps are observed, in 1, ..., T, integer, shape (*batch); the rest is ignored. None
            if all are.

    Returns:
        Values and the weight of the missing steps, shape (*batch).

    Raises:
        ValueError: If the shapes differ, there are no steps, ``ended`` is not boolean, or the discount or a length is
            out of range.
    """
    check_discount(discount)
    if rewards.dim() == 0 or len(rewards) == 0:
        raise ValueError(f"expected rewards of shape (T, *batch), T at least 1, got {tuple(rewards.shape)}")
    check_shape("ended", ended, tuple(rewards.shape))
    if ended.dtype != torch.bool:
        raise ValueError(f"ended must be boolean, got {ended.dtype}")
    time = append_dims(torch.arange(len(rewards), device=rewards.device), like=rewards)
    length = torch.full_like(ended[0], len(rewards), dtype=torch.long) if length is None else length
    _check_length(length, rewards)
    ended = ended & (time < length)
    terminal = ended.any(0)
    last_observed = torch.where(terminal, ended.int().argmax(0), length - 1)
    observed = torch.where(time <= last_observed, discount ** time.to(rewards.dtype) * rewards, 0.0).sum(0)
    rest = discount ** (last_observed + 1).to(rewards.dtype) / (1.0 - discount)
    last_reward = rewards.gather(0, last_observed[None])[0]
    return MonteCarloValue(observed + torch.where(terminal, rest * last_reward, 0.0), rest.masked_fill(terminal, 0.0))


def draw_futures(
    futures: Futures, noise: Tensor, state: Tensor, action: Tensor, embedding: Tensor, discount: float
) -> Tensor:
    """Draws from a model of futures, with their shape checked.

    Args:
        futures: The model.
        noise: Noise, shape (*batch, K, D).
        state: States, shape (*batch, S).
        action: Actions, shape (*batch, A).
        embedding: Embeddings of the members, shape (*batch, Z).
        discount: Discount per step, in [0, 1).

    Returns:
        Future states, shape (*batch, K, D).

    Raises:
        ValueError: If the model returns another shape.
    """
    drawn = futures(noise, state, action, embedding, discount)
    check_shape("the futures of the model", drawn, tuple(noise.shape))
    return drawn


def reward_of(reward: RewardOfState, states: Tensor) -> Tensor:
    """Rewards of states, with their shape checked.

    Args:
        reward: The reward.
        states: States, shape (*batch, D).

    Returns:
        Rewards, shape (*batch).

    Raises:
        ValueError: If the reward returns another shape.
    """
    value = reward(states)
    check_shape("the reward of the states", value, tuple(states.shape[:-1]))
    return value


def check_discount(discount: float | Tensor) -> None:
    """Raise unless a discount lies in [0, 1).

    Args:
        discount: Discount per step, a number or a tensor.

    Raises:
        UserError: If it does not.
    """
    values = torch.as_tensor(discount, dtype=torch.float64)
    if not bool(((values >= 0.0) & (values < 1.0)).all()):
        raise UserError(f"discount must lie in [0, 1), got {discount}")


def _check_length(length: Tensor, rewards: Tensor) -> None:
    check_shape("length", length, tuple(rewards.shape[1:]))
    if length.is_floating_point() or not bool(((length >= 1) & (length <= len(rewards))).all()):
        raise ValueError(f"length must be whole numbers in 1, ..., {len(rewards)}, got {length.tolist()}")
