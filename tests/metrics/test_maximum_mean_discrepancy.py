import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.metrics import maximum_mean_discrepancy
from tests.combinations import each_value, one_test
from tests.oracles import normal


def by_pairs(x: Tensor, y: Tensor, bandwidths: list[float]) -> float:
    """The definition, one pair at a time."""

    def mean_kernel(one: Tensor, other: Tensor, same: bool) -> float:
        squares = [
            (one[i] - other[j]).square().sum().item()
            for i in range(len(one))
            for j in range(len(other))
            if not (same and i == j)
        ]
        return sum(math.exp(-s / (2.0 * b**2)) for s in squares for b in bandwidths) / len(squares)

    return mean_kernel(x, x, True) + mean_kernel(y, y, True) - 2.0 * mean_kernel(x, y, False)


@each_value
@pytest.mark.parametrize(("n", "m", "dims"), [(2, 2, 2), (3, 3, 3), (2, 7, 1), (20, 30, 2)])
@pytest.mark.parametrize("bandwidths", [[1.0], [0.3, 2.0]], ids=str)
def test_the_discrepancy_is_that_of_its_definition(n: int, m: int, dims: int, bandwidths: list[float]) -> None:
    x, y = normal(n, dims, seed=1), 1.5 * normal(m, dims, seed=2) + 0.3
    found = maximum_mean_discrepancy(x, y, bandwidths)
    assert found.shape == ()
    assert found.item() == pytest.approx(by_pairs(x, y, bandwidths), rel=1e-9)


def test_the_default_bandwidths_are_multiples_of_the_median_distance() -> None:
    x, y = normal(11, 2, seed=1), normal(10, 2, seed=2) + 0.5
    pooled = torch.cat([x, y])
    pairs = [(pooled[i] - pooled[j]).norm().item() for i in range(21) for j in range(i)]
    median = sorted(pairs)[(len(pairs) - 1) // 2]
    expected = by_pairs(x, y, [multiple * median for multiple in (0.25, 0.5, 1.0, 2.0, 4.0)])
    assert maximum_mean_discrepancy(x, y).item() == pytest.approx(expected, rel=1e-9)


def test_two_normals_have_the_closed_form() -> None:
    # The mean of a Gaussian kernel between two normals is again Gaussian.
    mean, scale, width, dims = 0.8, 1.5, 0.7, 2

    def mean_kernel(variance: float, shift: float) -> float:
        total = width**2 + variance
        return (width**2 / total) ** (dims / 2) * math.exp(-dims * shift**2 / (2.0 * total))

    exact = mean_kernel(2.0, 0.0) + mean_kernel(2.0 * scale**2, 0.0) - 2.0 * mean_kernel(1.0 + scale**2, mean)
    draws = normal(300, 2, 40, dims, seed=1)
    found = torch.stack([maximum_mean_discrepancy(x, mean + scale * y, [width]) for x, y in draws])
    standard_error = found.std().item() / math.sqrt(len(found))
    assert standard_error < 0.03 * exact
    assert abs(found.mean().item() - exact) < 4.0 * standard_error


def test_equal_laws_have_a_discrepancy_of_zero_on_average() -> None:
    draws = normal(1500, 2, 6, 2, seed=2)
    found = torch.stack([maximum_mean_discrepancy(x, y, [0.5, 1.0]) for x, y in draws])
    standard_error = found.std() / math.sqrt(len(found))
    assert standard_error < 0.02
    assert found.mean().abs() < 4.0 * standard_error
    assert found.amin() < 0.0


def test_the_discrepancy_is_symmetric_and_depends_on_neither_order_nor_position_nor_unit() -> None:
    x, y = normal(20, 3, seed=1), normal(15, 3, seed=2) + 0.5
    found = maximum_mean_discrepancy(x, y)
    rotation, _ = torch.linalg.qr(normal(3, 3, seed=3))
    for one, other in [(y, x), (x.flip(0), y), (1e3 * x, 1e3 * y), (x @ rotation + 5.0, y @ rotation + 5.0)]:
        torch.testing.assert_close(maximum_mean_discrepancy(one, other), found)
    torch.testing.assert_close(maximum_mean_discrepancy(3.0 * x, 3.0 * y, [6.0]), maximum_mean_discrepancy(x, y, [2.0]))


def test_disjoint_samples_of_equal_points_are_as_far_as_can_be() -> None:
    x, y = torch.zeros(5, 2), torch.full((4, 2), 1e6)
    assert maximum_mean_discrepancy(x, y, [1.0, 2.0]).item() == pytest.approx(4.0)
    assert maximum_mean_discrepancy(x, x).item() == 0.0


def test_large_samples_of_single_precision_keep_their_digits() -> None:
    x, y = normal(1500, 2, seed=1), normal(1300, 2, seed=2)
    exact = maximum_mean_discrepancy(x, y, [0.5]).item()
    assert maximum_mean_discrepancy(x.float() + 500.0, y.float() + 500.0, [0.5]).item() == pytest.approx(
        exact, abs=2e-6
    )
    assert math.isfinite(maximum_mean_discrepancy(x.float(), y.float()).item())


@one_test
@pytest.mark.parametrize("bandwidths", [[], [0.0], [1.0, -2.0], [math.nan]], ids=str)
def test_bandwidths_that_are_not_positive_are_refused(bandwidths: list[float]) -> None:
    with pytest.raises(ValueError, match="positive bandwidths"):
        maximum_mean_discrepancy(normal(3, 2, seed=1), normal(3, 2, seed=2), bandwidths)


@one_test
@pytest.mark.parametrize(("x", "y"), [((1, 2), (5, 2)), ((5, 2), (1, 2)), ((5, 2), (5, 3)), ((5,), (5,))])
def test_samples_that_cannot_be_compared_are_refused_with_both_shapes_named(
    x: tuple[int, ...], y: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError) as caught:
        maximum_mean_discrepancy(torch.zeros(x), torch.zeros(y))
    assert "N and M at least 2" in str(caught.value)
    assert str(x) in str(caught.value)
    assert str(y) in str(caught.value)
