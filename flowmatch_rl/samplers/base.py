"""Interface of the samplers."""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.paths import Field
from flowmatch_rl.solvers import line_up_times
from flowmatch_rl.types import Time

Draw: TypeAlias = Callable[[Tensor], Tensor]
"""Draws standard normal noise of the shape, type and device of its argument."""


@dataclass(frozen=True)
class Sampler(abc.ABC):
    """Moves points from the start of a path to its end, following the prediction of a model."""

    needs_average_velocity: ClassVar[bool]
    """Whether the sampler needs a model that has learned average velocities."""

    @property
    @abc.abstractmethod
    def adds_noise(self) -> bool:
        """Whether the sampler draws noise on its way.

        It then uses the score, which follows from the velocity for a standard normal source alone.
        """

    @property
    @abc.abstractmethod
    def steps(self) -> int | None:
        """Number of steps, or None for a sampler that chooses its steps by the error."""

    @abc.abstractmethod
    def with_steps(self, num_steps: int) -> "Sampler | None":
        """The same sampler with another number of steps, or None for one that chooses them by the error.

        Args:
            num_steps: Number of steps, at least 1.
        """

    @abc.abstractmethod
    def sample(self, field: Field, x: Tensor, t_start: Time, t_end: Time, draw: Draw) -> Tensor:
        """Points at ``t_end``.

        Args:
            field: Prediction of the model; bound to its condition by ``Field.at`` if it has one.
            x: Points at ``t_start``, shape (*batch, D).
            t_start: First flow time.
            t_end: Last flow time, at least ``t_start``.
            draw: Draws noise; deterministic samplers never call it.

        Returns:
            Points at ``t_end``, shape (*batch, D).
        """

    @abc.abstractmethod
    def trajectory(self, field: Field, x: Tensor, t_start: Time, t_end: Time, draw: Draw) -> tuple[Tensor, Tensor]:
        """Points from ``t_start`` to ``t_end``, both included; arguments as for ``sample``.

        Returns:
            Flow times, shape (P, *time), and points, shape (P, *batch, D).
        """


@dataclass(frozen=True)
class SteppingSampler(Sampler, abc.ABC):
    """A sampler that takes equal steps in flow time.

    Args:
        num_steps: Number of steps, at least 1.

    Raises:
        UserError: If ``num_steps`` is below 1.
    """

    num_steps: int = 50

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_steps=self.num_steps)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.num_steps

    def with_steps(self, num_steps: int) -> "SteppingSampler":
        """The same sampler with another number of steps."""
        return dataclasses.replace(self, num_steps=num_steps)

    @abc.abstractmethod
    def step(self, field: Field, x: Tensor, t: Tensor, dt: Tensor, draw: Draw) -> Tensor:
        """Points at ``t + dt`` for points at ``t``.

        Args:
            field: Prediction of the model.
            x: Points, shape (*batch, D).
            t: Flow time, its shape a prefix of the batch shape.
            dt: Length of the step, same shape as ``t``.
            draw: Draws noise.

        Returns:
            Points, shape (*batch, D).
        """

    def sample(self, field: Field, x: Tensor, t_start: Time, t_end: Time, draw: Draw) -> Tensor:
        """Points at ``t_end``, shape of x."""
        state = x
        for _, state in self._walk(field, x, t_start, t_end, draw):  # noqa: B007 (only the last is used)
            continue
        return state

    def trajectory(self, field: Field, x: Tensor, t_start: Time, t_end: Time, draw: Draw) -> tuple[Tensor, Tensor]:
        """Times and points at the start and after each step."""
        times, points = zip(*self._walk(field, x, t_start, t_end, draw), strict=True)
        return torch.stack(times), torch.stack(points)

    def _walk(self, field: Field, x: Tensor, t_start: Time, t_end: Time, draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
        start, end = line_up_times(x, t_start, t_end)
        times = [torch.lerp(start, end, k / self.num_steps) for k in range(self.num_steps + 1)]
        yield times[0], x
        for t, after in itertools.pairwise(times):
            x = self.step(field, x, t, after - t, draw)
            yield after, x
