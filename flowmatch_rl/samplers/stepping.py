"""Samplers with fixed steps: stochastic, DDIM, and by average velocities."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.paths import Field
from flowmatch_rl.samplers.base import Draw, SteppingSampler
from flowmatch_rl.shapes import append_dims


@dataclass(frozen=True)
class SdeSampler(SteppingSampler):
    """Euler-Maruyama on the reverse stochastic differential equation.

    ``dx = (velocity + noise_scale g^2 score / 2) dt + sqrt(noise_scale) g dW`` has the marginals of the flow for every
    ``noise_scale``: 0 is the probability flow, 1 the reverse of the diffusion. g is ``AffinePath.diffusion``. Where a
    step would overshoot, as at the start of a path without data, where g is unbounded, less noise is added.

    Args:
        num_steps: Number of steps, at least 1.
        noise_scale: Variance of the noise relative to the reverse diffusion, at least 0.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Song et al., arXiv:2011.13456.
    """

    needs_average_velocity: ClassVar[bool] = False

    num_steps: int = 200
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("[0, inf)", noise_scale=self.noise_scale)

    @property
    def adds_noise(self) -> bool:
        """Whether it adds noise, for which it uses the score."""
        return self.noise_scale > 0.0

    def step(self, field: Field, x: Tensor, t: Tensor, dt: Tensor, draw: Draw) -> Tensor:
        """Points at ``t + dt``."""
        prediction, path = field.predict(x, t, None), field.path
        velocity = path.convert(prediction, x, t, field.prediction, "velocity")
        dt = append_dims(dt, like=x)
        if self.noise_scale == 0.0:
            return x + dt * velocity
        score = path.convert(prediction, x, t, field.prediction, "score")
        t = append_dims(t, like=x)
        # Every rate has the same marginals; at this limit a step removes a quarter of the noise in x.
        limit = 0.5 * path.schedule.sigma(t).square() / dt
        variance_rate = torch.minimum(self.noise_scale * path.diffusion(t), limit)
        drift = velocity + 0.5 * variance_rate * score
        return x + dt * drift + (variance_rate * dt).sqrt() * draw(x)


@dataclass(frozen=True)
class DdimSampler(SteppingSampler):
    """Predicts data and noise, and combines them at the next time.

    Exact in one step where the prediction does not depend on the point. With ``eta`` above 0 fresh noise replaces part
    of the predicted noise; 1 gives the ancestral sampler of DDPM.

    Args:
        num_steps: Number of steps, at least 1.
        eta: Amount of fresh noise, in [0, 1].
        data_limit: Predicted data is clipped to [-data_limit, data_limit] per dimension, and the noise is recomputed
            from the point and the clipped data; positive, None for no limit. For data in a box, whose prediction from
            almost pure noise is the error of the predicted noise divided by a small number.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Song et al., arXiv:2010.02502, for any affine path; Ho et al., arXiv:2006.11239, whose code clips the data.
    """

    needs_average_velocity: ClassVar[bool] = False

    num_steps: int = 50
    eta: float = 0.0
    data_limit: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("[0, 1]", eta=self.eta)
        check_range("(0, inf)", data_limit=self.data_limit)

    @property
    def adds_noise(self) -> bool:
        """Whether it adds fresh noise, which must have the distribution of the source."""
        return self.eta > 0.0

    def step(self, field: Field, x: Tensor, t: Tensor, dt: Tensor, draw: Draw) -> Tensor:
        """Points at ``t + dt``."""
        prediction = field.predict(x, t, None)
        x_1 = field.path.convert(prediction, x, t, field.prediction, "data")
        x_0 = field.path.convert(prediction, x, t, field.prediction, "noise")
        schedule, before, after = field.path.schedule, append_dims(t, like=x), append_dims(t + dt, like=x)
        if self.data_limit is not None:
            x_1 = x_1.clamp(-self.data_limit, self.data_limit)
            x_0 = (x - schedule.alpha(before) * x_1) / schedule.sigma(before)
        alpha, sigma = schedule.alpha(after), schedule.sigma(after)
        if self.eta == 0.0:
            return alpha * x_1 + sigma * x_0
        sigma_before, ratio = schedule.sigma(before), schedule.alpha(before) / alpha
        posterior = (sigma / sigma_before).square() * (sigma_before.square() - (ratio * sigma).square())
        fresh = self.eta**2 * posterior.clamp_min(0.0)
        kept = (sigma.square() - fresh).clamp_min(0.0)
        return alpha * x_1 + kept.sqrt() * x_0 + fresh.sqrt() * draw(x)


@dataclass(frozen=True)
class AverageVelocitySampler(SteppingSampler):
    """Follows average velocities: a step of any length is exact for an exact model.

    Args:
        num_steps: Number of steps, at least 1; as many network evaluations.

    Reference:
        Geng et al., arXiv:2505.13447.
    """

    needs_average_velocity: ClassVar[bool] = True

    num_steps: int = 1

    @property
    def adds_noise(self) -> bool:
        """False."""
        return False

    def step(self, field: Field, x: Tensor, t: Tensor, dt: Tensor, draw: Draw) -> Tensor:
        """Points at ``t + dt``."""
        if field.average_velocity is None:
            raise ValueError("expected a model that has learned average velocities, by the objective MeanFlow")
        return x + append_dims(dt, like=x) * field.average_velocity(x, t, dt, None)
