"""Samples of a flow beside the data, and how they came to be, gathered for figures."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flowmatch_rl.batches import CONDITION, SAMPLE
from flowmatch_rl.figures.view import Groups, View, group_rows, view_of
from flowmatch_rl.schema import TableSchema

_ON_THE_WAY = 500
"""Samples followed from noise to data: more only cover each other."""

_FEWEST_STEPS = 20
"""A sampler that needs fewer is given these to show the way it takes."""


class FlowModel(Protocol):
    """What a module must offer to have its flow drawn."""

    schema: TableSchema
    flow: Any
    sampler: Any
    guidance: float

    def draw_noise(self, number: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise for some samples."""
        ...

    def sample(
        self, noise: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Standardised samples."""
        ...

    def log_prob(
        self, sample: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-density, in the units of the data, of standardised samples."""
        ...


@dataclass(frozen=True)
class FlowSample:
    """Held-out data and samples given the same conditions. All standardised and on the CPU.

    Attributes:
        schema: Columns and units.
        data: Held-out samples, shape (M, D), in random order.
        condition: Their conditions, shape (M, C), or None.
        generated: Samples given the first N of the conditions, shape (N, D), N at most M.
        t: Flow times, shape (P,).
        points: The first samples on their way from noise to data, shape (P, K, D).
        view: How points are shown in one or two dimensions.
        groups: What the rows of the data are coloured by, or None.
    """

    schema: TableSchema
    data: Tensor
    condition: Tensor | None
    generated: Tensor
    t: Tensor
    points: Tensor
    view: View
    groups: Groups | None

    @property
    def straightness(self) -> float:
        """Mean length of the ways over the mean distance between their ends; 1 if all are straight."""
        length = self.points.diff(dim=0).norm(dim=-1).sum(0).mean()
        return float(length / (self.points[-1] - self.points[0]).norm(dim=-1).mean())


def sample_flow(module: FlowModel, batch: Mapping[str, Tensor], num_samples: int) -> FlowSample:
    """Sample a flow given held-out conditions, with noise of its own that leaves the global one alone.

    Args:
        module: The model.
        batch: Held-out standardised samples and their conditions, on the module's device.
        num_samples: How many samples to draw, no more than the batch has rows.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(batch[SAMPLE]), generator=generator)
    data = batch[SAMPLE][order.to(batch[SAMPLE].device)]
    condition = batch[CONDITION][order.to(data.device)] if CONDITION in batch else None
    number = min(num_samples, len(data))
    noise = module.draw_noise(number, generator)
    generated = module.sample(noise, _first(condition, number), generator)
    t, points = follow_flow(module, noise[:_ON_THE_WAY], _first(condition, min(number, _ON_THE_WAY)), generator)
    held, kept = data.cpu().float(), None if condition is None else condition.cpu().float()
    return FlowSample(
        schema=module.schema,
        data=held,
        condition=kept,
        generated=generated.cpu().float(),
        t=t,
        points=points,
        view=view_of(module.schema, held),
        groups=None if kept is None else group_rows(module.schema, kept),
    )


def follow_flow(
    module: FlowModel, noise: Tensor, condition: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Samples on their way from noise to data, in no fewer than twenty steps if the sampler counts them.

    Args:
        module: The model.
        noise: Standard normal, shape (K, noise_dim).
        condition: Conditions, shape (K, C), or None.
        generator: Noise of stochastic samplers, on the CPU.

    Returns:
        Flow times, shape (P,), and standardised points, shape (P, K, D), on the CPU.
    """
    finer = with_steps(module.sampler, max(_FEWEST_STEPS, num_steps(module.sampler) or 0))
    sampler = finer or module.sampler
    t, points = module.flow.trajectory(noise, sampler, condition, module.guidance, noise_from(generator))
    return t.cpu().float(), points.cpu().float()


def noise_from(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A function that draws standard normal noise like its argument from a generator on the CPU."""

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    return draw


def num_steps(sampler: Any) -> int | None:
    """Number of steps of a sampler, or None if it chooses its own."""
    return getattr(sampler, "num_steps", getattr(getattr(sampler, "solver", None), "num_steps", None))


def with_steps(sampler: Any, number: int) -> Any | None:
    """The sampler with another number of steps, or None if it chooses its own."""
    if hasattr(sampler, "num_steps"):
        return dataclasses.replace(sampler, num_steps=number)
    if num_steps(sampler) is None:
        return None
    return dataclasses.replace(sampler, solver=dataclasses.replace(sampler.solver, num_steps=number))


def _first(condition: Tensor | None, number: int) -> Tensor | None:
    return None if condition is None else condition[:number]
