"""The field and the density of a planar generative model on grids."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from flowmatch_rl.evaluation.flow_samples import FlowSample, follow_flow
from flowmatch_rl.evaluation.view import limits, limits_along_path
from flowmatch_rl.models import GenerativeModel

_RESOLUTIONS = (128, 96, 80, 64, 56, 48, 40, 36, 32, 28, 24, 20, 16)
_PILOT_ROWS = (128, 512)
_CLOUD_POINTS = 400


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
    model: GenerativeModel, condition: Tensor | None, data: np.ndarray, number: int = 4, side: int = 22
) -> FieldGrid:
    """Evaluate a planar field where its samples pass.

    Args:
        model: The model.
        condition: What everything is conditioned on, shape (1, C), on the model's device, or None.
        data: Samples that the last panel must show, units of the data, shape (M, 2).
        number: Flow times.
        side: Grid points per column.
    """
    generator = torch.Generator().manual_seed(1)
    noise = model.draw_noise(_CLOUD_POINTS, generator)
    shared = None if condition is None else condition.expand(_CLOUD_POINTS, -1)
    times, points = follow_flow(model, noise, shared, generator)
    wanted = torch.linspace(float(times[0]), float(times[-1]), number)
    moments = (times[:, None] - wanted).abs().argmin(0).unique()
    cloud = model.schema.restore(points[moments]).numpy()
    frames = limits_along_path(cloud, limits(data))
    axes = np.linspace(frames[:, 0], frames[:, 1], side, axis=1)  # (F, G, 2)
    fields = [_field_at(model, t, grid, condition) for t, grid in zip(times[moments], axes, strict=True)]
    velocity = torch.stack(fields)
    scale = torch.tensor(model.schema.scale, dtype=torch.float64)
    return FieldGrid(
        t=times[moments].numpy(),
        x=axes[..., 0],
        y=axes[..., 1],
        velocity=(velocity * scale).numpy(),
        speed=velocity.norm(dim=-1).numpy(),
        cloud=cloud,
    )


def _field_at(model: GenerativeModel, t: Tensor, grid: np.ndarray, condition: Tensor | None) -> Tensor:
    """Standardised velocity (G, G, 2) at the flow time t on the grid of both columns, shape (G, 2)."""
    pairs = torch.from_numpy(np.stack(np.meshgrid(grid[:, 0], grid[:, 1]), axis=-1).reshape(-1, 2))
    x = model.schema.standardise(pairs).float().to(model.device)
    context = None if condition is None else condition.expand(len(x), -1)
    velocity = model.flow.field(model.guidance).velocity(x, t.to(x), context)
    return velocity.cpu().double().unflatten(0, (len(grid), len(grid)))


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


def density_on_grid(model: GenerativeModel, sample: FlowSample, grid: int, seconds: float) -> DensityGrid:
    """Evaluate the density of a planar model without conditions, as finely as a time allows.

    Args:
        model: The model.
        sample: Samples and data; cells far from all of them are left out.
        grid: Most cells per column.
        seconds: Time it may take, roughly.
    """
    clouds = [sample.view.show(sample.data), sample.view.show(sample.generated)]
    frame, points = limits(*clouds), np.concatenate(clouds)

    def log_prob(x: np.ndarray) -> np.ndarray:
        standardised = model.schema.standardise(torch.from_numpy(x)).float().to(model.device)
        return model.log_prob(standardised, None, torch.Generator().manual_seed(2)).double().cpu().numpy()

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
