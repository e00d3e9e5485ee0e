"""Bandits whose coordinates depend on each other, against torch's distributions and quadrature."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from flowmatch_rl.testbeds import CorrelatedGaussians
from tests.combinations import one_test
from tests.families import DEPENDENT_BANDITS
from tests.oracles import F64, uniform

GRID = torch.zeros(1, 6, 3)

on_every_bandit = pytest.mark.parametrize("bandit", DEPENDENT_BANDITS, ids=repr)


def reference(bandit: CorrelatedGaussians) -> MixtureSameFamily:
    """The mixture, entry by entry."""
    size = bandit.dimensions
    means, covariances = torch.zeros(2, size, dtype=F64), torch.empty(2, size, size, dtype=F64)
    for j, sign in enumerate((1.0, -1.0)):
        means[j, 0] = means[j, 1] = sign * bandit.mode
        for a in range(size):
            for b in range(size):
                covariances[j, a, b] = bandit.scale**2 * (sign * bandit.correlation) ** abs(a - b)
    weights = torch.tensor([bandit.weight, 1.0 - bandit.weight], dtype=F64)
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))


def moments(samples: Tensor) -> Tensor:
    """Means, then second and some third moments, shape (N, M)."""
    second = (samples[:, :, None] * samples[:, None]).flatten(1)
    return torch.cat([samples, second, samples[:, :1] * second], dim=1)


@on_every_bandit
def test_the_value_is_the_log_density_of_the_mixture(bandit: CorrelatedGaussians) -> None:
    actions = 2.0 * uniform(40, bandit.action_dim, seed=1) - 1.0
    torch.testing.assert_close(bandit.value_and_gradient(actions)[0], reference(bandit).log_prob(actions))
    torch.testing.assert_close(bandit.log_prob(actions), reference(bandit).log_prob(actions))


@on_every_bandit
def test_samples_have_the_moments_of_the_mixture_and_lie_in_the_box(bandit: CorrelatedGaussians) -> None:
    torch.manual_seed(0)
    here = bandit.sample(uniform(20_000, bandit.action_dim, seed=2))
    there = reference(bandit).sample((20_000,))
    assert here.abs().max() < 1.0
    one, other = moments(here), moments(there)
    error = ((one.var(0) + other.var(0)) / len(here)).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() < 5.0 * error).all()
    shares = bandit.mode_shares(here)
    assert shares[0].item() == pytest.approx(bandit.weight, abs=0.05)


@on_every_bandit
def test_the_plane_of_the_first_two_entries_is_their_marginal(bandit: CorrelatedGaussians) -> None:
    line = torch.linspace(-1.0, 1.0, 301, dtype=F64)
    density = bandit.plane_log_prob(torch.cartesian_prod(line, line)).exp().reshape(301, 301)
    assert torch.trapezoid(torch.trapezoid(density, line), line).item() == pytest.approx(1.0, abs=1e-6)
    product = line[:, None] * line * density
    expected = bandit.mode**2 + (2.0 * bandit.weight - 1.0) * bandit.scale**2 * bandit.correlation
    assert torch.trapezoid(torch.trapezoid(product, line), line).item() == pytest.approx(expected, abs=1e-6)


def test_the_mass_beyond_the_box_is_below_one_in_a_million_per_coordinate() -> None:
    bandit = CorrelatedGaussians(mode=0.4, scale=0.12)
    assert math.erfc((1.0 - bandit.mode) / bandit.scale / 2.0**0.5) < 1e-6
    ends = bandit.sample(torch.tensor([[0.0] * 6, [1.0] * 6], dtype=F64))
    assert ends.isfinite().all()
    assert ends.abs().max() <= 1.0


@on_every_bandit
def test_length_is_the_narrowest_standard_deviation(bandit: CorrelatedGaussians) -> None:
    # Of a first-order chain the smallest eigenvalue of many coordinates tends to (1 - |c|) / (1 + |c|).
    place = torch.arange(bandit.action_dim, dtype=F64)
    correlation = abs(bandit.correlation) ** (place[:, None] - place).abs()
    least = torch.linalg.eigvalsh(correlation).min().item()
    assert (1.0 - abs(bandit.correlation)) / (1.0 + abs(bandit.correlation)) < least < 1.0
    assert bandit.length == pytest.approx(bandit.scale * least**0.5)


@one_test
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CorrelatedGaussians(1), "at least 2, got 1"),
        (lambda: CorrelatedGaussians(mode=0.5), "the box holds all mass"),
        (lambda: CorrelatedGaussians(correlation=1.0), r"correlation must lie in \(-1, 1\)"),
        (lambda: CorrelatedGaussians(weight=0.0), r"weight must lie in \(0, 1\)"),
        (lambda: CorrelatedGaussians().log_normaliser(0.5), "temperature 1 only, got 0.5"),
        (lambda: CorrelatedGaussians().sample(uniform(3, 6, seed=0), 2.0), "temperature 1 only, got 2.0"),
        (lambda: CorrelatedGaussians().grid_mean(GRID, GRID, GRID), "no means by quadrature"),
        (lambda: CorrelatedGaussians().value_and_gradient(uniform(3, 2, seed=0)), r"\(\.\.\., 6\), got \(3, 2\)"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(make, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
