"""Evaluation of candidates at states, a bounded number at once, and the choice of the best; shared by all planners."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.planning.values import ValueEstimate, estimate_from_rewards

Evaluate: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps states (P, S) and a candidate for each (P, *event) to first actions (P, A) and rewards of draws (P, K)."""


@dataclass(frozen=True)
class Plan:
    """The best candidate at each state, and the estimates that the choice rests on.

    Candidates share their noise, so that differences between their values are less uncertain than the standard errors
    say. The largest of several estimates lies on average above the value it estimates.

    Attributes:
        index: Index of the best candidate, the first of equals, shape (B,).
        action: Its action, shape (B, A).
        values: Value of each candidate, in units of the return, shape (B, W).
        standard_error: Standard error of each over the draws, shape (B, W); NaN for a single draw.
    """

    index: Tensor
    action: Tensor
    values: Tensor
    standard_error: Tensor


def evaluate_candidates(
    evaluate: Evaluate, states: Tensor, candidates: Tensor, event_dims: int, num_draws: int, max_rows: int | None
) -> tuple[Tensor, Tensor]:
    """First actions and rewards of draws of every candidate at every state.

    Args:
        evaluate: Evaluates P pairs of a state and a candidate in one call.
        states: States, shape (B, S).
        candidates: Candidates, shape (W, *event) or, if they differ between states, (B, W, *event).
        event_dims: Number of dimensions of a candidate.
        num_draws: Draws K per pair.
        max_rows: Largest number of draws in one call, at least K; None for no limit.

    Returns:
        Actions, shape (B, W, A), and rewards, shape (B, W, K).

    Raises:
        ValueError: If there is no state, no candidate or no draw, the shapes do not fit, or ``max_rows`` is below K.
    """
    if states.dim() != 2 or len(states) == 0:
        raise ValueError(f"expected states of shape (B, S), B at least 1, got {tuple(states.shape)}")
    if num_draws < 1:
        raise ValueError(f"expected noise of at least 1 draw, got {num_draws}")
    if max_rows is not None and max_rows < num_draws:
        raise UserError(f"max_rows must be at least the {num_draws} draws of one candidate, got {max_rows}")
    if candidates.dim() == event_dims + 1:
        candidates = candidates.expand(len(states), *candidates.shape)
    if candidates.dim() != event_dims + 2 or candidates.shape[0] != len(states) or candidates.shape[1] == 0:
        event = ", ".join(("n", "Z")[-event_dims:])
        raise ValueError(
            f"expected candidates of shape (W, {event}) or ({len(states)}, W, {event}), W at least 1, got "
            f"{tuple(candidates.shape)}"
        )
    grid = candidates.shape[:2]
    pairs = (states.repeat_interleave(grid[1], 0), candidates.flatten(0, 1))
    size = grid.numel() if max_rows is None else max_rows // num_draws
    parts = [evaluate(*some) for some in zip(*(both.split(size) for both in pairs), strict=True)]
    actions, rewards = (torch.cat(part).unflatten(0, grid) for part in zip(*parts, strict=True))
    return actions, rewards


def best_plan(actions: Tensor, rewards: Tensor, discount: float) -> Plan:
    """The candidate with the highest mean reward at each state.

    Args:
        actions: First action of each candidate, shape (B, W, A).
        rewards: Rewards of draws of its discounted future states, shape (B, W, K).
        discount: Discount per step, in [0, 1).

    Returns:
        The plan.

    Raises:
        ValueError: If a value is not finite.
    """
    estimate = estimate_from_rewards(rewards, discount)
    index = best_of(estimate)
    action = actions.take_along_dim(index[:, None, None], 1)[:, 0]
    return Plan(index, action, estimate.value, estimate.standard_error)


def best_of(estimate: ValueEstimate) -> Tensor:
    """Index of the candidate with the highest value, the first of equals.

    Args:
        estimate: Estimates, shape (*batch, W).

    Returns:
        Index of the best, shape (*batch).

    Raises:
        ValueError: If a value is not finite.
    """
    finite = torch.isfinite(estimate.value)
    if not bool(finite.all()):
        number = int((~finite).sum())
        raise ValueError(f"expected finite values of the candidates, but {number} of {finite.numel()} are not")
    return estimate.value.argmax(-1)
