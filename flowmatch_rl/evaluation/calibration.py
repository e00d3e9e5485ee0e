"""Values that a critic gives to the beginnings of episodes against the discounted returns that followed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.metrics import correlation
from flowmatch_rl.models.actor import ActionValues
from flowmatch_rl.shapes import check_same_shape

MOST_UNSEEN = 0.05
"""Weight ``discount^T`` of what lies beyond the T steps of an episode that did not terminate, at most."""


@dataclass(frozen=True)
class Calibration:
    """Predicted and observed discounted returns of N episodes, units of the return.

    Attributes:
        predicted: Value of the first action in the first state, shape (N,).
        observed: Discounted return that followed, with what values hold beside rewards, shape (N,).
        known: Whether the episode shows the whole return: it terminated, or no more than 5 % of the weight of rewards
            lies beyond its last step; boolean, shape (N,).
    """

    predicted: Tensor
    observed: Tensor
    known: Tensor

    def metrics(self, prefix: str) -> dict[str, Tensor]:
        """Mean predicted and observed return, mean error, root mean square error and correlation, of known episodes.

        Args:
            prefix: Start of the names.

        Returns:
            Metrics by name, shape () each; none without known episodes, and no correlation where it is undefined.
        """
        if not bool(self.known.any()):
            return {}
        predicted, observed = self.predicted[self.known], self.observed[self.known]
        error = predicted - observed
        found = {
            f"{prefix}/predicted_return": predicted.mean(),
            f"{prefix}/discounted_return": observed.mean(),
            f"{prefix}/value_bias": error.mean(),
            f"{prefix}/value_error": error.square().mean().sqrt(),
        }
        related = correlation(predicted, observed)
        return found if related is None else found | {f"{prefix}/value_correlation": related.float()}


@torch.no_grad()
def calibrate(
    values: ActionValues,
    observation: Tensor,
    action: Tensor,
    reward: Tensor,
    terminated: Tensor,
    mask: Tensor,
    discount: float,
    bonus: Tensor | None = None,
) -> Calibration:
    """Compare a critic with whole episodes.

    Args:
        values: Values of the critic.
        observation: First states, on the critic's device, shape (N, S).
        action: First actions, in [-1, 1], shape (N, A).
        reward: Rewards, shape (N, T).
        terminated: Whether the episode terminated after a step, boolean, shape (N, T).
        mask: Whether a step belongs to the episode, boolean, shape (N, T).
        discount: Discount per environment step, in [0, 1).
        bonus: What values hold beside rewards for being in the state of a step after the first, such as an entropy
            times a temperature, units of the return, shape (N, T); nothing if None.

    Returns:
        Predicted and observed returns.

    Raises:
        ValueError: If the shapes differ.
    """
    if bonus is not None:
        check_same_shape(reward=reward, bonus=bonus)
        reward = torch.cat([reward[:, :1], reward[:, 1:] + bonus[:, 1:]], dim=1)
    check_same_shape(reward=reward, terminated=terminated, mask=mask)
    weights = discount ** torch.arange(mask.shape[1], device=mask.device, dtype=torch.float64)
    observed = (torch.where(mask, reward, 0.0).double() * weights).sum(1).float()
    unseen = discount ** mask.sum(1).double()
    known = (terminated & mask).any(1) | (unseen <= MOST_UNSEEN)
    return Calibration(values(observation, action[:, None])[:, 0].float(), observed, known)
