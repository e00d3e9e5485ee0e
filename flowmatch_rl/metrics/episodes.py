"""Statistics of episodes."""

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_same_shape


def episode_returns(reward: Tensor, mask: Tensor) -> Tensor:
    """Undiscounted return of each episode.

    Args:
        reward: Rewards, shape (N, T).
        mask: Whether a step belongs to the episode, boolean, shape (N, T).

    Returns:
        Sum of the rewards under the mask, shape (N,).

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(reward=reward, mask=mask)
    return torch.where(mask, reward, 0.0).sum(1)
