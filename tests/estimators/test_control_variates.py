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
from tests.combinations import each_value, one_test
from tests.families import CONTROL_VARIATES, SCHEDULES, WIDE_PROPOSALS
from tests.oracles import (
    F64,
    NORMAL,
    TWO_D,
    RecordingControlVariate,
    at,
    gaussian_density,
    normal,
    on_quadrature,
    quadrature_nodes,
    rmse,
    uniform,
)

PATH = AffinePath()


def samples(batch: int, count: int, dims: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weights, noise end points, residuals, ratios and times of the shapes that a rule is called with."""
    weights = torch.softmax(normal(batch, count, seed=1), dim=1)[..., None]
    x_0 = normal(batch, count, dims, seed=2)
    times = torch.linspace(0.05, 0.95, batch, dtype=F64)
    return weights, x_0, 0.5 * x_0 + normal(batch, count, dims, seed=3), 0.5 + normal(batch, 1, seed=4).abs(), times


@each_value
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("rule", CONTROL_VARIATES, ids=repr)
def test_a_rule_gives_one_coefficient_per_state_and_dimension(rule: ControlVariate, size: int) -> None:
    eta = rule.coefficient(*samples(size, size, size))
    assert eta.shape == (size, size)
    assert eta.isfinite().all()
    wide = rule.coefficient(*samples(2, 7, 3))
    assert wide.shape == (2, 3)


@pytest.mark.parametrize("rule", [rule for rule in CONTROL_VARIATES if "isotropic=True" not in repr(rule)], ids=repr)
def test_each_state_and_dimension_is_treated_by_itself(rule: ControlVariate) -> None:
    """At flow times as different as these; a rule that pools within bins of flow time has one state in each."""
    weights, x_0, r, rho, t = samples(4, 6, 4)
    together = rule.coefficient(weights, x_0, r, rho, t)
    for b in range(4):
        for d in range(4):
            one = (slice(b, b + 1), slice(None), slice(d, d + 1))
            alone = rule.coefficient(weights[b : b + 1], x_0[one], r[one], rho[b : b + 1], t[b : b + 1])
            torch.testing.assert_close(alone[0, 0], together[b, d])


def test_the_constant_rules_give_their_constants() -> None:
    arguments = samples(2, 5, 3)
    for rule, value in ((NoControlVariate(), 0.0), (GradientControlVariate(), 1.0), (FixedControlVariate(-0.7), -0.7)):
        assert torch.equal(rule.coefficient(*arguments), torch.full((2, 3), value, dtype=F64))


def test_the_regression_minimises_the_asymptotic_variance_of_its_samples() -> None:
    weights, x_0, r, rho, t = samples(3, 40, 2)
    eta = RegressControlVariate(limit=1e6, ridge=0.0).coefficient(weights, x_0, r, rho, t).requires_grad_()
    centred_x, centred_r = (v - (weights * v).sum(1, keepdim=True) for v in (x_0, r))
    variance = (weights * (centred_x - eta[:, None] * centred_r)).square().sum(1)
    (slope,) = torch.autograd.grad(variance.sum(), eta)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0.0, atol=1e-14)


def test_the_ridge_and_the_limit_of_the_regression_are_in_units_of_the_data() -> None:
    weights, x_0, r, rho, t = samples(3, 40, 2)
    x_1, score = -rho[:, None] * x_0, r / rho[:, None]
    squared = weights**2
    centred_x, centred_s = (v - (weights * v).sum(1, keepdim=True) for v in (x_1, score))
    ridge = 0.37
    c = -(squared * centred_x * centred_s).sum(1) / ((squared * centred_s**2).sum(1) + ridge)
    eta = RegressControlVariate(limit=1e6, ridge=ridge).coefficient(weights, x_0, r, rho, t)
    torch.testing.assert_close(rho**2 * eta, c)
    limit = c.abs().median().item()
    clipped = RegressControlVariate(limit=limit, ridge=ridge).coefficient(weights, x_0, r, rho, t)
    torch.testing.assert_close(rho**2 * clipped, c.clamp(-limit, limit))
    negative = RegressControlVariate(limit=limit, ridge=ridge).coefficient(weights, x_0, -r, rho, t)
    torch.testing.assert_close(rho**2 * negative, -c.clamp(-limit, limit))


def test_a_regression_that_has_one_sample_only_leaves_the_mean_alone() -> None:
    weights = torch.zeros(1, 4, 1, dtype=F64)
    weights[0, 2] = 1.0
    _, x_0, r, rho, t = samples(1, 4, 2)
    for ridge in (1e-4, 0.0):
        eta = RegressControlVariate(ridge=ridge).coefficient(weights, x_0, r, rho, t)
        torch.testing.assert_close(eta, torch.zeros(1, 2, dtype=F64))


def test_the_fisher_rule_is_the_inverse_of_the_mean_square_within_its_bounds() -> None:
    weights, x_0, r, rho, t = samples(6, 40, 2)
    inverse = 1.0 / (weights * r**2).sum(1)
    free = FisherControlVariate(eta_max=1e6, c_max=1e6).coefficient(weights, x_0, r, rho, t)
    torch.testing.assert_close(free, inverse)
    eta_max, c_max = inverse.median().item(), (rho**2 * inverse).median().item()
    by_eta = FisherControlVariate(eta_max=eta_max, c_max=1e6).coefficient(weights, x_0, r, rho, t)
    torch.testing.assert_close(by_eta, inverse.clamp_max(eta_max))
    by_c = FisherControlVariate(eta_max=1e6, c_max=c_max).coefficient(weights, x_0, r, rho, t)
    torch.testing.assert_close(rho**2 * by_c, (rho**2 * inverse).clamp_max(c_max))
    assert (FisherControlVariate().coefficient(weights, x_0, 0.0 * r, rho, t) <= 2.0).all()


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
def test_the_covariance_of_the_posterior_makes_every_sample_of_a_normal_exact(
    proposal: Proposal, schedule: Schedule
) -> None:
    """With C = Sigma even three samples of any weight give the posterior mean of a normal with full covariance."""
    factor = normal(3, 3, seed=5)
    precision, mean = factor @ factor.T + torch.eye(3, dtype=F64), normal(3, seed=6)
    density = gaussian_density(mean, precision)
    t, x_t, z = torch.linspace(0.1, 0.9, 4, dtype=F64), normal(4, 3, seed=7), normal(4, 3, 3, seed=8)
    path = AffinePath(schedule)
    none, gradient = (
        PosteriorMeanEstimator(3, proposal, rule).estimate(path, NORMAL, density, at(x_t, t), z)
        for rule in (NoControlVariate(), GradientControlVariate())
    )
    rho = (schedule.sigma(t) / schedule.alpha(t))[:, None]
    covariance = torch.linalg.inv(torch.eye(3, dtype=F64) / rho[..., None] ** 2 + precision)
    exact = torch.linalg.solve(
        torch.eye(3, dtype=F64) / rho[..., None] ** 2 + precision,
        x_t / (schedule.alpha(t)[:, None] * rho**2) + mean @ precision,
    )
    # The gradient expectation adds rho^2 times the mean score of the data posterior.
    mean_score = (gradient.x_1 - none.x_1) / rho**2
    corrected = none.x_1 + (covariance @ mean_score[..., None])[..., 0]
    assert (none.x_1 - exact).abs().amax() > 1e-3
    assert (corrected - exact).abs().amax() < 1e-10


@each_value
@pytest.mark.parametrize("h", [0.5, 3.0])
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_best_fixed_coefficient_of_an_isotropic_normal_is_exact_with_three_samples(
    t: float, proposal: Proposal, h: float
) -> None:
    rho = (1.0 - t) / t
    mean = torch.full((2,), 0.7, dtype=F64)
    times, x_t, z = torch.full((4,), t, dtype=F64), normal(4, 2, seed=7), normal(4, 3, 2, seed=8)
    estimator = PosteriorMeanEstimator(3, proposal, FixedControlVariate(1.0 / (1.0 + rho**2 * h)))
    found = estimator.estimate(PATH, NORMAL, gaussian_density(mean, h * torch.eye(2, dtype=F64)), at(x_t, times), z)
    exact = (x_t / (t * rho**2) + h * mean) / (rho**-2 + h)
    assert (found.x_1 - exact).abs().amax() < 1e-10
    assert (found.x_0 - (x_t - t * exact) / (1.0 - t)).abs().amax() < 1e-10


@each_value
@pytest.mark.parametrize("h", [0.8, 3.0])
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
def test_the_fisher_rule_finds_the_best_coefficient_of_a_normal(proposal: Proposal, h: float) -> None:
    t, x_t, nodes = torch.tensor([0.2, 0.5, 0.9], dtype=F64), normal(3, 1, seed=7), quadrature_nodes(3)
    density = gaussian_density(torch.full((1,), 0.7, dtype=F64), torch.full((1, 1), h, dtype=F64))
    estimator = PosteriorMeanEstimator(nodes.shape[1], proposal, FisherControlVariate())
    found = estimator.estimate(PATH, NORMAL, on_quadrature(density, nodes), at(x_t, t), nodes)
    torch.testing.assert_close(found.eta[:, 0], 1.0 / (1.0 + ((1.0 - t) / t) ** 2 * h), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0.5, 0.8])
@pytest.mark.parametrize("proposal", [LikelihoodProposal(), ProductProposal()], ids=repr)
def test_rules_fitted_to_many_samples_of_a_normal_remove_most_of_the_error(proposal: Proposal, t: float) -> None:
    h, rho, count = 1.7, (1.0 - t) / t, 4096
    mean = torch.tensor([0.7, -0.3], dtype=F64)
    times, z = torch.full((40,), t, dtype=F64), normal(40, count, 2, seed=8)
    x_t = PATH.sample(normal(40, 2, seed=6), mean + normal(40, 2, seed=7) / math.sqrt(h), times)
    exact = (x_t / (t * rho**2) + h * mean) / (rho**-2 + h)

    def error(rule: ControlVariate) -> float:
        estimator = PosteriorMeanEstimator(count, proposal, rule)
        return rmse(
            estimator.estimate(PATH, NORMAL, gaussian_density(mean, h * torch.eye(2, dtype=F64)), at(x_t, times), z).x_1
            - exact
        )

    without = error(NoControlVariate())
    assert error(FixedControlVariate(1.0 / (1.0 + rho**2 * h))) < 1e-4 * without
    assert error(FisherControlVariate()) < 0.3 * without
    assert error(RegressControlVariate()) < 0.15 * without


def test_a_rule_is_given_normalised_weights_and_the_ratio_of_noise_to_data() -> None:
    rule = RecordingControlVariate()
    t = torch.tensor([0.2, 0.5, 0.8], dtype=F64)
    density = gaussian_density(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    PosteriorMeanEstimator(7, control_variate=rule).estimate(
        PATH, NORMAL, density, at(normal(3, 2, seed=1), t), normal(3, 7, 2, seed=2)
    )
    ((weights, x_0, r, rho),) = rule.calls
    assert weights.shape == (3, 7, 1)
    assert x_0.shape == r.shape == (3, 7, 2)
    torch.testing.assert_close(weights.sum(1), torch.ones(3, 1, dtype=F64))
    torch.testing.assert_close(rho, ((1.0 - t) / t)[:, None])


@one_test
@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda: RegressControlVariate(limit=0.0), "limit must .*, got 0.0"),
        (lambda: RegressControlVariate(limit=math.nan), "limit must .*, got nan"),
        (lambda: RegressControlVariate(ridge=-1e-3), "ridge must .*, got -0.001"),
        (lambda: RegressControlVariate(ridge=math.nan), "ridge must .*, got nan"),
        (lambda: FisherControlVariate(eta_max=-1.0), "eta_max must .*, got -1.0"),
        (lambda: FisherControlVariate(c_max=0.0), "c_max must .*, got 0.0"),
        (lambda: FisherControlVariate(c_max=math.nan), "c_max must .*, got nan"),
    ],
)
def test_a_bad_constructor_argument_is_named(build: object, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        build()


def test_an_isotropic_rule_is_the_ratio_of_sums_over_dimensions() -> None:
    weights, x_0, r, rho, t = samples(3, 40, 4)
    squared = weights**2
    centred_x, centred_r = (v - (weights * v).sum(1, keepdim=True) for v in (x_0, r))
    covariance, variance = (squared * centred_x * centred_r).sum((1, 2)), (squared * centred_r**2).sum((1, 2))
    regress = RegressControlVariate(limit=1e6, ridge=0.0, isotropic=True).coefficient(weights, x_0, r, rho, t)
    torch.testing.assert_close(regress, (covariance / variance)[:, None].expand(3, 4))
    ridge = 0.2
    regress = RegressControlVariate(limit=1e6, ridge=ridge, isotropic=True).coefficient(weights, x_0, r, rho, t)
    expected = covariance / (variance + 4.0 * ridge * rho[:, 0] ** 2)
    torch.testing.assert_close(regress, expected[:, None].expand(3, 4))
    fisher = FisherControlVariate(1e6, 1e6, isotropic=True).coefficient(weights, x_0, r, rho, t)
    expected = 4.0 / (weights * r**2).sum((1, 2))
    torch.testing.assert_close(fisher, expected[:, None].expand(3, 4))


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("num_bins", [1, 3])
def test_a_pooled_rule_shares_one_scaled_coefficient_in_each_bin(num_bins: int, isotropic: bool) -> None:
    weights, x_0, r, rho, _ = samples(10, 20, 2)
    t, ridge = uniform(10, seed=5), 0.1
    index = (t * num_bins).long()
    assert len(index.unique()) == num_bins
    regress = RegressControlVariate(1e6, ridge, isotropic, num_bins).coefficient(weights, x_0, r, rho, t)
    fisher = FisherControlVariate(1e6, 1e6, isotropic, num_bins).coefficient(weights, x_0, r, rho, t)
    for b in range(num_bins):
        of_regress, of_fisher = torch.zeros(2, 2, dtype=F64), torch.zeros(2, 2, dtype=F64)
        members = [i for i in range(10) if index[i] == b]
        for i in members:
            w, scale = weights[i], 1.0 / (1.0 + rho[i, 0] ** 2)
            x, s = x_0[i] - (w * x_0[i]).sum(0), r[i] - (w * r[i]).sum(0)
            of_regress[0] += (w**2 * x * s).sum(0)
            of_regress[1] += scale * ((w**2 * s**2).sum(0) + ridge * rho[i, 0] ** 2)
            of_fisher[0] += 1.0
            of_fisher[1] += scale * (w * r[i] ** 2).sum(0)
        for found, (numerator, denominator) in ((regress, of_regress), (fisher, of_fisher)):
            if isotropic:
                numerator, denominator = numerator.sum().expand(2), denominator.sum().expand(2)
            for i in members:
                torch.testing.assert_close(found[i], numerator / denominator / (1.0 + rho[i, 0] ** 2))


@pytest.mark.parametrize("rule", [RegressControlVariate(num_bins=1), FisherControlVariate(num_bins=1)], ids=repr)
def test_a_pooled_rule_is_exact_at_every_time_of_a_standard_normal(rule: ControlVariate) -> None:
    """There ``(1 + rho^2) eta = 1`` at all times, which one coefficient for all times keeps."""
    t, count = torch.linspace(0.2, 0.9, 400, dtype=F64), 50
    x_t, z = normal(400, 1, seed=1), normal(400, count, 1, seed=2)
    density = gaussian_density(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    exact = t[:, None] * x_t / (t**2 + (1.0 - t) ** 2)[:, None]

    def error(rule: ControlVariate) -> float:
        estimator = PosteriorMeanEstimator(count, LikelihoodProposal(), rule)
        return rmse(estimator.estimate(PATH, NORMAL, density, at(x_t, t), z).x_1 - exact)

    assert error(rule) < 0.2 * error(NoControlVariate())


@pytest.mark.parametrize("num_bins", [5, 20])
@pytest.mark.parametrize("proposal", [LikelihoodProposal(), ProductProposal()], ids=repr)
def test_pooling_mends_the_regression_where_few_samples_count(proposal: Proposal, num_bins: int) -> None:
    """States with times over a range as wide as a bin, few of whose samples count."""
    t = 0.2 + 0.2 * uniform(1000, seed=4)
    x_t = PATH.sample(normal(1000, 2, seed=1), TWO_D.draw(1000, seed=2), t)
    z = normal(1000, 100, 2, seed=3)
    exact = TWO_D.posterior_means(x_t, t, 1.0 - t)[1]

    def error(rule: ControlVariate) -> float:
        found = PosteriorMeanEstimator(100, proposal, rule).estimate(PATH, NORMAL, TWO_D.density, at(x_t, t), z)
        return rmse(found.x_1 - exact)

    without = error(NoControlVariate())
    assert error(RegressControlVariate(num_bins=num_bins)) < 1.02 * without
    assert error(FisherControlVariate(num_bins=num_bins)) < 1.02 * without


@pytest.mark.parametrize("rule", CONTROL_VARIATES, ids=repr)
def test_a_rule_that_needs_no_score_has_coefficient_zero(rule: ControlVariate) -> None:
    if rule.needs_score:
        assert (rule.coefficient(*samples(2, 7, 3)) != 0.0).any()
    else:
        assert not rule.coefficient(*samples(2, 7, 3)).any()
    assert not FixedControlVariate(0.0).needs_score


@one_test
@pytest.mark.parametrize("num_bins", [0, -3])
@pytest.mark.parametrize("build", [RegressControlVariate, FisherControlVariate])
def test_a_number_of_bins_below_one_is_named(
    build: type[RegressControlVariate | FisherControlVariate], num_bins: int
) -> None:
    with pytest.raises(ValueError, match=f"got {num_bins}"):
        build(num_bins=num_bins)
