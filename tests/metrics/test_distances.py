import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.metrics import energy_distance, energy_score, marginal_energy_distance
from tests.combinations import one_test
from tests.oracles import normal, stratified_normal


def by_pairs(x: Tensor, y: Tensor) -> float:
    """The definition, one pair at a time."""

    def mean_distance(one: Tensor, other: Tensor, same: bool) -> float:
        pairs = [(i, j) for i in range(len(one)) for j in range(len(other)) if not (same and i == j)]
        return sum((one[i] - other[j]).norm().item() for i, j in pairs) / len(pairs)

    return 2.0 * mean_distance(x, y, False) - mean_distance(x, x, True) - mean_distance(y, y, True)


def mean_magnitude(mean: float, scale: float) -> float:
    """E|X| for a normal X."""
    return scale * math.sqrt(2.0 / math.pi) * math.exp(-0.5 * (mean / scale) ** 2) + mean * math.erf(
        mean / (scale * math.sqrt(2.0))
    )


@pytest.mark.parametrize(("n", "m", "dims"), [(2, 2, 2), (3, 3, 3), (2, 7, 1), (30, 40, 2)])
def test_the_distance_is_that_of_its_definition(n: int, m: int, dims: int) -> None:
    x, y = normal(n, dims, seed=1), 1.5 * normal(m, dims, seed=2) + 0.3
    assert energy_distance(x, y).shape == ()
    assert energy_distance(x, y).item() == pytest.approx(by_pairs(x, y), rel=1e-9)


def test_the_marginal_energy_distance_is_the_mean_of_that_of_each_dimension() -> None:
    x, y = normal(7, 3, seed=1), 0.5 * normal(5, 3, seed=2) + 0.4
    each = torch.stack([energy_distance(x[:, d : d + 1], y[:, d : d + 1]) for d in range(3)])
    torch.testing.assert_close(marginal_energy_distance(x, y), each.mean(), rtol=1e-12, atol=1e-12)
    assert (each.std() > 0.01).item()
    torch.testing.assert_close(marginal_energy_distance(x[:, :1], y[:, :1]), each[0], rtol=1e-12, atol=1e-12)
    moved = marginal_energy_distance(x.float() + 100.0, y.float() + 100.0)
    assert moved.dtype == torch.float32
    assert moved.item() == pytest.approx(each.mean().item(), abs=1e-4)
    with pytest.raises(ValueError, match="at least 2, got"):
        marginal_energy_distance(x[:1], y)


def test_two_pairs_of_points_on_the_line_have_the_distance_computed_by_hand() -> None:
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    assert energy_distance(x, y).item() == pytest.approx(2.0 * (1 + 5 + 1 + 3) / 4 - 2.0 - 4.0)


@pytest.mark.parametrize(("mean", "scale"), [(1.0, 1.0), (0.0, 2.0), (-2.0, 0.5)])
def test_two_normals_on_the_line_have_the_closed_form(mean: float, scale: float) -> None:
    # Quantiles in place of draws: all that is left is the error of a midpoint rule.
    x = stratified_normal(2000)[:, None]
    exact = 2.0 * mean_magnitude(mean, math.hypot(1.0, scale)) - (1.0 + scale) * 2.0 / math.sqrt(math.pi)
    assert energy_distance(x, mean + scale * x).item() == pytest.approx(exact, abs=3e-3)


def test_equal_laws_have_a_distance_of_zero_on_average() -> None:
    draws = normal(4000, 2, 4, 2, seed=1)
    distances = torch.stack([energy_distance(x, y) for x, y in draws])
    standard_error = distances.std() / math.sqrt(len(distances))
    assert standard_error < 0.02
    assert distances.mean().abs() < 4.0 * standard_error
    assert distances.amin() < 0.0


def test_the_distance_is_symmetric_and_moves_with_nothing_but_scale() -> None:
    x, y = normal(20, 3, seed=1), normal(15, 3, seed=2) + 0.5
    distance = energy_distance(x, y)
    torch.testing.assert_close(energy_distance(y, x), distance)
    torch.testing.assert_close(energy_distance(3.0 * x, 3.0 * y), 3.0 * distance)
    rotation, _ = torch.linalg.qr(normal(3, 3, seed=3))
    torch.testing.assert_close(energy_distance(x @ rotation, y @ rotation), distance)


@pytest.mark.parametrize("size", [20, 200])
def test_a_common_offset_does_not_blur_the_distance_in_single_precision(size: int) -> None:
    x, y = normal(size, 2, seed=1), normal(size, 2, seed=2) + 1.0
    offset = torch.tensor([1000.0, -500.0])
    moved = energy_distance(x.float() + offset, y.float() + offset)
    assert moved.item() == pytest.approx(energy_distance(x, y).item(), abs=1e-3)


@one_test
@pytest.mark.parametrize(
    ("x", "y"), [((1, 2), (5, 2)), ((5, 2), (1, 2)), ((5, 2), (5, 3)), ((5,), (5,)), ((2, 5, 2), (2, 5, 2))]
)
def test_samples_that_cannot_be_compared_are_refused_with_both_shapes_named(
    x: tuple[int, ...], y: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError) as caught:
        energy_distance(torch.zeros(x), torch.zeros(y))
    assert str(x) in str(caught.value)
    assert str(y) in str(caught.value)


@pytest.mark.parametrize("observed", [-1.5, 0.0, 0.7])
def test_a_normal_prediction_has_the_score_of_the_closed_form(observed: float) -> None:
    samples = stratified_normal(2000)[:, None]
    exact = mean_magnitude(observed, 1.0) - 1.0 / math.sqrt(math.pi)
    assert energy_score(samples, torch.tensor([observed]).double()).item() == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize(("n", "m", "dims"), [(2, 2, 2), (2, 7, 1), (30, 40, 3)])
def test_twice_the_excess_of_the_score_over_that_of_the_truth_is_the_distance(n: int, m: int, dims: int) -> None:
    x, y = normal(n, dims, seed=1), 1.5 * normal(m, dims, seed=2) + 0.3
    scores = energy_score(x.expand(m, n, dims), y)
    assert scores.shape == (m,)
    others = torch.stack([torch.cat([y[:row], y[row + 1 :]]) for row in range(m)])
    of_truth = (others - y[:, None]).norm(dim=-1).mean() / 2.0
    assert float(2.0 * (scores.mean() - of_truth)) == pytest.approx(float(energy_distance(x, y)), rel=1e-9)


@one_test
@pytest.mark.parametrize(
    ("x", "y"), [((1, 2), (2,)), ((4, 2), (3,)), ((5, 4, 2), (4, 2)), ((4, 2), (5, 2)), ((4,), ())]
)
def test_predictions_that_do_not_fit_what_was_observed_are_refused(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        energy_score(torch.zeros(x), torch.zeros(y))
    assert f"got {x} and {y}" in str(caught.value)
