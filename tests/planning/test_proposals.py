import math

import pytest
import torch

from flowmatch_rl.planning import on_sphere, perturb
from tests.combinations import each_value
from tests.oracles import F64, normal


@each_value
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_centre_comes_first_and_the_others_are_as_far_as_their_noise(batch: tuple[int, ...], count: int) -> None:
    center, noise = normal(*batch, 3, seed=0), normal(count, 3, seed=1)
    candidates = perturb(center, noise, 0.25)
    assert candidates.shape == (*batch, 1 + count, 3)
    assert torch.equal(candidates[..., 0, :], center)
    steps = (candidates[..., 1:, :] - center[..., None, :]) / 0.25
    torch.testing.assert_close(steps, noise.expand(*batch, count, 3))


def test_a_single_policy_has_nothing_to_perturb() -> None:
    assert perturb(torch.zeros(5, 0), torch.zeros(2, 0), 1.0).shape == (5, 3, 0)


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_points_on_a_sphere_keep_their_direction_and_lose_their_length(dims: int) -> None:
    points = normal(4, 3, dims, seed=0) * 1e-20
    moved = on_sphere(points, 2.0)
    torch.testing.assert_close(moved.norm(dim=-1), torch.full((4, 3), 2.0, dtype=F64))
    torch.testing.assert_close(moved / 2.0, points / points.norm(dim=-1, keepdim=True))


def test_normal_noise_becomes_uniform_on_the_circle() -> None:
    points = on_sphere(normal(20_000, 2, seed=0), 1.0)
    angle = torch.atan2(points[:, 1], points[:, 0]).sort().values
    even = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000 * 2.0 * math.pi - math.pi
    assert (angle - even).abs().max() < 2.0 * math.pi * 1.95 / math.sqrt(20_000)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise of shape \(2, 3\), got \(2, 4\)"):
        perturb(torch.zeros(3), torch.zeros(2, 4), 1.0)
    with pytest.raises(ValueError, match=r"noise of shape"):
        perturb(torch.zeros(3), torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"scale must be at least 0, got -1\.0"):
        perturb(torch.zeros(3), torch.zeros(2, 3), -1.0)
    with pytest.raises(ValueError, match=r"radius must be positive, got 0\.0"):
        on_sphere(torch.ones(3), 0.0)
    with pytest.raises(ValueError, match=r"at least 1 dimension, got \(2, 0\)"):
        on_sphere(torch.ones(2, 0), 1.0)
