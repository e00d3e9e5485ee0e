import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowmatch_rl.shapes import append_dims
from flowmatch_rl.solvers import Divergence, ExactDivergence, HutchinsonDivergence
from tests.combinations import each_value, one_test
from tests.families import DIVERGENCES
from tests.oracles import F64, normal, uniform

BATCHES = [((), ()), ((1,), ()), ((3,), ()), ((3,), (3,)), ((2, 4), ()), ((2, 4), (2,)), ((2, 4), (2, 4))]
"""Batch shapes with shapes of the time."""


class Network(nn.Module):
    """A small smooth field of place, time and condition."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dims + 1, 7, dtype=F64), nn.Linear(7, dims, dtype=F64)
        with torch.no_grad():
            for k, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=k))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        time = append_dims(t, like=x).expand(*x.shape[:-1], 1)
        shift = 0.0 if condition is None else condition.sum(-1, keepdim=True)
        return self.second(torch.tanh(self.first(torch.cat([x + shift, time], -1))))


def linear(matrix: Tensor):
    """The field ``(1 + t) matrix x``."""
    return lambda x, t, condition: (1.0 + append_dims(t, like=x)) * (x @ matrix.T)


def jacobian_trace(network: Network, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
    """Trace of the full Jacobian, one sample at a time."""
    batch = x.shape[:-1]
    traces = torch.empty(batch, dtype=F64)
    times = append_dims(t, like=x[..., 0]).expand(batch)
    for index in itertools.product(*map(range, batch)):
        context = None if condition is None else condition.expand(*batch, -1)[index]

        def at(point: Tensor) -> Tensor:
            return network(point, times[index], context)  # noqa: B023 (called at once)

        traces[index] = torch.autograd.functional.jacobian(at, x[index]).trace()
    return traces


def signs(dims: int) -> Tensor:
    """Every combination of signs, shape (2 ** dims, dims)."""
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=dims)), dtype=F64)


@each_value
@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize(("batch", "time"), BATCHES, ids=str)
def test_the_exact_divergence_of_a_linear_field_is_its_trace(
    batch: tuple[int, ...], time: tuple[int, ...], dims: int
) -> None:
    x, t, matrix = normal(*batch, dims, seed=1), uniform(*time, seed=2), normal(dims, dims, seed=3)
    value, divergence = ExactDivergence().evaluate(linear(matrix), x, t, None, None)
    torch.testing.assert_close(value, linear(matrix)(x, t, None))
    expected = (1.0 + append_dims(t, like=x[..., 0])) * matrix.trace()
    torch.testing.assert_close(divergence, expected.expand(batch))


@each_value
@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize(("batch", "time"), BATCHES, ids=str)
def test_the_exact_divergence_of_a_network_is_the_trace_of_its_jacobian(
    batch: tuple[int, ...], time: tuple[int, ...], dims: int
) -> None:
    network, x, t = Network(dims), normal(*batch, dims, seed=1), uniform(*time, seed=2)
    for condition in (None, normal(*batch, 2, seed=3)):
        value, divergence = ExactDivergence().evaluate(network, x, t, condition, None)
        assert divergence.shape == batch
        torch.testing.assert_close(value, network(x, t, condition))
        torch.testing.assert_close(divergence, jacobian_trace(network, x, t, condition))


def test_particles_may_share_a_condition() -> None:
    network, x, t, condition = Network(3), normal(2, 4, 3, seed=1), uniform(2, seed=2), normal(2, 1, 5, seed=3)
    _, divergence = ExactDivergence().evaluate(network, x, t, condition, None)
    torch.testing.assert_close(divergence, jacobian_trace(network, x, t, condition))


@each_value
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("batch", [(1,), (3,), (2, 4)])
def test_every_divergence_comes_with_the_velocity_and_has_its_batch_shape(
    divergence: Divergence, batch: tuple[int, ...]
) -> None:
    network, x, t = Network(3), normal(*batch, 3, seed=1), torch.tensor(0.4, dtype=F64)
    noise = normal(divergence.needed_probes, *batch, 3, seed=2) if divergence.needed_probes else None
    value, rate = divergence.evaluate(network, x, t, None, noise)
    torch.testing.assert_close(value, network(x, t))
    assert rate.shape == batch
    assert rate.dtype == F64


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_sign_probes_have_the_mean_and_variance_of_their_formula(dims: int) -> None:
    """Every combination of signs once: moments without sampling error."""
    matrix, probes, t = normal(dims, dims, seed=3), signs(dims), torch.zeros((), dtype=F64)
    x = normal(1, dims, seed=1).expand(len(probes), -1)
    # Their size must not matter.
    noise = (probes * (0.1 + uniform(*probes.shape, seed=4)))[None]
    _, estimates = HutchinsonDivergence().evaluate(linear(matrix), x, t, None, noise)
    torch.testing.assert_close(estimates.mean(), matrix.trace())
    symmetric = matrix + matrix.T
    variance = symmetric.triu(1).square().sum()
    torch.testing.assert_close(estimates.var(correction=0), variance, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_normal_probes_have_the_mean_and_variance_of_their_formula(dims: int) -> None:
    """Gauss-Hermite quadrature over the probes: moments without sampling error."""
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(5))
    probes = torch.tensor(list(itertools.product(nodes.tolist(), repeat=dims)), dtype=F64)
    mass = torch.tensor([math.prod(w) for w in itertools.product((weights / weights.sum()).tolist(), repeat=dims)])
    matrix, t = normal(dims, dims, seed=3), torch.zeros((), dtype=F64)
    x = normal(1, dims, seed=1).expand(len(probes), -1)
    _, estimates = HutchinsonDivergence("gaussian").evaluate(linear(matrix), x, t, None, probes[None])
    mean = (mass.to(F64) * estimates).sum()
    torch.testing.assert_close(mean, matrix.trace(), rtol=1e-6, atol=1e-6)
    variance = 2.0 * (0.5 * (matrix + matrix.T)).square().sum()
    torch.testing.assert_close((mass.to(F64) * (estimates - mean).square()).sum(), variance, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_probes", [1, 3])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_random_probes_are_unbiased_for_a_network(kind: str, num_probes: int) -> None:
    network, count, t = Network(3), 20_000, torch.tensor(0.3, dtype=F64)
    x = normal(1, 3, seed=1)
    _, exact = ExactDivergence().evaluate(network, x, t, None, None)
    noise = normal(num_probes, count, 3, seed=2)
    _, estimates = HutchinsonDivergence(kind, num_probes).evaluate(network, x.expand(count, -1), t, None, noise)
    error = estimates.std() / math.sqrt(count)
    assert error < 0.05
    assert (estimates.mean() - exact).abs().item() < 3.0 * error


def test_sign_probes_are_exact_in_one_dimension() -> None:
    network, x, t = Network(1), normal(5, 1, seed=1), uniform(5, seed=2)
    _, exact = ExactDivergence().evaluate(network, x, t, None, None)
    for num_probes in (1, 4):
        noise = normal(num_probes, 5, 1, seed=3)
        _, estimate = HutchinsonDivergence(num_probes=num_probes).evaluate(network, x, t, None, noise)
        torch.testing.assert_close(estimate, exact)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_an_estimate_is_the_mean_over_its_probes(kind: str) -> None:
    network, x, t, noise = Network(3), normal(4, 3, seed=1), uniform(4, seed=2), normal(5, 4, 3, seed=3)
    _, together = HutchinsonDivergence(kind, 5).evaluate(network, x, t, None, noise)
    alone = [HutchinsonDivergence(kind).evaluate(network, x, t, None, noise[k][None])[1] for k in range(5)]
    torch.testing.assert_close(together, torch.stack(alone).mean(0))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_points_that_share_their_memory_are_as_good_as_copies(divergence: Divergence) -> None:
    network, x, t = Network(3), normal(1, 3, seed=1).expand(4, 3), uniform(4, seed=2)
    noise = normal(divergence.needed_probes, 4, 3, seed=3) if divergence.needed_probes else None
    shared = divergence.evaluate(network, x, t, None, noise)
    for found, expected in zip(shared, divergence.evaluate(network, x.clone(), t, None, noise), strict=True):
        torch.testing.assert_close(found, expected)


def test_gradient_reaches_the_fields_weights() -> None:
    network, x, t = Network(2), normal(4, 2, seed=1), uniform(4, seed=2)
    _, divergence = ExactDivergence().evaluate(network, x, t, None, None)
    found = torch.autograd.grad(divergence.sum(), network.second.weight)[0]
    inner = network.first(torch.cat([x, t[:, None]], -1))
    slopes = 1.0 - torch.tanh(inner).square()
    by_hand = torch.einsum("bh,hd->dh", slopes, network.first.weight[:, :2])
    torch.testing.assert_close(found, by_hand.detach())


@one_test
@pytest.mark.parametrize(
    "noise", [None, torch.zeros(4, 3), torch.zeros(1, 4, 3), torch.zeros(2, 4, 2), torch.zeros(2, 3, 3)]
)
def test_noise_that_does_not_fit_is_refused(noise: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"\(2, 4, 3\)"):
        HutchinsonDivergence(num_probes=2).evaluate(lambda x, t, c: x, torch.zeros(4, 3), torch.zeros(()), None, noise)


@pytest.mark.parametrize("num_probes", [0, -2])
def test_a_number_of_probes_below_one_is_named(num_probes: int) -> None:
    with pytest.raises(ValueError, match=str(num_probes)):
        HutchinsonDivergence(num_probes=num_probes)
