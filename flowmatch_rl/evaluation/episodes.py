"""Returns and lengths of episodes."""

from dataclasses import dataclass

from torch import Tensor

from flowmatch_rl.metrics import episode_returns


@dataclass(frozen=True)
class Episodes:
    """Whole episodes, padded to the longest.

    Attributes:
        reward: Rewards, shape (N, T).
        action: Actions in [-1, 1], shape (N, T, A).
        mask: Whether a step belongs to the episode, boolean, shape (N, T).
        returns: Undiscounted returns, shape (N,).
        lengths: Steps, shape (N,).
    """

    reward: Tensor
    action: Tensor
    mask: Tensor
    returns: Tensor
    lengths: Tensor


def summarise_episodes(reward: Tensor, action: Tensor, mask: Tensor) -> Episodes:
    """Episodes with their returns and lengths.

    Args:
        reward: Rewards, shape (N, T).
        action: Actions in [-1, 1], shape (N, T, A).
        mask: Whether a step belongs to the episode, boolean, shape (N, T).
    """
    return Episodes(reward, action, mask, episode_returns(reward, mask), mask.sum(1))
