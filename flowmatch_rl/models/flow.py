"""A network on a probability path: what every flow and diffusion model of the package is made of."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.models.noise import draw_normal
from flowmatch_rl.nets import FlowNetwork
from flowmatch_rl.nets.chunks import map_in_chunks
from flowmatch_rl.objectives import FlowObjective, derivative_along_flow
from flowmatch_rl.paths import AffinePath, Field, GaussianSource, PathPoints, Preconditioner, Source, guided
from flowmatch_rl.samplers import Draw, Sampler
from flowmatch_rl.solvers import Divergence, ExactDivergence, Midpoint, Solver, log_likelihood
from flowmatch_rl.types import Prediction

_LARGEST_COEFFICIENT = 1e12
"""A coefficient above this is a division by what should be zero."""


@dataclass(frozen=True)
class Likelihood:
    """How the log-density of a flow's samples is computed, by its probability-flow equation.

    Args:
        solver: Solver; its error is that of the log-density.
        divergence: How the divergence is computed: exact, or by random probes in many dimensions.
    """

    solver: Solver = Midpoint(num_steps=50)
    divergence: Divergence = ExactDivergence()

    def draw_probes(self, sample: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Noise of the probes that the divergence of samples needs.

        Args:
            sample: Samples, shape (B, D).
            generator: Source of randomness, on any device; the global one if None.

        Returns:
            Standard normal noise, shape (B, needed_probes, D), or None where there are none.
        """
        number = self.divergence.needed_probes
        return draw_normal((len(sample), number, sample.shape[-1]), sample.device, generator) if number else None


class Flow(nn.Module):
    """A network that predicts velocity, data, noise or score along a path from a source to data.

    It owns all that turns the network into a model: its field, samples, log-density and training loss. Samples are in
    the units that it was trained in. The log-density is that of samples of the probability-flow equation.

    Args:
        network: Called as ``network(x, t, condition, duration)``.
        path: Probability path from noise at t = 0 to data at t = 1.
        source: Distribution of x_0.
        prediction: What the network predicts.
        t_min: Flow times lie in [t_min, 1 - t_min]; in [0, 0.5).
        scales: Whether the network takes x_t at unit variance and returns units of the prediction.
        guesses: Whether the network predicts the deviation from what is exact for standard normal data.
        averages: Whether the network takes durations and predicts average velocities over them.
        marks_absence: Whether the last entry of the network's condition says that there is a condition.

    Raises:
        UserError: If ``t_min`` is out of its range, the prediction is undefined at a limit of the path, or prediction
            and source do not go together.
    """

    def __init__(
        self,
        network: FlowNetwork,
        path: AffinePath,
        source: Source = GaussianSource(),
        prediction: Prediction = "velocity",
        t_min: float = 0.0,
        scales: bool = False,
        guesses: bool = False,
        averages: bool = False,
        marks_absence: bool = False,
    ) -> None:
        super().__init__()
        check_range("[0, 0.5)", t_min=t_min)
        self.network = network
        self.path, self.source, self.t_min = path, source, t_min
        self.prediction: Prediction = prediction
        self.averages, self.marks_absence = averages, marks_absence
        self._preconditioner = Preconditioner(path, prediction, scales, guesses)
        self._check()
        self._start_scale = float(path.schedule.sigma(torch.tensor(t_min, dtype=torch.float64)))

    @property
    def interval(self) -> tuple[float, float]:
        """First and last flow time."""
        return self.t_min, 1.0 - self.t_min

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
        """Prediction at points of the path, with gradient.

        Args:
            x: Points, shape (*batch, D).
            t: Flow time, its shape a prefix of the batch shape.
            condition: Condition as the network takes it, shape (*batch, C), where a size of 1 is shared, or None.
            duration: Length of the interval that the velocity is averaged over, or None.

        Returns:
            Prediction, shape (*batch, D).
        """
        return self._preconditioner.complete(self.network)(x, t, condition, duration)

    def mark(self, condition: Tensor | None, present: Tensor | bool = True) -> Tensor | None:
        """The condition as the network takes it.

        Args:
            condition: Condition, shape (*batch, C), or None.
            present: Whether it is there: for all, or per row, boolean, shape (B,).

        Returns:
            Condition, shape (*batch, C), or (*batch, C + 1) with zeros in the rows where it is absent.
        """
        if condition is None or not self.marks_absence:
            return condition
        rows = torch.as_tensor(present, device=condition.device).expand(condition.shape[0])
        rows = rows.reshape(-1, *[1] * (condition.dim() - 1)).expand(*condition.shape[:-1], 1).to(condition)
        return torch.cat([condition * rows, rows], dim=-1)

    def field(self, guidance: float = 1.0) -> Field:
        """The prediction as a field.

        Args:
            guidance: Weight of the condition: 1 for the plain conditional distribution, 0 for the unconditional one,
                above 1 to exaggerate.

        Returns:
            The field, on conditions of shape (*batch, C).

        Raises:
            UserError: If this model supports no other guidance than 1.

        Reference:
            Ho and Salimans, arXiv:2207.12598.
        """
        if guidance != 1.0 and not self.marks_absence:
            raise UserError(f"guidance {guidance} needs a model trained with condition_dropout above 0")
        if guidance != 1.0 and self.averages:
            raise UserError(f"guidance {guidance} needs a model of the velocity, this one has average velocities")

        def free(condition: Tensor | None, present: bool) -> Callable[..., Tensor]:
            return lambda x, t, _: self(x, t, self.mark(condition, present))

        def bound(condition: Tensor | None, present: bool) -> Callable[..., Tensor]:
            return self._preconditioner.complete(self.network.bind(self.mark(condition, present)))

        def guide(make: Callable[..., Callable[..., Tensor]], condition: Tensor | None) -> Callable[..., Tensor]:
            if condition is None or guidance == 1.0:
                return make(condition, True)
            if guidance == 0.0:
                return make(condition, False)
            return guided(make(condition, False), make(condition, True), guidance)

        def average_velocity(x: Tensor, t: Tensor, duration: Tensor, condition: Tensor | None) -> Tensor:
            return self(x, t, self.mark(condition), duration)

        return Field(
            self.path,
            lambda x, t, condition: guide(free, condition)(x, t, None),
            self.prediction,
            average_velocity if self.averages else None,
            lambda condition: guide(bound, condition),
        )

    def check_sampler(self, sampler: Sampler) -> None:
        """Raise unless a sampler can follow this flow.

        Args:
            sampler: The sampler.

        Raises:
            UserError: If it needs another source, or average velocities.
        """
        if sampler.adds_noise and not self.source.is_standard_normal:
            raise UserError(f"{sampler} needs a standard normal source, got {self.source}")
        if sampler.needs_average_velocity and not self.averages:
            raise UserError(f"{sampler} needs a flow of average velocities, by the objective MeanFlow")

    def start(self, noise: Tensor) -> Tensor:
        """Points where sampling starts, shape (*batch, D), for standard normal noise (*batch, noise_dim)."""
        return self._start_scale * self.source.transform(noise)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        sampler: Sampler,
        condition: Tensor | None = None,
        guidance: float = 1.0,
        draw: Draw = torch.randn_like,
    ) -> Tensor:
        """Samples, on a CPU some rows at a time.

        Args:
            noise: Standard normal, shape (B, *samples, noise_dim).
            sampler: Sampler.
            condition: Conditions, shape (B, *samples, C), where a size of 1 is shared, or None.
            guidance: As in ``field``.
            draw: Noise of stochastic samplers.

        Returns:
            Samples, shape (B, *samples, D).
        """

        def run(rows: Tensor, *conditions: Tensor) -> tuple[Tensor]:
            return (self._carry(rows, conditions[0] if conditions else None, sampler, guidance, draw),)

        rows, given = math.prod(noise.shape[1:-1]), _given(_shared(condition, noise.shape[0]))
        return map_in_chunks(run, rows, noise, *given, ordered=sampler.adds_noise)[0]

    @torch.no_grad()
    def trajectory(
        self,
        noise: Tensor,
        sampler: Sampler,
        condition: Tensor | None = None,
        guidance: float = 1.0,
        draw: Draw = torch.randn_like,
    ) -> tuple[Tensor, Tensor]:
        """Samples along the path, from noise to data.

        Args:
            noise: As in ``sample``.
            sampler: Sampler.
            condition: As in ``sample``.
            guidance: As in ``field``.
            draw: Noise of stochastic samplers.

        Returns:
            Flow times, shape (P,), and points, shape (P, B, *samples, D).
        """
        field = self.field(guidance).at(condition)
        return sampler.trajectory(field, self.start(noise), *self.interval, draw)

    @torch.no_grad()
    def log_prob(
        self, sample: Tensor, likelihood: Likelihood, condition: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Log-density of samples, on a CPU some rows at a time.

        Args:
            sample: Samples, shape (B, D).
            likelihood: How it is computed.
            condition: Conditions, shape (B, C) or (1, C), or None.
            noise: Standard normal noise of the probes, shape (B, needed_probes, D); None where there are none.

        Returns:
            Log-density in nats, shape (B,).

        Reference:
            Chen et al., arXiv:1806.07366 (instantaneous change of variables).
        """
        solver, divergence = likelihood.solver, likelihood.divergence

        def run(rows: Tensor, *extras: Tensor) -> tuple[Tensor]:
            given = iter(extras)
            velocity = self.field().at(None if condition is None else next(given)).velocity
            probes = None if noise is None else next(given).movedim(1, 0)
            value, _ = log_likelihood(
                velocity, rows, self._start_log_prob, solver, divergence, *self.interval, None, probes
            )
            return (value,)

        rows = 1 + (divergence.needed_probes or sample.shape[-1])
        given = _given(_shared(condition, len(sample)), noise)
        # Levels of forward-mode differentiation are those of the process, not of a thread.
        return map_in_chunks(run, rows, sample, *given, ordered=True)[0]

    def loss(self, objective: FlowObjective, points: PathPoints, condition: Tensor | None = None) -> Tensor:
        """Training loss at points of the path.

        Args:
            objective: The objective, of this model's prediction.
            points: Points of the path, from ``objective.points``.
            condition: Condition as the network takes it, shape (B, C), or None.

        Returns:
            Loss per sample, shape (B,).
        """
        return objective.loss(self, self.path, points, condition, self.derivative_along_flow)

    def derivative_along_flow(
        self, x: Tensor, velocity: Tensor, t: Tensor, duration: Tensor, condition: Tensor | None
    ) -> Tensor:
        """Total derivative of the predicted average velocity, the end of its interval held fixed, without gradient.

        Args:
            x: Points, shape (B, D).
            velocity: Velocity there, shape (B, D).
            t: Flow time, shape (B,).
            duration: Length of the interval, shape (B,).
            condition: Condition as the network takes it, shape (B, C), or None.

        Returns:
            Derivative, shape (B, D).
        """
        if self._preconditioner.scales or self._preconditioner.guesses:
            return derivative_along_flow(lambda x, t, length: self(x, t, condition, length), x, velocity, t, duration)
        return self.network.derivative_along_flow(x, velocity, t, duration, condition)

    def compile_sampling(self) -> None:
        """Compile the sampling with ``torch.compile``."""
        self._carry = torch.compile(self._carry)

    def _carry(self, noise: Tensor, condition: Tensor | None, sampler: Sampler, guidance: float, draw: Draw) -> Tensor:
        field = self.field(guidance).at(condition)
        return sampler.sample(field, self.start(noise), *self.interval, draw)

    def _start_log_prob(self, x: Tensor) -> Tensor:
        scale = torch.tensor(self._start_scale, dtype=x.dtype, device=x.device)
        return self.source.log_prob(x / scale) - x.shape[-1] * scale.log()

    def _check(self) -> None:
        if self.prediction == "score" and not self.source.is_standard_normal:
            raise UserError(f"a model that predicts scores needs the source N(0, I), got {self.source}")
        # The limits as float32 rounds them; in float64 what should be zero is at most a rounding error of 1e-16.
        t = torch.tensor(self.interval).double()
        needed = [*self.path.conversion(t, self.prediction, "velocity"), self.path.schedule.d_sigma(t)]
        if not all(bool((values.abs() < _LARGEST_COEFFICIENT).all()) for values in needed):
            raise UserError(
                f"the prediction {self.prediction} leaves the velocity undefined at a limit of {self.path.schedule}; "
                f"t_min must be above {self.t_min}, such as 0.001"
            )


def _shared(condition: Tensor | None, size: int) -> Tensor | None:
    """A condition with one row for each of the samples, which are evaluated some rows at a time."""
    if condition is None or condition.shape[0] != 1:
        return condition
    return condition.expand(size, *condition.shape[1:])


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]
