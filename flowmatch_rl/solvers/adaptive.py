"""Solvers with adaptive steps, for evaluation."""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor
from torchdiffeq import odeint

from flowmatch_rl.checks import check_range
from flowmatch_rl.shapes import append_dims
from flowmatch_rl.solvers.base import Solver, line_up_times
from flowmatch_rl.types import Time, Velocity


@dataclass(frozen=True)
class AdaptiveSolver(Solver):
    """An adaptive Runge-Kutta method of torchdiffeq.

    The hardest sample of a batch determines the steps, so that a result depends slightly on its batch.

    Args:
        method: Method, by torchdiffeq's name: ``dopri5`` is of order 5, ``dopri8`` of order 8, ``bosh3`` of 3.
        rtol: Relative tolerance, positive.
        atol: Absolute tolerance, in units of the sample, positive.
        num_points: Number of points that ``trajectory`` returns, at least 2; it does not change the steps.

    Raises:
        UserError: If a tolerance is not positive or ``num_points`` is below 2.
    """

    method: Literal["dopri5", "dopri8", "bosh3"] = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    num_points: int = 21

    def __post_init__(self) -> None:
        check_range("(0, inf)", rtol=self.rtol, atol=self.atol)
        check_range("[2, inf)", num_points=self.num_points)

    @property
    def steps(self) -> None:
        """None: steps follow from the tolerances."""

    def with_steps(self, num_steps: int) -> None:
        """None: steps follow from the tolerances."""

    def integrate(
        self, velocity: Velocity, x: Tensor, t_start: Time, t_end: Time, condition: Tensor | None = None
    ) -> Tensor:
        """State at ``t_end`` of the solution that passes through ``x`` at ``t_start``, shape of x."""
        return self._solve(velocity, x, t_start, t_end, condition, 2)[1][-1]

    def trajectory(
        self, velocity: Velocity, x: Tensor, t_start: Time, t_end: Time, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """States at ``num_points`` equally spaced times from ``t_start`` to ``t_end``, both included."""
        return self._solve(velocity, x, t_start, t_end, condition, self.num_points)

    def _solve(
        self, velocity: Velocity, x: Tensor, t_start: Time, t_end: Time, condition: Tensor | None, num_points: int
    ) -> tuple[Tensor, Tensor]:
        start, end = line_up_times(x, t_start, t_end)
        span = end - start
        step = append_dims(span, like=x)

        # torchdiffeq has one time for the whole batch: each sample's own interval is mapped to [0, 1].
        def rescaled(fraction: Tensor, state: Tensor) -> Tensor:
            # The guess of a first step may look beyond the end, where a path need not be defined.
            return step * velocity(state, start + fraction.clamp_max(1.0) * span, condition)

        fractions = torch.linspace(0.0, 1.0, num_points, dtype=x.dtype, device=x.device)
        # By default torchdiffeq steps past the end and interpolates.
        options = {"step_t": fractions[-1:]}
        states = odeint(rescaled, x, fractions, rtol=self.rtol, atol=self.atol, method=self.method, options=options)
        times = start + fractions.reshape(-1, *[1] * start.dim()) * span
        return times, cast(Tensor, states)
