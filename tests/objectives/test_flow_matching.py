"""Conditional and marginal losses by quadrature, and the regression loss sample by sample."""

from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from flowmatch_rl.objectives import ConditionalFlowMatching, ErrorOf, FlowObjective, UniformWeight, flow_matching_loss
from flowmatch_rl.paths import AffinePath, KumaraswamyTime, LinearSchedule, PathPoints, Schedule
from flowmatch_rl.types import Prediction
from tests.combinations import each_pair, each_value
from tests.families import OBJECTIVES, SCHEDULES
from tests.oracles import F64, ONE_D, normal, uniform

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
TIMES = (0.15, 0.5, 0.9)


@dataclass(frozen=True)
class Quadrature:
    """Trapezoidal rules for the mixture on the line, exact to a millionth or far better for what is integrated here.

    Attributes:
        x_0: Noise of every pair, shape (P, 1).
        x_1: Data of every pair, shape (P, 1).
        mass: Probability of every pair, shape (P,).
        nodes: Standard normal nodes, shape (K,).
        node_mass: Probability of every node, shape (K,).
    """

    x_0: Tensor
    x_1: Tensor
    mass: Tensor
    nodes: Tensor
    node_mass: Tensor

    @classmethod
    def of_mixture(cls, count: int = 91, width: float = 8.5) -> "Quadrature":
        nodes = torch.linspace(-width, width, count, dtype=F64)
        node_mass = torch.softmax(-0.5 * nodes.square(), 0)
        shape = (len(ONE_D.weights), count, count)
        x_0 = nodes.expand(shape)
        x_1 = (ONE_D.means + ONE_D.scales[:, None] * nodes)[:, :, None].expand(shape)
        mass = ONE_D.weights[:, None, None] * node_mass[:, None] * node_mass
        return cls(x_0.reshape(-1, 1), x_1.reshape(-1, 1), mass.flatten(), nodes, node_mass)

    def points(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """Points on the path at a time, shape (J K, 1), and their probabilities."""
        law = ONE_D.at(schedule.alpha(t), schedule.sigma(t))
        mass = law.weights[:, None] * self.node_mass
        return (law.means + law.scales[:, None] * self.nodes).reshape(-1, 1), mass.flatten()


QUADRATURE = Quadrature.of_mixture()


class Network(nn.Module):
    """A small smooth network on points scaled to unit variance."""

    def __init__(self, path: AffinePath, seed: int = 0) -> None:
        super().__init__()
        self.path = path
        self.first, self.second = nn.Linear(2, 5, dtype=F64), nn.Linear(5, 1, dtype=F64)
        with torch.no_grad():
            for k, parameter in enumerate(self.parameters()):
                parameter.copy_(0.7 * normal(*parameter.shape, seed=10 * seed + k))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
        scaled = self.path.input_scale(t)[:, None] * x
        return self.second(torch.tanh(self.first(torch.cat([scaled, t[:, None]], 1))))


def exact(path: AffinePath, prediction: Prediction, x_t: Tensor, t: Tensor) -> Tensor:
    """The marginal field of the oracle."""
    return path.target(prediction, *ONE_D.posterior_means(x_t, path.schedule.alpha(t), path.schedule.sigma(t)), t)


def conditional_loss(path: AffinePath, network, prediction: Prediction) -> Tensor:
    """Expected loss of the package over all pairs, mean over the times."""
    total = torch.zeros((), dtype=F64)
    for time in TIMES:
        t = torch.full_like(QUADRATURE.mass, time)
        points = PathPoints.between(path, QUADRATURE.x_0, QUADRATURE.x_1, t)
        loss = flow_matching_loss(network, path, points, prediction=prediction)
        total = total + (QUADRATURE.mass * loss).sum() / len(TIMES)
    return total


def marginal_loss(path: AffinePath, network, prediction: Prediction) -> Tensor:
    """Expected squared distance to the exact field over the points of the path, mean over the times."""
    total = torch.zeros((), dtype=F64)
    for time in TIMES:
        x_t, mass = QUADRATURE.points(path.schedule, torch.tensor(time, dtype=F64))
        t = torch.full_like(mass, time)
        error = (network(x_t, t, None) - exact(path, prediction, x_t, t)).square()[:, 0]
        total = total + (mass * error).sum() / len(TIMES)
    return total


def conditional_variance(path: AffinePath, prediction: Prediction) -> float:
    """E Var(target | x_t): mean square of the target less that of its posterior mean."""
    total = 0.0
    for time in TIMES:
        t = torch.full_like(QUADRATURE.mass, time)
        target = path.target(prediction, QUADRATURE.x_0, QUADRATURE.x_1, t)[:, 0]
        x_t, mass = QUADRATURE.points(path.schedule, t[0])
        mean = exact(path, prediction, x_t, torch.full_like(mass, time))[:, 0]
        total += ((QUADRATURE.mass @ target.square()) - (mass @ mean.square())).item() / len(TIMES)
    return total


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conditional_and_marginal_loss_have_one_gradient(prediction: Prediction, schedule: Schedule) -> None:
    path = AffinePath(schedule)
    network = Network(path)
    parameters = tuple(network.parameters())
    conditional = torch.autograd.grad(conditional_loss(path, network, prediction), parameters)
    marginal = torch.autograd.grad(marginal_loss(path, network, prediction), parameters)
    for one, other in zip(conditional, marginal, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_losses_differ_by_the_conditional_variance_whatever_the_network(
    prediction: Prediction, schedule: Schedule
) -> None:
    path = AffinePath(schedule)
    expected = conditional_variance(path, prediction)
    assert expected > 1e-3
    for seed in (0, 1):
        network = Network(path, seed)
        with torch.no_grad():
            one, other = (loss(path, network, prediction) for loss in (conditional_loss, marginal_loss))
        assert (one - other).item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_exact_field_is_the_minimum(prediction: Prediction, schedule: Schedule) -> None:
    """The exact field plus any combination of smooth features: no slope at none, and more loss at some."""
    path = AffinePath(schedule)
    features, strength = Network(path, seed=3), torch.zeros(2, dtype=F64, requires_grad=True)

    def shifted(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return exact(path, prediction, x, t) + strength[0] * features(x, t).detach() + strength[1]

    loss = conditional_loss(path, shifted, prediction)
    (slope,) = torch.autograd.grad(loss, strength)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-7)
    least = loss.item()
    assert least == pytest.approx(conditional_variance(path, prediction), rel=1e-6)
    for shift in ([0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.05, -0.1]):
        with torch.no_grad():
            strength.copy_(torch.tensor(shift))
            assert conditional_loss(path, shifted, prediction).item() > least + 1e-6


@each_value
@pytest.mark.parametrize(("batch", "event"), [(1, (1,)), (3, (3,)), (5, (2,)), (2, (3, 4))])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_the_mean_square_over_the_event_per_sample(
    prediction: Prediction, batch: int, event: tuple[int, ...]
) -> None:
    path, t = AffinePath(LinearSchedule(0.1)), 0.1 + 0.8 * uniform(batch, seed=1)
    x_0, x_1, condition = normal(batch, *event, seed=2), normal(batch, *event, seed=3), normal(batch, 4, seed=4)
    asked = []

    def predict(x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        asked.append((x, time, context))
        return torch.sin(x)

    points = PathPoints.between(path, x_0, x_1, t)
    loss = flow_matching_loss(predict, path, points, condition, prediction)
    assert loss.shape == (batch,)
    x_t, target = path.sample(x_0, x_1, t), path.target(prediction, x_0, x_1, t)
    assert torch.equal(points.x_t, x_t)
    assert all(a is b for a, b in zip(asked[0], (points.x_t, t, condition), strict=True))
    for b in range(batch):
        torch.testing.assert_close(loss[b], (torch.sin(x_t[b]) - target[b]).square().mean())


def test_wrong_shapes_are_refused() -> None:
    path, x, t = AffinePath(), torch.zeros(4, 3), torch.full((4,), 0.5)

    def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return x

    points = PathPoints.between(path, x, x, t)
    for other in (torch.zeros(4, 1), torch.zeros(3), torch.zeros(1, 3), torch.zeros(3, 4)):
        for pair in ((other, x), (x, other)):
            with pytest.raises(ValueError, match="equal shapes"):
                flow_matching_loss(predict, path, points.with_pair(*pair))
        for prediction in PREDICTIONS:
            with pytest.raises(ValueError, match="equal shapes"):
                flow_matching_loss(lambda x, t, c: other, path, points, None, prediction)  # noqa: B023
    for time in (torch.zeros(3), torch.zeros(5), torch.zeros(4, 3, 1)):
        with pytest.raises(ValueError, match="prefix"):
            flow_matching_loss(predict, path, PathPoints(x, x, x, time))
    with pytest.raises(ValueError, match="'epsilon'"):
        flow_matching_loss(predict, path, points, None, "epsilon")


@each_pair
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("quantity", PREDICTIONS)
@pytest.mark.parametrize("source", PREDICTIONS)
def test_an_error_measured_as_another_ones_is_the_loss_of_what_the_network_implies(
    source: Prediction, quantity: Prediction, schedule: Schedule
) -> None:
    path, network = AffinePath(schedule), Network(AffinePath(schedule))
    x_0, x_1, numbers = normal(7, 1, seed=1), normal(7, 1, seed=2), uniform(1, 7, seed=3)

    def implied(x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None) -> Tensor:
        return path.convert(network(x, t, condition, duration), x, t, source, quantity)

    measured = ConditionalFlowMatching(source, time_weight=ErrorOf(quantity))
    direct = ConditionalFlowMatching(quantity, time_weight=UniformWeight())
    points = measured.points(path, x_0, x_1, numbers, 0.05)
    torch.testing.assert_close(
        measured.loss(network, path, points), direct.loss(implied, path, points), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_error_of_a_score_counts_as_the_error_of_its_noise(schedule: Schedule) -> None:
    path, network = AffinePath(schedule), Network(AffinePath(schedule))
    x_0, x_1, numbers = normal(7, 1, seed=1), normal(7, 1, seed=2), uniform(1, 7, seed=3)

    def noise(x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None) -> Tensor:
        return -schedule.sigma(t)[:, None] * network(x, t)

    points = ConditionalFlowMatching("score").points(path, x_0, x_1, numbers, 0.001)
    loss = ConditionalFlowMatching("score").loss(network, path, points)
    torch.testing.assert_close(loss, ConditionalFlowMatching("noise").loss(noise, path, points))
    unweighted = ConditionalFlowMatching("score", time_weight=UniformWeight())
    assert not torch.allclose(loss, unweighted.loss(network, path, points))


@pytest.mark.parametrize("prediction", ["velocity", "data", "noise"])
def test_any_other_error_counts_as_it_is(prediction: Prediction) -> None:
    path, network = AffinePath(), Network(AffinePath())
    objective = ConditionalFlowMatching(prediction)
    points = objective.points(path, normal(5, 1, seed=1), normal(5, 1, seed=2), uniform(1, 5, seed=3), 0.01)
    weighted = ConditionalFlowMatching(prediction, time_weight=UniformWeight())
    assert torch.equal(objective.loss(network, path, points), weighted.loss(network, path, points))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_flow_times_are_quantiles_of_the_noise_within_the_margins(prediction: Prediction) -> None:
    asked, numbers = [], torch.tensor([[0.0, 0.3, 0.8, 1.0 - 1e-12]], dtype=F64)
    law = KumaraswamyTime(2.0, 1.3)

    def network(x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None) -> Tensor:
        asked.append((t, condition, duration))
        return x

    x, condition = normal(4, 2, seed=1), normal(4, 3, seed=2)
    for t_min in (0.0, 0.02):
        objective = ConditionalFlowMatching(prediction, law)
        objective.loss(network, AffinePath(), objective.points(AffinePath(), x, x, numbers, t_min), condition)
    (wide, seen, duration), (narrow, _, _) = asked
    torch.testing.assert_close(wide, law.quantile(numbers[0]))
    torch.testing.assert_close(narrow, 0.02 + 0.96 * law.quantile(numbers[0]))
    assert seen is condition
    assert duration is None


@each_value
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_objective_gives_each_sample_a_loss_and_each_weight_a_gradient(
    objective: FlowObjective, schedule: Schedule
) -> None:
    path, network = AffinePath(schedule), Network(AffinePath(schedule))
    for batch in (1, 2, 7):
        x_0, x_1 = normal(batch, 1, seed=1), normal(batch, 1, seed=2)
        numbers = uniform(objective.num_uniforms, batch, seed=3)
        loss = objective.loss(network, path, objective.points(path, x_0, x_1, numbers, 0.01))
        assert loss.shape == (batch,)
        assert loss.isfinite().all()
        assert (loss >= 0.0).all()
        gradients = torch.autograd.grad(loss.sum(), tuple(network.parameters()))
        assert all(gradient.abs().sum() > 0.0 for gradient in gradients)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_samples_do_not_influence_each_others_loss(objective: FlowObjective) -> None:
    """Rows keep their loss when the others change, as long as they keep their place."""
    path, network = AffinePath(), Network(AffinePath())
    x_0, x_1, numbers = normal(8, 1, seed=1), normal(8, 1, seed=2), uniform(objective.num_uniforms, 8, seed=3)
    loss = objective.loss(network, path, objective.points(path, x_0, x_1, numbers, 0.01))
    other = x_1.clone()
    other[::2] += 1.0
    changed = objective.loss(network, path, objective.points(path, x_0, other, numbers, 0.01))
    torch.testing.assert_close(changed[1::2], loss[1::2])
    assert ((changed - loss)[::2].abs() > 1e-6).all()


@each_value
@pytest.mark.parametrize("t_min", [0.0, 0.1])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_points_are_those_that_the_loss_evaluates_the_network_at(objective: FlowObjective, t_min: float) -> None:
    size, path, asked = 40, AffinePath(), []
    x_0, x_1, noise = normal(size, 2, seed=2), normal(size, 2, seed=3), uniform(objective.num_uniforms, size, seed=1)

    def network(x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None) -> Tensor:
        asked.append((x, t, duration))
        return 0.5 * x

    points = objective.points(path, x_0, x_1, noise, t_min)
    objective.loss(network, path, points)
    assert all(a is b for a, b in zip(asked[-1], (points.x_t, points.t, points.duration), strict=True))
    assert points.x_0 is x_0
    assert points.x_1 is x_1
    torch.testing.assert_close(points.x_t, path.sample(x_0, x_1, points.t))
    assert points.t.shape == (size,)
    assert t_min <= float(points.t.min()) < float(points.t.max()) <= 1.0 - t_min
    assert (points.duration is not None) == objective.uses_duration
    lengths = torch.zeros(size) if points.duration is None else points.duration
    assert float(lengths.min()) >= 0.0
    assert float((points.t + lengths).max()) <= 1.0 - t_min + 1e-12  # where an interval ends


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_at_posterior_means_the_loss_of_the_exact_field_vanishes(prediction: Prediction) -> None:
    path, objective = AffinePath(LinearSchedule(0.1)), ConditionalFlowMatching(prediction)
    points = objective.points(path, normal(9, 1, seed=1), normal(9, 1, seed=2), uniform(1, 9, seed=3), 0.05)
    means = ONE_D.posterior_means(points.x_t, path.schedule.alpha(points.t), path.schedule.sigma(points.t))

    def network(x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None) -> Tensor:
        return exact(path, prediction, x, t)

    loss = objective.loss(network, path, points.with_pair(*means))
    torch.testing.assert_close(loss, torch.zeros_like(loss))
    assert (objective.loss(network, path, points) > 1e-6).all()
