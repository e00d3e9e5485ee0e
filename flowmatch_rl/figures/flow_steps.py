"""The accuracy of a flow by number of steps, computed for a figure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.batches import CONDITION, SAMPLE
from flowmatch_rl.figures.flow_sample import FlowModel, noise_from, num_steps, with_steps
from flowmatch_rl.metrics import energy_distance

_MAX_EVALUATIONS = 64


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


def distance_by_steps(module: FlowModel, batch: Mapping[str, Tensor], num_samples: int) -> StepErrors | None:
    """Sample with 1, 2, 4, ... steps of the model's own sampler, up to 64 network evaluations.

    Args:
        module: The model.
        batch: Held-out standardised samples and their conditions, on the module's device.
        num_samples: How many samples to draw, no more than half the rows of the batch.

    Returns:
        Distances, or None if the sampler chooses its own steps or the batch has fewer than four rows.
    """
    number, own = min(num_samples, len(batch[SAMPLE]) // 2), num_steps(module.sampler)
    if own is None or number < 2:
        return None
    rows = [batch[key][: 2 * number].float() for key in (SAMPLE, CONDITION) if key in batch]
    joint, data_dim = torch.cat(rows, dim=1), rows[0].shape[1]
    # The conditions of one half, the data of the other: rows that share a condition would seem closer than they are.
    first, second, noise = _typical_halves(joint)
    context = joint[first, data_dim:] if CONDITION in batch else None
    steps, evaluations, distances = 1, [], []
    while not evaluations or 2.0 * evaluations[-1] <= _MAX_EVALUATIONS:
        generated, count = _sample_with(module, steps, number, context)
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


@torch.no_grad()
def _sample_with(module: FlowModel, steps: int, number: int, condition: Tensor | None) -> tuple[Tensor, float]:
    """Samples and the network evaluations that each took."""
    generator = torch.Generator().manual_seed(3)
    rows = 0

    def count(_: Any, inputs: tuple[Any, ...]) -> None:
        nonlocal rows
        rows += len(inputs[0])

    handle = module.flow.network.register_forward_pre_hook(count)
    try:
        noise = module.draw_noise(number, generator)
        sampler = with_steps(module.sampler, steps)
        generated = module.flow.sample(noise, sampler, condition, module.guidance, noise_from(generator))
    finally:
        handle.remove()
    return generated, rows / number


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
