"""Posterior means by quadrature against closed forms, and the errors of estimators against errors put in by hand."""

import math
from dataclasses import dataclass

import pytest
import torch
from scipy import integrate
from torch import Tensor

from flowmatch_rl.estimators import (
    EndpointEstimate,
    EndpointEstimator,
    LikelihoodProposal,
    NoControlVariate,
    PointScoreEstimator,
    PosteriorMeanEstimator,
    Prior,
    ProductProposal,
    ReweightedEndpoints,
)
from flowmatch_rl.evaluation import estimator_errors, exact_posterior_mean
from flowmatch_rl.paths import (
    AffinePath,
    CosineSchedule,
    NoSquash,
    PathPoints,
    Source,
    TanhSquash,
    VarianceExplodingSchedule,
)
from flowmatch_rl.testbeds import Bimodal, Flat, FourModes, Quadratic, TwoMoonsEnergy
from flowmatch_rl.types import LogDensityAndScore
from tests.combinations import each_value, one_test
from tests.oracles import F64, GaussianMixture, normal

PATHS = [AffinePath(), AffinePath(CosineSchedule()), AffinePath(VarianceExplodingSchedule())]
REPEATS = 100
TIMES = torch.tensor([0.02, 0.3, 0.6, 0.97], dtype=F64)

on_every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path.schedule).__name__)


@on_every_path
def test_a_gaussian_far_from_the_edges_has_the_closed_form(path: AffinePath) -> None:
    centre, scale = 0.2, 0.1
    bandit = Quadratic(3, centre, scale)
    x_1, x_0 = centre + scale * normal(4, 3, seed=1), normal(4, 3, seed=2)
    x_t = path.sample(x_0, x_1, TIMES)
    alpha, sigma = path.schedule.alpha(TIMES)[:, None], path.schedule.sigma(TIMES)[:, None]
    gain = alpha * scale**2 / (alpha**2 * scale**2 + sigma**2)
    expected = centre + gain * (x_t - alpha * centre)
    torch.testing.assert_close(exact_posterior_mean(bandit, x_t, TIMES, path, NoSquash()), expected, atol=1e-9, rtol=0)


@on_every_path
def test_four_gaussians_have_the_closed_form(path: AffinePath) -> None:
    mode, scale, weights = 0.4, 0.08, (0.1, 0.2, 0.3, 0.4)
    corners = [[mode, mode], [mode, -mode], [-mode, mode], [-mode, -mode]]
    mixture = GaussianMixture.of(list(weights), corners, [scale] * 4)
    x_t = path.sample(normal(4, 2, seed=3), mixture.draw(4, seed=4), TIMES)
    _, expected = mixture.posterior_means(x_t, path.schedule.alpha(TIMES), path.schedule.sigma(TIMES))
    found = exact_posterior_mean(FourModes(mode, scale, weights), x_t, TIMES, path, NoSquash())
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)


@each_value
@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("bandit", [Flat(1), Bimodal(1), Quadratic(1)], ids=repr)
def test_squashed_means_are_those_of_scipy(bandit, temperature: float) -> None:
    for t, x_t in ((0.1, 1.2), (0.5, -0.4), (0.9, 0.7)):

        def density(u: float, t: float = t, x_t: float = x_t) -> float:
            value = bandit.coordinate_value(torch.tanh(torch.tensor(u, dtype=F64)))[0].item()
            x_0 = (x_t - t * u) / (1.0 - t)
            return math.exp(value / temperature - 0.5 * x_0**2) / math.cosh(u) ** 2

        limits = {"epsabs": 1e-13, "epsrel": 1e-11, "limit": 400, "points": [-1.0, 0.0, x_t / t, 1.0]}
        mass = integrate.quad(density, -13.0, 13.0, **limits)[0]
        mean = integrate.quad(lambda u, p=density: u * p(u), -13.0, 13.0, **limits)[0] / mass
        found = exact_posterior_mean(
            bandit, torch.tensor([[x_t]], dtype=F64), torch.tensor(t, dtype=F64), temperature=temperature
        )
        assert found.item() == pytest.approx(mean, abs=1e-8)


def test_sums_over_a_plane_agree_with_those_over_its_coordinates() -> None:
    x_t = AffinePath().sample(normal(4, 2, seed=5), normal(4, 2, seed=6), TIMES)
    plane, product = (exact_posterior_mean(bandit, x_t, TIMES) for bandit in (FourModes(), Bimodal(2)))
    torch.testing.assert_close(plane, product, atol=1e-7, rtol=0)


@dataclass(frozen=True)
class Scripted(EndpointEstimator):
    """The exact mean, with an offset and noise of known size."""

    num_samples: int = 1
    offset: float = 0.0
    noise: float = 0.0
    bandit: Flat = Flat(2)

    @property
    def needs_score(self) -> bool:
        return False

    @property
    def needs_jacobian(self) -> bool:
        return True

    @property
    def num_draws(self) -> int:
        return 1

    @property
    def compares_points(self) -> bool:
        return False

    def check(self, path: AffinePath, source: Source) -> None:
        pass

    def estimate(
        self,
        path: AffinePath,
        source: Source,
        log_density_and_score: LogDensityAndScore,
        points: PathPoints,
        z: Tensor,
        prior: Prior | None = None,
    ) -> EndpointEstimate:
        once = slice(None, None, REPEATS)
        exact = exact_posterior_mean(self.bandit, points.x_t[once], points.t[once], path).repeat_interleave(REPEATS, 0)
        x_1 = exact + self.offset + self.noise * z[:, 0]
        one = torch.ones_like(points.t)
        return EndpointEstimate(points.x_0, x_1, one, torch.zeros_like(x_1), one, one)


def test_errors_put_in_by_hand_are_found() -> None:
    estimators = {
        "exact": Scripted(),
        "offset": Scripted(offset=0.3),
        "noisy": Scripted(noise=0.5),
        "both": Scripted(offset=-0.4, noise=0.2),
    }
    found = estimator_errors(Flat(2), estimators, TIMES[1:], num_points=20, num_repeats=REPEATS)
    for name, (bias, deviation) in {"exact": (0, 0), "offset": (0.3, 0), "noisy": (0, 0.5), "both": (0.4, 0.2)}.items():
        errors = found[name]
        assert errors.t.tolist() == TIMES[1:].tolist()
        assert errors.deviation.tolist() == pytest.approx([deviation] * 3, rel=0.06, abs=1e-9)
        assert errors.rmse.tolist() == pytest.approx([math.hypot(bias, deviation)] * 3, rel=0.06, abs=1e-9)
        for found_bias, resolution in zip(errors.bias.tolist(), errors.resolution.tolist(), strict=True):
            assert abs(found_bias**2 - bias**2) <= 4.0 * (resolution**2 + bias * deviation / 2000**0.5) + 1e-9
        assert errors.resolution.tolist() == pytest.approx([deviation * (2 / 40) ** 0.25 / 10] * 3, rel=0.06, abs=1e-9)


def test_the_likelihood_proposal_is_biased_early_on_the_path_and_the_product_is_not() -> None:
    """A flat value in six dimensions, 100 samples: the reason for the product proposal."""
    estimators = {
        "likelihood": PosteriorMeanEstimator(100, LikelihoodProposal(), NoControlVariate()),
        "product": PosteriorMeanEstimator(100, ProductProposal(), NoControlVariate()),
    }
    found = estimator_errors(Flat(6), estimators, torch.tensor([0.01, 0.1]), num_points=8, num_repeats=10)
    assert (found["likelihood"].bias > torch.tensor([10.0, 1.0])).all()
    assert (found["product"].rmse < 0.2).all()


def test_more_samples_shrink_both_errors() -> None:
    estimators = {f"{k}": PosteriorMeanEstimator(k, ProductProposal(0.3), NoControlVariate()) for k in (8, 128)}
    found = estimator_errors(TwoMoonsEnergy(), estimators, torch.tensor([0.5]), num_points=6, num_repeats=300)
    few, many = found["8"], found["128"]
    assert few.deviation > 2.5 * many.deviation
    assert few.bias > 4.0 * many.bias
    assert many.effective_sample_size > 4.0 * few.effective_sample_size


def test_the_score_at_the_point_is_all_bias() -> None:
    errors = estimator_errors(FourModes(), {"point": PointScoreEstimator()}, TIMES, num_points=5, num_repeats=2)[
        "point"
    ]
    assert (errors.deviation == 0.0).all()
    torch.testing.assert_close(errors.bias, errors.rmse)
    assert (errors.bias[:-1] > 0.5).all()


@one_test
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_repeats": 1}, "num_repeats >= 2, got 32 and 1"),
        ({"num_points": 0}, "num_points >= 1"),
        ({"t": torch.tensor([0.0, 0.5])}, r"in \(0, 1\)"),
        ({"t": torch.tensor(0.5)}, r"shape \(T,\)"),
        ({"estimators": {"mirror": ReweightedEndpoints()}}, "mirror: ReweightedEndpoints"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, message) -> None:
    options = {"estimators": {"point": PointScoreEstimator()}, "t": torch.tensor([0.5])} | change
    with pytest.raises(ValueError, match=message):
        estimator_errors(Flat(2), **options)


def test_points_of_another_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x_t of shape \(\.\.\., 6\)"):
        exact_posterior_mean(Flat(6), torch.zeros(2, 3, dtype=F64), torch.tensor(0.5), squash=TanhSquash())
