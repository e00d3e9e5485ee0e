"""Sampling and likelihood of an occupancy, around whatever network it has."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.nets import FlowNetwork
from flowmatch_rl.nets.chunks import map_in_chunks
from flowmatch_rl.paths import AffinePath, Field, Preconditioner
from flowmatch_rl.samplers import Sampler
from flowmatch_rl.solvers import Divergence, Solver, log_likelihood
from flowmatch_rl.types import Prediction, Velocity


@dataclass(frozen=True)
class OccupancyFlow:
    """A network with the path it was trained on, in standardised units.

    A network of the velocity that begins near zero begins with the law of the noise. So does one of another
    prediction, since it predicts the deviation from what would be exact for standard normal states; by itself, a noise
    of zero would stand for samples that are the noise divided by a small number, which bootstrapping never forgets.

    Args:
        network: The network.
        path: Path from standard normal noise to states.
        prediction: What is predicted.
        t_min: Flow times lie in [t_min, 1 - t_min].
    """

    network: FlowNetwork
    path: AffinePath
    prediction: Prediction
    t_min: float

    @property
    def field(self) -> Field:
        """The prediction as a field on conditions of shape (*batch, C)."""
        return Field(self.path, self._completed(self.network), self.prediction, bind=self._bind)

    @property
    def ends(self) -> tuple[float, float]:
        """First and last flow time."""
        return self.t_min, 1.0 - self.t_min

    @torch.no_grad()
    def sample(self, sampler: Sampler, noise: Tensor, condition: Tensor) -> Tensor:
        """Future states, on a CPU some conditions at a time.

        Args:
            sampler: Deterministic sampler.
            noise: Standard normal, shape (B, *samples, D).
            condition: Conditions, shape (B, *samples, C), where a size of 1 is shared.

        Returns:
            Standardised states, shape (B, *samples, D).
        """

        def run(rows: Tensor, conditions: Tensor) -> tuple[Tensor]:
            return (sampler.sample(self.field.at(conditions), rows, *self.ends, None, torch.zeros_like),)

        if len(condition) == 1:
            condition = condition.expand(len(noise), *condition.shape[1:])
        return map_in_chunks(run, noise[0, ..., 0].numel(), noise, condition)[0]

    @torch.no_grad()
    def log_prob(
        self, sample: Tensor, condition: Tensor, solver: Solver, divergence: Divergence, noise: Tensor | None = None
    ) -> Tensor:
        """Log-density of standardised states, on a CPU some at a time.

        Args:
            sample: Standardised states, shape (B, D).
            condition: Conditions, shape (B, C).
            solver: Solver of the likelihood's equation.
            divergence: How the divergence is computed.
            noise: Standard normal noise of the probes, shape (B, needed_probes, D), or None where there are none.

        Returns:
            Log-density in nats, shape (B,).
        """
        start = torch.distributions.Normal(0.0, 1.0)

        def run(rows: Tensor, conditions: Tensor, *probes: Tensor) -> tuple[Tensor]:
            drawn = probes[0].movedim(1, 0) if probes else None
            velocity = self.field.at(conditions).velocity
            value, _ = log_likelihood(
                velocity, rows, lambda x: start.log_prob(x).sum(-1), solver, divergence, *self.ends, None, drawn
            )
            return (value,)

        directions = divergence.needed_probes or sample.shape[-1]
        return map_in_chunks(run, 1 + directions, sample, condition, *([] if noise is None else [noise]))[0]

    def _bind(self, condition: Tensor | None) -> Velocity:
        return self._completed(self.network.bind(condition))

    def _completed(self, network: Velocity) -> Velocity:
        """What a network predicts, with the guess that it predicts the deviation from."""
        return Preconditioner(self.path, self.prediction, guesses=self.prediction != "velocity").complete(network)
