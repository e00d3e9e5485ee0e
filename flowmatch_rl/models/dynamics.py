"""A one-step model of an environment: where a step leads, how sure that is, and whether it ends there."""

import abc
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import UserError
from flowmatch_rl.schema import TableSchema

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


@dataclass(frozen=True)
class DynamicsSettings(abc.ABC):
    """Configuration of a one-step model.

    Attributes:
        free: Names of the settings that a trained model may be used with other values of.
    """

    free: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def build(self, schema: TableSchema, action_dim: int) -> "Dynamics":
        """Build the model.

        Args:
            schema: Names and units of the S entries of the state.
            action_dim: Dimension A of the action.
        """

    def check_trained(self, trained: "DynamicsSettings", place: str) -> None:
        """Raise if the weights of a trained model do not serve one of these settings.

        Args:
            trained: Settings of the trained model.
            place: Name of these settings, for the error.

        Raises:
            UserError: If they do not; names the first setting that differs.
        """
        used = {name: getattr(self, name) for name in self.free}
        same_kind = type(trained) is type(self)
        if found := _difference(dataclasses.replace(trained, **used) if same_kind else trained, self, place):
            where, before, now = found
            raise UserError(f"the one-step model of the checkpoint was trained with {where} {before}, got {now}")


def _difference(first: Any, second: Any, place: str) -> tuple[str, Any, Any] | None:
    """Place of the first setting by which two objects differ, and its values or their classes; None if none does."""
    if first == second:
        return None
    if not (dataclasses.is_dataclass(first) and dataclasses.is_dataclass(second)):
        return place, first, second
    if type(first) is not type(second):
        return place, type(first).__name__, type(second).__name__
    parts = (field.name for field in dataclasses.fields(first))
    found = (_difference(getattr(first, name), getattr(second, name), f"{place}.{name}") for name in parts)
    return next(difference for difference in found if difference)


class Dynamics(nn.Module, abc.ABC):
    """An ensemble of models of the change of the state in one step.

    Units and weights are kept together: a model may be used with data of other units.

    Args:
        schema: Names and units of the S entries of the state.
        action_dim: Dimension A of the action.
        settings: What it was built by.

    Attributes:
        is_random: Whether steps from equal states under equal actions may differ.
    """

    is_random: ClassVar[bool]
    state_shift: Tensor
    state_scale: Tensor
    change_scale: Tensor
    trained: Tensor

    def __init__(self, schema: TableSchema, action_dim: int, settings: DynamicsSettings) -> None:
        super().__init__()
        self.columns, self.units = schema.columns, schema.units
        self.action_dim, self.settings = action_dim, settings
        self.register_buffer("state_shift", torch.tensor(schema.shift))
        self.register_buffer("state_scale", torch.tensor(schema.scale))
        self.register_buffer("change_scale", torch.ones(schema.sample_dim))
        self.register_buffer("trained", torch.tensor(False))

    @abc.abstractmethod
    def loss(
        self,
        observation: Tensor,
        action: Tensor,
        arrival: Tensor,
        terminated: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Loss of steps of the environment, mean over the members.

        Args:
            observation: States in the units of the environment, shape (B, S).
            action: Actions in [-1, 1], shape (B, A).
            arrival: States one step later, shape (B, S).
            terminated: Whether they are terminal, boolean, shape (B,).
            generator: Noise of models that are trained with some, on any device; the global one if None.

        Returns:
            Loss per step, shape (B,).

        Raises:
            ValueError: If the shapes do not fit.
        """

    @abc.abstractmethod
    def step(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Step:
        """Take a step from each state, without gradient.

        Args:
            observation: States in the units of the environment, shape (B, S).
            action: Actions in [-1, 1], shape (B, A).
            generator: Noise of models that draw the state that follows, on any device; the global one if None.

        Raises:
            ValueError: If the batches differ.
        """

    @abc.abstractmethod
    def misfit(
        self, observation: Tensor, action: Tensor, arrival: Tensor, generator: torch.Generator | None = None
    ) -> str | None:
        """What is wrong with a trained model, by steps of the environment; None if it fits them.

        Args:
            observation: States in the units of the environment, shape (B, S).
            action: Actions in [-1, 1], shape (B, A).
            arrival: States one step later, shape (B, S).
            generator: As for ``step``.
        """

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

    def standardise(self, observation: Tensor) -> Tensor:
        """Standardised states, shape (*batch, S), of states in the units of the environment."""
        return (observation - self.state_shift) / self.state_scale

    def changes(self, observation: Tensor, arrival: Tensor) -> Tensor:
        """Changes from states to others in units of the change of one step, shape (*batch, S)."""
        return (arrival - observation) / self.state_scale / self.change_scale

    def move(self, observation: Tensor, change: Tensor) -> Tensor:
        """States after changes in units of the change of one step, shape (*batch, S)."""
        return observation + change * self.change_scale * self.state_scale


def spread_of(changes: Tensor) -> Tensor:
    """Standard deviation over the members, root mean square over the columns, shape (B,), of changes (M, B, S)."""
    # torch.var over a first dimension of two or three takes thirty times as long.
    deviation = changes - changes.mean(0)
    return (deviation.square().sum(0) / (len(changes) - 1)).mean(-1).sqrt()
