"""Returns and lengths of episodes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_same_shape


@dataclass(frozen=True)
class Episodes:
    """Whole episodes, padded to the longest.

    Attributes:
        reward: Rewards, shape (N, T).
        action: Actions, shape (N, T, A).
        mask: Whether a step belongs to the episode, boolean, shape (N, T).

    Raises:
        ValueError: If the shapes differ.
    """

    reward: Tensor
    action: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        check_same_shape(reward=self.reward, mask=self.mask)

    @property
    def returns(self) -> Tensor:
        """Undiscounted returns, shape (N,)."""
        return torch.where(self.mask, self.reward, 0.0).sum(1)

    @property
    def lengths(self) -> Tensor:
        """Steps, shape (N,)."""
        return self.mask.sum(1)
