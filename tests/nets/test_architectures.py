"""What every network of a flow must do, whatever its shape."""

import dataclasses
import itertools
import json

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from flowmatch_rl.nets import (
    Architecture,
    FilmUNetArchitecture,
    FlowNetwork,
    VelocityArchitecture,
    ema_copy,
    update_ema,
)
from flowmatch_rl.solvers import ExactDivergence, HutchinsonDivergence
from tests.combinations import each_value, one_test
from tests.families import ARCHITECTURES

B, N, D, C = 4, 3, 2, 5
TIMES = [(), (B,), (B, N), (B, 1)]

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=repr)


def build(architecture: Architecture, condition_dim: int = C, takes_duration: bool = False) -> FlowNetwork:
    """A network in float64 whose every parameter is noise: some begin at 0 and would hide what they multiply."""
    torch.manual_seed(0)
    network = architecture.build(D, condition_dim, takes_duration).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network


def inputs(time: tuple[int, ...] = (B,), shared: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    condition = torch.randn(B, 1 if shared else N, C)
    return torch.randn(B, N, D).double(), torch.rand(time).double(), condition.double()


@each_value
@every_architecture
@pytest.mark.parametrize("time", TIMES, ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_particles_equal_one_evaluation_each(architecture, time, shared) -> None:
    network, (x, t, condition) = build(architecture), inputs(time, shared)
    together = network(x, t, condition)
    assert together.shape == x.shape
    times = t.reshape(t.shape + (1,) * (2 - t.dim())).expand(B, N)
    for i, n in itertools.product(range(B), range(N)):
        alone = network(x[i, n][None], times[i, n], condition[i, 0 if shared else n][None])
        torch.testing.assert_close(together[i, n], alone[0])


@every_architecture
def test_a_shared_condition_and_time_equal_expanded_ones(architecture) -> None:
    network, (x, _, condition) = build(architecture), inputs()
    t = torch.tensor(0.3).double()
    expanded = network(x, t.expand(B, N), condition.expand(B, N, C))
    torch.testing.assert_close(network(x, t, condition), expanded, rtol=1e-12, atol=1e-12)


@each_value
@every_architecture
@pytest.mark.parametrize("time", TIMES, ids=str)
def test_bound_field_equals_the_network_at_that_condition(architecture, time) -> None:
    network, (x, t, condition) = build(architecture, takes_duration=True), inputs(time)
    field = network.bind(condition)
    for duration in (None, torch.rand(B).double()):
        torch.testing.assert_close(field(x, t, None, duration), network(x, t, condition, duration))


@every_architecture
def test_time_and_condition_and_duration_each_matter(architecture) -> None:
    network, (x, t, condition) = build(architecture, takes_duration=True), inputs()
    here = network(x, t, condition, 0.1 + t)
    for other in (
        network(x, t + 0.3, condition, 0.1 + t),
        network(x, t, condition + 0.3, 0.1 + t),
        network(x, t, condition, 0.4 + t),
        network(x + 0.3, t, condition, 0.1 + t),
    ):
        assert (here - other).abs().min() > 1e-6


@every_architecture
def test_without_a_duration_a_network_that_takes_one_gives_the_velocity_of_the_moment(architecture) -> None:
    network, (x, t, condition) = build(architecture, takes_duration=True), inputs()
    torch.testing.assert_close(network(x, t, condition), network(x, t, condition, torch.tensor(0.0).double()))


@every_architecture
def test_a_duration_is_refused_by_a_network_that_takes_none(architecture) -> None:
    network, (x, t, condition) = build(architecture), inputs()
    for call in (lambda: network(x, t, condition, t), lambda: network.bind(condition)(x, t, None, t)):
        with pytest.raises(ValueError, match="takes no duration"):
            call()


@every_architecture
def test_a_network_without_condition_takes_none(architecture) -> None:
    network, (x, t, condition) = build(architecture, condition_dim=0), inputs()
    torch.testing.assert_close(network.bind(None)(x, t, None), network(x, t))
    for call in (lambda: network(x, t, condition), lambda: network.bind(condition)):
        with pytest.raises(ValueError, match="takes no condition, got"):
            call()


@every_architecture
def test_a_network_with_condition_needs_one(architecture) -> None:
    network, (x, t, _) = build(architecture), inputs()
    for call in (lambda: network(x, t), lambda: network.bind(None)):
        with pytest.raises(ValueError, match="takes a condition, got None"):
            call()


@one_test
@every_architecture
@pytest.mark.parametrize(
    ("x", "t", "condition"),
    [
        ((B, D), (N,), (B, C)),
        ((B, D), (B, 1, 1), (B, C)),
        ((B, N, D), (N,), (B, 1, C)),
        ((B, N, D), (B,), (B, C)),
        ((B, N, D), (B,), (N, C)),
        ((B, N, D), (B,), (N, 1, C)),
        ((B, N, D), (B,), (B, N + 1, C)),
        ((1, D), (1,), (B, C)),
        ((B, D), (B,), (C,)),
    ],
    ids=str,
)
def test_shapes_that_would_broadcast_silently_raise(architecture, x, t, condition) -> None:
    with pytest.raises(ValueError, match="expected"):
        build(architecture)(torch.randn(x).double(), torch.rand(t).double(), torch.randn(condition).double())


@every_architecture
def test_rows_do_not_influence_each_other(architecture) -> None:
    network, (x, t, condition) = build(architecture), inputs((B, N))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, t, condition)[1, 2].sum(), x)
    touched = gradient.abs().sum(-1) > 0.0
    assert touched[1, 2]
    assert touched.sum() == 1


@each_value
@every_architecture
@pytest.mark.parametrize("condition_dim", [0, C])
def test_gradient_reaches_every_parameter(architecture, condition_dim) -> None:
    network, (x, t, condition) = build(architecture, condition_dim, takes_duration=True), inputs()
    network(x, t, condition if condition_dim else None, 0.2 * t).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0.0, name


@every_architecture
def test_total_derivative_equals_a_difference_quotient(architecture) -> None:
    network, (x, t, condition) = build(architecture, takes_duration=True), inputs()
    v, duration, one, h = torch.randn_like(x), 0.5 * t, torch.ones_like(t), 1e-6
    _, slope = torch.func.jvp(lambda x, t, d: network(x, t, condition, d), (x, t, duration), (v, one, -one))
    with torch.no_grad():
        ahead = network(x + h * v, t + h, condition, duration - h)
        behind = network(x - h * v, t - h, condition, duration + h)
    torch.testing.assert_close(slope, (ahead - behind) / (2.0 * h), rtol=1e-6, atol=1e-6)


@every_architecture
def test_divergence_of_a_bound_field_equals_the_trace_of_its_jacobian(architecture) -> None:
    network, (x, t, condition) = build(architecture), inputs((B, N))
    field = network.bind(condition)
    trace = torch.zeros(B, N).double()
    for i, n in itertools.product(range(B), range(N)):
        here = network.bind(condition[i])
        trace[i, n] = torch.autograd.functional.jacobian(
            lambda y, i=i, n=n, here=here: here(y[None], t[i, n], None)[0], x[i, n]
        ).trace()
    with torch.no_grad():
        value, divergence = ExactDivergence().evaluate(field, x, t, None, None)
        probes = torch.randn(2, B, N, D).double()
        assert HutchinsonDivergence(num_probes=2).evaluate(field, x, t, None, probes)[1].shape == (B, N)
    torch.testing.assert_close(value, network(x, t, condition))
    torch.testing.assert_close(divergence, trace)


@every_architecture
def test_an_ema_network_starts_equal_and_follows(architecture) -> None:
    network, (x, t, condition) = build(architecture), inputs()
    copy = ema_copy(network)
    torch.testing.assert_close(copy(x, t, condition), network(x, t, condition), rtol=0, atol=0)
    before = [parameter.clone() for parameter in copy.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    update_ema(copy, network, ema_decay=0.75)
    for old, new in zip(before, copy.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
        assert not new.requires_grad


@every_architecture
def test_a_fixed_batch_is_learned(architecture) -> None:
    torch.manual_seed(0)
    network = architecture.build(D, C)
    x, t, condition = torch.randn(64, D), torch.rand(64), torch.randn(64, C)
    target = condition[:, :D] * x + torch.stack([t, 1.0 - t], 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (network(x, t, condition) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * target.square().mean().item()


class Holder:
    """Something configured with a network of either kind of type."""

    def __init__(
        self,
        velocity: VelocityArchitecture = VelocityArchitecture(hidden_dim=7),
        network: Architecture = FilmUNetArchitecture(block_dims=(9,)),
    ) -> None:
        self.velocity = velocity
        self.network = network


def parsed(text: str) -> tuple[Holder, dict]:
    """The holder of a configuration, after one more trip through the file that a run writes, and that file."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "holder")
    written = parser.dump(parser.parse_string(text))
    return parser.instantiate(parser.parse_string(written)).holder, yaml.safe_load(written)["holder"]


def test_velocity_architectures_are_configured_field_by_field() -> None:
    holder, written = parsed("holder: {velocity: {num_blocks: 5}}")
    assert holder.velocity == VelocityArchitecture(hidden_dim=7, num_blocks=5)
    assert written["velocity"] == json.loads(json.dumps(dataclasses.asdict(holder.velocity)))
    assert holder.network == FilmUNetArchitecture(block_dims=(9,))


@every_architecture
def test_architectures_are_configured_by_class(architecture) -> None:
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(architecture).items()}
    name = type(architecture).__name__
    holder, _ = parsed(f"holder: {{network: {{class_path: {name}, init_args: {fields}}}}}".replace("'", ""))
    assert holder.network == architecture
    assert holder.velocity == VelocityArchitecture(hidden_dim=7)
