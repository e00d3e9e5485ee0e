"""Interface of the solvers of the flow's ordinary differential equation."""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.shapes import append_dims
from flowmatch_rl.types import Time, Velocity


@dataclass(frozen=True)
class Solver(abc.ABC):
    """Integrates ``dx/dt = velocity(x, t, condition)``; each sample may have its own start and end time."""

    @property
    @abc.abstractmethod
    def steps(self) -> int | None:
        """Number of steps, or None for a solver that chooses its steps by the error."""

    @abc.abstractmethod
    def with_steps(self, num_steps: int) -> "Solver | None":
        """The same solver with another number of steps, or None for one that chooses them by the error.

        Args:
            num_steps: Number of steps, at least 1.
        """

    @abc.abstractmethod
    def integrate(
        self, velocity: Velocity, x: Tensor, t_start: Time, t_end: Time, condition: Tensor | None = None
    ) -> Tensor:
        """State at ``t_end`` of the solution that passes through ``x`` at ``t_start``.

        Particles (B, N, D) whose condition is shared take a condition of shape (B, 1, C) and times of shape (),
        (B,) or (B, N).

        Args:
            velocity: Field, called as ``velocity(x, t, condition)``.
            x: State at ``t_start``, shape (*batch, *event).
            t_start: First flow time.
            t_end: Last flow time; smaller than ``t_start`` to integrate backwards.
            condition: Condition of the field, or None.

        Returns:
            State at ``t_end``, shape (*batch, *event).

        Raises:
            ValueError: If the shape of a time is not a prefix of the shape of x.
        """

    @abc.abstractmethod
    def trajectory(
        self, velocity: Velocity, x: Tensor, t_start: Time, t_end: Time, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """States from ``t_start`` to ``t_end``, both included; arguments as for ``integrate``.

        Returns:
            Flow times, shape (P, *time), and states, shape (P, *batch, *event); P is the number of steps plus one
            unless the solver defines it otherwise.

        Raises:
            ValueError: If the shape of a time is not a prefix of the shape of x.
        """


def line_up_times(x: Tensor, t_start: Time, t_end: Time) -> tuple[Tensor, Tensor]:
    """Start and end times as tensors of one shape that is a prefix of the shape of x.

    Args:
        x: State, shape (*batch, *event).
        t_start: A number, or a tensor whose shape is a prefix of the shape of x.
        t_end: Likewise.

    Returns:
        Both times.

    Raises:
        ValueError: If the shape of a time is not a prefix of the shape of x.
    """
    start, end = (torch.as_tensor(t, dtype=x.dtype, device=x.device) for t in (t_start, t_end))
    append_dims(start, like=x)
    append_dims(end, like=x)
    # Line the two up from the left: (B,) against (B, N) would otherwise broadcast from the right.
    rank = max(start.dim(), end.dim())
    start, end = (t.reshape(t.shape + (1,) * (rank - t.dim())) for t in (start, end))
    start, end = torch.broadcast_tensors(start, end)
    return start, end
