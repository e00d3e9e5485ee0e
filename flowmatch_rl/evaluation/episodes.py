"""Returns, lengths and successes of episodes."""

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
        success: Whether the environment says that the task is solved, boolean, shape (N, T); None where it does not.

    Raises:
        ValueError: If the shapes differ.
    """

    reward: Tensor
    action: Tensor
    mask: Tensor
    success: Tensor | None = None

    def __post_init__(self) -> None:
        check_same_shape(reward=self.reward, mask=self.mask)
        if self.success is not None:
            check_same_shape(success=self.success, mask=self.mask)

    @property
    def returns(self) -> Tensor:
        """Undiscounted returns, shape (N,)."""
        return torch.where(self.mask, self.reward, 0.0).sum(1)

    @property
    def lengths(self) -> Tensor:
        """Steps, shape (N,)."""
        return self.mask.sum(1)

    @property
    def solved(self) -> Tensor | None:
        """Whether the task was solved at any step, boolean, shape (N,); None where it is not known."""
        return None if self.success is None else (self.success & self.mask).any(1)


def normalised_score(returns: Tensor, return_range: tuple[float, float]) -> Tensor:
    """Returns on the scale of a benchmark, per cent: 0 is the first of two reference returns, 100 the second.

    Args:
        returns: Undiscounted returns of episodes, any shape.
        return_range: Returns that count as 0 and as 1.

    Reference:
        Fu et al., arXiv:2004.07219, for the returns of a random and of an expert policy.
    """
    low, high = return_range
    return 100.0 * (returns - low) / (high - low)
