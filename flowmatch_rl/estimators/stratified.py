"""Choices and samples that are spread more evenly than independent ones."""

import torch
from torch import Tensor


def latin_hypercube(z: Tensor, uniform: Tensor) -> Tensor:
    """Standard normal samples of which each coordinate has one value in each of K intervals of equal probability.

    Each sample by itself is standard normal; means over all of them have less variance, the more the closer a function
    is to a sum of functions of single coordinates.

    Args:
        z: Independent standard normal noise, shape (B, K, D); its order says which sample gets which interval.
        uniform: Uniform noise, the place within the interval, shape (B, K, D).

    Returns:
        Samples, shape (B, K, D).

    Reference:
        McKay, Beckman and Conover, Technometrics 21 (1979).
    """
    level = (z.argsort(1).argsort(1) + uniform) / z.shape[1]
    tiny = torch.finfo(z.dtype).eps
    return torch.special.ndtri(level.clamp(tiny, 1.0 - tiny))


def systematic_choice(weights: Tensor, uniform: Tensor, number: int) -> Tensor:
    """Indices drawn by weights so that each comes up ``number * weight`` times, rounded up or down at random.

    Args:
        weights: Weights that sum to 1, shape (B, M).
        uniform: Uniform noise, shape (B, 1).
        number: How many indices are drawn.

    Returns:
        Indices from 0 to M - 1, ascending, shape (B, number).

    Reference:
        Kitagawa, J. Comput. Graph. Stat. 5 (1996), systematic resampling.
    """
    level = (torch.arange(number, device=weights.device) + uniform) / max(number, 1)
    return choice(weights, level)


def choice(weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices (B, C) drawn by weights (B, M) that sum to 1 with uniform noise (B, C)."""
    below = weights.cumsum(1)[:, None] < uniform[..., None]  # (B, C, M)
    return below.sum(-1).clamp_max(weights.shape[1] - 1)
