"""Densities in the plane: mass, entropy, agreement of samples with the density, closed forms, and refusals."""

import math
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from jsonargparse import ArgumentParser
from scipy import stats
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from flowmatch_rl.data import Dataset, DensityTable, SampleData
from flowmatch_rl.testbeds import Checkerboard, EightGaussians, PlanarDensity, Rings, Spirals, TwoMoons, densities
from tests.combinations import each_value, one_test
from tests.settings import DENSITIES

each_density = pytest.mark.parametrize("density", DENSITIES, ids=repr)


def points(frame: pd.DataFrame) -> Tensor:
    return torch.from_numpy(frame[["x", "y"]].to_numpy())


def draw(density: PlanarDensity, number: int, seed: int = 0) -> pd.DataFrame:
    return replace(DensityTable(density), num_samples=number, seed=seed).load()


def grid(density: PlanarDensity) -> tuple[Tensor, float]:
    """Midpoints of a fine grid that holds all mass and is aligned with the squares of a board, and its spacing."""
    if isinstance(density, Checkerboard):
        spacing = 2 * density.half_width / density.squares_per_side / 8
    else:
        spacing = 0.6 * (density.scale if isinstance(density, EightGaussians) else density.noise)
    half = math.ceil((points(draw(density, 1000)).abs().max().item() / spacing + 8) / 8) * 8
    middle = (torch.arange(-half, half, dtype=torch.float64) + 0.5) * spacing
    return middle, spacing


def on_grid(density: PlanarDensity) -> tuple[Tensor, Tensor, float]:
    middle, spacing = grid(density)
    return middle, density.log_prob(torch.cartesian_prod(middle, middle)).reshape(len(middle), -1), spacing


@each_density
def test_density_integrates_to_one_and_samples_follow_it(density: PlanarDensity) -> None:
    middle, log_prob, spacing = on_grid(density)
    mass = log_prob.exp() * spacing**2
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-6)

    # The mean log-density of samples is minus the entropy.
    samples = points(draw(density, 4000))
    drawn = density.log_prob(samples)
    error = drawn.std().item() / math.sqrt(len(drawn)) + 1e-9
    assert drawn.mean().item() == pytest.approx(torch.xlogy(mass, mass / spacing**2).sum().item(), abs=4 * error)

    # Counts in coarse cells are those that the density predicts.
    edges = middle[::8] - spacing / 2
    edges = torch.cat([edges, edges[-1:] + 8 * spacing]).numpy()
    counts = np.histogram2d(*samples.numpy().T, bins=(edges, edges))[0].ravel()
    wanted = 4000 * mass.reshape(len(mass) // 8, 8, -1, 8).sum((1, 3)).flatten().numpy()
    often = wanted > 5
    counts, wanted = [np.append(n[often], n[~often].sum() + 1e-9) for n in (counts, wanted)]
    assert counts.sum() == pytest.approx(4000)
    assert stats.chi2.sf(((counts - wanted) ** 2 / wanted).sum(), often.sum()) > 1e-3


@each_density
def test_parts_are_equally_frequent_text(density: PlanarDensity) -> None:
    frame = draw(density, 4000)
    assert list(frame.columns) == ["x", "y", "part"]
    assert density.columns == ("x", "y")
    assert set(frame["part"]) == set(density.parts)
    assert all(isinstance(part, str) for part in frame["part"])
    share = 1 / len(density.parts)
    error = math.sqrt(share * (1 - share) / 4000)
    assert np.allclose(frame["part"].value_counts() / 4000, share, atol=4 * error + 1e-12)


@each_density
def test_parts_say_where_a_point_is(density: PlanarDensity) -> None:
    """Within a part, the nearest other sample is nearly always of the same part where parts are apart."""
    density = replace(density, noise=1e-3) if "noise" in {field.name for field in fields(density)} else density
    frame = draw(density, 2000)
    distance = torch.cdist(points(frame), points(frame)).fill_diagonal_(math.inf)
    part = frame["part"].to_numpy()
    assert (part[distance.argmin(1)] == part).mean() > 0.9


@each_density
def test_table_has_the_rows_asked_for_in_float64_and_depends_on_its_seed_alone(density: PlanarDensity) -> None:
    table = DensityTable(density, num_samples=50)
    before = torch.get_rng_state()
    frame = table.load()
    assert len(frame) == 50
    assert frame["x"].dtype == frame["y"].dtype == np.float64
    pd.testing.assert_frame_equal(frame, table.load())
    assert not frame.equals(replace(table, seed=1).load())
    assert torch.equal(torch.get_rng_state(), before)


@each_density
def test_log_prob_is_float64_also_of_float32_points_and_of_one_or_none(density: PlanarDensity) -> None:
    x = points(draw(density, 3)).float()
    assert density.log_prob(x).dtype == torch.float64
    torch.testing.assert_close(density.log_prob(x), density.log_prob(x.double()), rtol=0, atol=0)
    assert density.log_prob(x[:1]).shape == (1,)
    assert density.log_prob(x[:0]).shape == (0,)


@each_density
def test_points_far_away_have_a_log_density_without_nan(density: PlanarDensity) -> None:
    far = torch.tensor([[40.0, 0.0], [0.0, 0.0], [-1e3, 1e3]])
    log_prob = density.log_prob(far)
    assert not log_prob.isnan().any()
    if isinstance(density, Checkerboard):
        assert log_prob[0] == log_prob[2] == -math.inf
    else:
        assert log_prob.isfinite().all()
        assert log_prob[2] < log_prob[0] < -50


@one_test
@each_density
@pytest.mark.parametrize("shape", [(2,), (3, 1), (3, 3), (3, 1, 2)], ids=str)
def test_points_of_another_shape_are_refused(density: PlanarDensity, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        density.log_prob(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@each_density
def test_density_does_not_depend_on_how_many_points_are_held_at_once(density: PlanarDensity, monkeypatch) -> None:
    x = points(draw(density, 30))
    whole = density.log_prob(x)
    monkeypatch.setattr(densities, "_MAX_ELEMENTS", 5_000)
    torch.testing.assert_close(density.log_prob(x), whole, rtol=1e-13, atol=1e-13)


def moon(sign: int):
    return lambda s: ((1 - sign) / 2 + sign * math.cos(math.pi * s), (1 - sign) / 4 + sign * math.sin(math.pi * s))


def spiral(density: Spirals, arm: int):
    def curve(s: float) -> tuple[float, float]:
        angle = 2 * math.pi * (density.turns * s + arm / density.num_arms)
        return density.radius * s * math.cos(angle), density.radius * s * math.sin(angle)

    return curve


def ring(radius: float):
    return lambda s: (radius * math.cos(2 * math.pi * s), radius * math.sin(2 * math.pi * s))


THREE_ARMS = Spirals(num_arms=3, turns=0.8, radius=2.0, noise=0.3)
CURVES = [
    (TwoMoons(), [moon(1), moon(-1)]),
    (TwoMoons(noise=0.5), [moon(1), moon(-1)]),
    (Rings(num_rings=3, radius=1.5, noise=0.2), [ring(0.5), ring(1.0), ring(1.5)]),
    (THREE_ARMS, [spiral(THREE_ARMS, arm) for arm in range(3)]),
]


@each_value
@pytest.mark.parametrize(("density", "curves"), CURVES, ids=[repr(density) for density, _ in CURVES])
@pytest.mark.parametrize("x", [(0.9, 0.3), (0.0, 0.0), (-1.2, 0.9), (2.5, -1.0)], ids=str)
def test_density_of_noisy_curves_is_the_integral_over_positions_on_them(density, curves, x) -> None:
    def integrand(s: float) -> float:
        total = 0.0
        for curve in curves:
            a, b = curve(s)
            likely = 2 * s if isinstance(density, Spirals) else 1.0  # in a disc, or along a line
            total += likely * math.exp(-((x[0] - a) ** 2 + (x[1] - b) ** 2) / (2 * density.noise**2))
        return total / len(curves) / (2 * math.pi * density.noise**2)

    wanted, _ = quad(integrand, 0, 1, points=list(np.linspace(0.02, 0.98, 25)), epsabs=0, epsrel=1e-12, limit=500)
    assert density.log_prob(torch.tensor([x], dtype=torch.float64)).item() == pytest.approx(math.log(wanted), abs=1e-10)


def test_noiseless_moons_are_the_half_circles_of_scikit_learn() -> None:
    frame = draw(TwoMoons(noise=1e-12), 200)
    upper, lower = (frame[frame["part"] == part] for part in ("upper", "lower"))
    assert np.allclose(upper["x"] ** 2 + upper["y"] ** 2, 1)
    assert np.allclose((lower["x"] - 1) ** 2 + (lower["y"] - 0.5) ** 2, 1)
    assert upper["y"].min() > -1e-9
    assert lower["y"].max() < 0.5 + 1e-9


def test_eight_gaussians_are_a_mixture_on_a_circle() -> None:
    density = EightGaussians(radius=3.0, scale=0.7)
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    centres = 3.0 * torch.stack([angle.cos(), angle.sin()], 1)
    mixture = MixtureSameFamily(
        Categorical(torch.ones(8, dtype=torch.float64)),
        Independent(Normal(centres, torch.full_like(centres, 0.7)), 1),
    )
    x = 3.0 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(density.log_prob(x), mixture.log_prob(x), rtol=1e-12, atol=1e-12)


def test_checkerboard_is_uniform_on_every_other_square() -> None:
    x = torch.tensor([[-3.0, -3.0], [-1.0, -3.0], [-1.0, -1.0], [3.0, 3.0], [3.0, 1.0], [4.1, 4.1], [-5.0, -3.0]])
    inside = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(Checkerboard().log_prob(x), (inside / 32).log())


@pytest.mark.parametrize("kind", [TwoMoons, EightGaussians, Checkerboard, Rings, Spirals])
def test_a_density_named_in_a_configuration_has_its_own_defaults(kind: type[PlanarDensity]) -> None:
    """The parser hands arguments of the default density on to another one with arguments of the same name."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--dataset", type=Dataset, default=SampleData().dataset)
    dataset = {"class_path": "flowmatch_rl.data.DensityTable", "init_args": {"density": kind.__name__}}
    assert parser.instantiate(parser.parse_object({"dataset": dataset})).dataset == DensityTable(kind())


@one_test
@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (DensityTable, {"num_samples": 0}, ["num_samples", "0"]),
        *((kind, {"noise": 0.0}, ["noise", "0.0"]) for kind in (TwoMoons, Rings, Spirals)),
        *((kind, {"noise": math.nan}, ["noise", "nan"]) for kind in (TwoMoons, Rings, Spirals)),
        (EightGaussians, {"scale": -1.0}, ["scale", "-1.0"]),
        *((kind, {"radius": -1.0}, ["radius", "-1.0"]) for kind in (EightGaussians, Rings, Spirals)),
        (Checkerboard, {"half_width": math.inf}, ["half_width", "inf"]),
        (Checkerboard, {"squares_per_side": 0}, ["squares_per_side", "0"]),
        (Rings, {"num_rings": 0}, ["num_rings", "0"]),
        (Spirals, {"num_arms": 0}, ["num_arms", "0"]),
        (Spirals, {"turns": 0.0}, ["turns", "0.0"]),
    ],
)
def test_numbers_that_do_not_fit_are_refused_by_name_and_value(kind, options, words) -> None:
    with pytest.raises(ValueError) as caught:
        kind(**options)
    assert all(word in str(caught.value) for word in words)
