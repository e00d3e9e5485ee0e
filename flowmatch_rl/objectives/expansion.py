"""Expansion of transitions into segments: the modelled policy is followed in a one-step model of the environment.

For n steps ``m = (1 - discount) sum_{k < n} discount^k P^{k+1} + discount^n P^n m``: the error that one backup adds is
multiplied by ``1 / (1 - discount^n)`` in place of ``1 / (1 - discount)``. The first step is observed, so that data of
any policy serve.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from flowmatch_rl.batches import Segment
from flowmatch_rl.shapes import check_shape

StepModel: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Maps states (B, S) and actions (B, A) to the states after one step (B, S), how unsure they are (B,), and the
probability that they are terminal (B,)."""


def geometric_lengths(mean: float, longest: int, uniform: Tensor) -> Tensor:
    """Lengths from a geometric distribution on 1, 2, ..., cut off.

    Args:
        mean: Mean before the cut, at least 1.
        longest: Largest length, at least 1.
        uniform: Uniform noise in [0, 1), shape (B,).

    Returns:
        Lengths, integer, shape (B,).
    """
    if mean == 1.0:
        return torch.ones_like(uniform, dtype=torch.long)
    stays = torch.log1p(-torch.tensor(1.0 / mean, dtype=torch.float64))
    return (1.0 + (torch.log1p(-uniform.double()) / stays).floor()).clamp_max(longest).long()


def expand(
    segment: Segment,
    act: Callable[[Tensor, Tensor], Tensor],
    step: StepModel,
    lengths: Tensor,
    gate: float,
    uniform: Tensor,
) -> Segment:
    """Lengthen segments of one step by following a policy in a model.

    An expansion ends before a step that the model is unsure of, and in a terminal state.

    Args:
        segment: Transitions: segments with n = 1.
        act: Actions (B, A) of the policy at states (B, S), given embeddings (B, Z).
        step: The model.
        lengths: Steps of each expanded segment, its first included, integer, in 1, ..., n, shape (B,).
        gate: Most that the model may be unsure of a step.
        uniform: Uniform noise in [0, 1) that decides on terminations, shape (B, n - 1).

    Returns:
        Segments of n steps, without next actions.

    Raises:
        ValueError: If the shapes do not fit.
    """
    size, most = len(lengths), uniform.shape[1] + 1
    check_shape("arrivals", segment.arrivals, (size, 1, segment.observation.shape[-1]))
    check_shape("uniform", uniform, (size, most - 1))
    arrivals = segment.arrivals.repeat(1, most, 1)
    terminated = torch.cat([segment.terminated, segment.terminated.new_zeros(size, most - 1)], dim=1)
    length = torch.ones_like(lengths)
    rows = ((lengths > 1) & ~terminated[:, 0]).nonzero().squeeze(1)
    for time in range(1, most):
        if not len(rows):
            break
        state = arrivals[rows, time - 1]
        arrival, spread, terminal = step(state, act(state, segment.embedding[rows]))
        sure = spread <= gate
        rows, arrival = rows[sure], arrival[sure]
        ended = uniform[rows, time - 1] < terminal[sure]
        arrivals[rows, time], terminated[rows, time], length[rows] = arrival, ended, time + 1
        rows = rows[~ended & (lengths[rows] > time + 1)]
    return replace(segment, arrivals=arrivals, terminated=terminated, length=length, next_action=None)
