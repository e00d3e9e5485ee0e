"""Samples of a generative model beside the data, and their trajectories from noise."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.batches import Samples
from flowmatch_rl.evaluation.view import Groups, View, group_rows, view_of
from flowmatch_rl.models import GenerativeModel
from flowmatch_rl.schema import TableSchema

_FOLLOWED = 500
"""Samples whose trajectories are kept: more would cover each other."""

_FEWEST_STEPS = 20
"""Steps of trajectories at least, so that they show where the flow bends."""


@dataclass(frozen=True)
class FlowSample:
    """Held-out data and samples given the same conditions. All standardised and on the CPU.

    Attributes:
        schema: Columns and units.
        data: Held-out samples, shape (M, D), in random order.
        condition: Their conditions, shape (M, C), or None.
        generated: Samples given the first N of the conditions, shape (N, D), N at most M.
        t: Flow times, shape (P,).
        points: Trajectories of the first samples from noise to data, shape (P, K, D).
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
        """Mean length of the trajectories over the mean distance of their endpoints; 1 if all are straight."""
        length = self.points.diff(dim=0).norm(dim=-1).sum(0).mean()
        return float(length / (self.points[-1] - self.points[0]).norm(dim=-1).mean())


def sample_flow(model: GenerativeModel, samples: Samples, num_samples: int) -> FlowSample:
    """Sample a flow given held-out conditions, with noise of its own that leaves the global one alone.

    Args:
        model: The model.
        samples: Held-out samples, standardised, on the model's device.
        num_samples: How many samples to draw, no more than there are held-out ones.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(samples.sample), generator=generator).to(samples.sample.device)
    data, condition = samples.sample[order], None if samples.condition is None else samples.condition[order]
    number = min(num_samples, len(data))
    noise = model.draw_noise(number, generator)
    generated = model.sample(noise, _first(condition, number), generator)
    followed = min(number, _FOLLOWED)
    t, points = follow_flow(model, noise[:followed], _first(condition, followed), generator)
    held, kept = data.cpu().float(), None if condition is None else condition.cpu().float()
    return FlowSample(
        schema=model.schema,
        data=held,
        condition=kept,
        generated=generated.cpu().float(),
        t=t,
        points=points,
        view=view_of(model.schema, held),
        groups=None if kept is None else group_rows(model.schema, kept),
    )


def follow_flow(
    model: GenerativeModel, noise: Tensor, condition: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Samples along the path from noise to data, in at least twenty steps if the sampler counts them.

    Args:
        model: The model.
        noise: Standard normal, shape (K, noise_dim).
        condition: Conditions, shape (K, C), or None.
        generator: Noise of stochastic samplers, on the CPU.

    Returns:
        Flow times, shape (P,), and standardised points, shape (P, K, D), on the CPU.
    """
    finer = model.sampler.with_steps(max(_FEWEST_STEPS, model.sampler.steps or 0))
    t, points = model.trajectory(noise, condition, generator, finer)
    return t.cpu().float(), points.cpu().float()


def _first(condition: Tensor | None, number: int) -> Tensor | None:
    return None if condition is None else condition[:number]
