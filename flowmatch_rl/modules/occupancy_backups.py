"""Bellman backups of an occupancy from segments of data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.batches import Segment
from flowmatch_rl.models import Occupancy
from flowmatch_rl.objectives import (
    Backup,
    backup_weights,
    choose_horizon,
    choose_state,
    discounts_between,
    include_current_state,
)


@dataclass(frozen=True)
class BackupMaker:
    """Makes the states that an occupancy counts of a segment, and the conditions that it bootstraps from.

    Args:
        model: EMA occupancy.
        bootstraps: Whether the occupancy resumes at the end of a segment; otherwise segments hold a state of it.
    """

    model: Occupancy
    bootstraps: bool

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
        condition = self.model.inputs.condition(segment.observation, segment.action, embedding, discount)
        state, state_weight, next_weight = self._counted_state(segment, discount)
        next_condition = self._next_condition(segment, embedding, discount) if self.bootstraps else condition
        return Backup(condition, self.model.inputs.standardise(state), state_weight, next_condition, next_weight)

    def _counted_state(self, segment: Segment, discount: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A state that each occupancy counts, its weight, and the weight of what is bootstrapped."""
        first_state = self.model.horizon.first_state
        if not self.bootstraps:
            if segment.future is None:
                raise KeyError("MonteCarloCFM needs states of trajectories; the batch has no 'future'")
            state = segment.future
            if first_state == "current":
                state = include_current_state(segment.observation, state, discount, torch.rand_like(discount))
            return state, torch.ones_like(discount), torch.zeros_like(discount)
        weights, next_weight = backup_weights(discount, segment.terminated, segment.length, first_state)
        states = torch.cat([segment.observation[:, None], segment.arrivals], dim=1)
        return *choose_state(states, weights, torch.rand_like(discount)), next_weight

    def _next_condition(self, segment: Segment, embedding: Tensor, discount: Tensor) -> Tensor:
        """Where the occupancy is bootstrapped from, shape (B, C)."""
        rows = torch.arange(len(discount), device=discount.device)
        state, action = segment.arrivals[rows, segment.length - 1], segment.next_action
        if self.model.policy is not None:
            action = self.model.act(state, embedding)
        if action is None:
            raise KeyError("the data holds no next actions; name a policy to take them from")
        count = round(self.model.horizon.consistency * len(discount))
        if count == 0:
            return self.model.inputs.condition(state, action, embedding, discount)
        first = self._through_shorter_horizon(state[:count], action[:count], embedding[:count], discount[:count])
        rest = self.model.inputs.condition(state[count:], action[count:], embedding[count:], discount[count:])
        return torch.cat([first, rest])

    @torch.no_grad()
    def _through_shorter_horizon(self, state: Tensor, action: Tensor, embedding: Tensor, discount: Tensor) -> Tensor:
        """Conditions of one of the two occupancies of the horizon-consistency backup, by their weights."""
        model = self.model
        shorter = discounts_between(model.horizon.lowest, discount, torch.rand_like(discount))
        near = model.inputs.condition(state, action, embedding, shorter)
        landed = model.inputs.restore(model.flow.sample(model.draw_noise(len(state)), model.sampler, near))
        far = model.inputs.condition(landed, model.act(landed, embedding), embedding, discount)
        return choose_horizon(near, far, discount, shorter, torch.rand_like(discount))
