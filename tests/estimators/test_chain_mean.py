"""Chains of Langevin steps: invariance by quadrature, closed forms, and what they reduce to."""

import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.estimators import (
    ChainMeanEstimator,
    EndpointEstimator,
    FixedControlVariate,
    NoControlVariate,
    PosteriorMeanEstimator,
    TruncatedProposal,
    boltzmann_density,
)
from flowmatch_rl.estimators.chains import ChainState, ExpectedStates, Secants, langevin_proposal
from flowmatch_rl.paths import AffinePath, GaussianSource, PathPoints, Schedule, Squash, UniformSource
from tests.combinations import each_pair, one_test
from tests.families import SCHEDULES, SQUASHES
from tests.oracles import F64, NORMAL, ONE_D, TWO_D, at, gaussian_density, normal, rmse, stratified_normal, uniform

PATH = AffinePath()
NO = NoControlVariate()


def grid(low: float, high: float, count: int) -> Tensor:
    return torch.linspace(low, high, count, dtype=F64)


@pytest.mark.parametrize(("scale", "limit"), [(0.3, math.inf), (1.5, math.inf), (0.8, 0.2)])
def test_a_step_leaves_a_density_invariant(scale: float, limit: float) -> None:
    """Means under a mixture, before and after a step, by quadrature over the point and the noise."""
    x, z = grid(-5.0, 5.0, 1201), grid(-6.0, 6.0, 801)
    pairs = torch.cartesian_prod(x, z)[..., None, None]  # (N, 2, 1, 1)
    state = ChainState.at(ONE_D.density, pairs[:, 0])
    size, most = torch.full((1, 1, 1), scale, dtype=F64), torch.full((1, 1, 1), limit, dtype=F64)
    new, probability = langevin_proposal(state, ONE_D.density, size, most, pairs[:, 1])
    assert 0.05 < probability.mean().item() < 0.98
    weight = (state.log_density - 0.5 * pairs[:, 1, :, 0].square()).flatten().softmax(0)
    for function in (lambda v: v, torch.square, lambda v: torch.cos(3.0 * v)):
        before, after = function(state.x)[..., 0], function(new.x)[..., 0]
        mean = (weight * (probability * after + (1.0 - probability) * before).flatten()).sum()
        assert mean.item() == pytest.approx((weight * before.flatten()).sum().item(), abs=2e-5)


def test_from_a_sample_of_the_posterior_the_mean_is_unbiased_after_one_step() -> None:
    t, point = torch.tensor(0.5, dtype=F64), torch.tensor([0.1], dtype=F64)
    x, z = grid(-4.0, 4.0, 801), grid(-6.0, 6.0, 401)
    ends, noise = torch.cartesian_prod(x, z).unbind(-1)
    points = PathPoints(ends[:, None], ends[:, None], point.expand(len(ends), 1), t.expand(len(ends)))
    steps = torch.zeros(len(ends), 2, 2, dtype=F64)
    steps[:, 1, 0] = noise
    estimator = ChainMeanEstimator(2, num_starts=0, burn_in=0.0, step=0.8, control_variate=NO)
    found = estimator.estimate(PATH, NORMAL, ONE_D.density, points, steps)
    log_posterior = ONE_D.density(ends[:, None])[0] - 0.5 * ((point - 0.5 * ends) / 0.5).square()
    weight = (log_posterior - 0.5 * noise.square()).softmax(0)
    exact = ONE_D.posterior_means(point[None], t[None], 1.0 - t[None])[1].item()
    assert (weight @ found.x_1[:, 0]).item() == pytest.approx(exact, abs=2e-5)
    assert rmse(found.x_1 - exact) > 0.1
    assert rmse(found.x_1[:, 0] - ends) > 0.05


@pytest.mark.parametrize("num_starts", [0, 3])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_with_the_best_coefficient_any_chain_gives_the_mean_of_a_gaussian(schedule: Schedule, num_starts: int) -> None:
    centre, variance = torch.tensor([0.3, -0.6, 1.0], dtype=F64), 0.25
    density = gaussian_density(centre, torch.eye(3, dtype=F64) / variance)
    x_0, x_1, t = normal(5, 3, seed=1), normal(5, 3, seed=2), torch.full((5,), 0.6, dtype=F64)
    path = AffinePath(schedule)
    points = PathPoints.between(path, x_0, x_1, t)
    alpha, sigma = schedule.alpha(t[0]), schedule.sigma(t[0])
    exact = (alpha * points.x_t / sigma**2 + centre / variance) / (alpha**2 / sigma**2 + 1.0 / variance)
    eta = (1.0 / (1.0 + (sigma / alpha) ** 2 / variance)).item()
    z = normal(5, 8, 6, seed=3)
    for rule, is_exact in ((FixedControlVariate(eta), True), (NO, False)):
        estimator = ChainMeanEstimator(8, num_starts, control_variate=rule)
        found = estimator.estimate(path, NORMAL, density, points, z)
        assert (rmse(found.x_1 - exact) < 1e-12) == is_exact


@pytest.mark.parametrize(("num_starts", "num_chains"), [(1, 1), (0, 1), (3, 3), (0, 3)])
def test_long_chains_converge_to_the_mean_of_dependent_coordinates(num_starts: int, num_chains: int) -> None:
    precision = torch.tensor([[9.0, -6.0], [-6.0, 5.0]], dtype=F64)
    density = gaussian_density(torch.tensor([0.4, -0.2], dtype=F64), precision)
    t, x_t = torch.full((200,), 0.4, dtype=F64), torch.tensor([[0.5, -0.1]], dtype=F64).expand(200, 2)
    ratio = (0.4 / 0.6) ** 2
    pull = precision @ torch.tensor([0.4, -0.2], dtype=F64) + ratio * x_t[0] / 0.4
    exact = torch.linalg.solve(precision + ratio * torch.eye(2, dtype=F64), pull)
    points = PathPoints(x_t, normal(200, 2, seed=1), x_t, t)
    estimator = ChainMeanEstimator(241, num_starts, num_chains, control_variate=NO)
    found = estimator.estimate(PATH, NORMAL, density, points, normal(200, 241, 4, seed=2)).x_1
    spread = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact).abs() < 4.5 * spread).all()
    assert (spread < 0.03).all()


def test_a_chain_that_stays_is_a_sample_of_importance_resampling() -> None:
    """Over evenly spaced chances the mean of what is chosen is the weighted mean of the starts."""
    count, starts = 4000, 4
    t, x_t = torch.full((count,), 0.4, dtype=F64), torch.tensor([[0.3, -0.4]], dtype=F64).expand(count, 2)
    z = torch.zeros(count, starts + 1, 4, dtype=F64)
    z[:, :starts, :2] = normal(1, starts, 2, seed=9)
    z[:, 0, 2] = stratified_normal(count)
    stays = ChainMeanEstimator(starts + 1, starts, step=1e-9, control_variate=NO)
    found = stays.estimate(PATH, NORMAL, TWO_D.density, at(x_t, t), z)
    weighted = PosteriorMeanEstimator(starts, control_variate=NO).estimate(
        PATH, NORMAL, TWO_D.density, at(x_t[:1], t[:1]), z[:1, :starts, :2]
    )
    assert 1.2 < weighted.effective_sample_size.item() < 3.5
    torch.testing.assert_close(found.x_1.mean(0), weighted.x_1[0], rtol=0.0, atol=1e-3)
    assert rmse(found.x_1 - weighted.x_1) > 0.1


def test_the_average_counts_proposals_by_their_probability() -> None:
    def state(seed: int) -> ChainState:
        return ChainState(normal(3, 2, 4, seed=seed), normal(3, 2, seed=seed + 50), normal(3, 2, 4, seed=seed + 70))

    current = state(0)
    average, total = ExpectedStates(current), torch.zeros(3, 2, 4, dtype=F64)
    for step in range(1, 6):
        new, probability, taken = state(step), uniform(3, 2, seed=step), uniform(3, 2, seed=step + 10) < 0.5
        average.add(new, probability, taken)
        total += probability[..., None] * new.x + (1.0 - probability)[..., None] * current.x
        current = new.where(taken, current)
    found, weights = average.result()
    torch.testing.assert_close((weights[..., None] * found.x).sum(1), total.mean(1) / 5.0)
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=F64))


def test_the_length_of_secants_is_the_standard_deviation_of_a_normal_wherever_they_are() -> None:
    scales = torch.tensor([0.1, 1.0, 20.0], dtype=F64)
    density = gaussian_density(torch.zeros(3, dtype=F64), torch.diag(scales.pow(-2)))
    one, other = (ChainState.at(density, 30.0 + normal(6, 2, 3, seed=seed)) for seed in (1, 2))
    t = torch.linspace(0.1, 0.9, 6, dtype=F64)
    secants = Secants.between(one, other)
    torch.testing.assert_close(secants.length(t, 4), scales.expand(6, 3))
    torch.testing.assert_close(secants.then(Secants.between(other, one)).length(t, 4), scales.expand(6, 3))
    assert Secants.between(one, one).length(t, 4).isinf().all()


def test_a_density_a_hundred_times_as_narrow_is_sampled_by_the_same_settings() -> None:
    """At the start of the path the posterior is the density itself."""
    errors = []
    for scale in (0.3, 0.003):
        density = gaussian_density(torch.zeros(4, dtype=F64), torch.eye(4, dtype=F64) / scale**2)
        points = at(normal(64, 4, seed=1), torch.full((64,), 0.02, dtype=F64))
        found = ChainMeanEstimator(control_variate=NO).estimate(
            PATH, NORMAL, density, points, normal(64, 16, 8, seed=2)
        )
        errors.append(rmse(found.x_1) / scale)
    assert errors[0] < 1.0
    assert errors[1] < 3.0


def test_in_many_dimensions_it_beats_as_many_weighted_samples() -> None:
    dim, size = 38, 64
    variance = torch.linspace(0.02, 0.3, dim, dtype=F64)
    density = gaussian_density(torch.full((dim,), 0.4, dtype=F64), torch.diag(1.0 / variance))
    x_1 = 0.4 + variance.sqrt() * normal(size, dim, seed=1)
    points = PathPoints.between(PATH, normal(size, dim, seed=2), x_1, torch.full((size,), 0.3, dtype=F64))
    ratio = (0.3 / 0.7) ** 2
    exact = (ratio * points.x_t / 0.3 + 0.4 / variance) / (ratio + 1.0 / variance)

    def error(estimator: EndpointEstimator) -> float:
        z = normal(size, estimator.num_samples, estimator.num_draws * dim, seed=3)
        return rmse(estimator.estimate(PATH, NORMAL, density, points, z).x_1 - exact)

    assert error(ChainMeanEstimator(16)) < 0.5 * error(PosteriorMeanEstimator(16))


def test_permuted_dimensions_give_the_estimates_permuted() -> None:
    order = torch.tensor([2, 0, 1])

    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.sum(-1, keepdim=True)
        return torch.sin(total[..., 0]) - x.square().sum(-1), torch.cos(total) - 2.0 * x

    x_t, t, z = normal(4, 3, seed=1), grid(0.2, 0.8, 4), normal(4, 12, 2, 3, seed=2)
    z[:, :, 1] = z[:, :, 1, :1]  # the chances
    one = ChainMeanEstimator(12).estimate(PATH, NORMAL, density, at(x_t, t), z.flatten(2))
    other = ChainMeanEstimator(12).estimate(PATH, NORMAL, density, at(x_t[:, order], t), z[..., order].flatten(2))
    torch.testing.assert_close(other.x_1, one.x_1[:, order], rtol=1e-9, atol=1e-9)


@each_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("squash", SQUASHES, ids=repr)
@pytest.mark.parametrize("num_starts", [0, 2])
def test_steep_values_far_points_and_the_ends_of_time_give_no_nan(
    num_starts: int, squash: Squash, schedule: Schedule, dtype: torch.dtype
) -> None:
    def steep(action: Tensor) -> tuple[Tensor, Tensor]:
        return 1e5 * torch.cos(action).sum(-1), -1e5 * torch.sin(action)

    x_t = torch.tensor([[0.0, 0.3], [1e3, -1e3], [1.0, 1e3], [-1e3, 0.0]], dtype=dtype).repeat(2, 1)
    t = torch.tensor([0.01] * 4 + [0.99] * 4, dtype=dtype)
    points = PathPoints(x_t, x_t, x_t, t)
    density = boltzmann_density(steep, 1.0, squash)
    z = normal(8, 12, 4, seed=3, dtype=dtype)
    found = ChainMeanEstimator(12, num_starts).estimate(AffinePath(schedule), NORMAL, density, points, z)
    for values in (found.x_0, found.x_1, found.eta, found.effective_sample_size, found.log_density_spread):
        assert values.dtype == dtype
        assert values.isfinite().all()


@one_test
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChainMeanEstimator(1), "num_samples must be at least 2"),
        (lambda: ChainMeanEstimator(4), "4 samples leave no step"),
        (lambda: ChainMeanEstimator(8, num_starts=2, num_chains=3), "at least num_chains or 0, got 2, 3"),
        (lambda: ChainMeanEstimator(step=0.0), "step must be positive"),
        (lambda: ChainMeanEstimator(burn_in=1.0), r"burn_in must lie in \[0, 1\)"),
        (lambda: ChainMeanEstimator(limit=-1.0), "limit must be positive"),
        (lambda: ChainMeanEstimator().check(PATH, UniformSource()), "smooth density everywhere"),
        (lambda: ChainMeanEstimator(proposal=TruncatedProposal()).check(PATH, NORMAL), "covers the whole space"),
        (lambda: ChainMeanEstimator(proposal=TruncatedProposal()).check(PATH, GaussianSource(2.0)), "standard normal"),
    ],
)
def test_what_does_not_go_together_is_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
