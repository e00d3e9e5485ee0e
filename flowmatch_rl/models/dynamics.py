"""A one-step model of an environment: where a step leads, how sure that is, and whether it ends there."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from flowmatch_rl.nets import DynamicsArchitecture
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.shapes import check_same_shape

_SMALLEST_CHANGE = 1e-6
"""Scale of the change of a column that never changes, in units of its standard deviation."""


class Step(NamedTuple):
    """A step of the model from each of B states."""

    arrival: Tensor
    """States arrived in, in the units of the environment, shape (B, S)."""
    spread: Tensor
    """Disagreement of the members, in units of the change of one step, shape (B,)."""
    terminal: Tensor
    """Probability that the state arrived in is terminal, shape (B,)."""


class Dynamics(nn.Module):
    """An ensemble that regresses on the change of the state in one step, for deterministic environments.

    Args:
        schema: Names and units of the S entries of the state.
        action_dim: Dimension A of the action.
        architecture: Shape of the ensemble.
    """

    state_shift: Tensor
    state_scale: Tensor
    change_scale: Tensor
    seen_terminal: Tensor
    trained: Tensor

    def __init__(self, schema: TableSchema, action_dim: int, architecture: DynamicsArchitecture) -> None:
        super().__init__()
        self.network = architecture.build(schema.sample_dim, action_dim)
        self.use(schema)
        self.register_buffer("change_scale", torch.ones(schema.sample_dim))
        self.register_buffer("seen_terminal", torch.tensor(False))
        self.register_buffer("trained", torch.tensor(False))

    def use(self, schema: TableSchema) -> None:
        """Take the units of a schema with the same columns."""
        self.register_buffer("state_shift", torch.tensor(schema.shift), persistent=False)
        self.register_buffer("state_scale", torch.tensor(schema.scale), persistent=False)

    def measure(self, observation: Tensor, arrival: Tensor) -> None:
        """Take the scale of the changes from steps of the environment.

        Args:
            observation: States, shape (B, S).
            arrival: States one step later, shape (B, S).
        """
        self.change_scale.fill_(_SMALLEST_CHANGE)
        self.measure_unchanged(observation, arrival)

    def measure_unchanged(self, observation: Tensor, arrival: Tensor) -> None:
        """Take the scale of the columns that had not changed in any step measured, and do so here.

        Without it a column that changes rarely would keep the smallest scale, in units of which a change is huge.

        Args:
            observation: States, shape (B, S).
            arrival: States one step later, shape (B, S).
        """
        scale = ((arrival - observation) / self.state_scale).square().mean(0).sqrt()
        self.change_scale.copy_(torch.where(self.change_scale > _SMALLEST_CHANGE, self.change_scale, scale))
        self.change_scale.clamp_(min=_SMALLEST_CHANGE)

    def loss(self, observation: Tensor, action: Tensor, arrival: Tensor, terminated: Tensor) -> Tensor:
        """Squared error of the changes, and negative log-likelihood of the terminations, means over the members.

        Args:
            observation: States in the units of the environment, shape (B, S).
            action: Actions in [-1, 1], shape (B, A).
            arrival: States one step later, shape (B, S).
            terminated: Whether they are terminal, boolean, shape (B,).

        Returns:
            Loss per step, shape (B,).

        Raises:
            ValueError: If the shapes do not fit.
        """
        check_same_shape(observation=observation, arrival=arrival)
        change, logit = self.network(self._standardise(observation), action)
        target = (arrival - observation) / self.state_scale / self.change_scale
        self.seen_terminal |= terminated.any()
        wanted = terminated.to(logit.dtype).expand_as(logit)
        ends = binary_cross_entropy_with_logits(logit, wanted, reduction="none") * self.seen_terminal
        return ((change - target).square().mean(-1) + ends).mean(0)

    @torch.no_grad()
    def unexplained(self, observation: Tensor, action: Tensor, arrival: Tensor) -> float:
        """Mean over the columns of the fraction of the change's second moment that the model does not explain.

        Args:
            observation: States in the units of the environment, shape (B, S).
            action: Actions in [-1, 1], shape (B, A).
            arrival: States one step later, shape (B, S).
        """
        error = (self.step(observation, action).arrival - arrival) / self.state_scale / self.change_scale
        return float(error.square().mean())

    @torch.no_grad()
    def step(self, observation: Tensor, action: Tensor) -> Step:
        """Take a step of the mean of the members.

        Args:
            observation: States in the units of the environment, shape (B, S).
            action: Actions in [-1, 1], shape (B, A).
        """
        change, logit = self.network(self._standardise(observation), action)
        arrival = observation + change.mean(0) * self.change_scale * self.state_scale
        spread = change.var(0).mean(-1).sqrt()
        return Step(arrival, spread, logit.sigmoid().mean(0) * self.seen_terminal)

    def _standardise(self, observation: Tensor) -> Tensor:
        return (observation - self.state_shift) / self.state_scale
