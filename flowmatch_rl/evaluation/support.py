"""Whether a data set supports what a reward asks for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_shape, even_rows

FEWEST_PAYING = 100.0
"""Effective number of states that pay below which a reward is hardly supported."""
MOST_OUTSIDE = 0.05
"""Fraction of the promised reward that may lie outside the data."""

_MOST_STATES, _MOST_FUTURES, _ROWS = 20_000, 2_048, 256


@dataclass(frozen=True)
class RewardSupport:
    """What the states of a data set are worth under a reward, and how much of it is promised elsewhere.

    Attributes:
        states: Number of states looked at.
        lowest: Smallest reward among them.
        highest: Largest reward among them.
        paying: Effective number of the states that pay, ``(sum r)^2 / sum r^2`` of rewards above the smallest.
        outside: Fraction of the reward of future states, above the smallest of the data, in future states that lie
            farther from the data than 99 % of the data's own states lie from each other.
        place: Mean of those future states, weighted by reward, shape (D,); None where there are none.
    """

    states: int
    lowest: float
    highest: float
    paying: float
    outside: float
    place: Tensor | None

    def line(self) -> str:
        """What was found, for people."""
        return (
            f"{'support':<12} rewards of {self.states:,} states of the data lie in [{self.lowest:.3g}, "
            f"{self.highest:.3g}]; as many pay as {self.paying:,.0f} equal ones"
        )

    def warnings(self, columns: tuple[str, ...]) -> list[str]:
        """Why the data hardly support the reward, one text per reason; empty if they do.

        Args:
            columns: Names of the D entries of a state.
        """
        found = []
        if self.paying < FEWEST_PAYING:
            found.append("the data hardly reach what the reward asks for: few states pay")
        if self.outside > MOST_OUTSIDE and self.place is not None:
            near = ", ".join(
                f"{name} {value:.3g}" for name, value in zip(columns[:4], self.place.tolist()[:4], strict=True)
            )
            found.append(
                f"{self.outside:.0%} of the reward of modelled states lies where the data have none, around {near}: do "
                "not trust its value"
            )
        return found


@torch.no_grad()
def reward_support(
    states: Tensor, rewards: Tensor, futures: Tensor, future_rewards: Tensor, scale: Tensor
) -> RewardSupport:
    """Compare where a reward is paid in a data set and in modelled future states.

    Args:
        states: States of the data, shape (N, D), N at least 2; some are drawn evenly where there are many.
        rewards: Their rewards, shape (N,).
        futures: Modelled future states, in random order, shape (K, D).
        future_rewards: Their rewards, shape (K,).
        scale: Unit of each entry in distances, shape (D,).

    Returns:
        Support.

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shape("rewards", rewards, (len(states),))
    check_shape("futures", futures, (len(futures), states.shape[1]))
    check_shape("future_rewards", future_rewards, (len(futures),))
    check_shape("scale", scale, (states.shape[1],))
    lowest, highest = rewards.min(), rewards.max()
    above = (rewards - lowest).double()
    paying = float(above.sum().square() / above.square().sum().clamp_min(torch.finfo(torch.float64).tiny))
    known = states[even_rows(len(states), _MOST_STATES)] / scale
    own = known[even_rows(len(known), _MOST_FUTURES)]
    limit = torch.cat([torch.cdist(part, known).topk(2, largest=False).values[:, 1] for part in own.split(_ROWS)])
    rows = even_rows(len(futures), _MOST_FUTURES)
    asked, worth = futures[rows] / scale, (future_rewards[rows] - lowest).clamp_min(0.0).double()
    far = torch.cat([torch.cdist(part, known).amin(1) for part in asked.split(_ROWS)]) > limit.quantile(0.99)
    lost = worth * far
    place = (lost[:, None] * futures[rows]).sum(0) / lost.sum() if float(lost.sum()) > 0.0 else None
    outside = float(lost.sum() / worth.sum()) if float(worth.sum()) > 0.0 else 0.0
    return RewardSupport(len(states), float(lowest), float(highest), paying, outside, place)
