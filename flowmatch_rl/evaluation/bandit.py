"""How close the actions of a policy are to exact samples of a bandit's Boltzmann distribution."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.metrics import (
    energy_distance,
    marginal_energy_distance,
    maximum_mean_discrepancy,
    saturated_entries,
    saturated_fraction,
    sliced_wasserstein_distance,
)
from flowmatch_rl.testbeds import Bandit

BANDWIDTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Bandwidths of the kernels of the maximum mean discrepancy, in units of the action."""

DIRECTIONS = 128
"""Directions of the sliced Wasserstein distance."""


@dataclass(frozen=True)
class ActionDistances:
    """Distances between two samples of actions, each of shape ().

    Attributes:
        energy_distance: Energy distance.
        marginal_energy_distance: Mean over dimensions of the energy distance of each.
        sliced_wasserstein: Sliced Wasserstein distance.
        mmd: Maximum mean discrepancy.
    """

    energy_distance: Tensor
    marginal_energy_distance: Tensor
    sliced_wasserstein: Tensor
    mmd: Tensor

    @classmethod
    def between(cls, actions: Tensor, exact: Tensor) -> "ActionDistances":
        """Distances of actions to exact ones.

        Args:
            actions: Shape (N, A).
            exact: Shape (N, A).
        """
        directions = torch.randn(DIRECTIONS, exact.shape[1], generator=torch.Generator().manual_seed(0)).to(exact)
        return cls(
            energy_distance(actions, exact),
            marginal_energy_distance(actions, exact),
            sliced_wasserstein_distance(actions, exact, directions),
            maximum_mean_discrepancy(actions, exact, BANDWIDTHS),
        )


@dataclass(frozen=True)
class BanditEvaluation:
    """Plain samples of a policy beside exact ones.

    Attributes:
        distances: Of the policy's actions to exact ones.
        floor: Of two exact samples to each other.
        mode_fractions: Fraction of the actions in each mode of the bandit, shape (M,).
        saturated: Fraction of actions with an entry at its bound, shape ().
        saturated_entries: Fraction of entries at their bound, shape ().
    """

    distances: ActionDistances
    floor: ActionDistances
    mode_fractions: Tensor
    saturated: Tensor
    saturated_entries: Tensor

    def metrics(self, prefix: str) -> dict[str, Tensor]:
        """Scalars by name.

        Args:
            prefix: Start of the names.
        """
        named = {f"{prefix}{name}": value for name, value in vars(self.distances).items()}
        named |= {f"{prefix}exact/{name}": value for name, value in vars(self.floor).items()}
        return named | {
            f"{prefix}smallest_mode_share": self.mode_fractions.min(),
            f"{prefix}largest_mode_share": self.mode_fractions.max(),
            f"{prefix}saturated": self.saturated,
            f"{prefix}saturated_entries": self.saturated_entries,
        }


def evaluate_actions(bandit: Bandit, actions: Tensor, exact: Tensor, reference: Tensor) -> BanditEvaluation:
    """Compare actions of a policy with exact ones.

    Args:
        bandit: The bandit.
        actions: Actions of the policy, shape (N, A).
        exact: Exact samples, shape (N, A).
        reference: Further exact samples, shape (N, A).
    """
    return BanditEvaluation(
        ActionDistances.between(actions, exact),
        ActionDistances.between(reference, exact),
        bandit.mode_shares(actions),
        saturated_fraction(actions),
        saturated_entries(actions),
    )
