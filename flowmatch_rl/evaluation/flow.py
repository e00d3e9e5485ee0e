"""Accuracy of a generative model: distances of its samples to data, likelihood, and both by number of steps."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.batches import EXACT_LOG_PROB, Samples, read_samples
from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.metrics import (
    energy_distance,
    maximum_mean_discrepancy,
    sliced_wasserstein_distance,
    squared_wasserstein_distance,
    wasserstein_distance,
)
from flowmatch_rl.models import GenerativeModel
from flowmatch_rl.models.noise import draw_normal, normal_like

_DIRECTIONS = 200
_MAX_EVALUATIONS = 64


@dataclass(frozen=True)
class FlowResult:
    """What a test of a generative model measured; None for what it did not.

    Distances are between standardised samples, of conditional models each beside its condition.

    Attributes:
        energy_distance: Energy distance, shape ().
        sliced_wasserstein: Sliced Wasserstein distance, shape ().
        maximum_mean_discrepancy: Maximum mean discrepancy, shape ().
        wasserstein: Wasserstein distance, shape ().
        squared_wasserstein: Squared Wasserstein distance, no root taken, shape ().
        nll: Mean negative log-likelihood of held-out samples in nats, in units of the data, shape ().
        nll_per_dim: The same per dimension.
        nll_standard_error: Its standard error.
        nll_exact: Mean negative log-likelihood under the true distribution.
    """

    energy_distance: Tensor
    sliced_wasserstein: Tensor
    maximum_mean_discrepancy: Tensor
    wasserstein: Tensor
    squared_wasserstein: Tensor
    nll: Tensor | None = None
    nll_per_dim: Tensor | None = None
    nll_standard_error: Tensor | None = None
    nll_exact: Tensor | None = None

    def metrics(self) -> dict[str, Tensor]:
        """What was measured, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class FlowTests:
    """Compares samples of a generative model with held-out data.

    Args:
        likelihood_samples: Held-out samples whose log-likelihood a test measures, 0 for none or at least 2.
        transport_samples: Samples that a test measures exact transport distances on, at least 2.

    Raises:
        UserError: If a number is out of its range.
    """

    likelihood_samples: int = 1_000
    transport_samples: int = 2_000

    def __post_init__(self) -> None:
        if self.likelihood_samples < 0 or self.likelihood_samples == 1:
            raise UserError(f"likelihood_samples must be 0 or at least 2, got {self.likelihood_samples}")
        check_range("[2, inf)", transport_samples=self.transport_samples)

    def validate(self, model: GenerativeModel, samples: Samples, generator: torch.Generator) -> Tensor:
        """Energy distance of as many samples to held-out ones, shape ().

        Args:
            model: The model.
            samples: Held-out samples, standardised.
            generator: Source of noise, on the CPU.
        """
        return energy_distance(*beside_conditions(_generated(model, samples, generator), samples))

    def test(self, model: GenerativeModel, batch: Mapping[str, Tensor], generator: torch.Generator) -> FlowResult:
        """Distances, and the likelihood of held-out samples.

        Args:
            model: The model.
            batch: Held-out standardised samples, perhaps with conditions and their exact log-density.
            generator: Source of noise, on the CPU.

        Raises:
            RunError: If a generated sample is not finite.
        """
        samples = read_samples(batch)
        generated = _generated(model, samples, generator)
        bad = int((~torch.isfinite(generated)).any(1).sum())
        if bad:
            raise RunError(f"{bad} of {len(generated)} generated samples are not finite; lower the learning rate")
        x, y = beside_conditions(generated, samples)
        directions = draw_normal((_DIRECTIONS, x.shape[1]), x.device, generator)
        some = slice(0, self.transport_samples)
        result = FlowResult(
            energy_distance(x, y),
            sliced_wasserstein_distance(x, y, directions),
            maximum_mean_discrepancy(x[some], y[some]),
            wasserstein_distance(x[some], y[some]),
            squared_wasserstein_distance(x[some], y[some]),
        )
        if not self.likelihood_samples:
            return result
        some = slice(0, self.likelihood_samples)
        value = model.log_prob(samples.sample[some], _rows(samples.condition, some), generator)
        return dataclasses.replace(
            result,
            nll=-value.mean(),
            nll_per_dim=-value.mean() / samples.sample.shape[1],
            nll_standard_error=value.std() / len(value) ** 0.5,
            nll_exact=-batch[EXACT_LOG_PROB][some].mean() if EXACT_LOG_PROB in batch else None,
        )

    def lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test measured, one line each.

        Args:
            metrics: Metrics by name, which begin with ``test/``.
        """
        lines = []
        if "test/energy_distance" in metrics:
            lines.append(
                f"distance     energy {metrics['test/energy_distance']:.3g}, sliced Wasserstein "
                f"{metrics['test/sliced_wasserstein']:.3g}, Wasserstein {metrics['test/wasserstein']:.3g} "
                "(standardised)"
            )
        if "test/nll" in metrics:
            exact = f", of the true distribution {metrics['test/nll_exact']:.3f}" if "test/nll_exact" in metrics else ""
            lines.append(
                f"likelihood   -log p {metrics['test/nll']:.3f} nats, {metrics['test/nll_per_dim']:.3f} per dimension"
                f"{exact} (units of the data)"
            )
        return lines


@dataclass(frozen=True)
class StepErrors:
    """Accuracy by number of steps.

    Attributes:
        steps: Numbers of steps, shape (S,).
        evaluations: Network evaluations that they take, per sample, shape (S,).
        distance: Energy distance of samples and their conditions to as many of the data, standardised, shape (S,).
        noise: Distance that nineteen of twenty pairs of halves of the data stay below.
        configured: Network evaluations of the sampler as it is configured.
    """

    steps: np.ndarray
    evaluations: np.ndarray
    distance: np.ndarray
    noise: float
    configured: float


def distance_by_steps(model: GenerativeModel, samples: Samples, num_samples: int) -> StepErrors | None:
    """Sample with 1, 2, 4, ... steps of the model's own sampler, up to 64 network evaluations.

    Args:
        model: The model.
        samples: Held-out samples, standardised, on the model's device.
        num_samples: How many samples to draw, no more than half of the held-out ones.

    Returns:
        Distances, or None if the sampler chooses its own steps or there are fewer than four held-out samples.
    """
    number, own = min(num_samples, len(samples.sample) // 2), model.sampler.steps
    if own is None or number < 2:
        return None
    parts = [samples.sample] if samples.condition is None else [samples.sample, samples.condition]
    joint, data_dim = torch.cat([part[: 2 * number].float() for part in parts], dim=1), samples.sample.shape[1]
    # The conditions of one half, the data of the other: rows that share a condition would seem closer than they are.
    first, second, noise = _typical_halves(joint)
    context = None if samples.condition is None else joint[first, data_dim:]
    steps, evaluations, distances = 1, [], []
    while not evaluations or 2.0 * evaluations[-1] <= _MAX_EVALUATIONS:
        generated, count = _sample_with(model, steps, number, context)
        pairs = generated if context is None else torch.cat([generated, context], dim=1)
        evaluations.append(count)
        distances.append(float(energy_distance(pairs.float(), joint[second])))
        steps *= 2
    return StepErrors(
        steps=2 ** np.arange(len(evaluations)),
        evaluations=np.array(evaluations),
        distance=np.array(distances),
        noise=noise,
        configured=own * evaluations[0],
    )


def beside_conditions(generated: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """Generated and held-out samples, of conditional models each beside its condition.

    Two samples that share their conditions are not independent: those come from different halves of the batch.

    Args:
        generated: Samples given the conditions of the held-out ones, shape (B, D).
        samples: Held-out samples.

    Returns:
        Both, shape (B, D), or (B / 2, D + C) each.
    """
    if samples.condition is None:
        return generated, samples.sample
    half = len(generated) // 2
    made = torch.cat([generated, samples.condition], dim=1)[:half]
    return made, torch.cat([samples.sample, samples.condition], dim=1)[half:]


def _generated(model: GenerativeModel, samples: Samples, generator: torch.Generator) -> Tensor:
    return model.sample(model.draw_noise(len(samples.sample), generator), samples.condition, generator)


def _rows(condition: Tensor | None, some: slice) -> Tensor | None:
    return None if condition is None else condition[some]


@torch.no_grad()
def _sample_with(model: GenerativeModel, steps: int, number: int, condition: Tensor | None) -> tuple[Tensor, float]:
    """Samples and the network evaluations that each took."""
    generator = torch.Generator().manual_seed(3)
    noise, sampler = model.draw_noise(number, generator), model.sampler.with_steps(steps)
    assert sampler is not None
    rows = 0

    def counted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, *rest: Tensor | None) -> Tensor:
            nonlocal rows
            rows += len(x)
            return function(x, *rest)

        return call

    field = model.flow.field(model.guidance).at(condition)
    average = None if field.average_velocity is None else counted(field.average_velocity)
    field = dataclasses.replace(field, predict=counted(field.predict), average_velocity=average)
    start = model.flow.start(noise)
    generated = sampler.sample(field, start, *model.flow.interval, normal_like(generator))
    is_guided = condition is not None and model.guidance not in (0.0, 1.0)  # by two evaluations at each point
    return generated, rows / number * (2 if is_guided else 1)


def _typical_halves(rows: Tensor, repeats: int = 20) -> tuple[Tensor, Tensor, float]:
    """Two random halves of some rows, and the 95 % quantile of the energy distance between such halves.

    Of some pairs of halves this is the one whose distance is nearest to zero: one that by chance differs in its
    conditions would make every sampler look bad.

    Args:
        rows: Rows, shape (2 N, D).
        repeats: How many pairs.

    Returns:
        Indices of either half, shape (N,), and the quantile.
    """
    generator = torch.Generator().manual_seed(4)
    orders = [torch.randperm(len(rows), generator=generator).to(rows.device) for _ in range(repeats)]
    distances = torch.stack([energy_distance(*rows[order].chunk(2)) for order in orders])
    first, second = orders[int(distances.abs().argmin())].chunk(2)
    return first, second, max(float(distances.quantile(0.95)), 1e-9)
