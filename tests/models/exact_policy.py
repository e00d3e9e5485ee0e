"""A flow and a policy whose network is exact for a Gaussian latent point, whatever it predicts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.models import Flow, FlowPolicy
from flowmatch_rl.nets.architecture import FlowNetwork
from flowmatch_rl.paths import AffinePath, GaussianSource, Schedule, Squash, TanhSquash
from flowmatch_rl.samplers import Sampler
from flowmatch_rl.types import Prediction
from tests.oracles import F64, normal

SCALES = torch.tensor([0.5, 1.4], dtype=F64)
"""Standard deviation of the latent point per dimension; its mean is half of the observation."""


@dataclass(frozen=True)
class Law:
    """The latent point N(mean, scale^2), and the path that leads to it from N(0, source_scale^2).

    Attributes:
        schedule: Schedule of the path.
        mean: Mean, shape (..., A).
        scale: Standard deviation per dimension, shape (A,).
        source_scale: Standard deviation of x_0.
    """

    schedule: Schedule
    mean: Tensor
    scale: Tensor
    source_scale: float = 1.0

    def std(self, t: Tensor) -> Tensor:
        """Standard deviation of x_t; times end in a dimension of size 1."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return ((alpha * self.scale) ** 2 + (sigma * self.source_scale) ** 2).sqrt()

    def carry(self, x: Tensor, t: Tensor, after: Tensor) -> Tensor:
        """Where the flow takes x from one time to another: it keeps the distance from the mean in units of std."""
        alpha, beyond = self.schedule.alpha(t), self.schedule.alpha(after)
        return beyond * self.mean + self.std(after) / self.std(t) * (x - alpha * self.mean)

    def means(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0] and E[x_1] given x_t."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        offset = (x - alpha * self.mean) / self.std(t) ** 2
        return sigma * self.source_scale**2 * offset, self.mean + alpha * self.scale**2 * offset

    def predicted(self, prediction: Prediction, x: Tensor, t: Tensor) -> Tensor:
        """Exact prediction at x_t."""
        x_0, x_1 = self.means(x, t)
        match prediction:
            case "velocity":
                return self.schedule.d_sigma(t) * x_0 + self.schedule.d_alpha(t) * x_1
            case "noise":
                return x_0
            case "data":
                return x_1
            case "score":
                return -x_0 / self.schedule.sigma(t)


def density_case(schedule: Schedule, t_min: float, source_scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Conditions and latent points, shapes (5, 2), and the log-density of what the flow makes of the scaled source.

    The flow runs between t_min and its mirror; what it makes is again a Gaussian.
    """
    condition, latent = normal(5, 2, seed=1), 0.8 * normal(5, 2, seed=2)
    law = Law(schedule, 0.5 * condition, SCALES, source_scale)
    first, last = torch.tensor([t_min], dtype=F64), torch.tensor([1.0 - t_min], dtype=F64)
    mean = law.carry(torch.zeros_like(latent), first, last)
    std = law.std(last) / law.std(first) * schedule.sigma(first) * source_scale
    return condition, latent, torch.distributions.Normal(mean, std).log_prob(latent).sum(-1)


class ExactNetwork(FlowNetwork):
    """What a network must answer, behind its preconditioning, for the flow to be exact; plus ``error``, zero.

    Of a condition it uses the first two entries, and without one the mean is zero.
    """

    def __init__(
        self, schedule: Schedule, prediction: Prediction, scales: bool, guesses: bool, source_scale: float
    ) -> None:
        super().__init__()
        self.schedule, self.scales, self.guesses, self.source_scale = schedule, scales, guesses, source_scale
        self.prediction: Prediction = prediction
        self.error = torch.nn.Parameter(torch.zeros((), dtype=F64))

    def law(self, condition: Tensor | None) -> Law:
        """Law of the latent point given a condition, such as the observation of a state."""
        mean = torch.zeros_like(SCALES) if condition is None else 0.5 * condition[..., : len(SCALES)]
        return Law(self.schedule, mean, SCALES, self.source_scale)

    def bind(self, condition: Tensor | None) -> Callable[..., Tensor]:
        def answer(x: Tensor, t: Tensor, _: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
            return self(x, t, condition, duration)

        return answer

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
        return self._exact(x, t, condition, duration) + self.error

    def _exact(self, x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None) -> Tensor:
        law, t = self.law(condition), torch.as_tensor(t)[..., None]
        if duration is not None:
            length = torch.as_tensor(duration)[..., None]
            average = (law.carry(x, t, t + length) - x) / torch.where(length == 0.0, 1.0, length)
            return torch.where(length == 0.0, law.predicted("velocity", x, t), average)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.scales:
            x = x * (alpha**2 + sigma**2).sqrt()
        wanted = law.predicted(self.prediction, x, t)
        if self.guesses:
            one = torch.ones_like(x[..., :1])
            wanted = wanted - Law(self.schedule, 0.0 * one, one).predicted(self.prediction, x, t)
        if self.scales and self.prediction == "velocity":
            return wanted / (self.schedule.d_alpha(t) ** 2 + self.schedule.d_sigma(t) ** 2).sqrt()
        return wanted * sigma if self.scales and self.prediction == "score" else wanted


def exact_flow(
    schedule: Schedule,
    prediction: Prediction = "velocity",
    scales: bool = False,
    guesses: bool = False,
    source_scale: float = 1.0,
    averages: bool = False,
    t_min: float = 0.01,
    marks_absence: bool = False,
) -> Flow:
    """The flow that carries noise to the law of ``ExactNetwork``."""
    network = ExactNetwork(schedule, prediction, scales, guesses, source_scale)
    source = GaussianSource(source_scale)
    return Flow(network, AffinePath(schedule), source, prediction, t_min, scales, guesses, averages, marks_absence)


def exact_policy(
    schedule: Schedule,
    sampler: Sampler,
    prediction: Prediction = "velocity",
    scales: bool = False,
    source_scale: float = 1.0,
    averages: bool = False,
    t_min: float = 0.01,
    squash: Squash = TanhSquash(),
) -> FlowPolicy:
    """The policy that carries noise to the law of ``ExactNetwork``."""
    guesses = prediction != "velocity"
    flow = exact_flow(schedule, prediction, scales, guesses, source_scale, averages, t_min)
    return FlowPolicy(flow, len(SCALES), sampler, squash)
