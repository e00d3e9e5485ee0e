"""Flows of a return's deviation from its mean, against Gaussians and mixtures with known posterior means."""

import itertools

import pytest
import torch
from torch import Tensor

from flowmatch_rl.objectives import flow_times, interpolated, return_flow_loss, transported
from tests.combinations import one_test
from tests.oracles import F64, normal

WIDTH, KNOTS = 4.0, 401


def gaussian_tables(std: float, num_steps: int, spread: float = 1.0) -> Tensor:
    """Posterior means (2 n - 1, G) of a Gaussian deviation: linear in z."""
    t = torch.tensor(flow_times(num_steps)[1:], dtype=F64)[:, None]
    slope = t * std**2 / ((1.0 - t) ** 2 * spread**2 + t**2 * std**2)
    return slope * torch.linspace(-WIDTH, WIDTH, KNOTS, dtype=F64)


def two_point_tables(place: float, num_steps: int) -> Tensor:
    """Posterior means of a deviation that is ``place`` or ``-place`` with equal probability."""
    t = torch.tensor(flow_times(num_steps)[1:], dtype=F64)[:, None]
    z = torch.linspace(-WIDTH, WIDTH, KNOTS, dtype=F64)
    return place * torch.tanh(z * t * place / (1.0 - t) ** 2)


def test_times_begin_at_zero_rise_and_hold_the_midpoints() -> None:
    times = flow_times(3)
    assert len(times) == 6
    assert times[0] == 0.0
    assert times == sorted(times)
    assert times[-1] < 1.0
    ends = [*times[::2], 1.0]
    assert times[1::2] == pytest.approx([(a + b) / 2.0 for a, b in itertools.pairwise(ends)])
    assert [1.0 - end for end in ends] == pytest.approx([1.0, 4.0 / 9.0, 1.0 / 9.0, 0.0])


def test_interpolation_is_exact_for_linear_functions_and_constant_beyond_the_knots() -> None:
    knots = torch.linspace(-2.0, 2.0, 5, dtype=F64)
    table = torch.stack([3.0 * knots + 1.0, knots.square()])
    z = torch.tensor([-9.0, -2.0, -0.3, 0.5, 2.0, 7.0], dtype=F64).expand(2, -1)
    line, square = interpolated(table, z, 2.0)
    torch.testing.assert_close(line, 3.0 * z[0].clamp(-2.0, 2.0) + 1.0)
    torch.testing.assert_close(square, torch.tensor([4.0, 4.0, 0.3, 0.5, 4.0, 4.0], dtype=F64))


@pytest.mark.parametrize("std", [0.1, 0.2, 0.5, 1.0, 1.8])
def test_the_flow_takes_noise_to_a_gaussian_of_the_stated_deviation(std) -> None:
    noise = torch.linspace(-1.5, 1.5, 31, dtype=F64)
    found = transported(gaussian_tables(std, 4), noise, WIDTH)
    torch.testing.assert_close(found, std * noise, rtol=0.05, atol=1e-9)
    finer = transported(gaussian_tables(std, 16), noise, WIDTH)
    torch.testing.assert_close(finer, std * noise, rtol=0.006, atol=1e-9)


def test_the_flow_takes_noise_to_two_points_by_its_sign() -> None:
    noise = torch.tensor([[-1.7, -0.4, 0.4, 1.7]], dtype=F64)
    found = transported(two_point_tables(1.2, 8)[None], noise, WIDTH)
    torch.testing.assert_close(found, 1.2 * noise.sign(), rtol=0.0, atol=0.02)


def test_the_loss_is_least_at_the_posterior_means() -> None:
    """On many samples its gradient vanishes there, and not at those of another distribution."""
    count = 200_000
    deviation, noise = 0.7 * normal(1, 1, count, seed=1), normal(1, 3, count, seed=2)

    def slopes(tables: Tensor) -> Tensor:
        tables = tables[None, None, :, ::40].clone().requires_grad_()  # knots at distances of 0.8: few enough
        (slope,) = torch.autograd.grad(return_flow_loss(tables, deviation, noise, WIDTH).sum(), tables)
        return slope.abs().max()

    assert slopes(gaussian_tables(0.7, 2)) < 2e-3
    assert slopes(gaussian_tables(0.9, 2)) > 1e-2


def test_the_loss_is_that_of_each_member_sample_time_and_deviation() -> None:
    tables, deviation, noise = normal(2, 3, 3, 5, seed=1), normal(2, 3, 4, seed=2), normal(3, 3, 4, seed=3)
    loss, times = return_flow_loss(tables, deviation, noise, WIDTH), flow_times(2)[1:]
    for b in range(3):
        errors = [
            interpolated(tables[m, b, k], ((1.0 - t) * noise[b, k, i] + t * deviation[m, b, i])[None], WIDTH)
            - deviation[m, b, i]
            for m in range(2)
            for k, t in enumerate(times)
            for i in range(4)
        ]
        torch.testing.assert_close(loss[b], torch.cat(errors).square().mean())


@one_test
@pytest.mark.parametrize(
    ("deviation", "noise"),
    [((2, 3, 4), (3, 3, 5)), ((2, 3, 4), (3, 2, 4)), ((1, 3, 4), (3, 3, 4)), ((2, 3), (3, 3, 4))],
)
def test_shapes_that_do_not_fit_are_refused(deviation, noise) -> None:
    with pytest.raises(ValueError, match="expected"):
        return_flow_loss(normal(2, 3, 3, 5, seed=1), normal(*deviation, seed=2), normal(*noise, seed=3), WIDTH)


def test_functions_of_other_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        interpolated(normal(2, 5, seed=1), normal(3, 4, seed=2), WIDTH)
