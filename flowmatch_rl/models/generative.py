"""A generative model of the columns of a table."""

import torch
from torch import Tensor, nn

from flowmatch_rl.models.flow import Flow, Likelihood
from flowmatch_rl.models.noise import draw_normal, normal_like
from flowmatch_rl.samplers import Sampler
from flowmatch_rl.schema import TableSchema


class GenerativeModel(nn.Module):
    """A flow of standardised samples, with the units of the data and the way it is sampled.

    Args:
        flow: The flow.
        schema: Columns and units of the data.
        sampler: Sampler.
        guidance: Weight of the condition in sampling: 1 for the plain conditional distribution, above 1 to exaggerate.
        likelihood: How the log-density is computed.

    Raises:
        UserError: If parts do not go together.
    """

    def __init__(
        self,
        flow: Flow,
        schema: TableSchema,
        sampler: Sampler,
        guidance: float = 1.0,
        likelihood: Likelihood = Likelihood(),
    ) -> None:
        super().__init__()
        flow.check_sampler(sampler)
        flow.field(guidance)
        self.noise_dim = flow.source.noise_dim(schema.sample_dim)
        self.flow, self.schema, self.sampler = flow, schema, sampler
        self.guidance, self.likelihood = guidance, likelihood

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.flow.parameters()).device

    def draw_noise(self, number: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise of ``number`` samples, shape (number, noise_dim), from a generator on any device."""
        return draw_normal((number, self.noise_dim), self.device, generator)

    def sample(
        self,
        noise: Tensor,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        sampler: Sampler | None = None,
    ) -> Tensor:
        """Samples.

        Args:
            noise: Standard normal, shape (B, noise_dim); ``draw_noise`` makes it.
            condition: Conditions, shape (B, C), or None.
            generator: Noise of stochastic samplers; the global one if None.
            sampler: Another sampler than the model's own, or None.

        Returns:
            Standardised samples, float32, shape (B, D).
        """
        with torch.autocast(self.device.type, enabled=False):
            return self.flow.sample(noise, sampler or self.sampler, condition, self.guidance, normal_like(generator))

    def trajectory(
        self,
        noise: Tensor,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        sampler: Sampler | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Flow times, shape (P,), and standardised samples along the path, shape (P, B, D); arguments as ``sample``."""
        with torch.autocast(self.device.type, enabled=False):
            return self.flow.trajectory(
                noise, sampler or self.sampler, condition, self.guidance, normal_like(generator)
            )

    def log_prob(
        self, sample: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-density of samples.

        Args:
            sample: Standardised samples, shape (B, D).
            condition: Conditions, shape (B, C), or None; guidance has no influence.
            generator: Noise of random probes; the global one if None.

        Returns:
            Log-density in nats, per volume in the units of the data, shape (B,).
        """
        probes = self.likelihood.draw_probes(sample, generator)
        with torch.autocast(self.device.type, enabled=False):
            return self.flow.log_prob(sample, self.likelihood, condition, probes) - self.schema.log_volume
