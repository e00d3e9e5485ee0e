"""The linear process: its discounted future and the exact flow to it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, CosineSchedule, GaussianMixture, LinearSchedule, VariancePreservingSchedule
from flowmatch_rl.testbeds import FullGaussianMixture, LinearGaussianProcess, LinearPolicy, geometric_steps
from tests.combinations import each_value, one_test

F64 = torch.float64
LINE = LinearGaussianProcess([[0.8]], [[0.3]], [0.05], [[0.25]]), LinearPolicy([[-0.2]], [0.4])
PLANE = LinearGaussianProcess(drift=[0.02, -0.05]), LinearPolicy([[0.2, -0.3]], [0.1])
WIDE = (
    LinearGaussianProcess(
        [[0.7, 0.1, 0.0], [0.0, 0.5, -0.3], [0.2, 0.0, 0.9]],
        [[0.1, 0.0], [0.0, 0.2], [0.3, -0.1]],
        None,
        [[0.3, 0.0, 0.0], [0.1, 0.2, 0.0], [-0.1, 0.05, 0.4]],
    ),
    LinearPolicy([[0.1, 0.0, -0.4], [0.0, -0.3, 0.2]], [0.1, -0.2]),
)
CASES = [LINE, PLANE, WIDE]
PATHS = [AffinePath(), AffinePath(CosineSchedule()), AffinePath(VariancePreservingSchedule())]
every_case = pytest.mark.parametrize(("process", "policy"), CASES, ids=["1-D", "2-D", "3-D"])
every_path = pytest.mark.parametrize("path", PATHS, ids=repr)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def pairs(process: LinearGaussianProcess, count: int = 5) -> tuple[Tensor, Tensor]:
    return seeded(count, process.noise_dim, seed=1), seeded(count, process.action_dim, seed=2)


def closed_loop(process: LinearGaussianProcess, policy: LinearPolicy) -> tuple[Tensor, Tensor]:
    """The matrix and the offset of s' under the policy."""
    zero = torch.zeros(process.noise_dim, dtype=F64)
    offset = process.next_mean(zero, policy.act(zero))
    eye = torch.eye(process.noise_dim, dtype=F64)
    return (process.next_mean(eye, policy.act(eye)) - offset).T, offset


@each_value
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9, 0.99])
@every_case
def test_mean_is_that_of_the_geometric_series(process, policy, discount: float) -> None:
    state, action = pairs(process)
    closed, offset = closed_loop(process, policy)
    resolvent = torch.linalg.inv(torch.eye(len(closed), dtype=F64) - discount * closed)
    wanted = (1.0 - discount) * process.next_mean(state, action) @ resolvent.T + discount * resolvent @ offset
    occupancy = process.occupancy(state, action, policy, discount)
    torch.testing.assert_close(occupancy.mean, wanted, rtol=1e-10, atol=1e-11)
    assert float(occupancy.weights.sum()) == pytest.approx(1.0, abs=1e-14)


@every_case
def test_components_are_the_laws_after_one_two_and_three_steps(process, policy) -> None:
    state, action = pairs(process, 1)
    occupancy = process.occupancy(state, action, policy, 0.9, num_terms=3)
    count = 200_000
    futures, ended = process.futures(
        policy, state.expand(count, -1), action.expand(count, -1), seeded(3, count, process.noise_dim)
    )
    assert not ended.any()
    covariances = torch.einsum("jde,je,jfe->jdf", occupancy.axes, occupancy.variances, occupancy.axes)
    torch.testing.assert_close(occupancy.weights, torch.tensor([0.1, 0.09, 0.81], dtype=F64))
    for k in range(3):
        torch.testing.assert_close(futures[k].mean(0), occupancy.means[0, k], rtol=0.0, atol=0.006)
        covariance = futures[k].T.cov()
        torch.testing.assert_close(covariance.reshape(covariances[k].shape), covariances[k], rtol=0.0, atol=0.004)


@every_case
def test_mixture_has_the_moments_of_simulated_futures_and_of_its_own_draws(process, policy) -> None:
    discount, count = 0.8, 40_000
    state, action = pairs(process, 1)
    occupancy = process.occupancy(state, action, policy, discount)
    futures, _ = process.futures(
        policy, state.expand(count, -1), action.expand(count, -1), seeded(60, count, process.noise_dim)
    )
    uniform = torch.rand(count, dtype=F64, generator=torch.Generator().manual_seed(5))
    steps = geometric_steps(uniform, discount, 60)
    simulated = futures[steps - 1, torch.arange(count)]
    drawn = occupancy.draw(uniform[None], seeded(1, count, process.noise_dim, seed=6))[0]
    for points in (simulated, drawn):
        scale = occupancy.covariance[0].diagonal().max().sqrt()
        assert (points.mean(0) - occupancy.mean[0]).abs().max() < 4.5 * scale / count**0.5
        covariance = points.T.cov().reshape(occupancy.covariance[0].shape)
        assert (covariance - occupancy.covariance[0]).abs().max() < 10.0 * scale**2 / count**0.5


@every_case
def test_density_solves_the_bellman_equation_by_quadrature(process, policy) -> None:
    """The path at t = 1 as well: the density at the end is that of the discounted future."""
    state, action = pairs(process, 3)
    x = seeded(3, process.noise_dim, seed=4)
    occupancy = process.occupancy(state, action, policy, 0.9)
    one = torch.ones(3, dtype=F64)
    torch.testing.assert_close(
        occupancy.log_prob(x), occupancy.marginal_log_prob(AffinePath(), x, one), rtol=1e-12, atol=1e-12
    )
    first = process.occupancy(state, action, policy, 0.0)
    later = _expected(process, policy, state, action, lambda mixture: mixture.log_prob(_rows(x, mixture)).exp())
    torch.testing.assert_close(
        occupancy.log_prob(x).exp(), 0.1 * first.log_prob(x).exp() + 0.9 * later, rtol=0.0, atol=1e-8
    )


def _rows(x: Tensor, mixture: FullGaussianMixture) -> Tensor:
    return x[:, None].expand(*mixture.means.shape[:-2], x.shape[-1])


def _expected(process, policy, state: Tensor, action: Tensor, value) -> Tensor:
    """Mean over the next state of a value of the mixture from there on, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss({1: 80, 2: 40, 3: 24}[process.noise_dim])
    nodes, weights = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    grid = torch.cartesian_prod(*[nodes] * process.noise_dim).reshape(-1, process.noise_dim)
    mass = torch.cartesian_prod(*[weights] * process.noise_dim).reshape(len(grid), -1).prod(-1)
    batch = (len(state), len(grid))
    moved, _ = process.step(
        state[:, None].expand(*batch, -1), action[:, None].expand(*batch, -1), grid.expand(*batch, -1)
    )
    values = value(process.occupancy(moved, policy.act(moved), policy, 0.9))
    return torch.einsum("q,bq...->b...", mass, values)


@each_value
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, 0.99])
@every_path
@pytest.mark.parametrize(("process", "policy"), [LINE, PLANE], ids=["1-D", "2-D"])
def test_density_and_flux_at_every_flow_time_solve_the_bellman_equation(process, policy, path, t: float) -> None:
    state, action = pairs(process, 4)
    x, time = seeded(4, process.noise_dim, seed=4), torch.tensor(t, dtype=F64)

    def density(mixture: FullGaussianMixture) -> Tensor:
        return mixture.marginal_log_prob(path, _rows(x, mixture), time).exp()

    def flux(mixture: FullGaussianMixture) -> Tensor:
        points = _rows(x, mixture)
        return mixture.marginal_log_prob(path, points, time).exp()[..., None] * mixture.field(path)(points, time, None)

    now, first = (process.occupancy(state, action, policy, g) for g in (0.9, 0.0))
    for value in (density, flux):
        left = value(_lifted(now))[:, 0]
        right = 0.1 * value(_lifted(first))[:, 0] + 0.9 * _expected(process, policy, state, action, value)
        torch.testing.assert_close(left, right, rtol=0.0, atol=1e-8)


def _lifted(mixture: FullGaussianMixture) -> FullGaussianMixture:
    return FullGaussianMixture(mixture.weights, mixture.means[:, None], mixture.axes, mixture.variances)


@each_value
@every_path
@every_case
def test_velocity_satisfies_the_continuity_equation(process, policy, path) -> None:
    condition = torch.cat(pairs(process), dim=-1)
    dim = process.noise_dim
    velocity = process.exact_velocity(policy, 0.9, path)
    mixture = process.occupancy(condition[:, :dim], condition[:, dim:], policy, 0.9)
    x, t, h = seeded(5, dim, seed=7), torch.linspace(0.2, 0.9, 5, dtype=F64), 1e-4

    def density(points: Tensor, times: Tensor) -> Tensor:
        return mixture.marginal_log_prob(path, points, times).exp()

    change = (density(x, t + h) - density(x, t - h)) / (2.0 * h)
    outflow = torch.zeros(5, dtype=F64)
    for i in range(dim):
        step = h * torch.eye(dim, dtype=F64)[i]
        ahead, behind = (density(x + s, t)[:, None] * velocity(x + s, t, condition) for s in (step, -step))
        outflow += (ahead - behind)[:, i] / (2.0 * h)
    torch.testing.assert_close(change, -outflow, rtol=1e-4, atol=1e-6)
    assert outflow.abs().max() > 1e-2


@every_case
def test_exact_velocity_is_that_of_the_mixture_for_any_batch(process, policy) -> None:
    velocity = process.exact_velocity(policy, 0.9, AffinePath(CosineSchedule()))
    state, action = (v.reshape(2, 3, -1) for v in pairs(process, 6))
    x, condition = seeded(2, 3, process.noise_dim, seed=3), torch.cat([state, action], dim=-1)
    mixture = process.occupancy(state, action, policy, 0.9)
    for t in (torch.tensor(0.3, dtype=F64), torch.tensor([0.3, 0.8], dtype=F64), torch.rand(2, 3, dtype=F64)):
        wanted = mixture.field(AffinePath(CosineSchedule()))(x, t, None)
        torch.testing.assert_close(velocity(x, t, condition), wanted, rtol=1e-12, atol=1e-12)
        single = velocity(x.float(), t.float(), condition.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), wanted, rtol=1e-3, atol=1e-3)


def test_chunks_of_a_large_batch_agree_with_its_rows() -> None:
    process, policy = PLANE
    velocity = process.exact_velocity(policy, 0.9, AffinePath())
    x, t = seeded(12_000, 2, seed=3), torch.rand(12_000, dtype=F64, generator=torch.Generator().manual_seed(0))
    condition = seeded(12_000, 3, seed=4)
    whole = velocity(x, t, condition)
    rows = torch.tensor([0, 5_697, 5_698, 11_999])
    torch.testing.assert_close(whole[rows], velocity(x[rows], t[rows], condition[rows]), rtol=1e-12, atol=1e-13)


@every_path
def test_components_of_equal_variance_agree_with_the_isotropic_mixture(path) -> None:
    means = seeded(4, 3)
    weights, scales = seeded(4, seed=1).softmax(0), seeded(4, seed=2).exp()
    axes = torch.linalg.qr(seeded(4, 3, 3, seed=3))[0]
    full = FullGaussianMixture(weights, means, axes, scales.square()[:, None].expand(4, 3))
    isotropic = GaussianMixture(weights, means, scales)
    x, t = seeded(7, 3, seed=4), torch.linspace(0.0, 1.0, 7, dtype=F64)
    torch.testing.assert_close(full.log_prob(x), isotropic.log_prob(x))
    torch.testing.assert_close(full.marginal_log_prob(path, x, t), isotropic.marginal_log_prob(path, x, t))
    torch.testing.assert_close(full.posterior_means(path, x, t), isotropic.posterior_means(path, x, t))


def test_density_of_one_component_is_the_multivariate_normal() -> None:
    covariance = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64)
    variances, axes = torch.linalg.eigh(covariance)
    mean = torch.tensor([[0.3, -1.0]], dtype=F64)
    mixture = FullGaussianMixture(torch.ones(1, dtype=F64), mean, axes[None], variances[None])
    x = seeded(6, 2)
    torch.testing.assert_close(
        mixture.log_prob(x), torch.distributions.MultivariateNormal(mean[0], covariance).log_prob(x)
    )


@each_value
@pytest.mark.parametrize("discount", [0.9, 0.99])
@every_case
def test_chosen_number_of_components_is_as_good_as_many(process, policy, discount: float) -> None:
    state, action = pairs(process)
    x = seeded(5, process.noise_dim, seed=9)
    few, many = (process.occupancy(state, action, policy, discount, n) for n in (None, 4000))
    assert len(few.weights) < 200
    torch.testing.assert_close(few.log_prob(x), many.log_prob(x), rtol=1e-9, atol=1e-10)


@one_test
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearGaussianProcess([[1.0, 0.0]]), "transition must have 1 rows"),
        (lambda: LinearGaussianProcess(control=[[1.0]]), "control must have 2 rows"),
        (lambda: LinearGaussianProcess(drift=[1.0]), "drift must have 2 entries, got 1"),
        (lambda: LinearGaussianProcess(noise_factor=[[1.0, 0.0], [1.0, 0.0]]), "full rank"),
        (lambda: LinearGaussianProcess(start_scale=-1.0), "-1.0"),
        (lambda: _occupancy(policy=LinearPolicy([[0.1]])), "(1, 2), got (1, 1)"),
        (lambda: _occupancy(discount=1.0), "[0, 1), got 1.0"),
        (lambda: _occupancy(num_terms=0), "at least 1, got 0"),
        (lambda: _occupancy(process=LinearGaussianProcess([[1.5, 0.0], [0.0, 1.0]])), "growth of 1.5"),
        (lambda: PLANE[0].exact_velocity(PLANE[1], 0.9, AffinePath())(torch.zeros(1, 2), torch.ones(1), None), "none"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)


def _occupancy(
    process: LinearGaussianProcess = PLANE[0],
    policy: LinearPolicy = LinearPolicy([[0.0, 0.0]]),
    discount: float = 0.9,
    num_terms: int | None = None,
) -> FullGaussianMixture:
    return process.occupancy(torch.zeros(1, 2), torch.zeros(1, 1), policy, discount, num_terms)


def test_a_path_that_ends_in_noise_of_its_own_is_handled() -> None:
    process, policy = PLANE
    path = AffinePath(LinearSchedule(sigma_min=0.1))
    state, action = pairs(process, 1)
    mixture = process.occupancy(state, action, policy, 0.9)
    z, x_1 = seeded(200_000, 2), mixture.draw(torch.rand(1, 200_000, dtype=F64), seeded(1, 200_000, 2, seed=1))[0]
    one = torch.ones(200_000, dtype=F64)
    spread = path.sample(z, x_1, one).T.cov()
    torch.testing.assert_close(spread, mixture.covariance[0] + 0.01 * torch.eye(2, dtype=F64), rtol=0.0, atol=0.01)
