"""The mean flow objective against flows whose average velocity is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from flowmatch_rl.objectives import MeanFlow, flow_matching_loss, mean_flow_target
from flowmatch_rl.paths import AffinePath, LinearSchedule, PathPoints, Schedule, UniformTime
from tests.combinations import each_value, one_test
from tests.families import SCHEDULES
from tests.oracles import F64, normal, uniform

RATES = torch.tensor([-1.3, 0.4, 2.0], dtype=F64)
MEAN, SCALE = 0.7, 0.4
"""The data of a path from a normal to a normal, on the line."""


def linear_average(x: Tensor, t: Tensor, duration: Tensor) -> Tensor:
    """Average velocity of ``dx/dt = rates x``, for durations above 0."""
    return x * torch.expm1(RATES * duration[:, None]) / duration[:, None]


def normal_law(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x_t between a standard normal and the data."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return (alpha * MEAN)[:, None], (alpha.square() * SCALE**2 + sigma.square()).sqrt()[:, None]


def normal_average(schedule: Schedule, x: Tensor, t: Tensor, duration: Tensor) -> Tensor:
    """Average velocity of the flow between two normals, which stretches about the mean, for durations above 0."""
    (mean, std), (mean_after, std_after) = normal_law(schedule, t), normal_law(schedule, t + duration)
    return (mean_after + std_after / std * (x - mean) - x) / duration[:, None]


def normal_means(schedule: Schedule, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior means of the two normals."""
    mean, std = normal_law(schedule, t)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    return sigma / std**2 * (x - mean), MEAN + alpha * SCALE**2 / std**2 * (x - mean)


def normal_velocity(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """Velocity of that flow."""
    return AffinePath(schedule).conditional_velocity(*normal_means(schedule, x, t), t)


class Network(nn.Module):
    """A small smooth network that knows durations and perhaps a condition."""

    def __init__(self, dims: int, condition_dim: int = 0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dims + 2 + condition_dim, 6, dtype=F64), nn.Linear(6, dims, dtype=F64)
        with torch.no_grad():
            for k, parameter in enumerate(self.parameters()):
                parameter.copy_(0.7 * normal(*parameter.shape, seed=k))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None) -> Tensor:
        assert duration is not None
        inputs = [x, t[:, None], duration[:, None], *([] if condition is None else [condition])]
        return self.second(torch.tanh(self.first(torch.cat(inputs, 1))))


def test_the_average_velocity_of_a_linear_flow_is_its_own_target() -> None:
    x, t, duration = normal(5, 3, seed=1), 0.4 * uniform(5, seed=2), 0.05 + 0.5 * uniform(5, seed=3)
    target = mean_flow_target(linear_average, x, RATES * x, t, duration)
    torch.testing.assert_close(target, linear_average(x, t, duration), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_average_velocity_along_every_path_is_its_own_target(schedule: Schedule) -> None:
    t, duration = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=F64), torch.tensor([0.85, 0.01, 0.3, 0.05], dtype=F64)
    mean, std = normal_law(schedule, t)
    x = mean + std * normal(4, 1, seed=1)

    def average(x: Tensor, t: Tensor, duration: Tensor) -> Tensor:
        return normal_average(schedule, x, t, duration)

    target = mean_flow_target(average, x, normal_velocity(schedule, x, t), t, duration)
    torch.testing.assert_close(target, average(x, t, duration), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_velocities_of_single_pairs_leave_the_average_velocity_the_minimum(schedule: Schedule) -> None:
    """Quadrature over all pairs of noise and data: no slope of the loss at the exact average velocity."""
    nodes = torch.linspace(-8.5, 8.5, 81, dtype=F64)
    mass = torch.softmax(-0.5 * nodes.square(), 0)
    x_0, z = (side.reshape(-1, 1) for side in torch.meshgrid(nodes, nodes, indexing="ij"))
    pairs, strength = (mass[:, None] * mass).flatten(), torch.zeros(2, dtype=F64, requires_grad=True)
    objective = MeanFlow(interval_fraction=1.0, time_distribution=UniformTime(), adaptive_power=0.0)

    def network(x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None) -> Tensor:
        assert duration is not None
        return normal_average(schedule, x, t, duration) + strength[0] * torch.sin(x) + strength[1]

    for ends in ([0.2, 0.7], [0.95, 0.1]):
        numbers = torch.tensor(ends, dtype=F64)[:, None].expand(2, len(pairs))
        points = objective.points(AffinePath(schedule), x_0, MEAN + SCALE * z, numbers)
        loss = objective.loss(network, AffinePath(schedule), points)
        (slope,) = torch.autograd.grad((pairs * loss).sum(), strength)
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_at_posterior_means_the_loss_of_the_average_velocity_vanishes(schedule: Schedule) -> None:
    path, objective = AffinePath(schedule), MeanFlow(interval_fraction=1.0, time_distribution=UniformTime())
    points = objective.points(path, normal(6, 1, seed=1), normal(6, 1, seed=2), uniform(2, 6, seed=3), 0.05)

    def network(x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None) -> Tensor:
        assert duration is not None
        return normal_average(schedule, x, t, duration)

    loss = objective.loss(network, path, points.with_pair(*normal_means(schedule, points.x_t, points.t)))
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-9)
    assert (objective.loss(network, path, points) > 1e-6).all()


def test_points_without_durations_are_refused() -> None:
    x, network = normal(4, 2, seed=1), Network(2)
    with pytest.raises(ValueError, match="durations, got None"):
        MeanFlow().loss(network, AffinePath(), PathPoints.between(AffinePath(), x, x, uniform(4, seed=2)))


def test_an_interval_of_no_length_has_the_velocity_for_its_target() -> None:
    network, x, v, t = Network(3), normal(4, 3, seed=1), normal(4, 3, seed=2), uniform(4, seed=3)
    target = mean_flow_target(lambda x, t, d: network(x, t, None, d), x, v, t, torch.zeros_like(t))
    torch.testing.assert_close(target, v, rtol=0, atol=0)


def test_the_derivative_is_total_with_the_end_of_the_interval_held_fixed() -> None:
    """Against a difference quotient along the flow line."""
    network, h = Network(2), 1e-6
    x, v, t, duration = (
        normal(3, 2, seed=1),
        normal(3, 2, seed=2),
        0.5 * uniform(3, seed=3),
        0.1 + 0.3 * uniform(3, seed=4),
    )

    def average(x: Tensor, t: Tensor, duration: Tensor) -> Tensor:
        return network(x, t, None, duration)

    with torch.no_grad():
        ahead, behind = average(x + h * v, t + h, duration - h), average(x - h * v, t - h, duration + h)
    expected = v + duration[:, None] * (ahead - behind) / (2.0 * h)
    torch.testing.assert_close(mean_flow_target(average, x, v, t, duration), expected, rtol=1e-8, atol=1e-8)


def test_points_and_times_that_share_their_memory_are_as_good_as_copies() -> None:
    network, v = Network(2), normal(3, 2, seed=2)
    shared = normal(1, 2, seed=1).expand(3, 2), v, uniform(1, seed=3).expand(3), uniform(1, seed=4).expand(3)
    one, other = (
        mean_flow_target(lambda x, t, d: network(x, t, None, d), *parts)
        for parts in (shared, [part.clone() for part in shared])
    )
    torch.testing.assert_close(one, other)


def test_the_target_carries_no_gradient() -> None:
    network, x, v = Network(2), normal(3, 2, seed=1).requires_grad_(), normal(3, 2, seed=2).requires_grad_()
    t, duration = torch.full((3,), 0.3, dtype=F64), torch.full((3,), 0.2, dtype=F64)
    assert not mean_flow_target(lambda x, t, d: network(x, t, None, d), x, v, t, duration).requires_grad


@each_value
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("batch", "share", "intervals"), [(1, 0.25, 1), (4, 0.1, 1), (7, 0.25, 2), (6, 0.5, 3), (5, 1.0, 5)]
)
def test_the_loss_is_that_of_the_intervals_and_of_the_velocity_of_the_rest(
    batch: int, share: float, intervals: int, power: float
) -> None:
    path, network, objective = AffinePath(LinearSchedule(0.1)), Network(3, 2), MeanFlow(share, UniformTime(), power)
    x_0, x_1, condition = normal(batch, 3, seed=1), normal(batch, 3, seed=2), normal(batch, 2, seed=3)
    numbers = uniform(2, batch, seed=4)
    loss = objective.loss(network, path, objective.points(path, x_0, x_1, numbers), condition)
    assert loss.shape == (batch,)
    for b in range(batch):
        row = slice(b, b + 1)
        first, last = sorted(numbers[:, b].tolist()) if b < intervals else (numbers[0, b].item(),) * 2
        t, duration = torch.tensor([first], dtype=F64), torch.tensor([last - first], dtype=F64)
        x_t, v = path.sample(x_0[row], x_1[row], t), path.conditional_velocity(x_0[row], x_1[row], t)

        def average(x: Tensor, t: Tensor, duration: Tensor) -> Tensor:
            return network(x, t, condition[row], duration)  # noqa: B023 (called at once)

        target = mean_flow_target(average, x_t, v, t, duration)
        error = (average(x_t, t, duration) - target).square().mean()
        torch.testing.assert_close(loss[b], error * (error + 1e-3) ** -power)


def test_where_no_interval_is_learned_the_loss_is_that_of_the_velocity() -> None:
    path, network, numbers = AffinePath(), Network(3), uniform(2, 9, seed=1)
    x_0, x_1 = normal(9, 3, seed=2), normal(9, 3, seed=3)
    objective = MeanFlow(1e-3, UniformTime(), 0.0)
    loss = objective.loss(network, path, objective.points(path, x_0, x_1, numbers, 0.02))
    points = PathPoints.between(path, x_0, x_1, 0.02 + 0.96 * numbers[0])
    expected = flow_matching_loss(lambda x, t, c: network(x, t, c, torch.zeros_like(t)), path, points)
    torch.testing.assert_close(loss[1:], expected[1:])
    assert not torch.allclose(loss[0], expected[0])


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_gradient_reaches_neither_the_targets_nor_the_adaptive_weights(power: float) -> None:
    path, network, numbers = AffinePath(), Network(2), uniform(2, 6, seed=1)
    x_0, x_1 = normal(6, 2, seed=2), normal(6, 2, seed=3)
    parameters = tuple(network.parameters())
    objective = MeanFlow(1.0, UniformTime(), power)
    loss = objective.loss(network, path, objective.points(path, x_0, x_1, numbers))
    found = torch.autograd.grad(loss.sum(), parameters)
    t, duration = numbers.amin(0), (numbers[0] - numbers[1]).abs()
    x_t, v = path.sample(x_0, x_1, t), path.conditional_velocity(x_0, x_1, t)
    target = mean_flow_target(lambda x, t, d: network(x, t, None, d), x_t, v, t, duration).detach()
    predicted = network(x_t, t, None, duration)
    weight = ((predicted - target).square().mean(-1).detach() + 1e-3) ** -power
    pull = weight[:, None] * (predicted - target).detach()  # the mean of two squares
    expected = torch.autograd.grad(predicted, parameters, pull)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("t_min", [0.0, 0.02])
def test_both_ends_of_every_interval_lie_within_the_margins(t_min: float) -> None:
    numbers = torch.tensor([[0.0, 1.0 - 1e-12, 0.3, 0.0, 1.0 - 1e-12], [1.0 - 1e-12, 0.0, 0.4, 0.5, 0.5]], dtype=F64)
    network, asked = Network(2), []

    def recording(x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None) -> Tensor:
        asked.append((t, duration))
        return network(x, t, condition, duration)

    x = normal(5, 2, seed=1)
    objective = MeanFlow(0.6, UniformTime())
    objective.loss(recording, AffinePath(), objective.points(AffinePath(), x, x, numbers, t_min))
    t, duration = asked[-1]
    width = 1.0 - 2.0 * t_min
    torch.testing.assert_close(t, t_min + width * torch.tensor([0.0, 0.0, 0.3, 0.0, 1.0], dtype=F64))
    torch.testing.assert_close(duration, width * torch.tensor([1.0, 1.0, 0.1, 0.0, 0.0], dtype=F64))


@one_test
@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda: MeanFlow(interval_fraction=0.0), "0.0"),
        (lambda: MeanFlow(interval_fraction=1.5), "1.5"),
        (lambda: MeanFlow(interval_fraction=math.nan), "nan"),
        (lambda: MeanFlow(adaptive_power=-0.5), "-0.5"),
        (lambda: MeanFlow(adaptive_power=math.nan), "nan"),
    ],
)
def test_a_number_out_of_range_is_named(build: object, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        build()
