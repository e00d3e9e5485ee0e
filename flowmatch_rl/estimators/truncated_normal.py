"""Normals cut to a symmetric interval, by their quantile function, however far out the interval lies."""

import math

import torch
from torch import Tensor


def truncated_normal(z: Tensor, mean: Tensor, scale: Tensor, limit: float) -> Tensor:
    """Map standard normal noise to ``N(mean, scale^2)`` cut to ``[-limit, limit]``, entry by entry and increasing.

    Where the interval lies in a tail, the quantile is found as a distance from the nearer edge, so that neither a
    probability underflows nor a difference cancels.

    Args:
        z: Standard normal noise, shape (..., D).
        mean: Mean of the normal before it is cut, broadcasts with z.
        scale: Its standard deviation, positive, broadcasts with z.
        limit: Half the length of the interval, positive.

    Returns:
        Points of the interval, the shape that the arguments broadcast to.
    """
    # By symmetry the mean is taken to be at most 0 and the near edge to be the lower one, where the mean lies outside.
    side = torch.where(mean > 0.0, -1.0, 1.0).to(mean.dtype)
    z, mean = side * z, side * mean
    low, high = (-limit - mean) / scale, (limit - mean) / scale
    log_upper, log_lower = torch.special.log_ndtr(z), torch.special.log_ndtr(-z)  # of u and 1 - u
    inside = mean + scale * _central_quantile(log_lower.exp(), log_upper.exp(), low, high)
    start = low.clamp_min(0.0)
    # The survival function at the quantile over that at the near edge is (1 - u) + u S(high) / S(low).
    log_ratio = torch.logaddexp(log_lower, log_upper + _log_survival_ratio(start, high - low))
    tail = scale * _tail_distance(start, log_ratio.clamp_max(0.0)) - limit
    return side * torch.where(low > 0.0, tail, inside).clamp(-limit, limit)


def log_mass(mean: Tensor, scale: Tensor, limit: float) -> Tensor:
    """The log of the probability that ``N(mean, scale^2)`` lies in ``[-limit, limit]``, nats, of the shape of mean."""
    distance = mean.abs()
    low, high = (distance - limit) / scale, (distance + limit) / scale  # both in the upper tail, or on either side of 0
    inside = (torch.special.ndtr(-low.clamp_max(0.0)) - torch.special.ndtr(-high)).clamp_min(
        torch.finfo(mean.dtype).tiny
    )
    start = low.clamp_min(0.0)
    tail = torch.special.log_ndtr(-start) + torch.log(-torch.expm1(_log_survival_ratio(start, high - low)))
    return torch.where(low > 0.0, tail, inside.log())


def _central_quantile(lower: Tensor, upper: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Quantile of the standard normal cut to [low, high], at probability ``upper = 1 - lower``."""
    below = lower * torch.special.ndtr(low) + upper * torch.special.ndtr(high)
    above = lower * torch.special.ndtr(-low) + upper * torch.special.ndtr(-high)
    value = torch.where(below < above, torch.special.ndtri(below), -torch.special.ndtri(above))
    return torch.maximum(torch.minimum(value, high), low)


def _log_survival_ratio(start: Tensor, distance: Tensor) -> Tensor:
    """The log of ``S(start + distance) / S(start)`` for the standard normal's survival function S and start >= 0."""
    mills = torch.special.erfcx((start + distance) / math.sqrt(2.0)) / torch.special.erfcx(start / math.sqrt(2.0))
    return mills.log() - distance * (start + 0.5 * distance)


def _tail_distance(start: Tensor, log_ratio: Tensor) -> Tensor:
    """The distance d at which ``log S(start + d) - log S(start)`` is ``log_ratio``; start >= 0.

    Newton's method from above on a convex function: it comes down to the root without overshooting.
    """
    distance = (
        -2.0 * log_ratio / (start + (start.square() - 2.0 * log_ratio).sqrt()).clamp_min(torch.finfo(start.dtype).tiny)
    )
    for _ in range(4):
        hazard = math.sqrt(2.0 / math.pi) / torch.special.erfcx((start + distance) / math.sqrt(2.0))
        distance = distance + (_log_survival_ratio(start, distance) - log_ratio) / hazard
    return distance.clamp_min(0.0)
