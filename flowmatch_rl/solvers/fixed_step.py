"""Explicit solvers with a fixed number of steps for the flow's ordinary differential equation."""

import abc
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.shapes import append_dims
from flowmatch_rl.solvers.base import Solver, line_up_times
from flowmatch_rl.types import Time, Velocity


@dataclass(frozen=True)
class FixedStepSolver(Solver, abc.ABC):
    """A solver with equal steps; where samples have their own times, step sizes differ between samples.

    Args:
        num_steps: Number of steps, at least 1.

    Raises:
        UserError: If ``num_steps`` is below 1.
    """

    num_steps: int = 10

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_steps=self.num_steps)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.num_steps

    def with_steps(self, num_steps: int) -> "FixedStepSolver":
        """The same solver with another number of steps."""
        return dataclasses.replace(self, num_steps=num_steps)

    @abc.abstractmethod
    def step(self, velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor, condition: Tensor | None) -> Tensor:
        """One step from ``t`` to ``t + dt``.

        Args:
            velocity: Field, called as ``velocity(x, t, condition)``.
            x: State at ``t``, shape (*batch, *event).
            t: Flow time, its shape a prefix of the shape of x.
            dt: Step size, same shape as ``t``; negative to go back.
            condition: Condition of the field, or None.

        Returns:
            State at ``t + dt``, shape (*batch, *event).
        """

    def integrate(
        self, velocity: Velocity, x: Tensor, t_start: Time, t_end: Time, condition: Tensor | None = None
    ) -> Tensor:
        """State at ``t_end`` of the solution that passes through ``x`` at ``t_start``, shape of x."""
        state = x
        for _, state in self._walk(velocity, x, t_start, t_end, condition):  # noqa: B007 (only the last state is used)
            continue
        return state

    def trajectory(
        self, velocity: Velocity, x: Tensor, t_start: Time, t_end: Time, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """All states from ``t_start`` to ``t_end``, both included: num_steps + 1 times and states."""
        times, states = zip(*self._walk(velocity, x, t_start, t_end, condition), strict=True)
        return torch.stack(times), torch.stack(states)

    def _walk(
        self, velocity: Velocity, x: Tensor, t_start: Time, t_end: Time, condition: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        start, end = line_up_times(x, t_start, t_end)
        dt = (end - start) / self.num_steps
        yield start, x
        for k in range(self.num_steps):
            x = self.step(velocity, x, start + k * dt, dt, condition)
            yield start + (k + 1) * dt, x


@dataclass(frozen=True)
class Euler(FixedStepSolver):
    """Explicit Euler, order 1, one network evaluation per step."""

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor, condition: Tensor | None) -> Tensor:
        """One step from ``t`` to ``t + dt``."""
        return x + append_dims(dt, like=x) * velocity(x, t, condition)


@dataclass(frozen=True)
class Midpoint(FixedStepSolver):
    """Explicit midpoint rule, order 2, two network evaluations per step."""

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor, condition: Tensor | None) -> Tensor:
        """One step from ``t`` to ``t + dt``."""
        h = append_dims(dt, like=x)
        return x + h * velocity(x + 0.5 * h * velocity(x, t, condition), t + 0.5 * dt, condition)


@dataclass(frozen=True)
class Heun(FixedStepSolver):
    """Heun's trapezoidal rule, order 2, two network evaluations per step."""

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor, condition: Tensor | None) -> Tensor:
        """One step from ``t`` to ``t + dt``."""
        h = append_dims(dt, like=x)
        v_start = velocity(x, t, condition)
        return x + 0.5 * h * (v_start + velocity(x + h * v_start, t + dt, condition))


@dataclass(frozen=True)
class RK4(FixedStepSolver):
    """Classical Runge-Kutta, order 4, four network evaluations per step."""

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor, condition: Tensor | None) -> Tensor:
        """One step from ``t`` to ``t + dt``."""
        h = append_dims(dt, like=x)
        k_1 = velocity(x, t, condition)
        k_2 = velocity(x + 0.5 * h * k_1, t + 0.5 * dt, condition)
        k_3 = velocity(x + 0.5 * h * k_2, t + 0.5 * dt, condition)
        k_4 = velocity(x + h * k_3, t + dt, condition)
        return x + h / 6.0 * (k_1 + 2.0 * k_2 + 2.0 * k_3 + k_4)
