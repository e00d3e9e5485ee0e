import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.estimators import (
    ControlVariate,
    FisherControlVariate,
    FixedControlVariate,
    GradientControlVariate,
    LikelihoodProposal,
    NoControlVariate,
    PosteriorMeanEstimator,
    ProductProposal,
    Proposal,
    RegressControlVariate,
)
from flowmatch_rl.paths import AffinePath, Schedule
from tests.combinations import each_pair, each_value, one_test
from tests.families import CONTROL_VARIATES, SCHEDULES, WIDE_PROPOSALS
from tests.oracles import (
    EVEN,
    F64,
    NORMAL,
    ONE_D,
    TWO_D,
    RecordingControlVariate,
    Rule,
    at,
    normal,
    on_quadrature,
    quadrature_nodes,
    reference_posterior_means,
    rmse,
)

PATH = AffinePath()
TIMES = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64)
POINTS = torch.tensor([[0.4], [-1.2], [0.8], [0.05], [-1.0]], dtype=F64)

REFERENCES: list[tuple[ControlVariate, Rule, dict[str, float]]] = [
    (NoControlVariate(), "none", {}),
    (GradientControlVariate(), "gradient", {}),
    (FixedControlVariate(-0.4), "fixed", {"eta": -0.4}),
    (RegressControlVariate(), "regress", {}),
    (RegressControlVariate(limit=0.05, ridge=0.02), "regress", {"limit": 0.05, "ridge": 0.02}),
    (FisherControlVariate(), "fisher", {}),
    (FisherControlVariate(eta_max=0.03, c_max=0.2), "fisher", {"eta_max": 0.03, "c_max": 0.2}),
]


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
def test_the_posterior_score_has_mean_zero_and_unit_covariance_with_its_end_point(
    proposal: Proposal, schedule: Schedule
) -> None:
    nodes, rule = quadrature_nodes(5), RecordingControlVariate()
    estimator = PosteriorMeanEstimator(nodes.shape[1], proposal, rule)
    found = estimator.estimate(
        AffinePath(schedule), NORMAL, on_quadrature(ONE_D.density, nodes), at(POINTS, TIMES), nodes
    )
    ((weights, x_0, r, rho),) = rule.calls
    alpha, sigma = schedule.alpha(TIMES)[:, None], schedule.sigma(TIMES)[:, None]
    x_1 = (POINTS[:, None] - sigma[:, None] * x_0) / alpha[:, None]
    score = ONE_D.density(x_1)[1] + x_0 / (sigma / alpha)[:, None]  # of the posterior of x_1
    assert (weights * score).sum(1).abs().amax() < 1e-8
    covariance = (weights * (x_1 - found.x_1[:, None]) * score).sum(1)
    torch.testing.assert_close(covariance, -torch.ones_like(covariance), rtol=0.0, atol=1e-8)
    # What the rule is given is the same score in units of x_0, with the sign that makes the covariance positive.
    torch.testing.assert_close(r, rho[:, None] * score, rtol=1e-9, atol=1e-9)
    covariance = (weights * (x_0 - found.x_0[:, None]) * r).sum(1)
    torch.testing.assert_close(covariance, torch.ones_like(covariance), rtol=0.0, atol=1e-8)


@each_pair
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
@pytest.mark.parametrize("rule", CONTROL_VARIATES, ids=repr)
def test_every_coefficient_gives_the_analytic_mean_of_a_mixture(
    rule: ControlVariate, proposal: Proposal, schedule: Schedule
) -> None:
    nodes = quadrature_nodes(5)
    estimator = PosteriorMeanEstimator(nodes.shape[1], proposal, rule)
    found = estimator.estimate(
        AffinePath(schedule), NORMAL, on_quadrature(ONE_D.density, nodes), at(POINTS, TIMES), nodes
    )
    x_0, x_1 = ONE_D.posterior_means(POINTS, schedule.alpha(TIMES), schedule.sigma(TIMES))
    torch.testing.assert_close(found.x_0, x_0, rtol=0.0, atol=1e-8)
    torch.testing.assert_close(found.x_1, x_1, rtol=0.0, atol=1e-8)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
def test_in_units_of_the_data_the_coefficient_is_rho_squared_eta(proposal: Proposal, schedule: Schedule) -> None:
    z, x_t = normal(5, 20, 2, seed=1), normal(5, 2, seed=2)
    eta = normal(5, 2, seed=3)
    recorder = RecordingControlVariate()
    path = AffinePath(schedule)
    without = PosteriorMeanEstimator(20, proposal, recorder).estimate(path, NORMAL, TWO_D.density, at(x_t, TIMES), z)
    found = PosteriorMeanEstimator(20, proposal, RecordingControlVariate(eta)).estimate(
        path, NORMAL, TWO_D.density, at(x_t, TIMES), z
    )
    ((weights, x_0, _, _),) = recorder.calls
    alpha, sigma = schedule.alpha(TIMES)[:, None], schedule.sigma(TIMES)[:, None]
    rho = sigma / alpha
    x_1 = (x_t[:, None] - sigma[:, None] * x_0) / alpha[:, None]
    mean_score = (weights * (TWO_D.density(x_1)[1] + x_0 / rho[:, None])).sum(1)
    torch.testing.assert_close(without.x_1, (weights * x_1).sum(1))
    torch.testing.assert_close(found.x_1, without.x_1 + rho**2 * eta * mean_score)
    torch.testing.assert_close(found.x_0, without.x_0 - rho * eta * mean_score)
    assert torch.equal(found.eta, eta)


@each_pair
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(("rule", "reference", "options"), REFERENCES, ids=[repr(r) for r, _, _ in REFERENCES])
@pytest.mark.parametrize("base_variance", [None, 0.6, 2.0])
def test_the_estimate_equals_an_independent_derivation_over_the_data_posterior(
    base_variance: float | None, rule: ControlVariate, reference: Rule, options: dict[str, float], schedule: Schedule
) -> None:
    proposal = LikelihoodProposal() if base_variance is None else ProductProposal(base_variance)
    t = torch.tensor([0.08, 0.5, 0.93], dtype=F64)
    x_t, z = normal(3, 2, seed=1), normal(3, 16, 2, seed=2)
    found = PosteriorMeanEstimator(16, proposal, rule).estimate(
        AffinePath(schedule), NORMAL, TWO_D.density, at(x_t, t), z
    )
    x_0, x_1 = reference_posterior_means(TWO_D.density, schedule, x_t, t, z, base_variance, reference, **options)
    torch.testing.assert_close(found.x_0, x_0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.x_1, x_1, rtol=1e-9, atol=1e-9)


@each_pair
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
@pytest.mark.parametrize("rule", CONTROL_VARIATES, ids=repr)
def test_the_two_means_and_the_point_stay_on_one_path(
    rule: ControlVariate, proposal: Proposal, schedule: Schedule
) -> None:
    path, x_t, z = AffinePath(schedule), normal(5, 2, seed=1), normal(5, 12, 2, seed=2)
    found = PosteriorMeanEstimator(12, proposal, rule).estimate(path, NORMAL, TWO_D.density, at(x_t, TIMES), z)
    torch.testing.assert_close(path.sample(found.x_0, found.x_1, TIMES), x_t, rtol=1e-9, atol=1e-9)


@each_value
@pytest.mark.parametrize("proposal", [LikelihoodProposal(), ProductProposal(2.0)], ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("t", [0.3, 0.5, 0.7, 0.9])
def test_many_samples_come_within_five_standard_errors_of_the_mean(t: float, eta: float, proposal: Proposal) -> None:
    count, time = 100_000, torch.tensor([t], dtype=F64)
    x_t, z = torch.tensor([[0.3]], dtype=F64), normal(1, count, 1, seed=int(100 * t))
    rule = RecordingControlVariate(torch.tensor(eta, dtype=F64))
    found = PosteriorMeanEstimator(count, proposal, rule).estimate(PATH, NORMAL, ONE_D.density, at(x_t, time), z)
    ((weights, x_0, r, _),) = rule.calls
    exact, _ = ONE_D.posterior_means(x_t, time, 1.0 - time)
    residual = weights * (x_0 - eta * r - exact[:, None])
    standard_error = residual.square().sum(1).sqrt()
    assert standard_error.item() < 0.1
    assert ((found.x_0 - exact).abs() < 5.0 * standard_error).all()


@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_the_bias_is_that_of_self_normalised_sampling_and_halves_when_the_samples_double(eta: float) -> None:
    t, point = torch.tensor([0.5], dtype=F64), torch.tensor([[0.15]], dtype=F64)
    exact, _ = ONE_D.posterior_means(point, t, 1.0 - t)
    # Weights of mean 1 under the proposal: E[p_1(x_1)] there is alpha times the density of x_t.
    log_normaliser = ONE_D.log_marginal(point, t, 1.0 - t) + t.log()
    z = normal(8000, 80, 1, seed=3)
    bias, predicted = {}, 0.0
    for count in (20, 40, 80):
        blocks = z.reshape(-1, count, 1)
        rule = RecordingControlVariate(torch.tensor(eta, dtype=F64))
        found = PosteriorMeanEstimator(count, LikelihoodProposal(), rule).estimate(
            PATH, NORMAL, ONE_D.density, at(point.expand(len(blocks), 1), t.expand(len(blocks))), blocks
        )
        ((_, x_0, r, _),) = rule.calls
        weights = (ONE_D.density((point - 0.5 * x_0) / 0.5)[0] - log_normaliser).exp()[..., None]
        error = weights * (x_0 - eta * r - exact)
        # The sum with known weights has no bias and shares most of the noise: what is left is the bias.
        bias[count] = (found.x_0 - exact - error.mean(1)).mean().item()
        predicted = -(weights * error).mean().item()
    assert abs(predicted) > 0.1
    assert 80 * bias[80] == pytest.approx(predicted, rel=0.1)
    assert bias[20] / bias[40] == pytest.approx(2.0, abs=0.3)
    assert bias[40] / bias[80] == pytest.approx(2.0, abs=0.3)


def test_diagnostics_describe_the_weights_and_the_density() -> None:
    recorder = RecordingControlVariate()
    t, x_t, z = TIMES[:3], normal(3, 2, seed=1), normal(3, 9, 2, seed=2)
    seen = []

    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        log_density, score = TWO_D.density(x)
        seen.append(log_density)
        return log_density, score

    found = PosteriorMeanEstimator(9, control_variate=recorder).estimate(PATH, NORMAL, density, at(x_t, t), z)
    weights = recorder.calls[0][0][..., 0]
    torch.testing.assert_close(found.effective_sample_size, 1.0 / (weights**2).sum(1))
    mean = seen[0].mean(1, keepdim=True)
    torch.testing.assert_close(found.log_density_spread, ((seen[0] - mean) ** 2).mean(1).sqrt())
    assert (found.effective_sample_size >= 1.0).all()
    assert (found.effective_sample_size <= 9.0).all()


@one_test
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
@pytest.mark.parametrize("rule", CONTROL_VARIATES, ids=repr)
def test_one_sample_gives_finite_means(rule: ControlVariate, proposal: Proposal) -> None:
    estimator = PosteriorMeanEstimator(1, proposal, rule)
    found = estimator.estimate(PATH, NORMAL, EVEN.density, at(normal(5, 1, seed=1), TIMES), normal(5, 1, 1, seed=2))
    for values in (found.x_0, found.x_1, found.eta, found.log_density_spread):
        assert values.isfinite().all()
    torch.testing.assert_close(found.effective_sample_size, torch.ones(5, dtype=F64))


def test_with_a_hard_box_the_gradient_expectation_is_biased_and_the_noise_expectation_is_not() -> None:
    """At a wall the density jumps, its score misses the flux through it, and any coefficient but 0 is wrong."""

    def box(x: Tensor) -> tuple[Tensor, Tensor]:
        outside = x.abs().amax(-1) > 1.0
        return torch.zeros(x.shape[:-1], dtype=F64).masked_fill(outside, -math.inf), torch.zeros_like(x)

    nodes, t, x_t = quadrature_nodes(1, 200_001), torch.tensor([0.5], dtype=F64), torch.tensor([[0.8]], dtype=F64)
    # x_0 = 1.6 - x_1 is a standard normal cut to [0.6, 2.6].
    standard = torch.distributions.Normal(torch.zeros((), dtype=F64), 1.0)
    low, high = torch.tensor([0.6, 2.6], dtype=F64)
    exact = (
        (standard.log_prob(low).exp() - standard.log_prob(high).exp()) / (standard.cdf(high) - standard.cdf(low))
    ).item()
    assert exact == pytest.approx(1.19, abs=0.005)
    noise, half, gradient = (
        PosteriorMeanEstimator(nodes.shape[1], LikelihoodProposal(), FixedControlVariate(eta))
        .estimate(PATH, NORMAL, on_quadrature(box, nodes), at(x_t, t), nodes)
        .x_0.item()
        for eta in (0.0, 0.5, 1.0)
    )
    assert noise == pytest.approx(exact, abs=1e-3)
    assert half == pytest.approx(0.5 * exact, abs=1e-3)
    assert gradient == pytest.approx(0.0, abs=1e-12)


@each_value
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("t_shape", [(), (1,), None])
def test_one_time_for_all_equals_a_time_per_state(size: int, t_shape: tuple[int, ...] | None) -> None:
    x_t, z = normal(size, size, seed=1), normal(size, size, size, seed=2)
    density = torch.distributions.Normal(torch.zeros((), dtype=F64), 1.0)
    estimator = PosteriorMeanEstimator(size)

    def log_density_and_score(x: Tensor) -> tuple[Tensor, Tensor]:
        return density.log_prob(x).sum(-1), -x

    shape = (size,) if t_shape is None else t_shape
    found = estimator.estimate(PATH, NORMAL, log_density_and_score, at(x_t, torch.full(shape, 0.4, dtype=F64)), z)
    for b in range(size):
        one = slice(b, b + 1)
        alone = estimator.estimate(
            PATH, NORMAL, log_density_and_score, at(x_t[one], torch.tensor([0.4], dtype=F64)), z[one]
        )
        torch.testing.assert_close(found.x_1[one], alone.x_1)
        torch.testing.assert_close(found.effective_sample_size[one], alone.effective_sample_size)


def test_wrong_shapes_are_refused() -> None:
    estimator = PosteriorMeanEstimator(5)
    x_t, t, z = torch.zeros(4, 2), torch.full((4,), 0.5), torch.zeros(4, 5, 2)

    def flat(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum(-1), torch.ones_like(x)

    for wrong in (torch.zeros(4, 6, 2), torch.zeros(5, 4, 2), torch.zeros(1, 5, 2), torch.zeros(4, 5, 1)):
        with pytest.raises(ValueError, match=r"z of shape \(4, 5, 2\)"):
            estimator.estimate(PATH, NORMAL, flat, at(x_t, t), wrong)
    for wrong in (torch.full((3,), 0.5), torch.full((5,), 0.5), torch.full((4, 2), 0.5), torch.full((4, 5), 0.5)):
        with pytest.raises(ValueError):
            estimator.estimate(PATH, NORMAL, flat, at(x_t, wrong), z)


@one_test
@pytest.mark.parametrize("wrong", [(5,), (4, 1), (5, 4), (4, 5, 1)])
def test_a_density_of_the_wrong_shape_is_refused(wrong: tuple[int, ...]) -> None:
    x_t, t, z = torch.zeros(4, 2), torch.full((4,), 0.5), torch.zeros(4, 5, 2)
    with pytest.raises(ValueError):
        PosteriorMeanEstimator(5).estimate(
            PATH, NORMAL, lambda x: (torch.zeros(wrong), torch.zeros_like(x)), at(x_t, t), z
        )
    with pytest.raises(ValueError):
        PosteriorMeanEstimator(5).estimate(PATH, NORMAL, lambda x: (x.sum(-1), torch.zeros(wrong)), at(x_t, t), z)


@pytest.mark.parametrize("num_samples", [0, -2])
def test_a_number_of_samples_below_one_is_named(num_samples: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_samples}"):
        PosteriorMeanEstimator(num_samples)


def test_the_error_falls_with_the_root_of_the_number_of_samples() -> None:
    t = torch.full((400,), 0.5, dtype=F64)
    x_t = PATH.sample(normal(400, 1, seed=1), EVEN.draw(400, seed=2), t)
    _, exact = EVEN.posterior_means(x_t, t, 1.0 - t)
    errors = [
        rmse(
            PosteriorMeanEstimator(k).estimate(PATH, NORMAL, EVEN.density, at(x_t, t), normal(400, k, 1, seed=3)).x_1
            - exact
        )
        for k in (64, 1024)
    ]
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.25)
