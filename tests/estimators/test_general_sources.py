"""Noise of any law: identities and means by quadrature, against closed forms for mixtures of normals."""

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
    MixtureProposal,
    NoControlVariate,
    PosteriorMeanEstimator,
    ProductProposal,
    Proposal,
    TruncatedProposal,
)
from flowmatch_rl.paths import AffinePath, GaussianSource, MixtureSource, Schedule, Source, UniformSource
from flowmatch_rl.types import LogDensityAndScore
from tests.combinations import each_pair, each_value, one_test
from tests.families import CONTROL_VARIATES, PROPOSALS, SCHEDULES, WIDE_PROPOSALS
from tests.oracles import F64, NORMAL, ONE_D, RecordingControlVariate, at, gaussian_density, normal, quadrature_nodes

PATH = AffinePath()
TIMES = torch.tensor([0.25, 0.3, 0.5, 0.7, 0.9], dtype=F64)
POINTS = torch.tensor([[0.4], [-1.2], [0.8], [0.05], [-1.0]], dtype=F64)
WIDTH, COUNT = 10.0, 3001

GAUSSIANS: list[tuple[Source, list[float], float]] = [
    (GaussianSource(), [0.0], 1.0),
    (GaussianSource(scale=1.6), [0.0], 1.6),
    (MixtureSource(means=[[-1.0], [0.4], [1.1]], scale=0.5), [-1.0, 0.4, 1.1], 0.5),
]
"""Sources on the line with the means and the scale of their components."""

on_all_gaussians = pytest.mark.parametrize(
    ("source", "means", "scale"), GAUSSIANS, ids=[repr(source) for source, _, _ in GAUSSIANS]
)


def noise_nodes(source: Source, batch: int) -> Tensor:
    """Nodes of quadrature for the first normal and, where there is a second, the middle of each component's stratum.

    They come twice, one half for each member of an even mixture of proposals.
    """
    line = torch.linspace(-WIDTH, WIDTH, COUNT, dtype=F64)
    if source.noise_dim(1) == 1:
        nodes = line[:, None]
    else:
        strata = torch.special.ndtri((torch.arange(3, dtype=F64) + 0.5) / 3.0)
        nodes = torch.stack(torch.meshgrid(line, strata, indexing="ij"), -1).reshape(-1, 2)
    return nodes.repeat(2, 1).expand(batch, -1, -1)


def weighted_by_normal(density: LogDensityAndScore, nodes: Tensor) -> LogDensityAndScore:
    """The density with the normal weight of the first entry of the nodes, so that sums over them are integrals."""

    def weighted(x: Tensor) -> tuple[Tensor, Tensor]:
        log_density, score = density(x)
        return log_density - 0.5 * nodes[..., 0].square(), score

    return weighted


def exact(means: list[float], scale: float, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-density of x_t and the posterior means of x_0 and x_1, one component of the source after the other."""
    logs, zeros, ones = [], [], []
    for mean in means:
        shifted = POINTS - (sigma * mean)[:, None]
        logs.append(ONE_D.log_marginal(shifted, alpha, scale * sigma) - math.log(len(means)))
        x_0, x_1 = ONE_D.posterior_means(shifted, alpha, scale * sigma)
        zeros.append(mean + scale * x_0)
        ones.append(x_1)
    share = torch.softmax(torch.stack(logs), 0)[..., None]
    return (
        torch.logsumexp(torch.stack(logs), 0),
        (share * torch.stack(zeros)).sum(0),
        (share * torch.stack(ones)).sum(0),
    )


@each_pair
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
@on_all_gaussians
def test_the_mean_weight_is_the_density_of_the_point(
    source: Source, means: list[float], scale: float, proposal: Proposal, schedule: Schedule
) -> None:
    """The corrections are normalised, which a mixture of proposals relies on."""
    alpha, sigma = schedule.alpha(TIMES), schedule.sigma(TIMES)
    nodes = noise_nodes(source, 5)
    state = (POINTS[:, None], alpha[:, None, None], sigma[:, None, None])
    x_0, x_1 = proposal.draw(nodes, source, *state)
    torch.testing.assert_close(state[1] * x_1 + state[2] * x_0, POINTS[:, None].expand_as(x_1), rtol=1e-9, atol=1e-9)
    logs = ONE_D.density(x_1)[0] + proposal.correction(x_0, x_1, source, *state) - 0.5 * nodes[..., 0].square()
    measure = math.log(2.0 * WIDTH / (COUNT - 1) / math.sqrt(2.0 * math.pi) * COUNT / nodes.shape[1])
    found = torch.logsumexp(logs, 1) + measure
    torch.testing.assert_close(found, exact(means, scale, alpha, sigma)[0], rtol=0.0, atol=1e-10)


@each_pair
@pytest.mark.parametrize("schedule", SCHEDULES[::2], ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
@pytest.mark.parametrize("rule", [NoControlVariate(), GradientControlVariate(), FisherControlVariate()], ids=repr)
@on_all_gaussians
def test_every_coefficient_gives_the_analytic_mean(
    source: Source, means: list[float], scale: float, rule: ControlVariate, proposal: Proposal, schedule: Schedule
) -> None:
    nodes, path = noise_nodes(source, 5), AffinePath(schedule)
    estimator = PosteriorMeanEstimator(nodes.shape[1], proposal, rule)
    estimator.check(path, source)
    found = estimator.estimate(path, source, weighted_by_normal(ONE_D.density, nodes), at(POINTS, TIMES), nodes)
    _, x_0, x_1 = exact(means, scale, schedule.alpha(TIMES), schedule.sigma(TIMES))
    torch.testing.assert_close(found.x_0, x_0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.x_1, x_1, rtol=1e-9, atol=1e-9)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
@on_all_gaussians
def test_the_posterior_score_has_mean_zero_and_unit_covariance_with_its_end_point(
    source: Source, means: list[float], scale: float, proposal: Proposal, schedule: Schedule
) -> None:
    nodes, rule = noise_nodes(source, 5), RecordingControlVariate()
    estimator = PosteriorMeanEstimator(nodes.shape[1], proposal, rule)
    density = weighted_by_normal(ONE_D.density, nodes)
    found = estimator.estimate(AffinePath(schedule), source, density, at(POINTS, TIMES), nodes)
    ((weights, x_0, r, _),) = rule.calls
    assert (weights * r).sum(1).abs().amax() < 1e-10
    covariance = (weights * (x_0 - found.x_0[:, None]) * r).sum(1)
    torch.testing.assert_close(covariance, torch.ones_like(covariance), rtol=0.0, atol=1e-10)


@each_value
@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)
def test_the_best_fixed_coefficient_is_exact_with_three_samples_for_any_scale_of_the_noise(
    proposal: Proposal, scale: float
) -> None:
    t, h, mean = 0.4, 1.7, torch.tensor([0.7, -0.3], dtype=F64)
    rho = (1.0 - t) / t
    x_t, z = normal(4, 2, seed=1), normal(4, 3, 2, seed=2)
    # r = x_0 / scale^2 + rho grad log p_1 has slope 1 / scale^2 + rho^2 h in x_0.
    rule = FixedControlVariate(1.0 / (scale**-2 + rho**2 * h))
    estimator = PosteriorMeanEstimator(3, proposal, rule)
    density = gaussian_density(mean, h * torch.eye(2, dtype=F64))
    points = at(x_t, torch.full((4,), t, dtype=F64))
    found = estimator.estimate(PATH, GaussianSource(scale), density, points, z)
    precision = (scale * rho) ** -2
    expected = (x_t / t * precision + h * mean) / (precision + h)
    torch.testing.assert_close(found.x_1, expected, rtol=0.0, atol=1e-10)


def test_a_uniform_source_needs_no_control_variate_and_then_has_the_right_mean() -> None:
    source, nodes = UniformSource(half_width=1.5), quadrature_nodes(5)
    # The posterior of x_0 is p_1 at the other end point, over the box alone.
    line, weight = (torch.as_tensor(v, dtype=F64) for v in gauss_legendre(400))
    x_0 = 1.5 * line[None, :, None].expand(5, -1, -1)
    x_1 = (POINTS[:, None] - (1.0 - TIMES)[:, None, None] * x_0) / TIMES[:, None, None]
    share = torch.softmax(ONE_D.density(x_1)[0] + weight.log(), 1)[..., None]
    estimator = PosteriorMeanEstimator(nodes.shape[1], LikelihoodProposal(), NoControlVariate())
    estimator.check(PATH, source)
    density = weighted_by_normal(ONE_D.density, nodes)
    found = estimator.estimate(PATH, source, density, at(POINTS, TIMES), nodes)
    torch.testing.assert_close(found.x_0, (share * x_0).sum(1), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(found.x_1, (share * x_1).sum(1), rtol=0.0, atol=1e-9)
    # What the refusal below is for.
    wrong = PosteriorMeanEstimator(nodes.shape[1], LikelihoodProposal(), GradientControlVariate())
    biased = wrong.estimate(PATH, source, density, at(POINTS, TIMES), nodes)
    assert (biased.x_0 - found.x_0).abs().amax() > 0.1


def gauss_legendre(count: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [-1, 1], by the eigenvalues of the Jacobi matrix."""
    k = torch.arange(1, count, dtype=F64)
    off = k / (4.0 * k.square() - 1.0).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes.tolist(), (2.0 * vectors[0].square()).tolist()


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("limit", [0.6, 1.5])
def test_the_truncated_proposal_gives_the_mean_of_the_density_cut_to_the_box(limit: float, schedule: Schedule) -> None:
    nodes, path = quadrature_nodes(5), AffinePath(schedule)
    estimator = PosteriorMeanEstimator(nodes.shape[1], TruncatedProposal(limit), NoControlVariate())
    density = weighted_by_normal(ONE_D.density, nodes)
    found = estimator.estimate(path, NORMAL, density, at(POINTS, TIMES), nodes)
    line, weight = (torch.as_tensor(v, dtype=F64) for v in gauss_legendre(400))
    x_1 = limit * line[None, :, None].expand(5, -1, -1)
    alpha, sigma = (c[:, None, None] for c in (schedule.alpha(TIMES), schedule.sigma(TIMES)))
    likelihood = -0.5 * ((POINTS[:, None] - alpha * x_1) / sigma).square()[..., 0]
    share = torch.softmax(ONE_D.density(x_1)[0] + likelihood + weight.log(), 1)[..., None]
    torch.testing.assert_close(found.x_1, (share * x_1).sum(1), rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_the_weights_of_a_mixture_are_those_of_its_density_and_bounded_by_either_part(share: float) -> None:
    count, dims = 20, 2
    first, second = LikelihoodProposal(), ProductProposal(0.7)
    t, x_t, z = torch.tensor([0.1, 0.5, 0.9], dtype=F64), normal(3, 1, dims, seed=1), normal(3, count, dims, seed=2)
    alpha, sigma = t[:, None, None], 1.0 - t[:, None, None]
    mixture = MixtureProposal(first, second, share)
    x_0, x_1 = mixture.draw(z, NORMAL, x_t, alpha, sigma)
    cut = round(share * count)
    torch.testing.assert_close(x_1[:, :cut], first.draw(z[:, :cut], NORMAL, x_t, alpha, sigma)[1])
    torch.testing.assert_close(x_1[:, cut:], second.draw(z[:, cut:], NORMAL, x_t, alpha, sigma)[1])
    variance = 1.0 / (alpha**2 / sigma**2 + 1.0 / 0.7)
    densities = [
        torch.distributions.Normal(mean, scale).log_prob(x_1).sum(-1).exp()
        for mean, scale in (
            (x_t / alpha, sigma / alpha),
            (variance * alpha / sigma**2 * x_t, variance.sqrt()),
        )
    ]
    likelihood = torch.distributions.Normal(alpha * x_1, sigma).log_prob(x_t).sum(-1).exp()
    expected = likelihood / (share * densities[0] + (1.0 - share) * densities[1])
    found = mixture.correction(x_0, x_1, NORMAL, x_t, alpha, sigma).exp()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0.0)
    for part, size in ((first, share), (second, 1.0 - share)):
        assert (found <= part.correction(x_0, x_1, NORMAL, x_t, alpha, sigma).exp() / size * (1.0 + 1e-12)).all()


def test_outside_the_box_a_mixture_with_a_truncated_part_has_the_weight_of_the_other() -> None:
    wide, box = LikelihoodProposal(), TruncatedProposal(0.5)
    t, x_t, z = torch.full((1, 1, 1), 0.6, dtype=F64), normal(1, 1, 1, seed=1), normal(1, 40, 1, seed=2)
    mixture = MixtureProposal(wide, box, 0.5)
    x_0, x_1 = mixture.draw(z, NORMAL, x_t, t, 1.0 - t)
    outside = x_1[..., 0].abs() > 0.5
    assert outside.any()
    assert not outside[:, 20:].any()
    correction = mixture.correction(x_0, x_1, NORMAL, x_t, t, 1.0 - t)
    alone = wide.correction(x_0, x_1, NORMAL, x_t, t, 1.0 - t).expand_as(correction) + math.log(2.0)
    torch.testing.assert_close(correction[outside], alone[outside])
    assert (correction[~outside] < alone[~outside]).all()


@one_test
@pytest.mark.parametrize("proposal", PROPOSALS, ids=repr)
def test_each_proposal_is_refused_where_its_weights_would_be_wrong(proposal: Proposal) -> None:
    estimator = PosteriorMeanEstimator(4, proposal, NoControlVariate())
    estimator.check(PATH, NORMAL)
    uniform, mixture = UniformSource(), MixtureSource(means=[[1.0], [-1.0]])
    if isinstance(proposal, LikelihoodProposal):
        estimator.check(PATH, uniform)
    else:
        with pytest.raises(ValueError, match="UniformSource"):
            estimator.check(PATH, uniform)
    if isinstance(proposal, TruncatedProposal):
        with pytest.raises(ValueError, match=r"standard normal.*MixtureSource"):
            estimator.check(PATH, mixture)
    else:
        estimator.check(PATH, mixture)


@one_test
@pytest.mark.parametrize("rule", CONTROL_VARIATES, ids=repr)
def test_a_control_variate_is_refused_at_the_edge_of_a_support(rule: ControlVariate) -> None:
    over_box = PosteriorMeanEstimator(4, TruncatedProposal(), rule)
    from_box = PosteriorMeanEstimator(4, LikelihoodProposal(), rule)
    if isinstance(rule, NoControlVariate):
        over_box.check(PATH, NORMAL)
        from_box.check(PATH, UniformSource())
        return
    with pytest.raises(ValueError, match=r"covers the whole space.*TruncatedProposal.*NoControlVariate"):
        over_box.check(PATH, NORMAL)
    with pytest.raises(ValueError, match=r"smooth density.*UniformSource.*NoControlVariate"):
        from_box.check(PATH, UniformSource())


@one_test
@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda: TruncatedProposal(0.0), "0.0"),
        (lambda: TruncatedProposal(math.nan), "nan"),
        (lambda: MixtureProposal(fraction=0.0), "0.0"),
        (lambda: MixtureProposal(fraction=1.0), "1.0"),
        (lambda: MixtureProposal(fraction=math.nan), "nan"),
    ],
)
def test_a_bad_constructor_argument_is_named(build: object, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        build()
