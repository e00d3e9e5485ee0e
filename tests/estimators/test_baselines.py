"""Other methods are special cases: the same targets with common noise."""

import pytest
import torch
from scipy.stats import truncnorm
from torch import Tensor

from flowmatch_rl.estimators import (
    FixedControlVariate,
    GradientControlVariate,
    LikelihoodProposal,
    NoControlVariate,
    PointScoreEstimator,
    PosteriorMeanEstimator,
    Proposal,
    RegressControlVariate,
    ReweightedEndpoints,
    TruncatedProposal,
    boltzmann_density,
)
from flowmatch_rl.objectives import flow_matching_loss
from flowmatch_rl.paths import (
    AffinePath,
    ClipSquash,
    NoSquash,
    PathPoints,
    Schedule,
    Squash,
    TanhSquash,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from flowmatch_rl.types import Prediction
from tests.combinations import each_pair, each_value
from tests.families import SCHEDULES, WIDE_PROPOSALS
from tests.oracles import F64, NORMAL, TWO_D, RecordingControlVariate, at, normal

B, K, D = 5, 11, 2
T = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64)


def q(action: Tensor) -> Tensor:
    return torch.sin(2.0 * action).sum(-1) - torch.cos(action - 0.3).prod(-1)


def q_and_gradient(action: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        action = action.detach().requires_grad_()
        value = q(action)
        (gradient,) = torch.autograd.grad(value.sum(), action)
    return value.detach(), gradient


def coefficients(schedule: Schedule) -> tuple[Tensor, Tensor]:
    return schedule.alpha(T)[:, None, None], schedule.sigma(T)[:, None, None]


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("temperature", [0.2, 2.0])
def test_coefficient_zero_is_the_noise_expectation_of_maxentdp(schedule: Schedule, temperature: float) -> None:
    x_t, z = normal(B, D, seed=1), normal(B, K, D, seed=2)
    density = boltzmann_density(q_and_gradient, temperature, NoSquash())
    estimator = PosteriorMeanEstimator(K, LikelihoodProposal(), NoControlVariate())
    found = estimator.estimate(AffinePath(schedule), NORMAL, density, at(x_t, T), z)
    alpha, sigma = coefficients(schedule)
    noise = -z
    weight = (q((x_t[:, None] - sigma * noise) / alpha) / temperature).exp()
    target = (weight[..., None] * noise).sum(1) / weight.sum(1)[:, None]
    torch.testing.assert_close(found.x_0, target, rtol=1e-12, atol=1e-12)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("squash", [NoSquash(), TanhSquash(), ClipSquash()], ids=repr)
def test_coefficient_one_is_the_gradient_of_the_smoothed_log_density_of_idem(
    schedule: Schedule, squash: Squash
) -> None:
    temperature = 0.5
    x_t, z = normal(B, D, seed=1).requires_grad_(), normal(B, K, D, seed=2)
    density = boltzmann_density(q_and_gradient, temperature, squash)
    estimator = PosteriorMeanEstimator(K, LikelihoodProposal(), GradientControlVariate())
    with torch.no_grad():
        found = estimator.estimate(AffinePath(schedule), NORMAL, density, at(x_t, T), z)
    alpha, sigma = coefficients(schedule)
    x_1 = (x_t[:, None] + sigma * z) / alpha  # the noise end points are -z
    log_density = q(squash.action(x_1)) / temperature
    if isinstance(squash, TanhSquash):
        log_density = log_density - 2.0 * torch.logaddexp(x_1, -x_1).sum(-1)
    (gradient,) = torch.autograd.grad(torch.logsumexp(log_density, dim=1).sum(), x_t)
    torch.testing.assert_close(found.x_0, -sigma[:, 0] * gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_truncated_noise_gives_the_noise_expectation_of_maxentdp_on_the_box(schedule: Schedule) -> None:
    """Noise from a normal cut to what keeps actions in the box, by another library's quantiles."""
    temperature, limit = 0.3, 1.0
    x_t, z = 0.5 * normal(B, D, seed=1), normal(B, K, D, seed=2)
    density = boltzmann_density(q_and_gradient, temperature, NoSquash())
    estimator = PosteriorMeanEstimator(K, TruncatedProposal(limit), NoControlVariate())
    found = estimator.estimate(AffinePath(schedule), NORMAL, density, at(x_t, T), z)
    alpha, sigma = coefficients(schedule)
    low, high = ((x_t[:, None] + sign * limit * alpha) / sigma for sign in (-1.0, 1.0))
    noise = torch.as_tensor(truncnorm.ppf(torch.special.ndtr(-z).numpy(), low.numpy(), high.numpy()))
    weight = torch.softmax(q((x_t[:, None] - sigma * noise) / alpha) / temperature, 1)[..., None]
    torch.testing.assert_close(found.x_0, (weight * noise).sum(1), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_on_the_exploding_path_coefficient_one_is_the_weighted_gradient_of_dqs(temperature: float) -> None:
    """The score is the weighted mean of ``grad Q / temperature`` at clipped points around x_t."""
    path, squash = AffinePath(VarianceExplodingSchedule(sigma_min=1e-3, sigma_max=1.0)), ClipSquash()
    x_t, z = normal(B, D, seed=1), normal(B, K, D, seed=2)
    density = boltzmann_density(q_and_gradient, temperature, squash)
    estimator = PosteriorMeanEstimator(K, LikelihoodProposal(), GradientControlVariate())
    found = estimator.estimate(path, NORMAL, density, at(x_t, T), z)
    around = x_t[:, None] + path.schedule.sigma(T)[:, None, None] * z
    value, gradient = q_and_gradient(around.clamp(-1.0, 1.0))
    weight = torch.softmax(value / temperature, 1)[..., None]
    score = (weight * gradient * (around.abs() <= 1.0)).sum(1) / temperature
    # Where sigma is 1e-2 the score is a small difference of large numbers over sigma.
    torch.testing.assert_close(path.target("score", found.x_0, found.x_1, T), score, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_point_score_is_the_target_of_q_score_matching(schedule: Schedule) -> None:
    path, temperature = AffinePath(schedule), 0.4
    x_t = normal(B, D, seed=1)
    density = boltzmann_density(q_and_gradient, temperature, NoSquash())
    found = PointScoreEstimator().estimate(path, NORMAL, density, at(x_t, T), normal(B, 0, D, seed=2))
    score = q_and_gradient(x_t)[1] / temperature
    torch.testing.assert_close(path.target("score", found.x_0, found.x_1, T), score, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.x_0, -schedule.sigma(T)[:, None] * score, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(path.sample(found.x_0, found.x_1, T), x_t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("squash", [TanhSquash(), ClipSquash()], ids=repr)
def test_reweighted_end_points_give_the_loss_of_diffusion_policy_mirror_descent(
    squash: Squash, limit: float | None
) -> None:
    """The mean of ``exp(Q / temperature) |prediction - noise|^2``, over the mean of the weights."""
    path, temperature, batch = AffinePath(VariancePreservingSchedule()), 0.3, 9
    t = torch.linspace(0.1, 0.9, batch, dtype=F64)
    points = PathPoints.between(path, normal(batch, D, seed=1), normal(batch, D, seed=2), t)
    estimator = ReweightedEndpoints(limit=limit)
    density = boltzmann_density(q_and_gradient, temperature, squash, jacobian=estimator.needs_jacobian)
    found = estimator.estimate(path, NORMAL, density, points, normal(batch, 0, D, seed=3))
    pair = points.with_pair(found.x_0, found.x_1)
    loss = flow_matching_loss(lambda x, t, _: 0.3 * x, path, pair, prediction="noise")
    value = q(squash.action(points.x_1)) / temperature
    if limit is not None:
        value = (value - value.mean()).clamp(-limit, limit)
    miss = (0.3 * points.x_t - points.x_0).square().mean(1)
    expected = (value.exp() * miss).mean() / value.exp().mean()
    torch.testing.assert_close((found.weight * loss).mean(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.weight.mean(), torch.ones((), dtype=F64))


def test_the_likelihood_with_the_regression_is_the_estimator_of_the_paper() -> None:
    """Coefficient in units of the data, per state and dimension, from squared weights; tanh; the linear path."""
    temperature = 0.02
    x_t, z = normal(B, D, seed=1), normal(B, K, D, seed=2)
    estimator = PosteriorMeanEstimator(K, LikelihoodProposal(), RegressControlVariate())
    density = boltzmann_density(q_and_gradient, temperature, TanhSquash())
    found = estimator.estimate(AffinePath(), NORMAL, density, at(x_t, T), z)
    t = T[:, None, None]
    y_0 = -z
    y_1 = (x_t[:, None] - (1.0 - t) * y_0) / t
    value, gradient = q_and_gradient(torch.tanh(y_1))
    weight = torch.softmax(value / temperature + torch.log(1.0 - torch.tanh(y_1) ** 2).sum(-1), 1)[..., None]
    slope = gradient / temperature * (1.0 - torch.tanh(y_1) ** 2) - 2.0 * torch.tanh(y_1)
    score = t / (1.0 - t) * y_0 + slope
    mean, mean_score = (weight * y_1).sum(1, keepdim=True), (weight * score).sum(1, keepdim=True)
    covariance = (weight**2 * (y_1 - mean) * (score - mean_score)).sum(1)
    variance = (weight**2 * (score - mean_score) ** 2).sum(1)
    c = (-covariance / (variance + 1e-4)).clamp(-2.0, 2.0)
    x_1 = mean[:, 0] + c * mean_score[:, 0]
    torch.testing.assert_close(found.x_1, x_1, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.x_0, (x_t - T[:, None] * x_1) / (1.0 - T[:, None]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.eta * ((1.0 - T) / T)[:, None] ** 2, c, rtol=1e-9, atol=1e-9)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
def test_a_fixed_coefficient_mixes_the_two_expectations_linearly(proposal: Proposal, schedule: Schedule) -> None:
    x_t, z = normal(B, D, seed=1), normal(B, K, D, seed=2)
    noise, gradient, mixed = (
        PosteriorMeanEstimator(K, proposal, rule).estimate(AffinePath(schedule), NORMAL, TWO_D.density, at(x_t, T), z)
        for rule in (NoControlVariate(), GradientControlVariate(), FixedControlVariate(0.3))
    )
    for name in ("x_0", "x_1"):
        target = 0.7 * getattr(noise, name) + 0.3 * getattr(gradient, name)
        torch.testing.assert_close(getattr(mixed, name), target, rtol=1e-12, atol=1e-10)


@each_pair
@pytest.mark.parametrize("prediction", ["velocity", "noise", "data"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
def test_the_weighted_loss_of_sdac_has_the_gradient_of_the_loss_against_the_mean(
    proposal: Proposal, schedule: Schedule, prediction: Prediction
) -> None:
    """For the noise: ``sum_k w_k |prediction - x_0^k|^2`` with the samples' own weights."""
    path, x_t, z = AffinePath(schedule), normal(B, D, seed=1), normal(B, K, D, seed=2)
    recorder = RecordingControlVariate()
    estimator = PosteriorMeanEstimator(K, proposal, recorder)
    points = at(x_t, T)
    found = estimator.estimate(path, NORMAL, TWO_D.density, points, z)
    ((weights, x_0, _, _),) = recorder.calls
    network = torch.nn.Sequential(torch.nn.Linear(D + 1, 7), torch.nn.Tanh(), torch.nn.Linear(7, D)).to(F64)

    def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return network(torch.cat([x, t[:, None]], dim=-1))

    pair = points.with_pair(found.x_0, found.x_1)
    to_mean = flow_matching_loss(predict, path, pair, prediction=prediction).mean()
    alpha, sigma = coefficients(schedule)
    x_1 = (x_t[:, None] - sigma * x_0) / alpha
    d_alpha, d_sigma = schedule.d_alpha(T)[:, None, None], schedule.d_sigma(T)[:, None, None]
    each = {"velocity": d_alpha * x_1 + d_sigma * x_0, "noise": x_0, "data": x_1}[prediction]
    to_each = (weights * (predict(x_t, T, None)[:, None] - each).square()).sum(1).mean()
    assert to_each - to_mean > 1e-3
    parameters = list(network.parameters())
    for one, other in zip(
        torch.autograd.grad(to_mean, parameters), torch.autograd.grad(to_each, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
