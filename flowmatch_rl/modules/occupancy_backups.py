"""Bellman backups of an occupancy, made of segments of data."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from flowmatch_rl.batches import Segment
from flowmatch_rl.models.occupancy_flow import OccupancyFlow
from flowmatch_rl.models.occupancy_inputs import OccupancyInputs
from flowmatch_rl.objectives import Backup, FirstState, backup_weights, choose_state, horizon_weights
from flowmatch_rl.samplers import Sampler
from flowmatch_rl.types import Policy


@dataclass(frozen=True)
class BackupMaker:
    """Says what an occupancy counts of a segment, and where it goes on.

    Args:
        inputs: Units and conditions.
        policy: Policy that acts at the end of a segment; None for the action in the data.
        bootstraps: Whether the occupancy goes on from the end of a segment; otherwise segments hold a state of it.
        first_state: First state that the occupancy counts.
        flow: The lagging copy, for states of shorter horizons.
        sampler: How they are made.
        horizon_consistency: Share of each batch that goes on through a shorter horizon, in [0, 1].
    """

    inputs: OccupancyInputs
    policy: Policy | None
    bootstraps: bool
    first_state: FirstState
    flow: OccupancyFlow
    sampler: Sampler
    horizon_consistency: float

    def make(self, segment: Segment, embedding: Tensor, discount: Tensor) -> Backup:
        """One backup per segment.

        Args:
            segment: Segments.
            embedding: Members of the family of policies, shape (B, Z).
            discount: Discounts, shape (B,).

        Returns:
            The backups.

        Raises:
            KeyError: If the segments lack what is needed.
        """
        condition = self.inputs.condition(segment.observation, segment.action, embedding, discount)
        state, state_weight, next_weight = self._counted_state(segment, discount)
        next_condition = self._next_condition(segment, embedding, discount) if self.bootstraps else condition
        return Backup(condition, state, state_weight, next_condition, next_weight)

    def _counted_state(self, segment: Segment, discount: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A standardised state that each occupancy counts, its weight, and the weight of what is bootstrapped."""
        if not self.bootstraps:
            if segment.future is None:
                raise KeyError("MonteCarloCFM needs states of trajectories; the batch has no 'future'")
            one, state = torch.ones_like(discount), segment.future
            if self.first_state == "current":
                is_now = torch.rand_like(discount) < 1.0 - discount
                state = torch.where(is_now[:, None], segment.observation, state)
            return self.inputs.standardise(state), one, torch.zeros_like(one)
        weights, next_weight = backup_weights(discount, segment.terminated, segment.length, self.first_state)
        states = torch.cat([segment.observation[:, None], segment.arrivals], dim=1)
        state, weight = choose_state(states, weights, torch.rand_like(discount))
        return self.inputs.standardise(state), weight, next_weight

    def _next_condition(self, segment: Segment, embedding: Tensor, discount: Tensor) -> Tensor:
        """Where the occupancy goes on, shape (B, C)."""
        rows = torch.arange(len(discount), device=discount.device)
        state, action = segment.arrivals[rows, segment.length - 1], segment.next_action
        if self.policy is not None:
            action = self.policy.act(state, embedding)
        if action is None:
            raise KeyError("the data holds no next actions; name a policy to take them from")
        count = round(self.horizon_consistency * len(discount))
        if count == 0:
            return self.inputs.condition(state, action, embedding, discount)
        first = self._through_shorter_horizon(state[:count], action[:count], embedding[:count], discount[:count])
        rest = self.inputs.condition(state[count:], action[count:], embedding[count:], discount[count:])
        return torch.cat([first, rest])

    @torch.no_grad()
    def _through_shorter_horizon(self, state: Tensor, action: Tensor, embedding: Tensor, discount: Tensor) -> Tensor:
        """Conditions of one of the two occupancies of the horizon-consistency backup, by their weights."""
        lowest, policy = cast(float, self.inputs.min_discount), cast(Policy, self.policy)
        shorter = discounts_between(lowest, discount, torch.rand_like(discount))
        near = self.inputs.condition(state, action, embedding, shorter)
        noise = torch.randn(len(state), self.inputs.sample_dim, device=state.device)
        landed = self.inputs.restore(self.flow.sample(self.sampler, noise, near))
        far = self.inputs.condition(landed, policy.act(landed, embedding), embedding, discount)
        _, near_weight, far_weight = horizon_weights(discount, shorter)
        is_near = torch.rand_like(discount) * (near_weight + far_weight) < near_weight
        return torch.where(is_near[:, None], near, far)


def discounts_between(low: float, high: Tensor, uniform: Tensor) -> Tensor:
    """Discounts even in the logarithm of the horizon 1 / (1 - discount).

    Args:
        low: Lowest discount, in [0, 1).
        high: Highest ones, at least ``low``, shape (B,).
        uniform: Uniform noise in [0, 1), shape (B,).

    Returns:
        Discounts, shape (B,).
    """
    return 1.0 - (1.0 - low) ** (1.0 - uniform) * (1.0 - high) ** uniform
