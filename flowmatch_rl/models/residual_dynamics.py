"""A one-step model of deterministic environments: networks that regress on the change of the state."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from flowmatch_rl.models.dynamics import Dynamics, DynamicsSettings, Step, spread_of
from flowmatch_rl.nets import DynamicsArchitecture
from flowmatch_rl.nets.chunks import map_in_chunks
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.shapes import check_same_shape

_MOST_UNEXPLAINED = 0.25
"""Fraction of the variance of the change in one step that a model may leave unexplained."""


@dataclass(frozen=True)
class DeterministicDynamics(DynamicsSettings):
    """An ensemble that regresses on the change of the state: its mean stands for the state that follows.

    Args:
        architecture: Shape of the ensemble.
    """

    architecture: DynamicsArchitecture = DynamicsArchitecture()

    def build(self, schema: TableSchema, action_dim: int) -> "ResidualDynamics":
        """Build the model; see ``DynamicsSettings``."""
        return ResidualDynamics(schema, action_dim, self)


class ResidualDynamics(Dynamics):
    """An ensemble that regresses on the change of the state in one step, and classifies terminal states.

    Args:
        schema: Names and units of the S entries of the state.
        action_dim: Dimension A of the action.
        settings: Shape of the ensemble.
    """

    is_random: ClassVar = False
    seen_terminal: Tensor

    def __init__(self, schema: TableSchema, action_dim: int, settings: DeterministicDynamics) -> None:
        super().__init__(schema, action_dim, settings)
        self.network = settings.architecture.build(schema.sample_dim, action_dim)
        self.register_buffer("seen_terminal", torch.tensor(False))

    def loss(
        self,
        observation: Tensor,
        action: Tensor,
        arrival: Tensor,
        terminated: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Squared error of the changes, and negative log-likelihood of the terminations; draws no noise."""
        check_same_shape(observation=observation, arrival=arrival)
        change, logit = self.network(self.standardise(observation), action)
        self.seen_terminal |= terminated.any()
        wanted = terminated.to(logit.dtype).expand_as(logit)
        ends = binary_cross_entropy_with_logits(logit, wanted, reduction="none") * self.seen_terminal
        return ((change - self.changes(observation, arrival)).square().mean(-1) + ends).mean(0)

    @torch.no_grad()
    def step(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Step:
        """Take a step of the mean of the members; draws no noise."""
        change, spread, ends = map_in_chunks(
            self._predict, len(self.network.biases[0]), self.standardise(observation), action
        )
        return Step(self.move(observation, change), spread, ends * self.seen_terminal)

    def _predict(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean change (B, S), disagreement (B,) and mean probability of an end (B,)."""
        change, logit = self.network(state, action)
        return change.mean(0), spread_of(change), logit.sigmoid().mean(0)

    def misfit(
        self, observation: Tensor, action: Tensor, arrival: Tensor, generator: torch.Generator | None = None
    ) -> str | None:
        """That much of the change remains unexplained."""
        unexplained = self.unexplained(observation, action, arrival)
        if unexplained <= _MOST_UNEXPLAINED:
            return None
        return (
            f"the one-step model leaves {unexplained:.0%} of the variance of a step's change unexplained: it is "
            "trained too shortly (num_updates), or the environment is random, whose noise it replaces by its mean; "
            "StochasticDynamics draws it"
        )

    def unexplained(self, observation: Tensor, action: Tensor, arrival: Tensor) -> float:
        """Mean over the columns of the fraction of the change's second moment that the model does not explain.

        Args:
            observation: States in the units of the environment, shape (B, S).
            action: Actions in [-1, 1], shape (B, A).
            arrival: States one step later, shape (B, S).
        """
        return float(self.changes(arrival, self.step(observation, action).arrival).square().mean())
