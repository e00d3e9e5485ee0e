"""Explicit solvers with a fixed number of steps for the flow's ordinary differential equation."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.shapes import append_dims
from flowmatch_rl.types import Velocity


@dataclass(frozen=True)
class Solver(abc.ABC):
    """Integrates ``dx/dt = velocity(x, t, condition)`` in equal steps.

    Each sample may have a start and an end time of its own: step sizes then differ between samples.

    Args:
        num_steps: Number of steps, at least 1.

    Raises:
        ValueError: If ``num_steps`` is below 1.
    """

    num_steps: int = 10

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")

    @abc.abstractmethod
    def step(self, velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor, condition: Tensor | None) -> Tensor:
        """One step from ``t`` to ``t + dt``.

        Args:
            velocity: Field, called as ``velocity(x, t, condition)``.
            x: State at ``t``, shape (*batch, *event).
            t: Flow time, its shape a prefix of the shape of x.
            dt: Step size, same shape as ``t``; negative to go back.
            condition: Context handed to the field, or None.

        Returns:
            State at ``t + dt``, shape (*batch, *event).
        """

    def integrate(
        self,
        velocity: Velocity,
        x: Tensor,
        t_start: Tensor | float,
        t_end: Tensor | float,
        condition: Tensor | None = None,
    ) -> Tensor:
        """State at ``t_end`` of the solution that passes through ``x`` at ``t_start``.

        Particles (B, N, D) whose condition is shared take a condition of shape (B, 1, C) and times of shape (),
        (B,) or (B, N).

        Args:
            velocity: Field, called as ``velocity(x, t, condition)``.
            x: State at ``t_start``, shape (*batch, *event).
            t_start: Flow time in [0, 1]; a number, or a tensor whose shape is a prefix of the shape of x.
            t_end: Flow time in [0, 1]; likewise. Smaller than ``t_start`` to integrate backwards.
            condition: Context handed to the field, or None.

        Returns:
            State at ``t_end``, shape (*batch, *event).

        Raises:
            ValueError: If the shape of a time is not a prefix of the shape of x.
        """
        state = x
        for _, state in self._walk(velocity, x, t_start, t_end, condition):  # noqa: B007 (the last state is wanted)
            continue
        return state

    def trajectory(
        self,
        velocity: Velocity,
        x: Tensor,
        t_start: Tensor | float,
        t_end: Tensor | float,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All states from ``t_start`` to ``t_end``, both included.

        Args:
            velocity: Field, called as ``velocity(x, t, condition)``.
            x: State at ``t_start``, shape (*batch, *event).
            t_start: As in ``integrate``.
            t_end: As in ``integrate``.
            condition: Context handed to the field, or None.

        Returns:
            Flow times, shape (num_steps + 1, *time), and states, shape (num_steps + 1, *batch, *event).

        Raises:
            ValueError: If the shape of a time is not a prefix of the shape of x.
        """
        times, states = zip(*self._walk(velocity, x, t_start, t_end, condition), strict=True)
        return torch.stack(times), torch.stack(states)

    def _walk(
        self, velocity: Velocity, x: Tensor, t_start: Tensor | float, t_end: Tensor | float, condition: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        start, end = (torch.as_tensor(t, dtype=x.dtype, device=x.device) for t in (t_start, t_end))
        append_dims(start, like=x)
        append_dims(end, like=x)
        # Line the two up from the left: (B,) against (B, N) would otherwise broadcast from the right.
        rank = max(start.dim(), end.dim())
        start, end = (t.reshape(t.shape + (1,) * (rank - t.dim())) for t in (start, end))
        dt = (end - start) / self.num_steps
        start = start.expand_as(dt)
        yield start, x
        for k in range(self.num_steps):
            x = self.step(velocity, x, start + k * dt, dt, condition)
            yield start + (k + 1) * dt, x


@dataclass(frozen=True)
class Euler(Solver):
    """Explicit Euler, order 1, one network evaluation per step."""

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor, condition: Tensor | None) -> Tensor:
        """One step from ``t`` to ``t + dt``."""
        return x + append_dims(dt, like=x) * velocity(x, t, condition)


@dataclass(frozen=True)
class Midpoint(Solver):
    """Explicit midpoint rule, order 2, two network evaluations per step."""

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor, condition: Tensor | None) -> Tensor:
        """One step from ``t`` to ``t + dt``."""
        h = append_dims(dt, like=x)
        return x + h * velocity(x + 0.5 * h * velocity(x, t, condition), t + 0.5 * dt, condition)


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's trapezoidal rule, order 2, two network evaluations per step."""

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor, condition: Tensor | None) -> Tensor:
        """One step from ``t`` to ``t + dt``."""
        h = append_dims(dt, like=x)
        v_start = velocity(x, t, condition)
        return x + 0.5 * h * (v_start + velocity(x + h * v_start, t + dt, condition))


@dataclass(frozen=True)
class RK4(Solver):
    """Classical Runge-Kutta, order 4, four network evaluations per step."""

    def step(self, velocity: Velocity, x: Tensor, t: Tensor, dt: Tensor, condition: Tensor | None) -> Tensor:
        """One step from ``t`` to ``t + dt``."""
        h = append_dims(dt, like=x)
        k_1 = velocity(x, t, condition)
        k_2 = velocity(x + 0.5 * h * k_1, t + 0.5 * dt, condition)
        k_3 = velocity(x + 0.5 * h * k_2, t + 0.5 * dt, condition)
        k_4 = velocity(x + h * k_3, t + dt, condition)
        return x + h / 6.0 * (k_1 + 2.0 * k_2 + 2.0 * k_3 + k_4)
