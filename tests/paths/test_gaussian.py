import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, GaussianPath, Schedule, gaussian_velocity
from tests.combinations import each_value
from tests.families import SCHEDULES
from tests.oracles import F64, normal, uniform


def odd_mean(x_1: Tensor, t: Tensor) -> Tensor:
    """A mean that is linear in neither the data nor the time."""
    return torch.sin(3.0 * t)[:, None] * x_1.square() + (t**3)[:, None] - x_1


def odd_scale(x_1: Tensor, t: Tensor) -> Tensor:
    """A scale that depends on the data and does not fall all the way."""
    return torch.exp(-t) * (1.5 + torch.cos(5.0 * t) * torch.tanh(x_1.sum(-1)))


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("batch", "dims"), [(1, 1), (3, 3), (5, 2)])
def test_affine_paths_are_the_special_case(schedule: Schedule, batch: int, dims: int) -> None:
    affine = AffinePath(schedule)
    gaussian = GaussianPath(lambda x_1, t: schedule.alpha(t)[:, None] * x_1, lambda x_1, t: schedule.sigma(t))
    t = 0.05 + 0.9 * uniform(batch, seed=1)
    z, x_1 = normal(batch, dims, seed=2), normal(batch, dims, seed=3)
    x_t = gaussian.sample(z, x_1, t)
    torch.testing.assert_close(x_t, affine.sample(z, x_1, t))
    expected = affine.conditional_velocity(z, x_1, t)
    torch.testing.assert_close(gaussian.conditional_velocity(x_t, x_1, t), expected, rtol=1e-10, atol=1e-10)


def test_points_of_an_odd_path_move_with_its_velocity() -> None:
    path, t, h = GaussianPath(odd_mean, odd_scale), torch.tensor([0.0, 0.2, 0.6, 1.0], dtype=F64), 1e-5
    z, x_1 = normal(4, 3, seed=1), normal(4, 3, seed=2)
    moved = (path.sample(z, x_1, t + h) - path.sample(z, x_1, t - h)) / (2.0 * h)
    torch.testing.assert_close(path.conditional_velocity(path.sample(z, x_1, t), x_1, t), moved, rtol=1e-7, atol=1e-7)


def test_the_density_of_an_odd_path_and_its_velocity_keep_the_mass() -> None:
    """The continuity equation of the conditional law, divided by its density."""
    path, x_1 = GaussianPath(odd_mean, odd_scale), normal(5, 2, seed=1)
    t = torch.linspace(0.1, 0.9, 5, dtype=F64, requires_grad=True)
    x = normal(5, 2, seed=2).requires_grad_()
    scale = odd_scale(x_1, t)
    log_density = -0.5 * (x - odd_mean(x_1, t)).square().sum(-1) / scale.square() - 2.0 * scale.log()
    growth, score = torch.autograd.grad(log_density.sum(), (t, x))
    velocity = path.conditional_velocity(x, x_1, t.detach())
    divergence = sum(torch.autograd.grad(velocity[:, d].sum(), x, retain_graph=True)[0][:, d] for d in range(2))
    balance = growth + (velocity.detach() * score).sum(-1) + divergence
    torch.testing.assert_close(balance, torch.zeros_like(balance), rtol=0, atol=1e-10)


def test_a_scale_per_dimension_stretches_each_on_its_own() -> None:
    x, mean, d_mean = normal(3, 3, seed=1), normal(3, 3, seed=2), normal(3, 3, seed=3)
    scale, d_scale = 0.5 + uniform(3, 3, seed=4), normal(3, 3, seed=5)
    together = gaussian_velocity(x, mean, scale, d_mean, d_scale)
    for d in range(3):
        alone = gaussian_velocity(x[:, d : d + 1], mean[:, d : d + 1], scale[:, d], d_mean[:, d : d + 1], d_scale[:, d])
        torch.testing.assert_close(together[:, d : d + 1], alone)


def test_shapes_that_would_broadcast_are_refused() -> None:
    x, scale = torch.zeros(4, 3), torch.ones(4)
    for other in (torch.zeros(4, 1), torch.zeros(3), torch.zeros(1, 3)):
        with pytest.raises(ValueError, match="equal shapes"):
            gaussian_velocity(x, other, scale, x, scale)
        with pytest.raises(ValueError, match="equal shapes"):
            gaussian_velocity(x, x, scale, other, scale)
    for other in (torch.ones(3), torch.ones(5), torch.ones(4, 3, 1)):
        with pytest.raises(ValueError, match="prefix"):
            gaussian_velocity(x, x, other, x, scale)
        with pytest.raises(ValueError, match="prefix"):
            gaussian_velocity(x, x, scale, x, other)
