import pytest
import torch
from torch import Tensor, nn

from flowmatch_rl.estimators import PosteriorMeanEstimator, boltzmann_density
from flowmatch_rl.objectives import CappedSignalWeight, PowerWeight, TimeWeight, UniformWeight, flow_matching_loss
from flowmatch_rl.paths import AffinePath, LinearSchedule, Schedule, TanhSquash
from flowmatch_rl.solvers import Midpoint
from tests.combinations import one_test
from tests.families import SCHEDULES, TIME_WEIGHTS
from tests.oracles import (
    EVEN,
    F64,
    NORMAL,
    ONE_D,
    TWO_D,
    at,
    normal,
    on_quadrature,
    quadrature_nodes,
    stratified_normal,
)

PATH = AffinePath()


@one_test
@pytest.mark.parametrize("shape", [(), (1,), (4,)])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("weight", TIME_WEIGHTS, ids=repr)
def test_a_time_weight_is_finite_and_not_negative_on_the_closed_interval(
    weight: TimeWeight, schedule: Schedule, shape: tuple[int, ...]
) -> None:
    for t in (0.0, 0.01, 0.5, 0.99, 1.0):
        values = weight.weight(AffinePath(schedule), torch.full(shape, t))
        assert values.shape == shape
        assert values.isfinite().all()
        assert (values >= 0.0).all()


def test_the_time_weights_have_the_stated_values() -> None:
    t = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0], dtype=F64)
    torch.testing.assert_close(UniformWeight().weight(PATH, t), torch.ones_like(t))
    torch.testing.assert_close(PowerWeight(3.0).weight(PATH, t), t**3)
    torch.testing.assert_close(
        CappedSignalWeight().weight(PATH, t), torch.tensor([0.0, 0.0625, 1.0, 1.0, 1.0], dtype=F64)
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_target_is_the_marginal_velocity_of_the_density(schedule: Schedule) -> None:
    path, t = AffinePath(schedule), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64)
    x_t, nodes = normal(5, 1, seed=1), quadrature_nodes(5)
    density = on_quadrature(ONE_D.density, nodes)
    points = at(x_t, t)
    found = PosteriorMeanEstimator(nodes.shape[1]).estimate(path, NORMAL, density, points, nodes)
    target = points.with_pair(found.x_0, found.x_1).target(path, "velocity")
    x_0, x_1 = ONE_D.posterior_means(x_t, schedule.alpha(t), schedule.sigma(t))
    velocity = path.conditional_velocity(x_0, x_1, t)
    torch.testing.assert_close(target, velocity, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(path.convert(found.x_1, x_t, t, "data", "velocity"), target, rtol=1e-8, atol=1e-8)


def test_following_the_estimated_targets_carries_noise_to_the_density() -> None:
    """No network: the target itself is the field, with fresh noise at every evaluation."""
    estimator, calls = PosteriorMeanEstimator(400), iter(range(10_000))

    def velocity(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        z = normal(len(x), 400, 1, seed=next(calls))
        points = at(x, t.expand(len(x)))
        found = estimator.estimate(PATH, NORMAL, EVEN.density, points, z)
        return points.with_pair(found.x_0, found.x_1).target(PATH, "velocity")

    end = Midpoint(20).integrate(velocity, stratified_normal(500)[:, None], 0.005, 0.995)
    assert (end[:, 0].sort().values - EVEN.quantiles(500)).abs().mean() < 0.05


def test_the_target_carries_no_gradient_and_leaves_the_critic_alone() -> None:
    critic = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)).to(F64)
    actor = nn.Linear(3, 2).to(F64)

    def value_and_gradient(action: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            action = action.detach().requires_grad_()
            value = critic(action)[..., 0]
            (gradient,) = torch.autograd.grad(value.sum(), action)
        return value, gradient

    t, x_t, z = torch.tensor([0.2, 0.5, 0.8], dtype=F64), normal(3, 2, seed=1).requires_grad_(), normal(3, 6, 2, seed=2)
    density = boltzmann_density(value_and_gradient, 0.1, TanhSquash())
    points = at(x_t, t)
    with torch.no_grad():
        found = PosteriorMeanEstimator(6).estimate(PATH, NORMAL, density, points, z)
    pair = points.with_pair(found.x_0, found.x_1)
    for values in (
        pair.target(PATH, "velocity"),
        found.x_0,
        found.x_1,
        found.eta,
        found.effective_sample_size,
        found.log_density_spread,
    ):
        assert not values.requires_grad

    def velocity(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return actor(torch.cat([x, t[:, None]], dim=-1))

    flow_matching_loss(velocity, PATH, pair).mean().backward()
    assert all(p.grad is None for p in critic.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in actor.parameters())


def test_the_target_depends_on_the_gradient_of_the_value() -> None:
    t, x_t, z = torch.full((3,), 0.9, dtype=F64), normal(3, 2, seed=1), normal(3, 6, 2, seed=2)

    def without_score(x: Tensor) -> tuple[Tensor, Tensor]:
        log_density, score = TWO_D.density(x)
        return log_density, torch.zeros_like(score)

    one, other = (
        PosteriorMeanEstimator(6).estimate(PATH, NORMAL, density, at(x_t, t), z).x_1
        for density in (TWO_D.density, without_score)
    )
    assert (one - other).abs().amax() > 1e-2


@pytest.mark.parametrize(("batch", "dims"), [(1, 1), (3, 3), (5, 2)])
def test_the_regression_loss_is_the_mean_square_over_dimensions_per_sample(batch: int, dims: int) -> None:
    x_t, t, condition = (
        normal(batch, dims, seed=1),
        torch.linspace(0.1, 0.9, batch, dtype=F64),
        normal(batch, 4, seed=3),
    )
    points = at(x_t, t).with_pair(normal(batch, dims, seed=2), normal(batch, dims, seed=4))
    target = points.target(PATH, "velocity")
    asked = []

    def velocity(x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        asked.append((x, time, context))
        return 2.0 * x

    loss = flow_matching_loss(velocity, PATH, points, condition)
    assert loss.shape == (batch,)
    assert all(a is b for a, b in zip(asked[0], (x_t, t, condition), strict=True))
    for b in range(batch):
        expected = sum((2.0 * x_t[b, d] - target[b, d]) ** 2 for d in range(dims)) / dims
        torch.testing.assert_close(loss[b], expected)
    assert torch.equal(flow_matching_loss(lambda x, t, c: target, PATH, points), torch.zeros(batch, dtype=F64))


def test_wrong_shapes_are_refused() -> None:
    x_t, t = torch.zeros(4, 3), torch.full((4,), 0.5)

    def velocity(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return x

    for wrong in (torch.zeros(4, 1), torch.zeros(3), torch.zeros(1, 3), torch.zeros(3, 4)):
        for pair in ((wrong, x_t), (x_t, wrong), (wrong, wrong)):
            with pytest.raises(ValueError, match=r"equal shapes|prefix"):
                flow_matching_loss(velocity, PATH, at(x_t, t).with_pair(*pair))
    for time in (torch.zeros(3), torch.zeros(5), torch.zeros(4, 3, 1)):
        with pytest.raises(ValueError, match="prefix"):
            flow_matching_loss(velocity, PATH, at(x_t, time).with_pair(x_t, x_t))
    with pytest.raises(ValueError):
        PosteriorMeanEstimator(5).estimate(PATH, NORMAL, TWO_D.density, at(torch.zeros(4, 2), t), torch.zeros(4, 6, 2))


@one_test
@pytest.mark.parametrize("wrong", [(3,), (3, 1), (1, 3), ()])
def test_a_field_of_the_wrong_shape_is_refused(wrong: tuple[int, ...]) -> None:
    x, t = torch.zeros(3, 3), torch.full((3,), 0.5)
    with pytest.raises(ValueError, match="equal shapes"):
        flow_matching_loss(lambda x, t, c: torch.ones(wrong), PATH, at(x, t).with_pair(x, x))


def test_a_path_that_keeps_some_noise_reaches_the_density_with_that_noise() -> None:
    """The target at t = 1 moves with what is left of the noise instead of dividing by it."""
    path, t = AffinePath(LinearSchedule(sigma_min=0.1)), torch.ones(3, dtype=F64)
    x_t, nodes = normal(3, 1, seed=1), quadrature_nodes(3)
    density = on_quadrature(ONE_D.density, nodes)
    points = at(x_t, t)
    found = PosteriorMeanEstimator(nodes.shape[1]).estimate(path, NORMAL, density, points, nodes)
    target = points.with_pair(found.x_0, found.x_1).target(path, "velocity")
    x_0, x_1 = ONE_D.posterior_means(x_t, torch.ones_like(t), torch.full_like(t, 0.1))
    torch.testing.assert_close(target, x_1 - 0.9 * x_0, rtol=1e-8, atol=1e-8)
