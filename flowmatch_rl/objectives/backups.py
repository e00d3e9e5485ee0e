"""Bellman backups of the discounted future states of a policy.

Two index conventions are in use. The occupancy of ``arrival`` states leaves out the current state,
``m(.|s, a) = (1 - discount) sum_k discount^k Pr(S_{k+1} = .)``; the occupancy from the ``current`` state on begins with
it, ``(1 - discount) sum_k discount^k Pr(S_k = .)``. A terminal state is never left: it takes all the weight that is
still to be given when it is reached.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_same_shape, check_shape

FirstState: TypeAlias = Literal["arrival", "current"]
"""The first state that an occupancy counts."""


def backup_weights(
    discount: Tensor, terminated: Tensor, length: Tensor, first_state: FirstState = "arrival"
) -> tuple[Tensor, Tensor]:
    """Weights of the observed states of a backup, and of the occupancy at its end.

    For one step that does not terminate: ``1 - discount`` on the arrival (or current) state and ``discount`` on the
    occupancy of the next state and action. For n steps of the policy itself
    ``m = (1 - discount) sum_{k < n} discount^k P^{k+1} + discount^n P^n m``.

    Args:
        discount: Discount per environment step, in [0, 1), shape (B,).
        terminated: Whether the states at times 1, ..., n are terminal, boolean, shape (B, n).
        length: How many of the n steps belong to the transition, in 1, ..., n, integer, shape (B,).
        first_state: Index convention.

    Returns:
        Weights of the states at times 0, 1, ..., n, shape (B, n + 1), and of the occupancy at time ``length``, shape
        (B,); at least 0, their sum is 1.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if terminated.dim() != 2:
        raise ValueError(f"expected terminated of shape (B, n), got {tuple(terminated.shape)}")
    check_shape("discount", discount, terminated.shape[:1])
    check_shape("length", length, terminated.shape[:1])
    terminal = torch.cat([torch.zeros_like(terminated[:, :1]), terminated], dim=1)  # at times 0, ..., n
    time = torch.arange(terminal.shape[1], device=terminal.device)
    ended_before = terminal.cumsum(1) - terminal.long() > 0
    reached = (time <= length[:, None]) & ~ended_before
    lag = 1 if first_state == "arrival" else 0
    last = time == length[:, None]
    # The state at which the bootstrapped occupancy resumes counts there, in the second convention.
    counts = time >= 1 if lag else ~last | terminal
    step_weight = torch.where(terminal, 1.0, 1.0 - discount[:, None])
    age = (time - lag).clamp_min(0)
    weights = discount[:, None] ** age * step_weight * (reached & counts)
    resumes = (reached & last & ~terminal).any(1)
    return weights, discount**length * resumes


def time_constants(ema_decay: float, discount: float, updates: float, num_steps: int = 1) -> float:
    """Time constants of the contraction to the fixed point that a number of updates amount to.

    A well-fitted network's distance to it falls like ``exp(-(1 - ema_decay) (1 - discount^n) updates)``: each backup
    lets the fraction discount^n of the error through, and the EMA network takes 1 / (1 - ema_decay) updates to follow.

    Args:
        ema_decay: Rate of the EMA network, in [0, 1).
        discount: Discount per environment step, in [0, 1).
        updates: Gradient steps.
        num_steps: Steps n of a backup, at least 1.

    Returns:
        The exponent.
    """
    return (1.0 - ema_decay) * (1.0 - discount**num_steps) * updates


def choose_state(states: Tensor, weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One of the observed states of each backup, with the probability of its weight.

    Args:
        states: States at times 0, ..., n, shape (B, n + 1, D).
        weights: Their weights, at least 0, shape (B, n + 1).
        uniform: Uniform noise in [0, 1), shape (B,).

    Returns:
        States, shape (B, D), and the sum of the weights, shape (B,).

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shape("weights", weights, tuple(states.shape[:2]))
    check_shape("uniform", uniform, tuple(states.shape[:1]))
    bounds = weights.cumsum(1)
    total = bounds[:, -1]
    # Rounding must not lead past the last state that counts, nor to one before the first.
    level = (uniform * total)[:, None]
    last = (weights > 0).long().mul(torch.arange(weights.shape[1], device=weights.device)).amax(1)
    index = torch.searchsorted(bounds.contiguous(), level, right=True).squeeze(1).minimum(last)
    return states[torch.arange(len(states), device=states.device), index], total


def horizon_weights(discount: Tensor, shorter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the horizon-consistency backup, which reaches a long horizon through a shorter one.

    ``m_g = (1-g) P + g (1-g)/(1-b) m_b(.|S', A') + g (g-b)/(1-b) m_g(.|S+, A+)`` for ``b <= g``, where S+ is drawn from
    ``m_b(.|S', A')`` and A+ from the policy at S+. It holds for the occupancy of arrival states. Where S+ is terminal,
    the occupancy there is that state.

    Args:
        discount: The discount g, in [0, 1), shape (B,).
        shorter: The shorter discount b, in [0, g], shape (B,).

    Returns:
        Weights of the arrival state, of the shorter occupancy at (S', A'), and of the occupancy at (S+, A+), each of
        shape (B,); their sum is 1.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Farebrother et al., Compositional Planning with Jumpy World Models, arXiv:2602.19634; derived independently.
    """
    check_same_shape(discount=discount, shorter=shorter)
    fraction = (1.0 - discount) / (1.0 - shorter)
    return 1.0 - discount, discount * fraction, discount * (1.0 - fraction)


def resumes_far(discount: Tensor, shorter: Tensor, uniform: Tensor) -> Tensor:
    """Which of the two occupancies of a horizon-consistency backup is chosen, with the probability of its weight.

    Args:
        discount: The discount, in [0, 1), shape (B,).
        shorter: The shorter discount, in [0, discount], shape (B,).
        uniform: Uniform noise in [0, 1), shape (B,).

    Returns:
        Whether it is the occupancy at (S+, A+), boolean, shape (B,); otherwise it is the shorter one at (S', A').
    """
    _, near_weight, far_weight = horizon_weights(discount, shorter)
    return uniform * (near_weight + far_weight) >= near_weight


def discounts_between(low: float, high: Tensor, uniform: Tensor) -> Tensor:
    """Discounts distributed uniformly in the logarithm of the horizon 1 / (1 - discount).

    Args:
        low: Lowest discount, in [0, 1).
        high: Highest ones, at least ``low``, shape (B,).
        uniform: Uniform noise in [0, 1], shape (B,).

    Returns:
        Discounts, shape (B,).
    """
    return 1.0 - (1.0 - low) ** (1.0 - uniform) * (1.0 - high) ** uniform


def include_current_state(current: Tensor, future: Tensor, discount: Tensor, uniform: Tensor) -> Tensor:
    """States of the occupancy from the current state on, from states of the occupancy of arrival states.

    Args:
        current: Current states, shape (B, D).
        future: States of trajectories at geometric times from the arrival on, shape (B, D).
        discount: Discount in [0, 1), shape (B,).
        uniform: Uniform noise in [0, 1), shape (B,).

    Returns:
        The current state with probability ``1 - discount``, else the future one, shape (B, D).
    """
    return torch.where((uniform < 1.0 - discount)[:, None], current, future)
