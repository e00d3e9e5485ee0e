"""The package's exact mixture against the oracle, which was derived on its own, and against calculus."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, GaussianMixture, Schedule
from flowmatch_rl.types import Prediction
from tests import oracles
from tests.combinations import each_value, one_test
from tests.families import SCHEDULES
from tests.oracles import F64, ONE_D, TWO_D, normal, stratified_normal

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
SKEWED = oracles.GaussianMixture.of(
    [0.2, 0.5, 0.3], [[0.5, -1.0, 0.0], [-1.5, 0.3, 0.8], [1.0, 1.0, -2.0]], [0.4, 0.9, 0.6]
)
ORACLES = [ONE_D, TWO_D, SKEWED]
DIMENSIONS = ["1-D", "2-D", "3-D"]


def package(oracle: oracles.GaussianMixture) -> GaussianMixture:
    return GaussianMixture(oracle.weights, oracle.means, oracle.scales)


def points(oracle: oracles.GaussianMixture, schedule: Schedule, t: Tensor) -> Tensor:
    """Points of the marginal at each of the times."""
    z = normal(len(t), oracle.means.shape[1], seed=1)
    return AffinePath(schedule).sample(z, oracle.draw(len(t), seed=2), t)


@pytest.mark.parametrize("oracle", ORACLES, ids=DIMENSIONS)
def test_the_density_is_that_of_the_oracle(oracle: oracles.GaussianMixture) -> None:
    x = normal(2, 3, oracle.means.shape[1], seed=1)
    torch.testing.assert_close(package(oracle).log_prob(x), oracle.density(x)[0], rtol=1e-12, atol=1e-12)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("oracle", ORACLES, ids=DIMENSIONS)
def test_marginals_and_posterior_means_are_those_of_the_oracle(
    oracle: oracles.GaussianMixture, schedule: Schedule
) -> None:
    path, t = AffinePath(schedule), torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=F64)
    x_t, alpha, sigma = points(oracle, schedule, t), schedule.alpha(t), schedule.sigma(t)
    log_prob = package(oracle).marginal_log_prob(path, x_t, t)
    torch.testing.assert_close(log_prob, oracle.log_marginal(x_t, alpha, sigma), rtol=1e-10, atol=1e-10)
    found = package(oracle).posterior_means(path, x_t, t)
    for mean, expected in zip(found, oracle.posterior_means(x_t, alpha, sigma), strict=True):
        torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-10)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_fields_are_the_posterior_means_of_what_they_predict(prediction: Prediction, schedule: Schedule) -> None:
    path, t = AffinePath(schedule), torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=F64)
    x_t = points(SKEWED, schedule, t)
    x_0, x_1 = SKEWED.posterior_means(x_t, schedule.alpha(t), schedule.sigma(t))
    expected = {
        "velocity": schedule.d_alpha(t)[:, None] * x_1 + schedule.d_sigma(t)[:, None] * x_0,
        "data": x_1,
        "noise": x_0,
        "score": -x_0 / schedule.sigma(t)[:, None],
    }[prediction]
    found = package(SKEWED).field(path, prediction)(x_t, t, torch.ones(4, 7))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("oracle", ORACLES, ids=DIMENSIONS)
def test_the_score_is_the_gradient_of_the_log_density(oracle: oracles.GaussianMixture, schedule: Schedule) -> None:
    path, t = AffinePath(schedule), torch.linspace(0.05, 0.95, 6, dtype=F64)
    x_t = points(oracle, schedule, t).requires_grad_()
    (gradient,) = torch.autograd.grad(package(oracle).marginal_log_prob(path, x_t, t).sum(), x_t)
    found = package(oracle).field(path, "score")(x_t, t, None)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-9)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("oracle", ORACLES, ids=DIMENSIONS)
def test_the_velocity_carries_the_density_along_every_path(oracle: oracles.GaussianMixture, schedule: Schedule) -> None:
    """The continuity equation ``dp/dt + div(p v) = 0``, both terms by automatic differentiation."""
    path, mixture = AffinePath(schedule), package(oracle)
    t = torch.linspace(0.02, 0.98, 60, dtype=F64)
    x_t = points(oracle, schedule, t).requires_grad_()
    time = t.clone().requires_grad_()
    density = mixture.marginal_log_prob(path, x_t, time).exp()
    (growth,) = torch.autograd.grad(density.sum(), time, retain_graph=True)
    flux = density[:, None] * mixture.field(path)(x_t, t, None)
    outflow = torch.zeros_like(growth)
    for d in range(x_t.shape[1]):
        outflow += torch.autograd.grad(flux[:, d].sum(), x_t, retain_graph=True)[0][:, d]
    assert (growth / density).abs().max() > 0.5  # there is something to balance
    balance = (growth + outflow) / density
    torch.testing.assert_close(balance, torch.zeros_like(balance), rtol=0, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_particles_and_times_of_any_prefix_shape_equal_a_loop(schedule: Schedule) -> None:
    path, mixture, x = AffinePath(schedule), package(SKEWED), normal(2, 4, 3, seed=1)
    for shape in ((), (2,), (2, 4)):
        t = torch.linspace(0.2, 0.8, max(1, torch.Size(shape).numel()), dtype=F64).reshape(shape)
        times = t.reshape(shape + (1,) * (2 - len(shape))).expand(2, 4)
        together, log_prob = mixture.field(path)(x, t, None), mixture.marginal_log_prob(path, x, t)
        assert log_prob.shape == (2, 4)
        for b in range(2):
            for n in range(4):
                alone = mixture.field(path)(x[b, n][None], times[b, n], None)
                torch.testing.assert_close(together[b, n], alone[0])
                torch.testing.assert_close(log_prob[b, n], mixture.marginal_log_prob(path, x[b, n], times[b, n]))


def test_a_single_precision_mixture_stays_one() -> None:
    mixture = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 2.0]))
    x, t = torch.zeros(3, 1), torch.full((3,), 0.5)
    for value in (
        mixture.log_prob(x),
        mixture.field(AffinePath())(x, t, None),
        mixture.draw(torch.rand(3), torch.randn(3, 1)),
    ):
        assert value.dtype == torch.float32


def test_draws_follow_the_density() -> None:
    """On a grid of noise the shares of the draws below any point equal the integral of the density up to it."""
    u, z = torch.meshgrid((torch.arange(100, dtype=F64) + 0.5) / 100, stratified_normal(300), indexing="ij")
    draws = package(ONE_D).draw(u.flatten(), z.flatten()[:, None])[:, 0].sort().values
    grid = torch.linspace(-6.0, 6.0, 4001, dtype=F64)
    mass = torch.cumulative_trapezoid(package(ONE_D).log_prob(grid[:, None]).exp(), grid)
    assert mass[-1].item() == pytest.approx(1.0, abs=1e-6)
    share = torch.searchsorted(draws, grid[1:]) / len(draws)
    assert (share - mass).abs().max() < 3e-3


def test_each_component_is_drawn_by_its_weight_moved_and_scaled() -> None:
    u = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1.0 - 1e-9], dtype=F64)
    z, part = normal(6, 3, seed=1), torch.tensor([0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(package(SKEWED).draw(u, z), SKEWED.means[part] + SKEWED.scales[part, None] * z)


def test_weights_that_round_below_one_still_give_every_draw_a_component() -> None:
    weights = torch.full((7,), 1.0, dtype=F64) / 7
    last = torch.tensor([1.0 - 2.0**-53], dtype=F64)
    assert weights.cumsum(0)[-1] < last
    mixture = GaussianMixture(weights, torch.arange(7, dtype=F64)[:, None], torch.ones(7, dtype=F64))
    assert mixture.draw(last, torch.zeros(1, 1, dtype=F64)).item() == 6.0


@one_test
@pytest.mark.parametrize(
    ("weights", "means", "scales", "message"),
    [
        ([0.5, 0.5], [0.0, 1.0], [1.0, 1.0], "means of shape"),
        ([1.0], [[0.0], [1.0]], [1.0, 1.0], "weights of shape"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0], "scales of shape"),
        ([1.5, -0.5], [[0.0], [1.0]], [1.0, 1.0], "weights must be positive"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, 0.0], "scales must be positive"),
        ([0.5, 0.4], [[0.0], [1.0]], [1.0, 1.0], "sum 1"),
    ],
)
def test_a_mixture_that_is_none_is_refused(weights: list, means: list, scales: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(torch.tensor(weights), torch.tensor(means), torch.tensor(scales))
