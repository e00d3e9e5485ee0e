import math

import numpy as np
import ot
import pytest
import scipy.stats
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from flowmatch_rl.checks import RunError
from flowmatch_rl.metrics import (
    simplex,
    sliced_wasserstein_distance,
    squared_wasserstein_distance,
    wasserstein_distance,
)
from tests.combinations import each_value, one_test
from tests.oracles import normal

EXACT = [wasserstein_distance, squared_wasserstein_distance]
POWERS = [(wasserstein_distance, 1), (squared_wasserstein_distance, 2)]


def sliced(x: Tensor, y: Tensor) -> Tensor:
    """With 50 fixed directions."""
    return sliced_wasserstein_distance(x, y, normal(50, x.shape[1], seed=9))


def samples(n: int, m: int, dims: int) -> tuple[Tensor, Tensor]:
    return normal(n, dims, seed=1), 1.5 * normal(m, dims, seed=2) + 0.4


@each_value
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (3, 3), (20, 20), (20, 30), (17, 5)])
@pytest.mark.parametrize("dims", [1, 2, 5])
def test_the_sliced_distance_is_that_of_an_independent_library(n: int, m: int, dims: int) -> None:
    x, y = samples(n, m, dims)
    directions = normal(40, dims, seed=3)
    unit = (directions / directions.norm(dim=1, keepdim=True)).numpy()
    expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=unit.T, p=2)
    found = sliced_wasserstein_distance(x, y, directions)
    assert found.shape == ()
    assert found.item() == pytest.approx(float(expected), rel=1e-9)


def test_the_sliced_distance_of_a_translation_is_the_mean_square_of_its_projections() -> None:
    x, directions = normal(25, 3, seed=1), normal(4000, 3, seed=2)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    squares = (directions @ shift / directions.norm(dim=1)).square()
    found = sliced_wasserstein_distance(x, x + shift, directions)
    assert found.item() == pytest.approx(squares.mean().sqrt().item(), rel=1e-9)
    # Over all directions the squared projection averages to |shift|^2 / D.
    standard_error = squares.std().item() / math.sqrt(len(squares))
    assert abs(found.item() ** 2 - shift.square().sum().item() / 3.0) < 4.0 * standard_error


def test_unequal_sizes_agree_with_repeated_points() -> None:
    x, y = samples(6, 4, 2)
    repeated = x.repeat_interleave(2, dim=0), y.repeat_interleave(3, dim=0)
    for distance in (sliced, *EXACT):
        assert distance(x, y).item() == pytest.approx(distance(*repeated).item(), rel=1e-9)


@each_value
@pytest.mark.parametrize(("distance", "power"), POWERS)
@pytest.mark.parametrize("size", [1, 2, 15, 80])
def test_the_exact_distance_is_that_of_the_best_assignment(distance, power: int, size: int) -> None:
    x, y = samples(size, size, 3)
    cost = (x[:, None] - y).norm(dim=-1).pow(power).numpy()
    assert distance(x, y).item() == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=1e-9)


@pytest.mark.parametrize(("distance", "power"), POWERS)
def test_on_the_line_the_exact_distance_pairs_sorted_points(distance, power: int) -> None:
    x, y = samples(200, 200, 1)
    expected = (x.sort(0).values - y.sort(0).values).abs().pow(power).mean()
    assert distance(x, y).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 31), (1, 9)])
def test_on_the_line_the_distance_is_that_of_scipy(n: int, m: int) -> None:
    x, y = samples(n, m, 1)
    expected = scipy.stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert wasserstein_distance(x, y).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("distance", "power"), POWERS)
def test_a_translation_costs_its_length(distance, power: int) -> None:
    x = normal(60, 2, seed=1)
    assert distance(x, x + torch.tensor([3.0, 4.0])).item() == pytest.approx(5.0**power, rel=1e-9)


def test_the_squared_distance_of_normals_approaches_its_closed_form() -> None:
    # In one dimension W2^2 = (difference of means)^2 + (difference of standard deviations)^2.
    u = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)[:, None]
    assert squared_wasserstein_distance(u, 0.7 + 1.5 * u).item() == pytest.approx(0.49 + 0.25, abs=4e-3)
    assert sliced(u, 0.7 + 1.5 * u).item() ** 2 == pytest.approx(0.49 + 0.25, abs=4e-3)


@each_value
@pytest.mark.parametrize("distance", [sliced, *EXACT])
@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 13)])
def test_distances_are_symmetric_and_depend_on_neither_order_nor_position(distance, n: int, m: int) -> None:
    x, y = samples(n, m, 3)
    found = distance(x, y)
    assert found > 0.1
    for one, other in [(y, x), (x.flip(0), y), (x, y.roll(3, 0)), (x + 7.0, y + 7.0)]:
        torch.testing.assert_close(distance(one, other), found)
    assert distance(x, x.flip(0)).item() == pytest.approx(0.0, abs=1e-12)


@each_value
@pytest.mark.parametrize(("distance", "power"), [(sliced, 1), *POWERS])
@pytest.mark.parametrize("unit", [1e-9, 1e-3, 1e7])
def test_distances_carry_the_unit_of_the_data(distance, power: int, unit: float) -> None:
    x, y = samples(20, 20, 2)
    assert distance(unit * x, unit * y).item() == pytest.approx(unit**power * distance(x, y).item(), rel=1e-9)


@pytest.mark.parametrize("distance", EXACT)
def test_exact_distances_do_not_depend_on_the_axes(distance) -> None:
    x, y = samples(20, 20, 3)
    rotation, _ = torch.linalg.qr(normal(3, 3, seed=3))
    torch.testing.assert_close(distance(x @ rotation, y @ rotation), distance(x, y))


@pytest.mark.parametrize("distance", [sliced, *EXACT])
def test_single_precision_far_from_the_origin_keeps_its_digits(distance) -> None:
    x, y = samples(50, 40, 2)
    found = distance(x.float() + 1000.0, y.float() + 1000.0)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(distance(x, y).item(), rel=1e-3)


def test_the_slices_bound_the_whole_from_below() -> None:
    x, y = samples(60, 60, 2)
    assert sliced(x, y).square() <= squared_wasserstein_distance(x, y)
    assert wasserstein_distance(x, y).square() <= squared_wasserstein_distance(x, y)


def test_the_length_of_a_direction_does_not_matter() -> None:
    x, y = samples(20, 20, 2)
    directions = normal(30, 2, seed=3)
    stretched = directions * torch.linspace(0.1, 9.0, 30)[:, None]
    torch.testing.assert_close(
        sliced_wasserstein_distance(x, y, stretched), sliced_wasserstein_distance(x, y, directions)
    )


@pytest.mark.parametrize("distance", EXACT)
def test_a_simplex_that_is_cut_short_is_an_error_and_not_a_warning(distance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplex, "MAX_ITERATIONS", 3)
    with pytest.raises(RunError, match="between 30 and 25 points failed: numItermax"):
        distance(*samples(30, 25, 2))


@one_test
@pytest.mark.parametrize("distance", EXACT)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_refused(distance, bad: float) -> None:
    x, y = samples(5, 5, 2)
    x[2, 1] = bad
    for one, other in [(x, y), (y, x)]:
        with pytest.raises(ValueError, match="finite"):
            distance(one, other)


@one_test
@pytest.mark.parametrize("distance", [sliced, *EXACT])
@pytest.mark.parametrize(("x", "y"), [((0, 2), (5, 2)), ((5, 2), (0, 2)), ((5, 2), (5, 3)), ((2, 5, 2), (2, 5, 2))])
def test_samples_that_cannot_be_compared_are_refused_with_both_shapes_named(
    distance, x: tuple[int, ...], y: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError) as caught:
        distance(torch.zeros(x), torch.zeros(y))
    assert "N and M at least 1" in str(caught.value)
    assert str(x) in str(caught.value)
    assert str(y) in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 2), (4, 3), (2,)])
def test_directions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        sliced_wasserstein_distance(torch.zeros(5, 2), torch.zeros(5, 2), torch.ones(shape))
    assert "(K, 2)" in str(caught.value)
    assert str(shape) in str(caught.value)


def test_the_oracle_has_the_scale_it_should() -> None:
    # The independent library itself, on a case done by hand: points 0 and 2 against 1 and 5.
    x, y = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])
    assert ot.sliced_wasserstein_distance(x, y, projections=np.ones((1, 1)), p=2) == pytest.approx(math.sqrt(5.0))
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    assert sliced(*tensors).item() == pytest.approx(math.sqrt(5.0))
    assert wasserstein_distance(*tensors).item() == pytest.approx(2.0)
    assert squared_wasserstein_distance(*tensors).item() == pytest.approx(5.0)
