"""Rewards for being in a state, as functions of named columns of the state."""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.trust import find_function, name_function
from flowmatch_rl.types import Reward


class ColumnReward(Reward, abc.ABC):
    """A reward of the columns that it names.

    Attributes:
        columns: Their names.
    """

    columns: tuple[str, ...]

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """The columns that the reward depends on."""
        return tuple(self.columns)


@dataclass(frozen=True)
class GoalReward(ColumnReward):
    """1 within a distance of a goal, falling along half a cosine to 0 over a margin.

    Args:
        columns: Columns that the distance is measured in, all of one unit.
        goal: The goal, one number per column, in their unit.
        radius: Distance up to which the reward is 1, in the same unit, at least 0.
        margin: Distance over which it falls to 0, in the same unit, at least 0; 0 for a jump.

    Raises:
        UserError: If the columns are none or repeated, the goal has another length, a number is not finite or is
            negative, or radius and margin are both 0.
    """

    columns: tuple[str, ...]
    goal: tuple[float, ...]
    radius: float
    margin: float = 0.0

    def __post_init__(self) -> None:
        _check_columns("columns", self.columns)
        _check_numbers("goal", self.goal, len(self.columns))
        _check_numbers("radius and margin", (self.radius, self.margin), 2)
        if self.radius < 0.0 or self.margin < 0.0 or self.radius + self.margin == 0.0:
            raise UserError(
                f"radius and margin must be at least 0 and not both 0, got radius {self.radius} and margin "
                f"{self.margin}"
            )

    def of_columns(self, values: Tensor) -> Tensor:
        """Reward in [0, 1], shape (*batch), of values of shape (*batch, R)."""
        _check_values(self, values)
        distance = (values - values.new_tensor(self.goal)).norm(dim=-1)
        if self.margin == 0.0:
            return (distance <= self.radius).to(values.dtype)
        beyond = ((distance - self.radius) / self.margin).clamp(0.0, 1.0)
        return 0.5 * (1.0 + torch.cos(math.pi * beyond))


@dataclass(frozen=True)
class BoxReward(ColumnReward):
    """1 in a closed box and 0 outside.

    Args:
        low: Lower bound of each column, in its unit; null for none.
        high: Upper bound of each column, in its unit; null for none.
        columns: Columns of the box.

    Raises:
        UserError: If the columns are none or repeated, the bounds have another length or are not finite, or a lower
            bound is above the upper one.
    """

    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    columns: tuple[str, ...] = ("x", "y")

    def __post_init__(self) -> None:
        _check_columns("columns", self.columns)
        for name, bounds in (("low", self.low), ("high", self.high)):
            if len(bounds) != len(self.columns):
                raise UserError(f"{name} must hold {len(self.columns)} bounds, one per column, got {bounds}")
            _check_numbers(name, finite := [bound for bound in bounds if bound is not None], len(finite))
        for column, low, high in zip(self.columns, self.low, self.high, strict=True):
            if low is not None and high is not None and low > high:
                raise UserError(f"low must not be above high, got {low} and {high} for the column {column!r}")

    def of_columns(self, values: Tensor) -> Tensor:
        """Reward 0 or 1, shape (*batch), of values of shape (*batch, R)."""
        _check_values(self, values)
        low = values.new_tensor([-math.inf if bound is None else bound for bound in self.low])
        high = values.new_tensor([math.inf if bound is None else bound for bound in self.high])
        return ((values >= low) & (values <= high)).all(-1).to(values.dtype)


@dataclass(frozen=True)
class LinearReward(ColumnReward):
    """Weighted sum of columns, plus a constant.

    Args:
        columns: Columns.
        weights: Reward per unit of each column.
        bias: Reward where all columns are 0.

    Raises:
        UserError: If the columns are none or repeated, the weights have another length, or a number is not finite.
    """

    columns: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float = 0.0

    def __post_init__(self) -> None:
        _check_columns("columns", self.columns)
        _check_numbers("weights", self.weights, len(self.columns))
        _check_numbers("bias", (self.bias,), 1)

    def of_columns(self, values: Tensor) -> Tensor:
        """Reward, shape (*batch), of values of shape (*batch, R)."""
        _check_values(self, values)
        return values @ values.new_tensor(self.weights) + self.bias


@dataclass(frozen=True)
class QuadraticReward(ColumnReward):
    """A constant minus the weighted squared distance from a centre.

    Args:
        columns: Columns.
        center: Where the reward is highest, one number per column, in its unit.
        weights: Reward lost per squared unit of each column, at least 0.
        bias: Reward at the centre.

    Raises:
        UserError: If the columns are none or repeated, the centre or the weights have another length, a number is not
            finite, or a weight is negative.
    """

    columns: tuple[str, ...]
    center: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float = 0.0

    def __post_init__(self) -> None:
        _check_columns("columns", self.columns)
        _check_numbers("center", self.center, len(self.columns))
        _check_numbers("weights", self.weights, len(self.columns))
        _check_numbers("bias", (self.bias,), 1)
        check_range("[0, inf)", weights=min(self.weights))

    def of_columns(self, values: Tensor) -> Tensor:
        """Reward of at most the bias, shape (*batch), of values of shape (*batch, R)."""
        _check_values(self, values)
        return self.bias - (values - values.new_tensor(self.center)).square() @ values.new_tensor(self.weights)


@dataclass(frozen=True)
class CirculationReward(Reward):
    """Speed of running around a centre in one sense; 0 for running in the other.

    It is the part of the velocity at right angles to the line to the centre, and 0 at the centre itself.

    Args:
        position: Names of the two columns of the position.
        velocity: Names of the two columns of the velocity, along the same axes.
        center: The centre, in the unit of the position.
        clockwise: Whether running clockwise is rewarded, the first axis pointing right and the second up.
        scale: Speed with a reward of 1, in the unit of the velocity, positive.

    Raises:
        UserError: If there are not two columns each, a column is repeated, the centre is not two finite numbers, or
            the scale is not positive.
    """

    position: tuple[str, str] = ("x", "y")
    velocity: tuple[str, str] = ("vx", "vy")
    center: tuple[float, float] = (0.0, 0.0)
    clockwise: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name, columns in (("position", self.position), ("velocity", self.velocity)):
            if len(columns) != 2:
                raise UserError(f"{name} must name 2 columns, got {columns}")
        _check_columns("position and velocity", self.needed_columns)
        _check_numbers("center", self.center, 2)
        check_range("(0, inf)", scale=self.scale)

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """The columns of the position, then those of the velocity."""
        return (*self.position, *self.velocity)

    def of_columns(self, values: Tensor) -> Tensor:
        """Reward of at least 0, shape (*batch), of values of shape (*batch, 4)."""
        _check_values(self, values)
        x, y = (values[..., :2] - values.new_tensor(self.center)).unbind(-1)
        v_x, v_y = values[..., 2:].unbind(-1)
        moment = y * v_x - x * v_y if self.clockwise else x * v_y - y * v_x
        # The floor keeps the quotient finite at the centre, where the moment is 0.
        distance = torch.hypot(x, y).clamp_min(torch.finfo(values.dtype).tiny)
        return (moment / distance).clamp_min(0.0) / self.scale


@dataclass(frozen=True)
class SpeedReward(ColumnReward):
    """Length of the velocity.

    Args:
        columns: Columns of the velocity, all of one unit.
        scale: Speed with a reward of 1, in their unit, positive.

    Raises:
        UserError: If the columns are none or repeated, or the scale is not positive.
    """

    columns: tuple[str, ...] = ("vx", "vy")
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_columns("columns", self.columns)
        check_range("(0, inf)", scale=self.scale)

    def of_columns(self, values: Tensor) -> Tensor:
        """Reward of at least 0, shape (*batch), of values of shape (*batch, R)."""
        _check_values(self, values)
        return values.norm(dim=-1) / self.scale


@dataclass(frozen=True)
class SumReward(Reward):
    """Weighted sum of rewards.

    Args:
        rewards: The rewards, at least one.
        weights: Weight of each; null for 1.

    Raises:
        UserError: If there are no rewards, or the weights have another length or are not finite.
    """

    rewards: tuple[Reward, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.rewards) == 0:
            raise UserError("rewards must hold at least one reward, got none")
        if self.weights is not None:
            _check_numbers("weights", self.weights, len(self.rewards))

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """The columns of all rewards, each once, in the order of their first use."""
        return tuple(dict.fromkeys(name for reward in self.rewards for name in reward.needed_columns))

    def of_columns(self, values: Tensor) -> Tensor:
        """Reward, shape (*batch), of values of shape (*batch, R)."""
        _check_values(self, values)
        weights = (1.0,) * len(self.rewards) if self.weights is None else self.weights
        terms = [reward.evaluate(values, self.needed_columns) for reward in self.rewards]
        return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum(0)


@dataclass(frozen=True)
class FunctionReward(ColumnReward):
    """A function of your own.

    Args:
        function: The function as ``package.module:function``; it takes values of shape (*batch, R) and returns rewards
            of shape (*batch), in torch. One that a checkpoint names is looked for when it is first needed, among the
            modules that have been imported or are allowed.
        columns: Columns of the values, in this order.

    Raises:
        UserError: If the columns are none or repeated, or the function cannot be imported.
    """

    function: str
    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_columns("columns", self.columns)
        name_function(self.function)

    def of_columns(self, values: Tensor) -> Tensor:
        """Reward, shape (*batch), of values of shape (*batch, R).

        Raises:
            UntrustedNameError: If only a checkpoint names the function.
            UserError: If the function returns another shape.
        """
        _check_values(self, values)
        reward = find_function(self.function)(values)
        got = tuple(reward.shape) if isinstance(reward, Tensor) else type(reward).__name__
        if got != tuple(values.shape[:-1]):
            raise UserError(f"{self.function} must return a reward of shape {tuple(values.shape[:-1])}, got {got}")
        return reward


def _check_columns(name: str, columns: Sequence[str]) -> None:
    if isinstance(columns, str) or len(columns) == 0 or len(set(columns)) != len(columns):
        raise UserError(f"{name} must be different names, at least one, got {columns!r}")


def _check_numbers(name: str, numbers: Sequence[float], count: int) -> None:
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise UserError(f"{name} must be finite, {count} in number, got {numbers}")


def _check_values(reward: Reward, values: Tensor) -> None:
    if not values.is_floating_point():
        raise UserError(f"values must be floating-point numbers, got {values.dtype}")
    check_shape("values", values, (*values.shape[:-1], len(reward.needed_columns)))
