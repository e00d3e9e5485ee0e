"""A policy whose network is exact for a Gaussian latent point, whatever it predicts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.models import FlowPolicy
from flowmatch_rl.nets.architecture import FlowNetwork
from flowmatch_rl.paths import AffinePath, GaussianSource, Schedule, Squash, TanhSquash
from flowmatch_rl.samplers import Sampler
from flowmatch_rl.types import Prediction
from tests.oracles import F64

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


class ExactNetwork(FlowNetwork):
    """What a network must answer, behind its preconditioning, for the policy to be exact; plus ``error``, zero."""

    def __init__(self, schedule: Schedule, prediction: Prediction, scales: bool, source_scale: float) -> None:
        super().__init__()
        self.schedule, self.scales, self.source_scale = schedule, scales, source_scale
        self.prediction: Prediction = prediction
        self.error = torch.nn.Parameter(torch.zeros((), dtype=F64))

    def law(self, observation: Tensor) -> Law:
        """Law of the latent point in a state."""
        return Law(self.schedule, 0.5 * observation, SCALES[: observation.shape[-1]], self.source_scale)

    def bind(self, condition: Tensor | None) -> Callable[..., Tensor]:
        assert condition is not None

        def answer(x: Tensor, t: Tensor, _: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
            return self(x, t, condition, duration)

        return answer

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
        return self._exact(x, t, condition, duration) + self.error

    def _exact(self, x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None) -> Tensor:
        assert condition is not None
        law, t = self.law(condition), torch.as_tensor(t)[..., None]
        if duration is not None:
            length = torch.as_tensor(duration)[..., None]
            average = (law.carry(x, t, t + length) - x) / torch.where(length == 0.0, 1.0, length)
            return torch.where(length == 0.0, law.predicted("velocity", x, t), average)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.scales:
            x = x * (alpha**2 + sigma**2).sqrt()
        wanted = law.predicted(self.prediction, x, t)
        if self.prediction != "velocity":
            one = torch.ones_like(x[..., :1])
            wanted = wanted - Law(self.schedule, 0.0 * one, one).predicted(self.prediction, x, t)
        if self.scales and self.prediction == "velocity":
            return wanted / (self.schedule.d_alpha(t) ** 2 + self.schedule.d_sigma(t) ** 2).sqrt()
        return wanted * sigma if self.scales and self.prediction == "score" else wanted


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
    network = ExactNetwork(schedule, prediction, scales, source_scale)
    source = GaussianSource(source_scale)
    return FlowPolicy(network, AffinePath(schedule), sampler, squash, t_min, prediction, source, scales, averages)
