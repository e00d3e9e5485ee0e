"""Sampling with the flow's ordinary differential equation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowmatch_rl.paths import Field
from flowmatch_rl.samplers.base import Draw, Sampler
from flowmatch_rl.solvers import Euler, Solver
from flowmatch_rl.types import Time


@dataclass(frozen=True)
class OdeSampler(Sampler):
    """Integrates the velocity; for a diffusion path this is the probability-flow equation.

    Args:
        solver: Solver.

    Reference:
        Song et al., arXiv:2011.13456 (probability flow).
    """

    needs_average_velocity: ClassVar[bool] = False

    solver: Solver = Euler(num_steps=50)

    @property
    def adds_noise(self) -> bool:
        """False."""
        return False

    @property
    def steps(self) -> int | None:
        """Number of steps of the solver, or None."""
        return self.solver.steps

    def with_steps(self, num_steps: int) -> "OdeSampler | None":
        """The same sampler with another number of steps, or None for an adaptive solver."""
        solver = self.solver.with_steps(num_steps)
        return None if solver is None else OdeSampler(solver)

    def sample(self, field: Field, x: Tensor, t_start: Time, t_end: Time, draw: Draw) -> Tensor:
        """Points at ``t_end``, shape of x."""
        return self.solver.integrate(field.velocity, x, t_start, t_end)

    def trajectory(self, field: Field, x: Tensor, t_start: Time, t_end: Time, draw: Draw) -> tuple[Tensor, Tensor]:
        """Times and points of the solver."""
        return self.solver.trajectory(field.velocity, x, t_start, t_end)
