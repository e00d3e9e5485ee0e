"""Bandits against autograd, scipy's quadrature and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from flowmatch_rl.testbeds import (
    Bandit,
    Bimodal,
    Flat,
    FourModes,
    PlanarBandit,
    ProductBandit,
    Quadratic,
    TwoMoonsEnergy,
)
from flowmatch_rl.testbeds.bandits.quadrature import panel_nodes, quantiles
from tests.combinations import each_value, one_test
from tests.families import BANDITS, DEPENDENT_BANDITS
from tests.oracles import F64, uniform

TEMPERATURES = [0.3, 1.0, 4.0]
PLANAR = [bandit for bandit in BANDITS if isinstance(bandit, PlanarBandit)]
PRODUCTS = [bandit for bandit in BANDITS if isinstance(bandit, ProductBandit)]

on_every_bandit = pytest.mark.parametrize("bandit", BANDITS, ids=repr)
at_temperature_one = pytest.mark.parametrize("bandit", [*BANDITS, *DEPENDENT_BANDITS], ids=repr)
at_some_temperatures = pytest.mark.parametrize("temperature", TEMPERATURES)


def mass(bandit: Bandit, temperature: float, first: tuple[float, float] = (-1.0, 1.0)) -> float:
    """Integral of ``exp(Q / temperature)`` of a plane over a strip, by the trapezoidal rule of 301 x 301 points."""
    x, y = torch.linspace(*first, 301, dtype=F64), torch.linspace(-1.0, 1.0, 301, dtype=F64)
    value, _ = bandit.value_and_gradient(torch.cartesian_prod(x, y))
    density = (value / temperature).exp().reshape(301, 301)
    return float(torch.trapezoid(torch.trapezoid(density, y), x))


@at_temperature_one
def test_the_gradient_is_that_of_autograd(bandit: Bandit) -> None:
    actions = (2.0 * uniform(50, 3, bandit.action_dim, seed=1) - 1.0).requires_grad_()
    value, gradient = bandit.value_and_gradient(actions)
    (expected,) = torch.autograd.grad(value.sum() + 0.0 * actions.sum(), actions)
    assert value.shape == (50, 3)
    torch.testing.assert_close(gradient, expected)


@each_value
@on_every_bandit
@at_some_temperatures
def test_samples_lie_in_the_box_and_follow_the_marginals_of_scipy(bandit: Bandit, temperature: float) -> None:
    """Kolmogorov and Smirnov's statistic of 1500 samples, whose 99.99 % quantile is 0.057."""
    samples = bandit.sample(uniform(1500, bandit.action_dim, seed=2), temperature)
    assert samples.abs().max() <= 1.0
    grid = torch.linspace(-1.0, 1.0, 301, dtype=F64)
    for d in range(bandit.action_dim):
        if isinstance(bandit, ProductBandit):
            density = bandit.value_and_gradient(grid[:, None].expand(-1, bandit.action_dim))[0] / bandit.action_dim
            density = (density / temperature).exp()
        else:
            pairs = torch.cartesian_prod(grid, grid)
            joint = (bandit.value_and_gradient(pairs)[0] / temperature).exp().reshape(301, 301)
            density = torch.trapezoid(joint, grid, dim=1 - d)
        below = torch.cumulative_trapezoid(density, grid)
        cdf = np.concatenate([[0.0], (below / below[-1]).numpy()])
        found = stats.kstest(samples[:, d].numpy(), lambda x, cdf=cdf: np.interp(x, grid.numpy(), cdf))
        assert found.statistic < 0.057


@each_value
@pytest.mark.parametrize("bandit", PRODUCTS, ids=repr)
@at_some_temperatures
def test_samples_of_products_are_quantiles_to_nine_digits(bandit: ProductBandit, temperature: float) -> None:
    levels = torch.tensor([1e-6, 0.01, 0.2, 0.5, 0.77, 0.999], dtype=F64)
    actions = bandit.sample(levels[:, None].expand(-1, bandit.action_dim), temperature)
    assert (actions == actions[:, :1]).all()

    def density(a: float) -> float:
        return math.exp(bandit.coordinate_value(torch.tensor(a, dtype=F64))[0].item() / temperature)

    kinks = [0.0, 0.5, -0.5]
    whole = integrate.quad(density, -1.0, 1.0, epsabs=1e-13, epsrel=1e-12, limit=200, points=kinks)[0]
    for level, action in zip(levels.tolist(), actions[:, 0].tolist(), strict=True):
        below = integrate.quad(density, -1.0, action, epsabs=1e-13, epsrel=1e-12, limit=200)[0]
        assert below / whole == pytest.approx(level, abs=2e-9)


def test_quantiles_at_the_edges_of_panels_are_exact_to_rounding() -> None:
    """Levels that round to either side of an edge, of densities ``exp(slope * a)``."""
    panels, slope = 8, torch.linspace(-0.3, 0.3, 41, dtype=F64)[:, None]
    edges = torch.linspace(-1.0, 1.0, panels + 1, dtype=F64)
    levels = torch.where(slope == 0.0, (edges + 1.0) / 2.0, (slope * (edges + 1.0)).expm1() / (2.0 * slope).expm1())
    nodes, _ = panel_nodes(panels)
    log_density = (slope[:, :, None] * nodes).repeat_interleave(panels + 1, 0)
    found = quantiles(log_density, levels.flatten()).reshape(levels.shape)
    torch.testing.assert_close(found, edges.expand_as(found), rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("bandit", PLANAR, ids=repr)
def test_samples_of_planes_are_conditional_quantiles(bandit: PlanarBandit) -> None:
    levels = uniform(8, 2, seed=3)
    samples = bandit.sample(levels)
    whole = mass(bandit, 1.0)
    y = torch.linspace(-1.0, 1.0, 8001, dtype=F64)
    for (u, v), (a, b) in zip(levels.tolist(), samples.tolist(), strict=True):
        assert mass(bandit, 1.0, (-1.0, a)) / whole == pytest.approx(u, abs=2e-4)
        row = bandit.value_and_gradient(torch.stack([torch.full_like(y, a), y], -1))[0].exp()
        assert torch.trapezoid(row[y <= b], y[y <= b]) / torch.trapezoid(row, y) == pytest.approx(v, abs=3e-3)


@each_value
@pytest.mark.parametrize("bandit", PLANAR, ids=repr)
@at_some_temperatures
def test_densities_of_planes_are_normalised(bandit: PlanarBandit, temperature: float) -> None:
    assert bandit.log_normaliser(temperature) == pytest.approx(math.log(mass(bandit, temperature)), abs=1e-4)


def gaussian_mass(mean: float, scale: float) -> float:
    """Mass of ``exp(-(a - mean)^2 / (2 scale^2))`` on [-1, 1]."""
    whole = math.sqrt(2.0 * math.pi) * scale
    return whole * (stats.norm.cdf((1.0 - mean) / scale) - stats.norm.cdf((-1.0 - mean) / scale))


@at_some_temperatures
def test_normalisers_are_the_closed_forms(temperature: float) -> None:
    assert Flat(5).log_normaliser(temperature) == pytest.approx(5 * math.log(2.0), abs=1e-12)
    quadratic = Quadratic(3, centre=0.8, scale=0.4)
    expected = 3.0 * math.log(gaussian_mass(0.8, 0.4 * temperature**0.5))
    assert quadratic.log_normaliser(temperature) == pytest.approx(expected, abs=1e-9)


def test_normalisers_of_mixtures_are_the_closed_forms() -> None:
    one = 2.0 * gaussian_mass(0.5, 0.15)
    assert Bimodal(4).log_normaliser() == pytest.approx(4.0 * math.log(one), abs=1e-9)
    assert FourModes(weights=(0.7, 0.1, 0.4, 0.8)).log_normaliser() == pytest.approx(
        math.log(2.0 * (one / 2.0) ** 2), abs=1e-9
    )


def test_four_equal_modes_are_the_bimodal_bandit_in_the_plane() -> None:
    actions = 2.0 * uniform(100, 2, seed=4) - 1.0
    four, product = FourModes().value_and_gradient(actions), Bimodal(2).value_and_gradient(actions)
    torch.testing.assert_close(four[0] - math.log(0.25), product[0])
    torch.testing.assert_close(four[1], product[1])
    levels = uniform(100, 2, seed=5)
    torch.testing.assert_close(FourModes().sample(levels), Bimodal(2).sample(levels), atol=1e-8, rtol=0.0)


def test_modes_are_counted_with_their_weights() -> None:
    weights = (0.1, 0.2, 0.3, 0.4)
    shares = FourModes(weights=weights).mode_shares(FourModes(weights=weights).sample(uniform(4000, 2, seed=6)))
    torch.testing.assert_close(shares, torch.tensor(weights, dtype=F64), atol=0.03, rtol=0.0)
    bandit = Bimodal(3)
    corners = 0.5 * torch.tensor([[-1.0, -1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])
    assert bandit.mode_of(corners).tolist() == [0, 1, 4, 7]
    assert bandit.mode_shares(bandit.sample(uniform(20000, 3, seed=7))).tolist() == pytest.approx(
        [0.125] * 8, abs=0.012
    )


def test_modes_of_many_dimensions_are_counted_by_their_first_sixteen_signs() -> None:
    bandit = Bimodal(38)
    actions = torch.full((3, 38), -0.5)
    actions[1, 15], actions[2, 16] = 0.5, 0.5
    assert bandit.mode_of(actions).tolist() == [0, 2**15, 0]
    assert bandit.mode_shares(actions).shape == (bandit.num_modes,) == (2**16,)


def test_moons_are_told_apart_and_mirror_each_other() -> None:
    bandit = TwoMoonsEnergy()
    upper = torch.tensor([[-0.25, 0.375], [-0.7, 0.0], [0.2, 0.0]], dtype=F64)
    assert bandit.mode_of(upper).tolist() == [0, 0, 0]
    assert bandit.mode_of(-upper).tolist() == [1, 1, 1]
    torch.testing.assert_close(bandit.value_and_gradient(upper)[0], bandit.value_and_gradient(-upper)[0])
    shares = bandit.mode_shares(bandit.sample(uniform(2000, 2, seed=8)))
    torch.testing.assert_close(shares, torch.full((2,), 0.5, dtype=F64), atol=0.045, rtol=0.0)


@on_every_bandit
def test_the_density_of_samples_averages_to_minus_their_entropy(bandit: Bandit) -> None:
    """The mean of p over uniform points in the box is one over its volume: density and box fit each other."""
    points = 2.0 * uniform(50_000, bandit.action_dim, seed=9) - 1.0
    density = bandit.log_prob(points).exp() * 2.0**bandit.action_dim
    assert density.mean().item() == pytest.approx(1.0, abs=5.0 * density.std().item() / len(points) ** 0.5 + 1e-9)
    assert bandit.log_prob(1.01 * torch.ones(1, bandit.action_dim)).item() == -math.inf


@pytest.mark.parametrize("bandit", [bandit for bandit in BANDITS if bandit.action_dim > 1], ids=repr)
def test_the_density_of_the_first_two_entries_is_normalised_and_that_of_samples(bandit: Bandit) -> None:
    line = torch.linspace(-1.0, 1.0, 401, dtype=F64)
    density = bandit.plane_log_prob(torch.cartesian_prod(line, line), 0.7).exp().reshape(401, 401)
    assert torch.trapezoid(torch.trapezoid(density, line), line).item() == pytest.approx(1.0, abs=1e-3)
    inside = torch.trapezoid(torch.trapezoid(density[:261, 180:], line[180:]), line[:261])
    samples = bandit.sample(uniform(3000, bandit.action_dim, seed=13), 0.7)
    found = ((samples[:, 0] < line[260]) & (samples[:, 1] > line[180])).double().mean()
    assert found.item() == pytest.approx(inside.item(), abs=0.04)


def test_one_action_spans_no_plane() -> None:
    with pytest.raises(ValueError, match="at least two actions"):
        Bimodal(1).plane_log_prob(torch.zeros(1, 2))


@on_every_bandit
def test_means_on_a_grid_are_those_of_samples(bandit: Bandit) -> None:
    """The law tilted by a Gaussian weight, against samples that are weighted one by one."""
    grid = torch.linspace(-1.0, 1.0, 301, dtype=F64).expand(2, bandit.action_dim, -1)
    centre = torch.tensor([-0.2, 0.6], dtype=F64)
    weight = -((grid - centre[:, None, None]) ** 2) / (2.0 * 0.5**2)
    ends = torch.zeros(301, dtype=F64)
    ends[[0, -1]] = math.log(0.5)  # of the trapezoidal rule
    found = bandit.grid_mean(grid, weight + ends, grid**3 + grid, 0.7)
    samples = bandit.sample(uniform(5000, bandit.action_dim, seed=10), 0.7)
    for row, middle in zip(found, centre, strict=True):
        share = torch.softmax((-((samples - middle) ** 2) / (2.0 * 0.5**2)).sum(-1), 0)
        values = samples**3 + samples
        mean = share @ values
        error = (share.square() @ (values - mean).square()).sqrt()
        assert ((row - mean).abs() < 5.0 * error).all()


def test_single_precision_noise_gives_single_precision_samples() -> None:
    levels = uniform(10, 2, seed=11, dtype=torch.float32)
    single, double = FourModes().sample(levels), FourModes().sample(levels.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, atol=1e-6, rtol=0.0)


def test_levels_at_the_ends_stay_in_the_box() -> None:
    for bandit in (Flat(2), Bimodal(2), TwoMoonsEnergy()):
        ends = bandit.sample(torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=F64))
        assert torch.isfinite(ends).all()
        assert ends.abs().max() <= 1.0


@one_test
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bimodal(0), "at least 1, got 0"),
        (lambda: Bimodal(mode=1.0), r"mode must lie in \(0, 1\)"),
        (lambda: Bimodal(scale=0.0), "scale must be positive"),
        (lambda: Flat(0), "at least 1, got 0"),
        (lambda: Quadratic(0), "at least 1, got 0"),
        (lambda: Quadratic(centre=1.5), r"centre must lie in \[-1, 1\]"),
        (lambda: FourModes(scale=-1.0), "scale must be positive"),
        (lambda: FourModes(weights=(1.0, 0.0, 1.0, 1.0)), "positive weights"),
        (lambda: TwoMoonsEnergy(radius=0.9), r"radius must lie in \(0, 0\.6\]"),
        (lambda: FourModes().sample(uniform(3, 2, seed=0), 1e-3), "temperature of at least"),
        (lambda: Bimodal().log_normaliser(0.0), "temperature must be positive, got 0.0"),
        (lambda: Bimodal().sample(uniform(3, 2, seed=0)), r"\(3, 6\), got \(3, 2\)"),
        (lambda: Flat().value_and_gradient(uniform(3, 2, seed=0)), r"\(\.\.\., 6\), got \(3, 2\)"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(make, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def chain(bandit: Bandit, steps: int) -> Tensor:
    """Metropolis random walks, an independent way to samples."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(2000, bandit.action_dim, dtype=F64)
    log_p = bandit.value_and_gradient(x)[0]
    for _ in range(steps):
        new = x + 0.4 * torch.randn(x.shape, generator=generator, dtype=F64)
        log_new = bandit.value_and_gradient(new)[0].masked_fill((new.abs() > 1.0).any(-1), -math.inf)
        taken = torch.rand(len(x), generator=generator, dtype=F64).log() < log_new - log_p
        x, log_p = torch.where(taken[:, None], new, x), torch.where(taken, log_new, log_p)
    return x


@pytest.mark.parametrize("bandit", PLANAR, ids=repr)
def test_second_moments_agree_with_a_markov_chain(bandit: PlanarBandit) -> None:
    """The product of the entries knows of their dependence, which marginals do not."""
    here, there = bandit.sample(uniform(4000, 2, seed=12)), chain(bandit, 300)
    for moment in (lambda x: x[:, 0] * x[:, 1], lambda x: x[:, 0].square() * x[:, 1]):
        a, b = moment(here), moment(there)
        error = (a.var() / len(a) + b.var() / len(b)).sqrt()
        assert (a.mean() - b.mean()).abs() < 4.5 * error
