"""Sampling and likelihood of a flow, around whatever network it has."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.nets import VelocityNetwork
from flowmatch_rl.nets.chunks import map_in_chunks
from flowmatch_rl.objectives import FlowObjective
from flowmatch_rl.paths import AffinePath, Field, Preconditioner, Source
from flowmatch_rl.samplers import Draw, Sampler
from flowmatch_rl.solvers import Divergence, Solver, log_likelihood


@dataclass(frozen=True)
class Flow:
    """A network with the path it was trained on: from source noise to samples, and back for their likelihood.

    Args:
        network: The network.
        path: The path.
        source: Law of x_0.
        objective: What the network predicts.
        t_min: Flow times lie in [t_min, 1 - t_min].
        normalise: Whether the network sees x_t at unit variance and answers in units of what it predicts.
        marks_absence: Whether a last entry of the condition says that the condition is there.
    """

    network: VelocityNetwork
    path: AffinePath
    source: Source
    objective: FlowObjective
    t_min: float
    normalise: bool
    marks_absence: bool

    def evaluate(self, x: Tensor, t: Tensor, condition: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
        """What the model predicts at x, shape of x."""
        complete = Preconditioner(self.path, self.objective.predicts, scales=self.normalise).complete
        return complete(self.network)(x, t, condition, duration)

    def mark(self, condition: Tensor | None, present: Tensor | bool) -> Tensor | None:
        """The condition as the network takes it.

        Args:
            condition: Condition, shape (B, C), or None.
            present: Whether it is there: for all, or per row, boolean, shape (B,).

        Returns:
            Condition (B, C), or (B, C + 1) with zeros in the rows where it is absent.
        """
        if condition is None or not self.marks_absence:
            return condition
        rows = torch.as_tensor(present, device=condition.device).expand(len(condition))[:, None].to(condition)
        return torch.cat([condition * rows, rows], dim=1)

    def field(self, guidance: float = 1.0) -> Field:
        """The prediction, with classifier-free guidance, as a field on conditions of shape (B, C).

        Args:
            guidance: Weight of the condition: 1 for the plain conditional law, 0 for the unconditional one, above 1 to
                exaggerate.

        Raises:
            ValueError: If guidance other than 1 is wanted of a model that can't have it.

        Reference:
            Ho and Salimans, arXiv:2207.12598.
        """
        if guidance != 1.0 and not self.marks_absence:
            raise ValueError(f"guidance {guidance} needs a model trained with condition_dropout above 0")
        if guidance != 1.0 and self.objective.uses_duration:
            raise ValueError(f"guidance {guidance} needs a model of the velocity, this one has average velocities")

        def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
            if condition is None or guidance == 1.0:
                return self.evaluate(x, t, self.mark(condition, True))
            absent = self.evaluate(x, t, self.mark(condition, False))
            if guidance == 0.0:
                return absent
            return torch.lerp(absent, self.evaluate(x, t, self.mark(condition, True)), guidance)

        def average_velocity(x: Tensor, t: Tensor, duration: Tensor, condition: Tensor | None) -> Tensor:
            return self.evaluate(x, t, self.mark(condition, True), duration)

        known = average_velocity if self.objective.uses_duration else None
        return Field(self.path, predict, self.objective.predicts, known)

    def start(self, noise: Tensor) -> Tensor:
        """Points where sampling starts, shape (*batch, D), for standard normal noise (*batch, noise_dim)."""
        return self._start_scale(noise) * self.source.transform(noise)

    @torch.no_grad()
    def sample(
        self, noise: Tensor, sampler: Sampler, condition: Tensor | None, guidance: float, draw: Draw = torch.randn_like
    ) -> Tensor:
        """Samples, on a CPU some rows at a time.

        Args:
            noise: Standard normal, shape (B, noise_dim).
            sampler: Sampler.
            condition: Conditions, shape (B, C), or None.
            guidance: As in ``field``.
            draw: Noise of stochastic samplers.

        Returns:
            Standardised samples, shape (B, D).
        """
        field, ends = self.field(guidance), (self.t_min, 1.0 - self.t_min)

        def run(rows: Tensor, *conditions: Tensor) -> tuple[Tensor]:
            context = conditions[0] if conditions else None
            return (sampler.sample(field, self.start(rows), *ends, context, draw),)

        return map_in_chunks(run, 1, noise, *_given(condition))[0]

    @torch.no_grad()
    def trajectory(
        self, noise: Tensor, sampler: Sampler, condition: Tensor | None, guidance: float, draw: Draw = torch.randn_like
    ) -> tuple[Tensor, Tensor]:
        """Samples on their way, for figures.

        Args:
            noise: Standard normal, shape (B, noise_dim).
            sampler: Sampler.
            condition: Conditions, shape (B, C), or None.
            guidance: As in ``field``.
            draw: Noise of stochastic samplers.

        Returns:
            Flow times, shape (P,), and standardised points, shape (P, B, D).
        """
        return sampler.trajectory(
            self.field(guidance), self.start(noise), self.t_min, 1.0 - self.t_min, condition, draw
        )

    @torch.no_grad()
    def log_prob(
        self,
        sample: Tensor,
        solver: Solver,
        divergence: Divergence,
        condition: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Log-density of standardised samples, on a CPU some rows at a time.

        Args:
            sample: Standardised samples, shape (B, D).
            solver: Solver of the likelihood's equation.
            divergence: How the divergence is computed.
            condition: Conditions, shape (B, C), or None.
            noise: Standard normal noise of the probes, shape (B, needed_probes, D); None where there are none.

        Returns:
            Log-density in nats, shape (B,).
        """
        velocity = self.field().velocity

        def run(rows: Tensor, *extras: Tensor) -> tuple[Tensor]:
            given = iter(extras)
            context = None if condition is None else next(given)
            probes = None if noise is None else next(given).movedim(1, 0)
            ends = (self.t_min, 1.0 - self.t_min)
            value, _ = log_likelihood(velocity, rows, self._start_log_prob, solver, divergence, *ends, context, probes)
            return (value,)

        directions = divergence.needed_probes or sample.shape[1]
        return map_in_chunks(run, 1 + directions, sample, *_given(condition), *_given(noise))[0]

    def _start_scale(self, like: Tensor) -> Tensor:
        return self.path.schedule.sigma(torch.tensor(self.t_min, dtype=like.dtype, device=like.device))

    def _start_log_prob(self, x: Tensor) -> Tensor:
        scale = self._start_scale(x)
        return self.source.log_prob(x / scale) - x.shape[-1] * scale.log()


def _given(*tensors: Any) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]
