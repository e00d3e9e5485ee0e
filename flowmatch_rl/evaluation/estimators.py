"""Bias and spread of estimators of the posterior mean, against quadrature."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.estimators import EndpointEstimate, EndpointEstimator, boltzmann_density
from flowmatch_rl.paths import AffinePath, GaussianSource, PathPoints, Squash, TanhSquash
from flowmatch_rl.shapes import append_dims, check_same_shape
from flowmatch_rl.testbeds.bandits.base import Bandit, ProductBandit
from flowmatch_rl.testbeds.bandits.quadrature import panel_nodes
from flowmatch_rl.types import LogDensityAndScore

FARTHEST_NOISE = 12.0
"""Noise beyond this many standard deviations has no mass that shows."""

FARTHEST_LATENT = 14.0
"""Latent points beyond this have no mass that shows, where a squash reaches the edge of the box at infinity."""


@dataclass(frozen=True, eq=False)
class EstimatorErrors:
    """Errors of the estimated mean of x_1 given x_t, root mean squares over points of the path and dimensions.

    Attributes:
        t: Flow times, shape (T,).
        bias: Error of the mean over repeats, in units of the latent space, shape (T,); the chance part is subtracted,
            and what is below zero then is zero.
        resolution: Bias that an unbiased estimator shows by chance, about, shape (T,).
        deviation: Standard deviation over repeats, shape (T,).
        rmse: Root mean square error, shape (T,).
        effective_sample_size: Mean over points and repeats, shape (T,).
    """

    t: Tensor
    bias: Tensor
    resolution: Tensor
    deviation: Tensor
    rmse: Tensor
    effective_sample_size: Tensor


def exact_posterior_mean(
    bandit: Bandit,
    x_t: Tensor,
    t: Tensor,
    path: AffinePath = AffinePath(),
    squash: Squash = TanhSquash(),
    temperature: float = 1.0,
) -> Tensor:
    """Mean of x_1 given x_t by Gauss-Legendre quadrature, for the Boltzmann distribution of a bandit and N(0, I) noise.

    Args:
        bandit: The bandit.
        x_t: Points that the path can pass, float64, shape (B, D).
        t: Flow times in (0, 1), shape (B,).
        path: Path from noise to latent points.
        squash: Map from latent points to actions.
        temperature: Temperature, in units of the return, positive.

    Returns:
        Posterior mean in the latent space, shape (B, D); not a number where the path can't pass.

    Raises:
        ValueError: If x_t has another dimension than the action, or the shape of t is not a prefix of its shape.
    """
    bandit.check_actions("x_t", x_t)
    # Products need one sum per coordinate, planes one over all pairs.
    panels = 512 if isinstance(bandit, ProductBandit) else 48
    node, weight = (v.flatten().to(x_t) for v in panel_nodes(panels, x_t.device))
    t = append_dims(t, like=x_t)
    alpha, sigma = path.schedule.alpha(t), path.schedule.sigma(t)
    far = torch.full_like(x_t, FARTHEST_LATENT)
    far = torch.where(squash.action(far) < 1.0, far, 1.0)  # a squash that leaves the box is cut off at its edge
    low = torch.maximum(-far, (x_t - FARTHEST_NOISE * sigma) / alpha)
    high = torch.minimum(far, (x_t + FARTHEST_NOISE * sigma) / alpha)
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    u = middle[..., None] + half[..., None] * node  # (B, D, G)
    x_0 = (x_t[..., None] - alpha[..., None] * u) / sigma[..., None]
    log_weight = weight.log() - 0.5 * x_0.square() + squash.log_jacobian(u[..., None])
    return bandit.grid_mean(squash.action(u), log_weight, u, temperature)


def check_estimator(name: str, estimator: EndpointEstimator, path: AffinePath = AffinePath()) -> None:
    """Raise unless ``estimator_errors`` can measure an estimator.

    Args:
        name: What it is called, for the error.
        estimator: The estimator.
        path: Path from N(0, I) noise to latent points.

    Raises:
        ValueError: If it does not estimate means point by point, or does not suit the path.
    """
    if not estimator.needs_jacobian:
        raise UserError(f"{name}: {type(estimator).__name__} weights whole batches and estimates no single mean")
    try:
        estimator.check(path, GaussianSource())
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def estimator_errors(
    bandit: Bandit,
    estimators: Mapping[str, EndpointEstimator],
    t: Tensor,
    path: AffinePath = AffinePath(),
    squash: Squash = TanhSquash(),
    temperature: float = 1.0,
    num_points: int = 32,
    num_repeats: int = 64,
    seed: int = 0,
) -> dict[str, EstimatorErrors]:
    """Bias and spread of estimators of E[x_1 given x_t] along the path to the Boltzmann distribution of a bandit.

    The points lie on the path between noise and exact samples; each is estimated repeatedly with other noise. All
    estimators see the same points, and those that draw noise of the same shape see the same noise.

    Args:
        bandit: The bandit.
        estimators: Estimators by name, which estimate means point by point.
        t: Flow times in (0, 1), shape (T,).
        path: Path from N(0, I) noise to latent points.
        squash: Map from latent points to actions.
        temperature: Temperature, in units of the return, positive.
        num_points: Points per flow time, at least 1.
        num_repeats: Estimates per point, at least 2.
        seed: Seed of points and noise.

    Returns:
        Errors by name, float64.

    Raises:
        ValueError: If a number is out of its range, or an estimator does not suit the path or this measurement.
    """
    if num_points < 1 or num_repeats < 2:
        raise ValueError(f"expected num_points >= 1 and num_repeats >= 2, got {num_points} and {num_repeats}")
    if t.dim() != 1 or not bool(((t > 0.0) & (t < 1.0)).all()):
        raise ValueError(f"expected flow times in (0, 1) of shape (T,), got {t.tolist()}")
    for name, estimator in estimators.items():
        check_estimator(name, estimator, path)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_points, bandit.action_dim, generator=generator, dtype=torch.float64)
    x_1 = squash.latent(bandit.sample(uniform, temperature))
    x_0 = torch.randn(x_1.shape, generator=generator, dtype=torch.float64)
    density = boltzmann_density(bandit.value_and_gradient, temperature, squash)
    rows: dict[str, list[list[Tensor]]] = {name: [] for name in estimators}
    for place, time in enumerate(t.double()):
        points = PathPoints.between(path, x_0, x_1, time.expand(num_points))
        truth = exact_posterior_mean(bandit, points.x_t, points.t, path, squash, temperature)
        for name, estimator in estimators.items():
            generator.manual_seed(seed + 1 + place)
            found = _repeat(estimator, path, density, points, num_repeats, generator)
            estimates = found.x_1.reshape(num_points, num_repeats, -1)
            rows[name].append([*_errors(estimates, truth), found.effective_sample_size.mean()])
    columns = {name: [torch.stack(column) for column in zip(*row, strict=True)] for name, row in rows.items()}
    return {name: EstimatorErrors(t.double(), *column) for name, column in columns.items()}


def _repeat(
    estimator: EndpointEstimator,
    path: AffinePath,
    density: LogDensityAndScore,
    points: PathPoints,
    repeats: int,
    generator: torch.Generator,
) -> EndpointEstimate:
    """Estimates with other noise each, those of one point in a row."""
    ends = (x.repeat_interleave(repeats, 0) for x in (points.x_0, points.x_1, points.x_t, points.t))
    many, source = PathPoints(*ends), GaussianSource()
    shape = (len(many.t), estimator.num_samples, estimator.num_draws * source.noise_dim(many.x_t.shape[1]))
    z = torch.randn(shape, generator=generator, dtype=many.x_t.dtype)
    return estimator.estimate(path, source, density, many, z)


def _errors(estimates: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bias, its resolution, standard deviation and root mean square error of estimates (B, R, D) of a truth (B, D)."""
    number, repeats, dim = estimates.shape
    mean = estimates.mean(1)
    check_same_shape(mean=mean, truth=truth)
    chance = estimates.var(1).mean() / repeats
    bias = ((mean - truth).square().mean() - chance).clamp_min(0.0).sqrt()
    resolution = (chance * (2.0 / (number * dim)) ** 0.5).sqrt()
    deviation = (chance * repeats).sqrt()
    return bias, resolution, deviation, (estimates - truth[:, None]).square().mean().sqrt()
