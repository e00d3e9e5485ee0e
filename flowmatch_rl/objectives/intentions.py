"""The divergence that keeps inferred latents near their prior."""

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_same_shape


def standard_normal_divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a Gaussian with independent entries from the standard normal distribution.

    Args:
        mean: Mean, shape (*batch, Z).
        log_std: Logarithm of the standard deviation, shape (*batch, Z).

    Returns:
        ``KL(N(mean, std^2) || N(0, I))`` in nats, summed over the entries, shape (*batch).

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(mean=mean, log_std=log_std)
    return 0.5 * (mean.square() + torch.expm1(2.0 * log_std) - 2.0 * log_std).sum(-1)
