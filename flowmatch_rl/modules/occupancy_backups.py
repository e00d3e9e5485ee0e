"""Bellman backups of an occupancy from segments of data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.batches import Segment
from flowmatch_rl.models import Occupancy
from flowmatch_rl.objectives import (
    Backup,
    Term,
    backup_weights,
    choose_state,
    discounts_between,
    include_current_state,
    resumes_far,
)


@dataclass(frozen=True)
class BackupMaker:
    """Makes the states that an occupancy counts of a segment, and the conditions that it bootstraps from.

    Args:
        model: EMA occupancy.
        bootstraps: Whether the occupancy resumes at the end of a segment; otherwise segments hold a state of it.
        latent_term: Term whose gradient reaches the latents of the segments.
    """

    model: Occupancy
    bootstraps: bool
    latent_term: Term = "bootstrap"

    def make(self, segment: Segment, discount: Tensor) -> Backup:
        """One backup per segment.

        Args:
            segment: Segments, and the members of the family of policies that they follow.
            discount: Discounts, shape (B,).

        Returns:
            The backups.

        Raises:
            KeyError: If the segments lack what is needed.
        """
        condition = self.model.inputs.condition(segment.observation, segment.action, segment.embedding, discount)
        if not self.bootstraps:
            state = self.model.inputs.standardise(self._future(segment, discount))
            return Backup(condition, state, torch.ones_like(discount), condition, torch.zeros_like(discount))
        weights, rest = backup_weights(discount, segment.terminated, segment.length, self.model.horizon.first_state)
        states, uniform = torch.cat([segment.observation[:, None], segment.arrivals], dim=1), torch.rand_like(discount)
        next_condition, landed, ended = self._resume(segment, discount)
        if landed is not None and ended is not None:
            # The occupancy of a terminal state is that state, which is counted like an observed one.
            states = torch.cat([states, landed[:, None]], dim=1)
            weights, rest = torch.cat([weights, (rest * ended)[:, None]], dim=1), rest * (1.0 - ended)
        state, state_weight = choose_state(states, weights, uniform)
        return Backup(
            condition, self.model.inputs.standardise(state), state_weight, next_condition, rest, self.latent_term
        )

    def _future(self, segment: Segment, discount: Tensor) -> Tensor:
        """States of the occupancies from trajectories, shape (B, S)."""
        if segment.future is None:
            raise KeyError("MonteCarloCFM needs states of trajectories; the batch has no 'future'")
        if self.model.horizon.first_state == "arrival":
            return segment.future
        return include_current_state(segment.observation, segment.future, discount, torch.rand_like(discount))

    def _resume(self, segment: Segment, discount: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Where the occupancy is bootstrapped from.

        Returns:
            Conditions, shape (B, C); the states that a shorter horizon led to, shape (B, S), and the probability that
            the occupancy ends there instead, shape (B,); None where all bootstrap from the last arrival.
        """
        rows = torch.arange(len(discount), device=discount.device)
        state, action, embedding = segment.arrivals[rows, segment.length - 1], segment.next_action, segment.embedding
        if self.model.policy is not None:
            action = self.model.act(state, embedding)
        if action is None:
            raise KeyError("the data holds no next actions; name a policy to take them from")
        count = round(self.model.horizon.consistency * len(discount))
        if count == 0:
            return self.model.inputs.condition(state, action, embedding, discount), None, None
        first, landed, ended = self._through_shorter_horizon(
            state[:count], action[:count], embedding[:count], discount[:count]
        )
        rest = self.model.inputs.condition(state[count:], action[count:], embedding[count:], discount[count:])
        ended = torch.cat([ended, torch.zeros_like(discount[count:])])
        return torch.cat([first, rest]), torch.cat([landed, state[count:]]), ended

    @torch.no_grad()
    def _through_shorter_horizon(
        self, state: Tensor, action: Tensor, embedding: Tensor, discount: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Conditions of one of the two occupancies of the horizon-consistency backup, by their weights.

        Returns:
            Conditions, shape (B, C), the states that the shorter occupancy leads to, shape (B, S), and the probability
            that the one at such a state was chosen but is not to be resumed, since the state is terminal, shape (B,).
        """
        model = self.model
        shorter = discounts_between(model.horizon.lowest, discount, torch.rand_like(discount))
        near = model.inputs.condition(state, action, embedding, shorter)
        landed = model.inputs.restore(model.flow.sample(model.draw_noise(len(state)), model.sampler, near))
        far = model.inputs.condition(landed, model.act(landed, embedding), embedding, discount)
        is_far = resumes_far(discount, shorter, torch.rand_like(discount))
        ended = model.terminal_probability(landed, shorter) * is_far
        return torch.where(is_far[:, None], far, near), landed, ended
