import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import GaussianSource, MixtureSource, Source, UniformSource
from tests.combinations import one_test
from tests.families import SOURCES
from tests.oracles import F64, normal, stratified_normal

LINE = [
    GaussianSource(),
    GaussianSource(scale=0.5),
    UniformSource(),
    UniformSource(half_width=0.75),
    MixtureSource(means=[[-1.0], [2.0]], scale=0.5),
]
"""Sources on the line."""
SMOOTH = [GaussianSource(), GaussianSource(scale=2.0), UniformSource(), UniformSource(half_width=0.75)]
"""Sources whose map of the noise is one to one."""
HALF_SIDE = 6.0 * 3.0**0.5
"""Half the side of the square of quadrature, whose cells have edges where the default box has its own."""


def cells(dims: int, count: int) -> tuple[Tensor, float]:
    """Midpoints of the cells of a square or an interval, shape (count ** dims, dims), and the measure of a cell."""
    side = 2.0 * HALF_SIDE / count
    line = -HALF_SIDE + side * (torch.arange(count, dtype=F64) + 0.5)
    return torch.stack(torch.meshgrid(*[line] * dims, indexing="ij"), -1).reshape(-1, dims), side**dims


def stratified_noise(source: Source, dims: int) -> Tensor:
    """Every combination of the quantiles of a normal in each entry, shape (many, noise_dim)."""
    line = [stratified_normal(300 if source.noise_dim(dims) < 3 else 60)] * source.noise_dim(dims)
    return torch.stack(torch.meshgrid(*line, indexing="ij"), -1).reshape(-1, len(line))


@pytest.mark.parametrize("source", LINE, ids=repr)
def test_the_density_on_the_line_has_the_integral_one(source: Source) -> None:
    x, measure = cells(1, 120_000)
    assert (source.log_prob(x).exp().sum() * measure).item() == pytest.approx(1.0, abs=3e-4)


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_the_density_in_the_plane_has_the_integral_one(source: Source) -> None:
    x, measure = cells(2, 300)
    assert (source.log_prob(x).exp().sum() * measure).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("source", "dims"), [*((s, 1) for s in LINE), *((s, 2) for s in SOURCES)], ids=repr)
def test_transformed_noise_follows_the_density(source: Source, dims: int) -> None:
    """Equal expectations of waves of several lengths and directions: the characteristic function."""
    points = source.transform(stratified_noise(source, dims))
    assert points.shape[-1] == dims
    grid, measure = cells(dims, 300 if dims == 2 else 120_000)
    mass = source.log_prob(grid).exp() * measure
    for wave in normal(8, dims, seed=1):
        for function in (torch.cos, torch.sin):
            expected = (mass * function(grid @ wave)).sum()
            assert function(points @ wave).mean().item() == pytest.approx(expected.item(), abs=4e-3)


@pytest.mark.parametrize("source", SMOOTH, ids=repr)
def test_the_density_is_that_of_the_noise_over_the_jacobian(source: Source) -> None:
    noise = normal(3, 3, seed=2).requires_grad_()
    points = source.transform(noise)
    (slope,) = torch.autograd.grad(points.sum(), noise)  # each entry depends on its own noise alone
    expected = (-0.5 * noise.square() - 0.5 * math.log(2.0 * math.pi) - slope.log()).sum(-1)
    torch.testing.assert_close(source.log_prob(points), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_a_source_that_says_it_is_standard_normal_is(source: Source) -> None:
    x = 0.5 * normal(20, 2, seed=3)
    standard = -0.5 * x.square().sum(-1) - math.log(2.0 * math.pi)
    assert source.is_standard_normal == torch.allclose(source.log_prob(x), standard)
    if source.is_standard_normal:
        assert torch.equal(source.transform(x), x)


@one_test
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_points_and_densities_keep_the_batch_shape_and_the_type(
    source: Source, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    noise = normal(*batch, source.noise_dim(2), seed=4, dtype=dtype)
    points = source.transform(noise)
    assert points.shape == (*batch, 2)
    assert points.dtype == dtype
    log_prob = source.log_prob(points)
    assert log_prob.shape == batch
    assert log_prob.dtype == dtype
    assert log_prob.isfinite().all()


def test_the_default_box_has_unit_variance() -> None:
    points = UniformSource().transform(stratified_normal(2000)[:, None])
    assert points.square().mean().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_box_holds_its_edge_and_nothing_beyond(dtype: torch.dtype) -> None:
    source, width = UniformSource(0.75), 0.75
    inside = torch.tensor([[width, -width], [0.0, 0.0]], dtype=dtype)
    assert torch.allclose(source.log_prob(inside), torch.tensor(-2.0 * math.log(1.5), dtype=dtype))
    outside = torch.tensor([[width, 0.76], [-0.76, 0.0], [9.0, 9.0]], dtype=dtype)
    assert (source.log_prob(outside) == -math.inf).all()
    far = source.transform(torch.tensor([[-40.0, 40.0]], dtype=dtype))
    assert source.log_prob(far).isfinite().all()


def test_the_last_entry_of_the_noise_chooses_the_component() -> None:
    source = MixtureSource(means=[[1.0, 0.0], [-1.0, 0.5], [0.0, -2.0]], scale=0.3)
    third = torch.special.ndtri(torch.tensor([1.0 / 3.0, 2.0 / 3.0], dtype=F64))
    choice = torch.stack([third[0] - 1e-6, third[0] + 1e-6, third[1] + 1e-6, torch.tensor(40.0, dtype=F64)])
    z = normal(4, 2, seed=5)
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -2.0], [0.0, -2.0]], dtype=F64)
    torch.testing.assert_close(source.transform(torch.cat([z, choice[:, None]], 1)), means + 0.3 * z)


def test_a_mixture_of_another_dimension_is_refused() -> None:
    source = MixtureSource(means=[[1.0, 0.0], [-1.0, 0.5]])
    assert source.noise_dim(2) == 3
    with pytest.raises(ValueError, match=r"2 dimensions.*have 3"):
        source.noise_dim(3)
    for shape in ((4, 2), (4, 4), (2,)):
        with pytest.raises(ValueError, match="noise"):
            source.transform(torch.zeros(shape))


@one_test
@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda: GaussianSource(0.0), "0.0"),
        (lambda: GaussianSource(-2.5), "-2.5"),
        (lambda: GaussianSource(math.nan), "nan"),
        (lambda: UniformSource(0.0), "0.0"),
        (lambda: UniformSource(math.nan), "nan"),
        (lambda: MixtureSource(means=[]), r"\[\]"),
        (lambda: MixtureSource(means=[[], []]), r"\[0\]"),
        (lambda: MixtureSource(means=[[1.0], [1.0, 2.0]]), r"\[1, 2\]"),
        (lambda: MixtureSource(means=[[1.0]], scale=0.0), "0.0"),
        (lambda: MixtureSource(means=[[1.0]], scale=math.nan), "nan"),
    ],
)
def test_a_bad_constructor_argument_is_named(build: object, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        build()


@pytest.mark.parametrize(("source", "dims"), [*((s, 1) for s in LINE), *((s, 2) for s in SOURCES)], ids=repr)
def test_the_score_is_the_gradient_of_the_log_density(source: Source, dims: int) -> None:
    points = (0.5 * normal(30, dims, seed=6)).requires_grad_()
    log_prob = source.log_prob(points)
    (gradient,) = torch.autograd.grad(log_prob.sum() + 0.0 * points.sum(), points)
    torch.testing.assert_close(source.score(points.detach()), gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("source", LINE, ids=repr)
def test_the_score_of_a_smooth_density_alone_has_unit_covariance_with_the_point(source: Source) -> None:
    """Integration by parts, ``E[x score(x)] = -1``, fails where the density jumps: there the score is zero inside."""
    x, measure = cells(1, 120_000)
    mass = source.log_prob(x).exp() * measure
    covariance = (mass * (x * source.score(x))[:, 0]).sum().item()
    assert covariance == pytest.approx(-1.0 if source.is_smooth else 0.0, abs=1e-6)


@pytest.mark.parametrize(("source", "dims"), [*((s, 1) for s in LINE), *((s, 2) for s in SOURCES)], ids=repr)
def test_the_moments_are_those_of_the_points_and_the_ratio_that_to_their_gaussian(source: Source, dims: int) -> None:
    x, measure = cells(dims, 300 if dims == 2 else 120_000)
    mass = (source.log_prob(x).exp() * measure)[:, None]
    mean, variance = source.moments(x)
    assert mean.shape == variance.shape == (dims,)
    torch.testing.assert_close(mean, (mass * x).sum(0), rtol=0.0, atol=1e-3)
    torch.testing.assert_close(variance, (mass * (x - mean).square()).sum(0), rtol=1e-3, atol=0.0)
    points = 0.5 * normal(20, dims, seed=7)
    gaussian = torch.distributions.Normal(mean, variance.sqrt()).log_prob(points).sum(-1)
    expected = source.log_prob(points) - gaussian
    torch.testing.assert_close(source.log_gaussian_ratio(points), expected, rtol=1e-10, atol=1e-10)
