"""How much one quantity depends on another, against scipy and closed forms."""

import pytest
import scipy.stats
import torch

from flowmatch_rl.metrics import correlation, variance_of_means


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("number", [3, 4, 50])
@pytest.mark.parametrize("noise", [0.0, 1.0, 30.0])
def test_the_correlation_is_that_of_scipy_in_any_units(number: int, noise: float) -> None:
    x, y = normal(number), normal(number) + noise * normal(number, seed=1)
    found = correlation(x, y)
    assert found is not None
    assert found.item() == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=1e-12)
    turned = correlation(5.0 - 1e-3 * x.float(), 1e6 * y.float())
    assert turned is not None
    assert turned.item() == pytest.approx(-found.item(), abs=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_quantities_that_do_not_differ_have_no_correlation(scale: float) -> None:
    """They differ by the rounding of single precision, which follows what it will."""
    x = normal(20).float()
    equal = scale * (1.0 + 1e-7 * x)
    assert correlation(scale * x, equal) is None
    assert correlation(equal, scale * x) is None
    assert correlation(torch.zeros(20), x) is None
    assert correlation(scale * x, scale * (1.0 + 1e-3 * x)) is not None


def test_two_points_always_lie_on_a_line() -> None:
    assert correlation(normal(2), normal(2, seed=1)) is None
    assert correlation(torch.empty(0), torch.empty(0)) is None


@pytest.mark.parametrize("shapes", [((4,), (4, 1)), ((4,), (3,)), ((4, 1), (4,))])
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"expected [xy] of shape"):
        correlation(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("shared", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("num_groups", "number"), [(2, 2), (3, 5), (8, 2)])
def test_the_variance_of_means_has_no_bias_however_much_noise_groups_share(
    num_groups: int, number: int, shared: float
) -> None:
    """Expected values of variance .25 under noise of variance 4, of which groups share a fraction."""
    size = 20_000
    expected = 0.5 * normal(size, num_groups, 1, 2)
    common, own = normal(size, 1, number, 2, seed=1), normal(size, num_groups, number, 2, seed=2)
    noise = 2.0 * (shared**0.5 * common + (1.0 - shared) ** 0.5 * own)
    found = variance_of_means(expected + noise)
    assert found.shape == (size, 2)
    assert bool(((found.mean(0) - 0.25).abs() < 4.5 * found.std(0) / size**0.5).all())


def test_without_interaction_of_group_and_noise_the_variance_is_that_of_the_groups() -> None:
    expected = normal(7, 5, 1, 3)
    found = variance_of_means(expected + 1e3 * normal(7, 1, 4, 3, seed=1))
    torch.testing.assert_close(found, expected.squeeze(-2).var(1), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("shape", [(5, 1, 4, 2), (5, 4, 1, 2), (4, 2)])
def test_groups_that_have_no_variance_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="M and K at least 2"):
        variance_of_means(torch.zeros(shape))
