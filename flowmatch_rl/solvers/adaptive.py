"""Solvers that choose their steps, for evaluation."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchdiffeq import odeint

from flowmatch_rl.shapes import append_dims
from flowmatch_rl.solvers.base import Solver, line_up_times
from flowmatch_rl.types import Velocity


@dataclass(frozen=True)
class AdaptiveSolver(Solver):
    """A Runge-Kutta pair of torchdiffeq with error control.

    The steps are those the hardest sample of a batch needs, so that a result depends a little on its batch.

    Args:
        method: Pair of methods, by torchdiffeq's name: ``dopri5`` is of order 5, ``dopri8`` of order 8, ``bosh3`` of 3.
        rtol: Relative tolerance, positive.
        atol: Absolute tolerance, in units of the sample, positive.
        num_points: Points that ``trajectory`` returns, at least 2; they don't change the steps.

    Raises:
        ValueError: If a tolerance is not positive or ``num_points`` is below 2.
    """

    method: Literal["dopri5", "dopri8", "bosh3"] = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    num_points: int = 21

    def __post_init__(self) -> None:
        if not (self.rtol > 0.0 and self.atol > 0.0):
            raise ValueError(f"rtol and atol must be positive, got rtol={self.rtol}, atol={self.atol}")
        if self.num_points < 2:
            raise ValueError(f"num_points must be at least 2, got {self.num_points}")

    def integrate(
        self,
        velocity: Velocity,
        x: Tensor,
        t_start: Tensor | float,
        t_end: Tensor | float,
        condition: Tensor | None = None,
    ) -> Tensor:
        """State at ``t_end`` of the solution that passes through ``x`` at ``t_start``, shape of x."""
        return self._solve(velocity, x, t_start, t_end, condition, 2)[1][-1]

    def trajectory(
        self,
        velocity: Velocity,
        x: Tensor,
        t_start: Tensor | float,
        t_end: Tensor | float,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """States at ``num_points`` equally spaced times from ``t_start`` to ``t_end``, both included."""
        return self._solve(velocity, x, t_start, t_end, condition, self.num_points)

    def _solve(
        self,
        velocity: Velocity,
        x: Tensor,
        t_start: Tensor | float,
        t_end: Tensor | float,
        condition: Tensor | None,
        num_points: int,
    ) -> tuple[Tensor, Tensor]:
        start, end = line_up_times(x, t_start, t_end)
        span = end - start
        step = append_dims(span, like=x)

        # torchdiffeq knows one time for all: each sample's own interval is mapped to [0, 1].
        def rescaled(share: Tensor, state: Tensor) -> Tensor:
            # The guess of a first step looks ahead, perhaps beyond the end, where a path need not be defined.
            return step * velocity(state, start + share.clamp_max(1.0) * span, condition)

        shares = torch.linspace(0.0, 1.0, num_points, dtype=x.dtype, device=x.device)
        # By itself torchdiffeq steps past the end and interpolates.
        options = {"step_t": shares[-1:]}
        states = odeint(rescaled, x, shares, rtol=self.rtol, atol=self.atol, method=self.method, options=options)
        assert isinstance(states, Tensor)
        times = start + shares.reshape(-1, *[1] * start.dim()) * span
        return times, states
