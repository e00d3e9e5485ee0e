"""Temporal-difference learning of action values and of distributions of the return.

The target of every critic is the distribution of the next return, pushed forward by ``shift + scale Z``. A value head
represents it by its mean, by probabilities of fixed atoms, or by quantiles.
"""

from typing import Literal

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_same_shape, check_shape

ValueReduction = Literal["min", "mean"]
"""How the values of an ensemble become one."""


def bellman_map(
    rewards: Tensor, length: Tensor, terminated: Tensor, discount: float, bonus: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The affine map from the return of the arrival state to the return of the first one.

    For one step the target is ``reward + discount (1 - terminated) (next_return + bonus)``; with the entropy bonus
    ``-temperature log_prob`` of the next action it is the soft Bellman target.

    Args:
        rewards: Rewards of the steps of a transition, shape (B, n); what lies beyond ``length`` is padding.
        length: Steps taken, in 1, ..., n, integer, shape (B,).
        terminated: Whether the arrival state is terminal, boolean, shape (B,). A time limit is not: it bootstraps.
        discount: Discount per environment step, in [0, 1).
        bonus: Added to the return of the arrival state, units of the return, shape (B,); nothing if None.

    Returns:
        Shift, the discounted sum of the rewards and of the bonus, shape (B,); scale, ``discount^length`` or 0 where the
        arrival state is terminal, shape (B,).

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_same_shape(length=length, terminated=terminated)
    if rewards.dim() != 2 or rewards.shape[:1] != length.shape:
        raise ValueError(
            f"expected rewards (B, n) and length (B,), got {tuple(rewards.shape)} and {tuple(length.shape)}"
        )
    steps = torch.arange(rewards.shape[1], device=rewards.device)
    taken = rewards.masked_fill(steps >= length[:, None], 0.0)
    shift = (taken * torch.pow(discount, steps.to(rewards.dtype))).sum(1)
    scale = torch.pow(discount, length.to(rewards.dtype)).masked_fill(terminated, 0.0)
    if bonus is not None:
        check_same_shape(bonus=bonus, terminated=terminated)
        shift = shift + scale * bonus.masked_fill(terminated, 0.0)
    return shift, scale


def reduced_distribution(values: Tensor, distributions: Tensor, reduction: ValueReduction) -> Tensor:
    """One distribution of the return out of those of an ensemble.

    Args:
        values: Means of the members' distributions, units of the return, shape (M, B).
        distributions: Distributions, by what their head describes them with, shape (M, B, O).
        reduction: ``min`` for the distribution of the member of smallest value, ``mean`` for the mean of the
            descriptions, whose value is the mean of the values.

    Returns:
        Distribution, shape (B, O).

    Raises:
        ValueError: If the shapes do not fit.
    """
    if distributions.dim() != 3 or distributions.shape[:2] != values.shape:
        raise ValueError(f"expected (M, B) and (M, B, O), got {tuple(values.shape)} and {tuple(distributions.shape)}")
    if reduction == "mean":
        return distributions.mean(0)
    lowest = values.argmin(0)[None, :, None].expand(1, *distributions.shape[1:])
    return distributions.gather(0, lowest).squeeze(0)


def critic_loss(values: Tensor, target: Tensor, huber_delta: float | None = None) -> Tensor:
    """Squared error of every member of an ensemble against one target.

    Args:
        values: Action values of the members, shape (M, B).
        target: Target, detached, shape (B,).
        huber_delta: Error from which the loss grows in proportion to the error, with an equal slope there, in units
            of the return, positive; the square everywhere if None.

    Returns:
        Loss per sample, mean over the members, shape (B,).

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shape("values", values, (values.shape[0], *target.shape))
    error = values - target
    if huber_delta is None:
        return error.square().mean(0)
    size = error.abs()
    return torch.where(size <= huber_delta, error.square(), huber_delta * (2.0 * size - huber_delta)).mean(0)


def projected_probabilities(probabilities: Tensor, shift: Tensor, scale: Tensor, v_min: float, v_max: float) -> Tensor:
    """Distribution of ``shift + scale Z`` on the atoms of that of Z.

    The atoms are O evenly spaced numbers from ``v_min`` to ``v_max``. The mass of each moved atom is shared between
    its two neighbours such that the mean is kept; what leaves the support is put on its end.

    Args:
        probabilities: Probabilities of the atoms of Z, shape (B, O).
        shift: Units of the return, shape (B,).
        scale: Shape (B,).
        v_min: Smallest atom, units of the return.
        v_max: Largest atom.

    Returns:
        Probabilities, shape (B, O).

    Raises:
        ValueError: If the shapes do not fit.

    Reference:
        Bellemare et al., arXiv:1707.06887, Algorithm 1.
    """
    batch, num_atoms = probabilities.shape
    check_shape("shift", shift, (batch,))
    check_shape("scale", scale, (batch,))
    # Positions in units of the spacing: fewer roundings, and a distribution that does not move keeps its digits.
    places = torch.arange(num_atoms, device=probabilities.device, dtype=probabilities.dtype)
    spacing = (v_max - v_min) / (num_atoms - 1)
    start = (shift + (scale - 1.0) * v_min) / spacing
    moved = (start[:, None] + scale[:, None] * places).clamp(0.0, num_atoms - 1.0)  # (B, O)
    below = moved.floor()
    to_above = (moved - below) * probabilities
    projected = torch.zeros_like(probabilities).scatter_add_(1, below.long(), probabilities - to_above)
    return projected.scatter_add_(1, (below + 1.0).clamp_max(num_atoms - 1.0).long(), to_above)


def categorical_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of every member of an ensemble against one distribution on the same atoms.

    Args:
        logits: Unnormalised log-probabilities of the members, shape (M, B, O).
        target: Probabilities, detached, shape (B, O).

    Returns:
        Loss per sample in nats, mean over the members, shape (B,).

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shape("logits", logits, (logits.shape[0], *target.shape))
    return -(target * logits.log_softmax(-1)).sum(-1).mean(0)


def quantile_loss(quantiles: Tensor, target: Tensor, huber_delta: float) -> Tensor:
    """Quantile Huber loss of every member of an ensemble against equally likely numbers.

    Quantile i of O belongs to the probability ``(i + 1/2) / O``.

    Args:
        quantiles: Quantiles of the members, units of the return, shape (M, B, O).
        target: Equally likely numbers, detached, shape (B, N).
        huber_delta: Error up to which the loss is quadratic, units of the return, at least 0. With 0 it is the
            quantile loss, whose minimiser are the quantiles; with more it is smooth, and they are pulled together.

    Returns:
        Loss per sample, sum over the quantiles, mean over targets and members, shape (B,).

    Raises:
        ValueError: If the shapes do not fit.

    Reference:
        Dabney et al., arXiv:1710.10044, equation 10, divided by ``huber_delta``.
    """
    if quantiles.dim() != 3 or target.dim() != 2 or quantiles.shape[1] != target.shape[0]:
        raise ValueError(f"expected (M, B, O) and (B, N), got {tuple(quantiles.shape)} and {tuple(target.shape)}")
    count = quantiles.shape[-1]
    levels = (torch.arange(count, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / count
    error = target[:, None, :] - quantiles[..., None]  # (M, B, O, N)
    size = error.abs()
    if huber_delta > 0.0:
        size = torch.where(size <= huber_delta, size.square() / (2.0 * huber_delta), size - 0.5 * huber_delta)
    weight = (levels[:, None] - (error.detach() < 0.0).to(size.dtype)).abs()
    return (weight * size).sum(2).mean((0, 2))
