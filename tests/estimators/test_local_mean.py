"""Importance sampling about points found before: identities, quadrature, closed forms, and where it is ahead."""

import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.estimators import (
    ChainMeanEstimator,
    EndpointEstimator,
    FixedControlVariate,
    LocalMeanEstimator,
    MixtureProposal,
    NoControlVariate,
    PosteriorMeanEstimator,
    TruncatedProposal,
    boltzmann_density,
)
from flowmatch_rl.estimators.stratified import latin_hypercube, systematic_choice
from flowmatch_rl.evaluation.estimators import estimator_errors
from flowmatch_rl.paths import AffinePath, CosineSchedule, PathPoints, Schedule, Squash, TanhSquash, UniformSource
from flowmatch_rl.testbeds import CorrelatedGaussians, FourModes
from tests.combinations import each_pair, one_test
from tests.families import SCHEDULES, SQUASHES
from tests.oracles import F64, NORMAL, TWO_D, at, gaussian_density, normal, rmse, uniform

PATH = AffinePath()
NO = NoControlVariate()


def grid(low: float, high: float, count: int) -> Tensor:
    return torch.linspace(low, high, count, dtype=F64)


def test_each_coordinate_of_a_latin_hypercube_has_one_value_in_each_interval() -> None:
    found = latin_hypercube(normal(50, 7, 3, seed=1), uniform(50, 7, 3, seed=2))
    level = torch.special.ndtr(found).sort(1).values
    edges = torch.arange(7, dtype=F64)[:, None] / 7.0
    assert ((level >= edges) & (level <= edges + 1.0 / 7.0)).all()


def test_every_sample_of_a_latin_hypercube_is_standard_normal() -> None:
    found = latin_hypercube(normal(4000, 5, 1, seed=1), uniform(4000, 5, 1, seed=2))
    for sample in found.unbind(1):
        level = torch.special.ndtr(sample[:, 0]).sort().values
        assert (level - (torch.arange(4000, dtype=F64) + 0.5) / 4000.0).abs().max() < 0.03


def test_an_index_comes_up_as_often_as_its_weight_says() -> None:
    weights = normal(30, 6, seed=1).softmax(1)
    counts = torch.nn.functional.one_hot(systematic_choice(weights, uniform(30, 1, seed=2), 20), 6).sum(1)
    assert ((counts - 20.0 * weights).abs() < 1.0).all()
    assert counts.sum() == 600
    levels = (torch.arange(4000, dtype=F64)[:, None] + 0.5) / 4000.0
    chosen = systematic_choice(weights[:1].expand(4000, 6), levels, 3)
    torch.testing.assert_close(
        torch.nn.functional.one_hot(chosen, 6).double().mean((0, 1)), weights[0], rtol=0.0, atol=1e-3
    )


@pytest.mark.parametrize("proposal", [LocalMeanEstimator().proposal, MixtureProposal(fraction=0.3)], ids=repr)
def test_without_steps_it_is_self_normalised_importance_sampling(proposal) -> None:
    points, z = at(normal(6, 2, seed=1), grid(0.1, 0.9, 6)), normal(6, 9, 4, seed=2)
    found = LocalMeanEstimator(9, 9, proposal).estimate(PATH, NORMAL, TWO_D.density, points, z)
    starts = latin_hypercube(z[..., :2], torch.special.ndtr(z[..., 2:]))
    rule = LocalMeanEstimator().control_variate
    weighted = PosteriorMeanEstimator(9, proposal, rule).estimate(PATH, NORMAL, TWO_D.density, points, starts)
    torch.testing.assert_close(found.x_1, weighted.x_1)
    torch.testing.assert_close(found.effective_sample_size, weighted.effective_sample_size)


def test_a_mixture_of_proposals_is_weighted_by_the_numbers_that_it_drew() -> None:
    """Of two starts one comes from each part, whatever the fraction, however many steps follow."""
    points, z = at(normal(6, 2, seed=1), grid(0.1, 0.9, 6)), normal(6, 9, 4, seed=2)
    one, other = (
        LocalMeanEstimator(9, 2, MixtureProposal(fraction=fraction)).estimate(PATH, NORMAL, TWO_D.density, points, z)
        for fraction in (0.3, 0.5)
    )
    torch.testing.assert_close(one.x_1, other.x_1)


def test_paths_of_the_same_ratio_of_noise_to_data_give_the_same_means() -> None:
    z, x_t = normal(6, 12, 4, seed=2), normal(6, 2, seed=1)
    linear, cosine = torch.full((6,), 0.4, dtype=F64), torch.full((6,), 2.0 / math.pi * math.atan(0.4 / 0.6), dtype=F64)
    schedule = CosineSchedule()
    scaled = at(x_t * schedule.alpha(cosine[0]) / 0.4, cosine)
    one = LocalMeanEstimator(12).estimate(PATH, NORMAL, TWO_D.density, at(x_t, linear), z)
    other = LocalMeanEstimator(12).estimate(AffinePath(schedule), NORMAL, TWO_D.density, scaled, z)
    torch.testing.assert_close(one.x_1, other.x_1)


@pytest.mark.parametrize("fraction", [0.25, 0.75])
def test_many_samples_give_the_exact_means_whatever_part_are_steps(fraction: float) -> None:
    size, number, t = 400, 80, torch.full((400,), 0.4, dtype=F64)
    x_t = torch.tensor([[0.3, -0.4]], dtype=F64).expand(size, 2)
    exact = TWO_D.posterior_means(x_t[:1], t[:1], 1.0 - t[:1])[1]
    estimator = LocalMeanEstimator(number, round(fraction * number), control_variate=NO)
    found = estimator.estimate(PATH, NORMAL, TWO_D.density, at(x_t, t), normal(size, number, 4, seed=2))
    error = found.x_1 - exact
    assert error.mean(0).norm() < 0.02


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_with_the_best_coefficient_it_gives_the_mean_of_a_gaussian(schedule: Schedule) -> None:
    centre, variance = torch.tensor([0.3, -0.6, 1.0], dtype=F64), 0.25
    density = gaussian_density(centre, torch.eye(3, dtype=F64) / variance)
    t, path = torch.full((5,), 0.6, dtype=F64), AffinePath(schedule)
    points = at(normal(5, 3, seed=1), t)
    alpha, sigma = schedule.alpha(t[0]), schedule.sigma(t[0])
    exact = (alpha * points.x_t / sigma**2 + centre / variance) / (alpha**2 / sigma**2 + 1.0 / variance)
    eta = (1.0 / (1.0 + (sigma / alpha) ** 2 / variance)).item()
    z = normal(5, 8, 6, seed=3)
    for rule, is_exact in ((FixedControlVariate(eta), True), (NO, False)):
        found = LocalMeanEstimator(8, 3, control_variate=rule).estimate(path, NORMAL, density, points, z)
        assert (rmse(found.x_1 - exact) < 1e-12) == is_exact


def correlated_errors(dim: int, estimators: list[EndpointEstimator]) -> list[float]:
    """Errors of the mean under two correlated Gaussians, against weights of 50,000 exact samples."""
    bandit, size, time = CorrelatedGaussians(dim), 24, 0.5
    density = boltzmann_density(bandit.value_and_gradient, 1.0, TanhSquash())
    exact = torch.atanh(bandit.sample(uniform(50_000, dim, seed=1)).clamp(-0.9999, 0.9999))
    t = torch.full((size,), time, dtype=F64)
    points = PathPoints.between(PATH, normal(size, dim, seed=2), exact[:size], t)
    distance = (points.x_t[:, None] - time * exact).square().sum(-1)
    means = (-0.5 * distance / (1.0 - time) ** 2).softmax(1) @ exact
    errors = []
    for estimator in estimators:
        repeated = PathPoints(*(v.repeat_interleave(16, 0) for v in (points.x_0, points.x_1, points.x_t, points.t)))
        z = normal(16 * size, estimator.num_samples, estimator.num_draws * dim, seed=3)
        found = estimator.estimate(PATH, NORMAL, density, repeated, z).x_1
        errors.append(rmse(found - means.repeat_interleave(16, 0)))
    return errors


def test_sixteen_evaluations_beat_sixteen_weighted_samples_and_a_chain_in_few_and_in_many_dimensions() -> None:
    for dim, of_weighted, of_chain in ((2, 0.8, 0.65), (6, 0.7, 0.9), (38, 0.75, 1.0)):
        local, weighted, chain = correlated_errors(
            dim, [LocalMeanEstimator(16), PosteriorMeanEstimator(16), ChainMeanEstimator(16)]
        )
        assert local < of_weighted * weighted
        assert local < of_chain * chain


def test_in_six_dimensions_sixteen_evaluations_beat_a_hundred_weighted_samples() -> None:
    local, weighted = correlated_errors(6, [LocalMeanEstimator(16), PosteriorMeanEstimator(100)])
    assert local < 0.95 * weighted


def test_under_a_squash_it_beats_as_many_weighted_samples_by_quadrature() -> None:
    estimators = {"local": LocalMeanEstimator(16), "weighted": PosteriorMeanEstimator(16)}
    t = torch.tensor([0.3, 0.7, 0.9], dtype=F64)
    found = estimator_errors(FourModes(), estimators, t, num_points=16, num_repeats=32)
    assert (found["local"].rmse < torch.tensor([0.95, 0.7, 0.6]) * found["weighted"].rmse).all()
    assert (found["local"].bias < 0.1).all()


def test_a_density_a_hundred_times_as_narrow_is_sampled_by_the_same_settings() -> None:
    """At the start of the path the posterior is the density itself."""
    errors = []
    for scale in (0.3, 0.003):
        density = gaussian_density(torch.zeros(4, dtype=F64), torch.eye(4, dtype=F64) / scale**2)
        points = at(normal(64, 4, seed=1), torch.full((64,), 0.02, dtype=F64))
        z = normal(64, 16, 8, seed=2)
        found = LocalMeanEstimator(control_variate=NO).estimate(PATH, NORMAL, density, points, z)
        errors.append(rmse(found.x_1) / scale)
    assert max(errors) < 0.6


def test_permuted_dimensions_give_the_estimates_permuted() -> None:
    order = torch.tensor([2, 0, 1])

    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.sum(-1, keepdim=True)
        return torch.sin(total[..., 0]) - x.square().sum(-1), torch.cos(total) - 2.0 * x

    x_t, t, z = normal(4, 3, seed=1), grid(0.2, 0.8, 4), normal(4, 12, 2, 3, seed=2)
    z[:, 5:, 1] = z[:, 5:, 1, :1]  # the chances of the steps
    one = LocalMeanEstimator(12, 5).estimate(PATH, NORMAL, density, at(x_t, t), z.flatten(2))
    other = LocalMeanEstimator(12, 5).estimate(PATH, NORMAL, density, at(x_t[:, order], t), z[..., order].flatten(2))
    torch.testing.assert_close(other.x_1, one.x_1[:, order], rtol=1e-9, atol=1e-9)


@each_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("squash", SQUASHES, ids=repr)
@pytest.mark.parametrize("num_starts", [1, 3])
def test_steep_values_far_points_and_the_ends_of_time_give_no_nan(
    num_starts: int, squash: Squash, schedule: Schedule, dtype: torch.dtype
) -> None:
    def steep(action: Tensor) -> tuple[Tensor, Tensor]:
        return 1e5 * torch.cos(action).sum(-1), -1e5 * torch.sin(action)

    x_t = torch.tensor([[0.0, 0.3], [1e3, -1e3], [1.0, 1e3], [-1e3, 0.0]], dtype=dtype).repeat(2, 1)
    t = torch.tensor([0.01] * 4 + [0.99] * 4, dtype=dtype)
    density = boltzmann_density(steep, 1.0, squash)
    z = normal(8, 12, 4, seed=3, dtype=dtype)
    found = LocalMeanEstimator(12, num_starts).estimate(AffinePath(schedule), NORMAL, density, at(x_t, t), z)
    for values in (found.x_0, found.x_1, found.eta, found.effective_sample_size, found.log_density_spread):
        assert values.dtype == dtype
        assert values.isfinite().all()


@one_test
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalMeanEstimator(1), "num_samples must be at least 2"),
        (lambda: LocalMeanEstimator(num_starts=0), r"num_starts must lie in \[1, 16\], got 0"),
        (lambda: LocalMeanEstimator(8, num_starts=9), r"num_starts must lie in \[1, 8\], got 9"),
        (lambda: LocalMeanEstimator(power=-0.1), "power must be at least 0"),
        (lambda: LocalMeanEstimator(step=0.0), "step must be positive"),
        (lambda: LocalMeanEstimator(limit=math.nan), "limit must be positive"),
        (lambda: LocalMeanEstimator().check(PATH, UniformSource()), "smooth density everywhere"),
        (lambda: LocalMeanEstimator(proposal=TruncatedProposal()).check(PATH, NORMAL), "covers the whole space"),
    ],
)
def test_what_does_not_go_together_is_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
