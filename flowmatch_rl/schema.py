"""Units: the columns of tables and the bounds of actions, as models see them and as their users do."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, first_names


def with_unit(name: str, unit: str) -> str:
    """The label of a column, such as ``speed [m/s]``; its name alone if the unit is empty."""
    return f"{name} [{unit}]" if unit else name


@dataclass(frozen=True)
class ActionBounds:
    """Bounds of an action in the environment's unit, which models see as [-1, 1].

    An entry whose bounds are equal has one value, whatever a model says: a motor that is disabled.

    Attributes:
        low: Value that -1 stands for, one per entry of the action.
        high: Value that 1 stands for.

    Raises:
        UserError: If they differ in number, are not finite or out of order.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high):
            raise UserError(
                f"action_low and action_high have {len(self.low)} and {len(self.high)} values, wanted as many"
            )
        if not all(-math.inf < low <= high < math.inf for low, high in zip(self.low, self.high, strict=True)):
            raise UserError(f"action_low must not exceed action_high, got {list(self.low)} and {list(self.high)}")

    @classmethod
    def unit(cls, action_dim: int) -> "ActionBounds":
        """Bounds of actions that the environment takes in [-1, 1] itself."""
        return cls((-1.0,) * action_dim, (1.0,) * action_dim)

    def repeated(self, number: int) -> "ActionBounds":
        """Bounds of several actions side by side.

        Args:
            number: How many, at least 1.
        """
        return ActionBounds(self.low * number, self.high * number)

    def standardise(self, action: Tensor) -> Tensor:
        """Actions in [-1, 1], float64, shape (*batch, A), of actions in the environment's unit.

        An entry with equal bounds becomes 0; infinite if it is not at them, as others leave [-1, 1] beyond theirs.
        """
        low, high = self._tensors(action)
        excess = action - low
        fixed = torch.where(excess == 0.0, 0.0, excess * torch.inf)
        return torch.where(low == high, fixed, 2.0 * excess / (high - low) - 1.0)

    def restore(self, action: Tensor) -> Tensor:
        """Actions in the environment's unit, float64, shape (*batch, A), of actions in [-1, 1]."""
        low, high = self._tensors(action)
        return low + (action + 1.0) / 2.0 * (high - low)

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.shape[-1:] != (len(self.low),):
            raise ValueError(f"expected actions of shape (..., {len(self.low)}), got {tuple(like.shape)}")
        low, high = (torch.tensor(bound, dtype=torch.float64, device=like.device) for bound in (self.low, self.high))
        return low, high


@dataclass(frozen=True)
class Interface:
    """Names and units of what a policy observes and does, and the time of a step; what is not known is left out.

    Attributes:
        observation_columns: Names of the S entries of an observation; empty if they are not known.
        observation_units: Unit of each, such as ``rad``, empty where it is not known; empty if none is.
        action_columns: Names of the A entries of an action; empty if they have none.
        action_units: Unit of each; empty if none is known.
        step_s: Time between two observations, seconds; None if it is not known.
    """

    observation_columns: tuple[str, ...] = ()
    observation_units: tuple[str, ...] = ()
    action_columns: tuple[str, ...] = ()
    action_units: tuple[str, ...] = ()
    step_s: float | None = None

    def lines(self, observation_dim: int, action_bounds: ActionBounds) -> list[str]:
        """What is observed, in a line, and the entries of the action with their bounds, a line each.

        Args:
            observation_dim: Dimension S of the observation.
            action_bounds: Bounds of the action in its own unit.
        """
        observed = map(with_unit, self.observation_columns, self.observation_units or [""] * observation_dim)
        dim, names = len(action_bounds.low), self.action_columns
        actions = map(with_unit, names or map(str, range(dim)), self.action_units or [""] * dim)
        bounds = zip(actions, action_bounds.low, action_bounds.high, strict=True)
        return [
            f"observation ({observation_dim}): {first_names(list(observed)) or 'names unknown'}",
            *(f"action {name} in [{low:g}, {high:g}]" for name, low, high in bounds),
        ]

    def chunked(self, number: int) -> "Interface":
        """The interface of a policy whose actions are several of these side by side.

        Args:
            number: How many, at least 1.
        """
        if number == 1:
            return self
        columns = tuple(f"{name}_step_{step}" for step in range(number) for name in self.action_columns)
        return dataclasses.replace(self, action_columns=columns, action_units=self.action_units * number)


@dataclass(frozen=True)
class TableSchema:
    """Columns of a table of samples, and the units they are standardised by.

    A condition is the vector of the standardised condition columns followed by one indicator per class of each class
    column, in the order of ``classes``.

    Attributes:
        columns: Names of the D sample columns.
        shift: Mean of each, in its own unit.
        scale: Standard deviation of each, in its own unit, positive.
        condition_columns: Names of the continuous condition columns.
        condition_shift: Mean of each.
        condition_scale: Standard deviation of each, positive.
        class_columns: Names of the columns that hold classes.
        classes: The classes of each of them, as text, sorted.
        integers: Names of the columns whose values are rounded to integers when they are brought back to their units.
        low: Smallest value of each sample column in the data, in its own unit; empty if it is not known.
        high: Largest value of each; empty if it is not known.
        units: Name of the unit of each sample column, such as ``rad``, empty where it is not known; empty if none is.
    """

    columns: tuple[str, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    condition_columns: tuple[str, ...] = ()
    condition_shift: tuple[float, ...] = ()
    condition_scale: tuple[float, ...] = ()
    class_columns: tuple[str, ...] = ()
    classes: tuple[tuple[str, ...], ...] = ()
    integers: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    units: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the sample columns with their units, such as ``speed [m/s]``."""
        return tuple(map(with_unit, self.columns, self.units or [""] * self.sample_dim))

    @property
    def sample_dim(self) -> int:
        """Dimension D of a sample."""
        return len(self.columns)

    @property
    def condition_dim(self) -> int:
        """Dimension C of a condition."""
        return len(self.condition_columns) + sum(map(len, self.classes))

    @property
    def log_volume(self) -> float:
        """Log-density of standardised samples minus that of samples in their own units, nats."""
        return sum(math.log(scale) for scale in self.scale)

    def standardise(self, sample: Tensor) -> Tensor:
        """Standardised samples, float64, shape (*batch, D), of samples in their own units."""
        shift, scale = self._units(sample)
        return (sample.double() - shift) / scale

    def restore(self, sample: Tensor) -> Tensor:
        """Samples in their own units, float64, shape (*batch, D), of standardised ones; integers are rounded."""
        shift, scale = self._units(sample)
        values = sample.double() * scale + shift
        whole = torch.tensor([name in self.integers for name in self.columns], device=values.device)
        return torch.where(whole, values.round(), values)

    def condition(self, values: Mapping[str, Any]) -> Tensor:
        """Conditions as the input of a model.

        Args:
            values: B values of each condition and class column, by name; classes as text or anything whose text they
                are.

        Returns:
            Conditions, float64, shape (B, C).

        Raises:
            UserError: If a class is unknown.
        """
        units = zip(self.condition_columns, self.condition_shift, self.condition_scale, strict=True)
        parts = [
            ((torch.as_tensor(values[name], dtype=torch.float64) - shift) / scale)[:, None]
            for name, shift, scale in units
        ]
        for name, levels in zip(self.class_columns, self.classes, strict=True):
            known = {level: i for i, level in enumerate(levels)}
            texts = [str(value) for value in values[name]]
            if unknown := [text for text in texts if text not in known]:
                raise UserError(
                    f"column {name!r} holds the class {unknown[0]!r}; known classes are {', '.join(levels)}"
                )
            indices = torch.tensor([known[text] for text in texts])
            parts.append(torch.nn.functional.one_hot(indices, len(levels)).double())
        return torch.cat(parts, dim=1)

    def restore_condition(self, condition: Tensor) -> dict[str, list[float] | list[str]]:
        """Invert ``condition``: condition columns in their own units and class columns as text.

        Args:
            condition: Conditions, shape (B, C).

        Returns:
            B values by column.
        """
        values: dict[str, list[float] | list[str]] = {}
        count = len(self.condition_columns)
        columns = condition[:, :count].double().T
        units = zip(self.condition_columns, columns, self.condition_shift, self.condition_scale, strict=True)
        for name, column, shift, scale in units:
            own = column * scale + shift
            values[name] = (own.round() if name in self.integers else own).tolist()
        indicators = condition[:, count:].split([len(levels) for levels in self.classes], dim=1)
        for name, levels, block in zip(self.class_columns, self.classes, indicators, strict=True):
            values[name] = [levels[i] for i in block.argmax(1).tolist()]
        return values

    def _units(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.shape[-1] != self.sample_dim:
            raise ValueError(f"expected {self.sample_dim} columns ({', '.join(self.columns)}), got {like.shape[-1]}")
        shift, scale = (
            torch.tensor(units, dtype=torch.float64, device=like.device) for units in (self.shift, self.scale)
        )
        return shift, scale
