"""Models that know the mixture on the line exactly, whatever they predict."""

import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, Field, Schedule, VarianceExplodingSchedule
from flowmatch_rl.samplers import Draw
from flowmatch_rl.types import Prediction
from tests.oracles import F64, ONE_D, GaussianMixture


def ends(schedule: Schedule) -> tuple[float, float]:
    """Flow times between which the path is regular, and as wide as the tables of quantiles reach."""
    return (0.2 if isinstance(schedule, VarianceExplodingSchedule) else 1e-3), 1.0 - 1e-3


def law(schedule: Schedule, t: float | Tensor) -> GaussianMixture:
    """Law of x_t at one time."""
    time = torch.as_tensor(t, dtype=F64)
    return ONE_D.at(schedule.alpha(time), schedule.sigma(time))


def share_below(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """Distribution function on the line."""
    return torch.special.ndtr((x[..., None] - mixture.means[:, 0]) / mixture.scales) @ mixture.weights


def carry(schedule: Schedule, x: Tensor, t: Tensor, duration: Tensor) -> Tensor:
    """Where the flow takes x by the end of the interval: to the same quantile, found by bisection."""
    share, after = share_below(law(schedule, t), x[..., 0]), law(schedule, t + duration)
    low, high = torch.full_like(share, -60.0), torch.full_like(share, 60.0)
    for _ in range(70):
        middle = 0.5 * (low + high)
        below = share_below(after, middle) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)[..., None]


def exact_model(schedule: Schedule, prediction: Prediction = "velocity") -> Field:
    """The posterior means of the oracle, read as the prediction, and the average velocity of the flow."""
    path = AffinePath(schedule)

    def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        alpha, sigma = (c.expand(x.shape[:-1]) for c in (schedule.alpha(t), schedule.sigma(t)))
        return path.target(prediction, *ONE_D.posterior_means(x, alpha, sigma), t)

    def average_velocity(x: Tensor, t: Tensor, duration: Tensor, condition: Tensor | None) -> Tensor:
        return (carry(schedule, x, t, duration) - x) / duration

    return Field(path, predict, prediction, average_velocity)


def seeded(seed: int) -> Draw:
    """A source of noise that depends on the seed and on how often it was asked."""
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def silent(like: Tensor) -> Tensor:
    """A source of noise that nobody may ask."""
    raise AssertionError("a deterministic sampler asked for noise")
