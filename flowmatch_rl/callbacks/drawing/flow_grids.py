"""The field and the density of a planar flow on grids, and its accuracy by number of steps, computed for figures."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from flowmatch_rl.callbacks.drawing.flow_sample import (
    FlowModel,
    FlowSample,
    follow_flow,
    noise_from,
    num_steps,
    with_steps,
)
from flowmatch_rl.callbacks.drawing.view import limits, limits_on_the_way
from flowmatch_rl.keys import CONDITION, SAMPLE
from flowmatch_rl.metrics import energy_distance

_RESOLUTIONS = (128, 96, 80, 64, 56, 48, 40, 36, 32, 28, 24, 20, 16)
_PILOT_ROWS = (128, 512)
_CLOUD_POINTS = 400
_MAX_EVALUATIONS = 64


@dataclass(frozen=True)
class FieldGrid:
    """A planar vector field at some flow times, with the cloud it moves.

    Attributes:
        t: Flow times, shape (F,).
        x: Grid of the first column in its own units, shape (F, G).
        y: Grid of the second.
        velocity: Velocity in units of the data per unit of flow time, shape (F, G, G, 2), the first column along the
            last axis of the grid.
        speed: Its length in standard deviations of the data, shape (F, G, G).
        cloud: Samples at these times, units of the data, shape (F, K, 2).
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    velocity: np.ndarray
    speed: np.ndarray
    cloud: np.ndarray


@torch.no_grad()
def field_on_grid(
    module: FlowModel, condition: Tensor | None, data: np.ndarray, number: int = 4, side: int = 22
) -> FieldGrid:
    """Evaluate a planar field where its samples pass.

    Args:
        module: The model.
        condition: What everything is conditioned on, shape (1, C), on the module's device, or None.
        data: Samples that the last panel must show, units of the data, shape (M, 2).
        number: Flow times.
        side: Grid points per column.
    """
    generator = torch.Generator().manual_seed(1)
    noise = module.draw_noise(_CLOUD_POINTS, generator)
    shared = None if condition is None else condition.expand(_CLOUD_POINTS, -1)
    times, points = follow_flow(module, noise, shared, generator)
    wanted = torch.linspace(float(times[0]), float(times[-1]), number)
    moments = (times[:, None] - wanted).abs().argmin(0).unique()
    cloud = module.schema.restore(points[moments]).numpy()
    frames = limits_on_the_way(cloud, limits(data))
    axes = np.linspace(frames[:, 0], frames[:, 1], side, axis=1)  # (F, G, 2)
    field, fields = module.flow.field(module.guidance), []
    for t, grid in zip(times[moments], axes, strict=True):
        pairs = torch.from_numpy(np.stack(np.meshgrid(grid[:, 0], grid[:, 1]), axis=-1).reshape(-1, 2))
        x = module.schema.standardise(pairs).to(noise)
        context = None if condition is None else condition.expand(len(x), -1)
        fields.append(field.velocity(x, t.to(x), context).cpu().double().unflatten(0, (side, side)))
    velocity = torch.stack(fields)
    scale = torch.tensor(module.schema.scale, dtype=torch.float64)
    return FieldGrid(
        t=times[moments].numpy(),
        x=axes[..., 0],
        y=axes[..., 1],
        velocity=(velocity * scale).numpy(),
        speed=velocity.norm(dim=-1).numpy(),
        cloud=cloud,
    )


@dataclass(frozen=True)
class DensityGrid:
    """Density of a planar model on a grid, in the units of the data.

    Attributes:
        frame: Limits of the grid, shape (2, 2).
        density: Density at the centre of each cell, shape (G, G), the first column along the last axis; 0, without
            having been computed, where neither data nor samples are near.
    """

    frame: np.ndarray
    density: np.ndarray

    @property
    def mass(self) -> float:
        """What the density sums to over the grid."""
        return float(self.density.sum() * np.prod((self.frame[1] - self.frame[0]) / len(self.density)))


def density_on_grid(module: FlowModel, sample: FlowSample, grid: int, seconds: float) -> DensityGrid:
    """Evaluate the density of a planar model without conditions, as finely as a time allows.

    Args:
        module: The model.
        sample: Samples and data; cells far from all of them are left out.
        grid: Most cells per column.
        seconds: Time it may take, roughly.
    """
    clouds = [sample.view.show(sample.data), sample.view.show(sample.generated)]
    frame, points = limits(*clouds), np.concatenate(clouds)
    device = module.draw_noise(1, torch.Generator()).device

    def log_prob(x: np.ndarray) -> np.ndarray:
        standardised = module.schema.standardise(torch.from_numpy(x)).float().to(device)
        return module.log_prob(standardised, None, torch.Generator().manual_seed(2)).double().cpu().numpy()

    affordable = _affordable(log_prob, points, seconds)
    near = _cells_near(points, frame, grid)
    for number in _RESOLUTIONS:
        if near.sum() > affordable and number < len(near):
            near = _cells_near(points, frame, number)
    step = (frame[1] - frame[0]) / len(near)
    centres = frame[0] + (np.argwhere(near)[:, ::-1] + 0.5) * step
    density = np.zeros(near.shape)
    density[near] = np.exp(log_prob(centres))
    return DensityGrid(frame, density)


def _affordable(function: Callable[[np.ndarray], object], rows: np.ndarray, seconds: float) -> float:
    """How many rows a function takes in some seconds, less those that it takes to find out."""
    begin = time.perf_counter()
    function(rows[:2])  # the first call pays for what later ones find ready
    rate = 0.0
    # Few rows are slow for their number, and many of a large network take too long to try.
    for number in _PILOT_ROWS:
        if rate == 0.0 or number < 0.2 * seconds * rate:
            start = time.perf_counter()
            function(rows[:number])
            rate = min(number, len(rows)) / (time.perf_counter() - start)
    return (seconds - (time.perf_counter() - begin)) * rate


def _cells_near(points: np.ndarray, frame: np.ndarray, number: int) -> np.ndarray:
    """Which cells are within a twentieth of the grid of some point, boolean, shape (number, number)."""
    edges = np.linspace(frame[0], frame[1], number + 1)
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=(edges[:, 1], edges[:, 0]))
    reach = -(-number // 20)
    near = max_pool2d(torch.from_numpy(counts)[None], 2 * reach + 1, stride=1, padding=reach)[0] > 0
    return near.numpy()


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
