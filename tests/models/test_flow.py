"""The flow: samples, trajectories and log-densities against exact Gaussians and mixtures."""

import itertools
import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.models import Flow, Likelihood
from flowmatch_rl.nets import FlowNetwork, VelocityArchitecture
from flowmatch_rl.objectives import ConditionalFlowMatching, FlowObjective, MeanFlow
from flowmatch_rl.paths import (
    AffinePath,
    CosineSchedule,
    GaussianSource,
    LinearSchedule,
    PathPoints,
    Schedule,
    Source,
    UniformSource,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from flowmatch_rl.samplers import AverageVelocitySampler, OdeSampler, SdeSampler
from flowmatch_rl.solvers import RK4, Euler, ExactDivergence, Heun, HutchinsonDivergence, Solver
from flowmatch_rl.types import Prediction
from tests.combinations import each_value, one_test
from tests.families import OBJECTIVES, SCHEDULES
from tests.models.exact_policy import SCALES, Law, density_case, exact_flow
from tests.oracles import F64, ONE_D, TWO_D, GaussianMixture, normal, stratified_normal, uniform
from tests.samplers.exact import seeded

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
B, N, D, C, T_MIN = 5, 3, 2, 2, 0.05
ODE = OdeSampler(RK4(40))


class MixtureNetwork(FlowNetwork):
    """The exact velocity of the path from standard normal noise to a mixture."""

    def __init__(self, path: AffinePath, mixture: GaussianMixture) -> None:
        super().__init__()
        self.path, self.mixture = path, mixture

    def bind(self, condition: Tensor | None) -> Callable[..., Tensor]:
        return self

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
        alpha, sigma = (c.expand(x.shape[:-1]) for c in (self.path.schedule.alpha(t), self.path.schedule.sigma(t)))
        return self.path.conditional_velocity(*self.mixture.posterior_means(x, alpha, sigma), t)


def carried(condition: Tensor | None, noise: Tensor, t_min: float = 0.01) -> Tensor:
    """Where the exact flow of the linear schedule takes noise, given a condition that broadcasts."""
    law = Law(LinearSchedule(), torch.zeros(D, dtype=F64) if condition is None else 0.5 * condition, SCALES)
    first, last = torch.tensor([t_min], dtype=F64), torch.tensor([1.0 - t_min], dtype=F64)
    return law.carry((1.0 - t_min) * noise, first, last)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=repr)
def test_samples_of_an_exact_flow_are_the_quantiles_of_the_mixture(schedule) -> None:
    flow = Flow(MixtureNetwork(AffinePath(schedule), ONE_D), AffinePath(schedule))
    samples = flow.sample(stratified_normal(51)[:, None], OdeSampler(RK4(100)))
    torch.testing.assert_close(samples[:, 0], ONE_D.quantiles(51), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "mixture"), [(LinearSchedule(), ONE_D), (CosineSchedule(), TWO_D)], ids=["line", "plane"]
)
def test_log_density_of_an_exact_flow_is_that_of_the_mixture(schedule, mixture) -> None:
    flow, sample = Flow(MixtureNetwork(AffinePath(schedule), mixture), AffinePath(schedule)), mixture.draw(30, seed=1)
    found = flow.log_prob(sample, Likelihood(RK4(40), ExactDivergence()))
    torch.testing.assert_close(found, mixture.density(sample)[0], rtol=0, atol=1e-3)


@one_test
@pytest.mark.parametrize(
    ("noise", "condition"),
    [
        ((B, D), None),
        ((B, N, D), None),
        ((B, D), (B, C)),
        ((B, D), (1, C)),
        ((B, N, D), (B, 1, C)),
        ((B, N, D), (1, 1, C)),
        ((B, N, D), (1, N, C)),
        ((B, N, D), (B, N, C)),
        ((1, D), (1, C)),
        ((B, 4, N, D), (B, 1, 1, C)),
    ],
    ids=str,
)
def test_samples_have_the_shape_of_the_noise_and_share_conditions_of_size_one(noise, condition) -> None:
    flow, start = exact_flow(LinearSchedule()), normal(*noise, seed=1)
    given = None if condition is None else normal(*condition, seed=2)
    samples = flow.sample(start, ODE, given)
    assert samples.shape == start.shape
    assert not samples.requires_grad
    torch.testing.assert_close(samples, carried(given, start), rtol=1e-4, atol=1e-4)
    times, points = flow.trajectory(start, ODE, given)
    torch.testing.assert_close(times, torch.linspace(0.01, 0.99, 41, dtype=F64))
    assert points.shape == (41, *start.shape)
    assert not points.requires_grad
    torch.testing.assert_close(points[0], 0.99 * start)
    torch.testing.assert_close(points[-1], samples)


def test_no_noise_gives_no_samples() -> None:
    assert exact_flow(LinearSchedule()).sample(normal(0, N, D, seed=1), ODE).shape == (0, N, D)


def test_samples_and_densities_have_the_type_of_their_inputs() -> None:
    network = VelocityArchitecture(hidden_dim=8, time_features=2).build(D, C)
    flow, noise, condition = Flow(network, AffinePath()), torch.randn(B, D), torch.randn(B, C)
    assert flow.sample(noise, OdeSampler(Euler(2)), condition).dtype == torch.float32
    assert flow.log_prob(noise, Likelihood(Euler(2)), condition).dtype == torch.float32


@each_value
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_flow_and_its_field_predict_the_same_whatever_surrounds_the_network(schedule, prediction) -> None:
    x, t, condition = normal(B, D, seed=1), 0.1 + 0.8 * uniform(B, seed=2), normal(B, C, seed=3)
    law = Law(schedule, 0.5 * condition, SCALES)
    wanted, velocity = (law.predicted(kind, x, t[:, None]) for kind in (prediction, "velocity"))
    for scales, guesses in itertools.product((False, True), repeat=2):
        flow = exact_flow(schedule, prediction, scales, guesses)
        found, field = flow(x, t, condition), flow.field()
        assert found.requires_grad
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(field.predict(x, t, condition), wanted)
        torch.testing.assert_close(field.at(condition).predict(x, t, None), wanted)
        torch.testing.assert_close(field.at(condition).velocity(x, t), velocity, rtol=1e-6, atol=1e-6)


@each_value
@pytest.mark.parametrize("source_scale", [1.0, 2.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_sampling_starts_at_the_noise_of_the_first_flow_time(schedule, source_scale) -> None:
    flow, noise = exact_flow(schedule, source_scale=source_scale, t_min=T_MIN), normal(B, N, D, seed=1)
    sigma = schedule.sigma(torch.tensor(T_MIN, dtype=F64))
    torch.testing.assert_close(flow.start(noise), source_scale * sigma * noise)
    assert flow.interval == (T_MIN, 1.0 - T_MIN)


def test_stochastic_samplers_draw_their_noise_from_the_given_source() -> None:
    flow, noise, condition = exact_flow(LinearSchedule()), normal(B, D, seed=1), normal(B, C, seed=2)
    first, again, other = (flow.sample(noise, SdeSampler(9), condition, draw=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    points = flow.trajectory(noise, SdeSampler(9), condition, draw=seeded(1))[1]
    assert torch.equal(points[-1], first)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_average_velocities_land_where_the_flow_does_in_one_step(schedule) -> None:
    flow, noise, condition = exact_flow(schedule, averages=True), normal(B, N, D, seed=1), normal(B, 1, C, seed=2)
    first, last = torch.tensor([0.01], dtype=F64), torch.tensor([0.99], dtype=F64)
    wanted = Law(schedule, 0.5 * condition, SCALES).carry(flow.start(noise), first, last)
    torch.testing.assert_close(flow.sample(noise, AverageVelocitySampler(1), condition), wanted)
    field, t, duration = flow.field(), torch.tensor(0.1, dtype=F64), torch.tensor(0.6, dtype=F64)
    assert field.average_velocity is not None
    bound = field.at(condition).average_velocity
    assert bound is not None
    torch.testing.assert_close(
        bound(noise, t, duration, None), field.average_velocity(noise, t, duration, condition).detach()
    )


def test_a_flow_of_velocities_has_no_average_ones() -> None:
    assert exact_flow(LinearSchedule()).field().average_velocity is None


@pytest.mark.parametrize(
    ("schedule", "prediction", "source_scale"),
    [
        *zip(SCHEDULES, ["velocity", "noise", "data", "score", "velocity"], [2.0, 1.0, 2.0, 1.0, 1.0], strict=True),
        (LinearSchedule(), "velocity", 1.0),
        (CosineSchedule(), "score", 1.0),
        (VarianceExplodingSchedule(), "data", 2.0),
    ],
)
def test_log_density_is_that_of_the_gaussian(schedule, prediction, source_scale) -> None:
    condition, latent, wanted = density_case(schedule, T_MIN, source_scale)
    flow = exact_flow(schedule, prediction, guesses=True, source_scale=source_scale, t_min=T_MIN)
    steps = 80 if isinstance(schedule, VarianceExplodingSchedule) else 25  # its noise falls by 5000 along the path
    found = flow.log_prob(latent, Likelihood(RK4(steps)), condition)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
    assert not found.requires_grad


def test_one_condition_is_shared_by_all_samples_of_a_log_density() -> None:
    flow, latent, condition = exact_flow(LinearSchedule()), normal(B, D, seed=1), normal(1, C, seed=2)
    likelihood = Likelihood(RK4(5))
    wanted = flow.log_prob(latent, likelihood, condition.expand(B, C))
    torch.testing.assert_close(flow.log_prob(latent, likelihood, condition), wanted)


def test_error_shrinks_with_the_steps_at_the_order_of_the_solver() -> None:
    condition, latent, wanted = density_case(LinearSchedule(), T_MIN)
    flow = exact_flow(LinearSchedule(), t_min=T_MIN)

    def error(solver: Solver) -> float:
        return float((flow.log_prob(latent, Likelihood(solver), condition) - wanted).abs().mean())

    assert error(Euler(80)) == pytest.approx(error(Euler(40)) / 2.0, rel=0.2)
    assert error(Heun(80)) == pytest.approx(error(Heun(40)) / 4.0, rel=0.25)


def test_gaussian_probes_are_right_on_average_and_rademacher_ones_at_once() -> None:
    condition, latent, wanted = density_case(LinearSchedule(), T_MIN)
    flow, count = exact_flow(LinearSchedule(), t_min=T_MIN), 1000
    many, at = latent[:1].expand(count, -1), condition[:1].expand(count, -1)
    values = flow.log_prob(
        many, Likelihood(RK4(20), HutchinsonDivergence("gaussian", 2)), at, normal(count, 2, D, seed=3)
    )
    assert values.std() > 0.1
    assert abs(float(values.mean() - wanted[0])) < 5.0 * float(values.std()) / math.sqrt(count)
    # The Jacobian of this field is diagonal.
    likelihood = Likelihood(RK4(20), HutchinsonDivergence())
    exact = flow.log_prob(latent, likelihood, condition, normal(len(latent), 1, D, seed=4))
    torch.testing.assert_close(exact, wanted, rtol=0, atol=1e-3)


@each_value
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guidance_moves_the_mean_in_proportion(prediction, guidance) -> None:
    """Predictions of these Gaussians are affine in their mean, which is zero where there is no condition."""
    flow = exact_flow(LinearSchedule(), prediction, marks_absence=True)
    noise, condition = normal(B, N, D, seed=1), normal(B, 1, C, seed=2)
    wanted = carried(guidance * condition, noise)
    torch.testing.assert_close(flow.sample(noise, ODE, condition, guidance), wanted, rtol=1e-4, atol=1e-4)
    points = flow.trajectory(noise, ODE, condition, guidance)[1]
    torch.testing.assert_close(points[-1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0])
def test_guidance_is_the_extrapolation_from_the_absent_to_the_present_condition(guidance) -> None:
    torch.manual_seed(0)
    network = VelocityArchitecture(hidden_dim=16, time_features=8).build(D, C + 1).double()
    flow = Flow(network, AffinePath(), marks_absence=True)
    x, t, condition = normal(B, D, seed=1), uniform(B, seed=2), normal(B, C, seed=3)
    present = network(x, t, torch.cat([condition, torch.ones(B, 1, dtype=F64)], 1))
    absent = network(x, t, torch.zeros(B, C + 1, dtype=F64))
    wanted = absent + guidance * (present - absent)
    field = flow.field(guidance)
    torch.testing.assert_close(field.predict(x, t, condition), wanted)
    torch.testing.assert_close(field.at(condition).predict(x, t, None), wanted)


def test_guidance_leaves_a_flow_without_conditions_as_it_is() -> None:
    flow, noise = exact_flow(LinearSchedule(), marks_absence=True), normal(B, D, seed=1)
    for guidance in (0.0, 2.0):
        torch.testing.assert_close(flow.sample(noise, ODE, None, guidance), flow.sample(noise, ODE))


def test_marks_say_in_which_rows_there_is_a_condition() -> None:
    flow, condition = exact_flow(LinearSchedule(), marks_absence=True), normal(3, C, seed=1)
    one, zero = torch.ones(3, 1, dtype=F64), torch.zeros(3, 1, dtype=F64)
    torch.testing.assert_close(flow.mark(condition), torch.cat([condition, one], 1))
    torch.testing.assert_close(flow.mark(condition, False), torch.cat([0.0 * condition, zero], 1))
    rows = flow.mark(condition, torch.tensor([True, False, True]))
    torch.testing.assert_close(rows[::2], torch.cat([condition, one], 1)[::2])
    torch.testing.assert_close(rows[1], torch.zeros(C + 1, dtype=F64))
    particles = flow.mark(condition[:, None].expand(3, 4, C), torch.tensor([True, False, True]))
    torch.testing.assert_close(particles, rows[:, None].expand(3, 4, C + 1))
    assert flow.mark(None) is None
    assert exact_flow(LinearSchedule()).mark(condition, False) is condition


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_guidance_is_refused_where_the_model_cannot_do_without_a_condition(guidance) -> None:
    with pytest.raises(UserError, match=f"guidance {guidance} needs a model trained with condition_dropout"):
        exact_flow(LinearSchedule()).field(guidance)
    with pytest.raises(UserError, match=f"guidance {guidance} needs a model of the velocity"):
        exact_flow(LinearSchedule(), averages=True, marks_absence=True).field(guidance)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_the_loss_is_that_of_the_objective_for_the_flow(objective: FlowObjective) -> None:
    path = AffinePath(VarianceExplodingSchedule())
    torch.manual_seed(0)
    architecture = VelocityArchitecture(hidden_dim=16, time_features=8, max_frequency=5.0)
    network = architecture.build(D, C, takes_duration=objective.uses_duration).double()
    flow = Flow(
        network, path, prediction=objective.prediction, t_min=T_MIN, scales=True, averages=objective.uses_duration
    )
    x_0, x_1, condition = normal(B, D, seed=1), normal(B, D, seed=2), normal(B, C, seed=3)
    points = objective.points(path, x_0, x_1, uniform(objective.num_uniforms, B, seed=4), T_MIN)
    loss = flow.loss(objective, points, condition)
    torch.testing.assert_close(loss, objective.loss(flow, path, points, condition))
    assert not torch.allclose(loss, objective.loss(network, path, points, condition))  # without its preconditioning
    loss.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0.0 for p in network.parameters())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_of_an_exact_flow_at_posterior_means_is_zero(prediction) -> None:
    flow, objective = (
        exact_flow(LinearSchedule(), prediction, scales=True, guesses=True),
        ConditionalFlowMatching(prediction),
    )
    x, t, condition = normal(B, D, seed=1), 0.1 + 0.8 * uniform(B, seed=2), normal(B, C, seed=3)
    means = Law(LinearSchedule(), 0.5 * condition, SCALES).means(x, t[:, None])
    loss = flow.loss(objective, PathPoints(*means, x, t), condition)
    torch.testing.assert_close(loss, torch.zeros_like(loss))
    assert (flow.loss(objective, PathPoints(*means, x, t), condition + 1.0) > 1e-6).all()


class Counted(FlowNetwork):
    """A network that keeps the number of rows that it was called with."""

    def __init__(self, network: FlowNetwork) -> None:
        super().__init__()
        self.network, self.rows = network, []

    def bind(self, condition: Tensor | None) -> Callable[..., Tensor]:
        bound = self.network.bind(condition)

        def answer(x: Tensor, t: Tensor, _: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
            self.rows.append(x[..., 0].numel())
            return bound(x, t, None, duration)

        return answer

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
        return self.network(x, t, condition, duration)


@pytest.mark.parametrize("condition", [None, (1, 1, C), (600, 1, C), (600, 7, C)], ids=str)
def test_samples_in_pieces_are_those_of_the_whole(condition) -> None:
    exact = exact_flow(LinearSchedule())
    network = Counted(exact.network)
    flow, noise = Flow(network, exact.path, t_min=exact.t_min), normal(600, 7, D, seed=1)
    given = None if condition is None else normal(*condition, seed=2)
    sampler = OdeSampler(Heun(3))
    found = flow.sample(noise, sampler, given)
    assert max(network.rows) <= 2048 < noise[..., 0].numel()
    torch.testing.assert_close(found, flow.trajectory(noise, sampler, given)[1][-1])
    assert max(network.rows) == noise[..., 0].numel()


@each_value
@pytest.mark.parametrize("condition", [None, (1, C), (900, C)], ids=str)
@pytest.mark.parametrize("divergence", [ExactDivergence(), HutchinsonDivergence("gaussian", 2)], ids=repr)
def test_log_densities_in_pieces_are_those_of_the_whole(divergence, condition) -> None:
    exact = exact_flow(LinearSchedule())
    network = Counted(exact.network)
    flow, sample = Flow(network, exact.path, t_min=exact.t_min), normal(900, D, seed=1)
    given = None if condition is None else normal(*condition, seed=2)
    probes = normal(900, divergence.needed_probes, D, seed=3) if divergence.needed_probes else None
    likelihood = Likelihood(Heun(3), divergence)
    found = flow.log_prob(sample, likelihood, given, probes)
    assert max(network.rows) < len(sample)
    for first in (0, 450):
        rows = slice(first, first + 450)
        some = given if given is None or len(given) == 1 else given[rows]
        alone = flow.log_prob(sample[rows], likelihood, some, None if probes is None else probes[rows])
        torch.testing.assert_close(found[rows], alone)


@one_test
@pytest.mark.parametrize("t_min", [-0.1, 0.5, 1.0, math.nan])
def test_a_first_flow_time_out_of_range_is_refused(t_min) -> None:
    with pytest.raises(UserError, match=rf"t_min must lie in \[0, 0\.5\), got {t_min}"):
        exact_flow(LinearSchedule(), t_min=t_min)


@pytest.mark.parametrize("source", [GaussianSource(2.0), UniformSource()], ids=repr)
def test_scores_are_refused_where_the_source_is_not_standard_normal(source: Source) -> None:
    network = exact_flow(LinearSchedule()).network
    with pytest.raises(UserError, match=r"scores needs the source N\(0, I\)") as caught:
        Flow(network, AffinePath(), source, "score", 0.1)
    assert repr(source) in str(caught.value)
    Flow(network, AffinePath(), source, "data", 0.1)


@one_test
@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [
        ("data", LinearSchedule()),
        ("data", CosineSchedule()),
        ("noise", LinearSchedule()),
        ("score", LinearSchedule()),
        ("velocity", VariancePreservingSchedule()),
    ],
    ids=str,
)
def test_a_prediction_that_leaves_the_velocity_undefined_at_a_limit_is_refused(prediction, schedule) -> None:
    network = exact_flow(LinearSchedule()).network
    with pytest.raises(UserError, match=rf"the prediction {prediction} .* t_min must be above 0\.0"):
        Flow(network, AffinePath(schedule), prediction=prediction)
    Flow(network, AffinePath(schedule), prediction=prediction, t_min=1e-3)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()], ids=repr)
def test_a_limit_is_refused_that_float32_rounds_to_one_where_the_velocity_is_undefined(schedule: Schedule) -> None:
    network = exact_flow(LinearSchedule()).network
    with pytest.raises(UserError, match=r"the prediction data .* t_min must be above 1e-09"):
        Flow(network, AffinePath(schedule), prediction="data", t_min=1e-9)


@pytest.mark.parametrize("scales", [False, True])
def test_the_loss_of_mean_flow_has_the_derivative_that_forward_mode_has(scales: bool) -> None:
    torch.manual_seed(0)
    network = (
        VelocityArchitecture(hidden_dim=8, num_blocks=1, time_features=4).build(D, C, takes_duration=True).double()
    )
    flow, objective = Flow(network, AffinePath(), t_min=T_MIN, scales=scales, averages=True), MeanFlow()
    points = objective.points(flow.path, normal(B, D, seed=1), normal(B, D, seed=2), uniform(2, B, seed=3), T_MIN)
    condition = normal(B, C, seed=4)
    torch.testing.assert_close(
        flow.loss(objective, points, condition), objective.loss(flow, flow.path, points, condition)
    )
