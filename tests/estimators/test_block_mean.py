"""Importance sampling of blocks of coordinates: unbiased at the optimum by quadrature, and what it reduces to."""

import pytest
import torch
from torch import Tensor

from flowmatch_rl.estimators import (
    BlockMeanEstimator,
    FixedControlVariate,
    LikelihoodProposal,
    MixtureProposal,
    NoControlVariate,
    PosteriorMeanEstimator,
    ProductProposal,
    Proposal,
    TruncatedProposal,
    boltzmann_density,
)
from flowmatch_rl.paths import AffinePath, MixtureSource, PathPoints, Schedule, Squash, UniformSource
from flowmatch_rl.types import LogDensityAndScore
from tests.combinations import each_pair, one_test
from tests.families import SCHEDULES, SQUASHES
from tests.oracles import F64, NORMAL, ONE_D, GaussianMixture, gaussian_density, normal, rmse

PATH = AffinePath()
NO = NoControlVariate()
UNEVEN = GaussianMixture.of([0.5, 0.2, 0.3], [[0.8, 0.6], [-0.7, 0.5], [-0.2, -0.9]], [0.35, 0.4, 0.3])
"""Coordinates that depend on each other."""


def points_at(x_t: Tensor, x_1: Tensor, t: Tensor) -> PathPoints:
    alpha, sigma = PATH.schedule.alpha(t)[:, None], PATH.schedule.sigma(t)[:, None]
    return PathPoints((x_t - alpha * x_1) / sigma, x_1, x_t, t)


@pytest.mark.parametrize("proposal", [ProductProposal(0.7), LikelihoodProposal()], ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_from_samples_of_the_posterior_the_mean_of_dependent_coordinates_is_unbiased(
    eta: float, proposal: Proposal
) -> None:
    """By quadrature over the endpoint and the noise of either block."""
    line, noise = torch.linspace(-2.6, 2.6, 79, dtype=F64), torch.linspace(-5.0, 5.0, 61, dtype=F64)
    nodes = torch.cartesian_prod(line, line, noise)
    x_1, z = nodes[:, :2], torch.zeros(len(nodes), 3, 2, dtype=F64)
    z[:, 0] = torch.tensor([0.5, -0.5])  # the second coordinate is the first block
    z[:, 1:] = nodes[:, 2, None, None]  # either coordinate uses one of the two
    x_t, t = torch.tensor([[0.15, -0.1]], dtype=F64), torch.tensor([0.55], dtype=F64)
    points = points_at(x_t.expand(len(nodes), 2), x_1, t.expand(len(nodes)))
    estimator = BlockMeanEstimator(3, proposal=proposal, control_variate=FixedControlVariate(eta))
    found = estimator.estimate(PATH, NORMAL, UNEVEN.density, points, z)
    log_weight = UNEVEN.density(x_1)[0] - 0.5 * points.x_0.square().sum(-1) - 0.5 * nodes[:, 2].square()
    mean = log_weight.softmax(0) @ found.x_1
    exact = UNEVEN.posterior_means(x_t, t, 1.0 - t)[1][0]
    torch.testing.assert_close(mean, exact, rtol=0.0, atol=1e-6)
    assert rmse(found.x_1 - exact) > 0.1
    assert rmse(found.x_1 - x_1) > 0.1


def test_one_block_is_importance_sampling_with_the_endpoint_among_the_samples() -> None:
    x_t, t, z = normal(4, 3, seed=1), torch.linspace(0.2, 0.8, 4, dtype=F64), normal(4, 6, 3, seed=2)
    alpha, sigma = t[:, None, None], 1.0 - t[:, None, None]
    _, drawn = ProductProposal().draw(z, NORMAL, x_t[:, None], alpha, sigma)

    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(2.0 * x.sum(-1)), 2.0 * torch.cos(2.0 * x.sum(-1, keepdim=True)).expand_as(x)

    rule = FixedControlVariate(0.3)
    block = BlockMeanEstimator(6, num_blocks=1, control_variate=rule)
    found = block.estimate(PATH, NORMAL, density, points_at(x_t, drawn[:, 0], t), z)
    plain = PosteriorMeanEstimator(6, ProductProposal(), rule)
    expected = plain.estimate(PATH, NORMAL, density, points_at(x_t, drawn[:, 0], t), z)
    for name in ("x_0", "x_1", "effective_sample_size", "log_density_spread"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)


def test_independent_coordinates_are_estimated_one_by_one() -> None:
    def product(x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [ONE_D.density(x[..., d : d + 1]) for d in range(x.shape[-1])]
        return torch.stack([part[0] for part in parts]).sum(0), torch.cat([part[1] for part in parts], -1)

    x_t, x_1, t = normal(5, 3, seed=1), normal(5, 3, seed=2), torch.linspace(0.2, 0.8, 5, dtype=F64)
    z = normal(5, 4, 3, seed=3)
    z[:, 0] = torch.tensor([0.0, 1.0, 2.0])  # coordinate d is drawn by sample d + 1
    rule = FixedControlVariate(0.2)
    together = BlockMeanEstimator(4, control_variate=rule).estimate(PATH, NORMAL, product, points_at(x_t, x_1, t), z)
    for d in range(3):
        one = slice(d, d + 1)
        alone = BlockMeanEstimator(2, control_variate=rule).estimate(
            PATH, NORMAL, ONE_D.density, points_at(x_t[:, one], x_1[:, one], t), z[:, [0, d + 1], one]
        )
        torch.testing.assert_close(together.x_1[:, one], alone.x_1)
        torch.testing.assert_close(together.x_0[:, one], alone.x_0)


@pytest.mark.parametrize(("num_samples", "num_blocks", "dim"), [(5, None, 7), (9, None, 3), (8, 2, 5), (4, 99, 2)])
def test_every_coordinate_is_drawn_by_the_samples_of_one_block(num_samples: int, num_blocks: int, dim: int) -> None:
    seen: list[Tensor] = []

    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return torch.zeros_like(x[..., 0]), torch.zeros_like(x)

    x_t, x_1, t = normal(6, dim, seed=1), normal(6, dim, seed=2), torch.full((6,), 0.5, dtype=F64)
    estimator = BlockMeanEstimator(num_samples, num_blocks)
    estimator.estimate(PATH, NORMAL, density, points_at(x_t, x_1, t), normal(6, num_samples, dim, seed=3))
    drawn = seen[0] != x_1[:, None]  # (B, K, D)
    assert not drawn[:, 0].any()
    assert drawn[:, 1:].any(2).all()
    assert drawn.any(1).all()
    blocks = min(num_samples - 1, dim, num_blocks or dim)
    assert drawn.sum(2).amax() == -(-dim // blocks)
    for one in drawn:
        assert len({tuple(sample.tolist()) for sample in one[1:]}) == blocks
    assert len({tuple(one.flatten().tolist()) for one in drawn}) > 1 or blocks == 1  # another order in each state


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_with_the_best_coefficient_any_endpoint_gives_the_mean_of_a_gaussian(schedule: Schedule) -> None:
    centre, variance = torch.tensor([0.3, -0.6, 1.0], dtype=F64), 0.25
    density: LogDensityAndScore = gaussian_density(centre, torch.eye(3, dtype=F64) / variance)
    path, t = AffinePath(schedule), torch.full((5,), 0.6, dtype=F64)
    points = PathPoints.between(path, normal(5, 3, seed=1), normal(5, 3, seed=2), t)
    alpha, sigma = schedule.alpha(t[0]), schedule.sigma(t[0])
    exact = (alpha * points.x_t / sigma**2 + centre / variance) / (alpha**2 / sigma**2 + 1.0 / variance)
    eta = (1.0 / (1.0 + (sigma / alpha) ** 2 / variance)).item()
    for rule, is_exact in ((FixedControlVariate(eta), True), (NO, False)):
        estimator = BlockMeanEstimator(4, control_variate=rule)
        found = estimator.estimate(path, NORMAL, density, points, normal(5, 4, 3, seed=3))
        assert (rmse(found.x_1 - exact) < 1e-12) == is_exact


@each_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("squash", SQUASHES, ids=repr)
def test_steep_values_far_points_and_the_ends_of_time_give_no_nan(
    squash: Squash, schedule: Schedule, dtype: torch.dtype
) -> None:
    def steep(action: Tensor) -> tuple[Tensor, Tensor]:
        return 1e5 * torch.cos(action).sum(-1), -1e5 * torch.sin(action)

    x_t = torch.tensor([[0.0, 0.3], [1e3, -1e3], [1.0, 1e3], [-1e3, 0.0]], dtype=dtype).repeat(2, 1)
    t = torch.tensor([0.01] * 4 + [0.99] * 4, dtype=dtype)
    points, z = PathPoints(x_t, x_t, x_t, t), normal(8, 6, 2, seed=3, dtype=dtype)
    density = boltzmann_density(steep, 1.0, squash)
    found = BlockMeanEstimator(6).estimate(AffinePath(schedule), NORMAL, density, points, z)
    for values in (found.x_0, found.x_1, found.eta, found.effective_sample_size):
        assert values.dtype == dtype
        assert values.isfinite().all()


@one_test
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockMeanEstimator(1), "num_samples must be at least 2"),
        (lambda: BlockMeanEstimator(num_blocks=0), "num_blocks must be at least 1"),
        (lambda: BlockMeanEstimator(proposal=MixtureProposal()).check(PATH, NORMAL), "each coordinate by itself"),
        (lambda: BlockMeanEstimator(proposal=TruncatedProposal()).check(PATH, NORMAL), "covers the whole space"),
        (
            lambda: BlockMeanEstimator(proposal=LikelihoodProposal()).check(
                PATH, MixtureSource(means=[[1.0, 0.0], [-1.0, 0.0]])
            ),
            "each coordinate by itself",
        ),
        (lambda: BlockMeanEstimator().check(PATH, UniformSource()), "smooth density"),
    ],
)
def test_what_does_not_go_together_is_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
