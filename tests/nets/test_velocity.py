"""The factored velocity network against the same network on concatenated inputs."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowmatch_rl.nets import FlowNetwork, SinusoidalEmbedding, VelocityArchitecture, VelocityNetwork
from tests.combinations import each_value, one_test

B, N, D, C = 4, 3, 2, 5
ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "mish": functional.mish,
    "relu": functional.relu,
    "silu": functional.silu,
}


def build(condition_dim: int = C, takes_duration: bool = False, **options) -> VelocityNetwork:
    architecture = VelocityArchitecture(**{"hidden_dim": 16, "time_features": 8, "max_frequency": 7.0} | options)
    network = architecture.build(D, condition_dim, takes_duration).double()
    with torch.no_grad():  # zero biases would hide one that is left out
        for layer in network.modules():
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                layer.bias.normal_()
    return network


def concatenated(network: VelocityNetwork, x: Tensor, t: Tensor, condition: Tensor | None, activation, residual):
    """The network on one joint input per row: t and the condition are expanded to x first."""
    t = t.reshape(t.shape + (1,) * (x.dim() - 1 - t.dim())).expand(x.shape[:-1])
    inputs, weights = [x, network.embed_time(t)], [network.from_sample.weight, network.from_time.weight]
    if condition is not None:
        inputs.append(condition.expand(*x.shape[:-1], -1))
        weights.append(network.from_condition.weight)
    h = activation(functional.linear(torch.cat(inputs, -1), torch.cat(weights, 1), network.from_sample.bias))
    for block in network.blocks:
        update = activation(functional.linear(h, block.weight, block.bias))
        h = h + update if residual else update
    return functional.linear(h, network.to_velocity.weight, network.to_velocity.bias)


@pytest.mark.parametrize(
    ("activation", "residual", "num_blocks"),
    [*((name, True, 2) for name in ACTIVATIONS), ("gelu", False, 2), ("gelu", True, 0), ("relu", False, 1)],
)
def test_factored_first_layer_equals_one_matrix_on_joined_inputs(activation, residual, num_blocks) -> None:
    torch.manual_seed(0)
    network = build(activation=activation, residual=residual, num_blocks=num_blocks)
    for batch, time, condition in [
        ((B,), (), (B,)),
        ((B, N), (B,), (B, 1)),
        ((1,), (1,), (1,)),
        ((B, N), (B, N), (B, N)),
    ]:
        x, t = torch.randn(*batch, D).double(), torch.rand(time).double()
        c = torch.randn(*condition, C).double()
        wanted = concatenated(network, x, t, c, ACTIVATIONS[activation], residual)
        torch.testing.assert_close(network(x, t, c), wanted)


def test_network_without_condition_equals_one_matrix_on_sample_and_time() -> None:
    torch.manual_seed(0)
    network = build(condition_dim=0)
    x, t = torch.randn(B, D).double(), torch.rand(B).double()
    torch.testing.assert_close(network(x, t), concatenated(network, x, t, None, functional.gelu, True))
    torch.testing.assert_close(network.bind(None)(x, t, None), network(x, t))


@pytest.mark.parametrize("time", [(), (B,), (B, N)], ids=str)
def test_particles_with_a_shared_condition_equal_a_loop_over_particles(time) -> None:
    torch.manual_seed(0)
    network = build()
    x, t, condition = torch.randn(B, N, D).double(), torch.rand(time).double(), torch.randn(B, 1, C).double()
    together = network(x, t, condition)
    for i, n in itertools.product(range(B), range(N)):
        time_here = t.reshape(t.shape + (1,) * (2 - t.dim())).expand(B, N)[i, n]
        torch.testing.assert_close(together[i, n], network(x[i, n][None], time_here, condition[i])[0])


@pytest.mark.parametrize("time", [(), (B,), (B, N)], ids=str)
def test_bound_field_equals_the_network_at_that_condition(time) -> None:
    torch.manual_seed(0)
    network = build()
    x, t, condition = torch.randn(B, N, D).double(), torch.rand(time).double(), torch.randn(B, 1, C).double()
    torch.testing.assert_close(network.bind(condition)(x, t, None), network(x, t, condition))


def test_bound_field_computes_the_conditions_features_once(monkeypatch) -> None:
    network, calls = build(), []
    network.from_condition.register_forward_hook(lambda *_: calls.append(1))
    field = network.bind(torch.randn(B, 1, C).double())
    for t in (0.1, 0.5, 0.9):
        field(torch.randn(B, N, D).double(), torch.tensor(t).double(), None)
    assert len(calls) == 1


@one_test
@pytest.mark.parametrize(
    ("x", "t", "condition"),
    [
        ((B, D), (B,), None),
        ((B, D), (N,), (B, C)),
        ((B, D), (B, 1, 1), (B, C)),
        ((B, N, D), (N,), (B, 1, C)),
        ((B, N, D), (B,), (B, C)),
        ((B, N, D), (B,), (N, 1, C)),
        ((B, N, D), (B,), (B, N + 1, C)),
        ((B, D), (B,), (C,)),
    ],
    ids=str,
)
def test_shapes_that_would_broadcast_silently_raise(x, t, condition) -> None:
    network = build()
    c = None if condition is None else torch.randn(condition).double()
    with pytest.raises(ValueError):
        network(torch.randn(x).double(), torch.rand(t).double(), c)


def test_network_without_condition_refuses_one() -> None:
    with pytest.raises(ValueError, match="no condition"):
        build(condition_dim=0)(torch.randn(B, D).double(), torch.rand(B).double(), torch.randn(B, C).double())


def test_initial_first_layer_is_orthogonal_over_all_inputs_together() -> None:
    network = VelocityArchitecture(hidden_dim=32, time_features=8).build(D, C).double()
    joint = torch.cat([network.from_sample.weight, network.from_time.weight, network.from_condition.weight], 1)
    torch.testing.assert_close(joint.T @ joint, 2.0 * torch.eye(D + 8 + C, dtype=torch.float64), atol=1e-5, rtol=0)


def test_embedding_holds_cosine_and_sine_at_both_ends_of_its_frequencies() -> None:
    t = torch.tensor([0.0, 0.3, 1.0])
    features = SinusoidalEmbedding(6, max_frequency=50.0, min_frequency=0.5)(t)
    frequencies = torch.tensor([50.0, 5.0, 0.5])
    wanted = torch.cat([torch.cos(t[:, None] * frequencies), torch.sin(t[:, None] * frequencies)], -1)
    torch.testing.assert_close(features, wanted, atol=1e-5, rtol=0)


@each_value
@pytest.mark.parametrize("condition_dim", [0, C])
@pytest.mark.parametrize("time", [(), (B,), (B, N)], ids=str)
def test_without_a_duration_a_network_that_takes_one_gives_the_velocity_of_the_moment(time, condition_dim) -> None:
    torch.manual_seed(0)
    network = build(condition_dim, takes_duration=True)
    x, t = torch.randn(B, N, D).double(), torch.rand(time).double()
    condition = torch.randn(B, 1, C).double() if condition_dim else None
    at_once = network(x, t, condition)
    torch.testing.assert_close(at_once, network(x, t, condition, torch.zeros_like(t)), atol=0, rtol=0)
    torch.testing.assert_close(at_once, network(x, t, condition, torch.tensor(0.0).double()))
    assert (network(x, t, condition, torch.full_like(t, 0.5)) - at_once).abs().max() > 1e-3


@pytest.mark.parametrize("duration", [(), (B,), (B, N)], ids=str)
def test_the_duration_adds_a_term_of_its_own_features_to_the_first_layer(duration) -> None:
    torch.manual_seed(0)
    network = build(takes_duration=True, num_blocks=1)
    x, t, condition = torch.randn(B, N, D).double(), torch.rand(B).double(), torch.randn(B, 1, C).double()
    length = torch.rand(duration).double()
    for i, n in itertools.product(range(B), range(N)):
        here = length.reshape(length.shape + (1,) * (2 - length.dim())).expand(B, N)[i, n]
        inputs = [x[i, n], network.embed_time(t[i]), condition[i, 0], network.embed_time(here)]
        parts = [network.from_sample, network.from_time, network.from_condition, network.from_duration]
        weight = torch.cat([part.weight for part in parts], 1)
        h = functional.gelu(functional.linear(torch.cat(inputs), weight, network.from_sample.bias))
        h = h + functional.gelu(network.blocks[0](h))
        torch.testing.assert_close(network(x, t, condition, length)[i, n], network.to_velocity(h))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("condition_dim", [0, C])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_derivative_along_the_flow_is_that_of_forward_mode(activation, condition_dim, residual) -> None:
    torch.manual_seed(0)
    network = build(condition_dim, takes_duration=True, activation=activation, residual=residual)
    (x, v), (t, duration) = torch.randn(2, B, D).double(), torch.rand(2, B).double()
    condition = torch.randn(B, C).double() if condition_dim else None
    found = network.derivative_along_flow(x, v, t, duration, condition)
    torch.testing.assert_close(found, FlowNetwork.derivative_along_flow(network, x, v, t, duration, condition))
    assert not found.requires_grad
    assert found.abs().max() > 0.1


def test_a_duration_is_refused_by_a_network_that_takes_none() -> None:
    network = build()
    x, t, condition = torch.randn(B, D).double(), torch.rand(B).double(), torch.randn(B, C).double()
    assert network.from_duration is None
    for call in (lambda d: network(x, t, condition, d), lambda d: network.bind(condition)(x, t, None, d)):
        with pytest.raises(ValueError, match="takes no duration"):
            call(torch.zeros_like(t))


@one_test
@pytest.mark.parametrize("duration", [(N,), (B, 1, 1), (B + 1,), (1, B)], ids=str)
def test_a_duration_that_is_no_prefix_of_the_batch_is_refused(duration) -> None:
    network = build(takes_duration=True)
    with pytest.raises(ValueError, match="prefix"):
        network(torch.randn(B, D).double(), torch.rand(B).double(), torch.randn(B, C).double(), torch.rand(duration))


def test_bound_field_equals_the_network_at_that_condition_and_duration() -> None:
    torch.manual_seed(0)
    network = build(takes_duration=True)
    x, t, condition = torch.randn(B, N, D).double(), torch.rand(B).double(), torch.randn(B, 1, C).double()
    field = network.bind(condition)
    for duration in (None, torch.rand(B).double(), torch.rand(B, N).double()):
        torch.testing.assert_close(field(x, t, None, duration), network(x, t, condition, duration))


def test_forward_mode_derivatives_pass_through_the_network() -> None:
    """The total derivative that the mean flow objective takes, against a difference quotient."""
    torch.manual_seed(0)
    network, h = build(takes_duration=True), 1e-6
    x, condition, v = torch.randn(B, D).double(), torch.randn(B, C).double(), torch.randn(B, D).double()
    t, duration = torch.rand(B).double(), torch.rand(B).double()
    one = torch.ones_like(t)
    value, slope = torch.func.jvp(lambda x, t, d: network(x, t, condition, d), (x, t, duration), (v, one, -one))
    torch.testing.assert_close(value, network(x, t, condition, duration))
    with torch.no_grad():
        ahead = network(x + h * v, t + h, condition, duration - h)
        behind = network(x - h * v, t - h, condition, duration + h)
    torch.testing.assert_close(slope, (ahead - behind) / (2.0 * h), rtol=1e-6, atol=1e-6)


@one_test
@pytest.mark.parametrize("dim", [0, 1, 7, -2])
def test_embedding_of_odd_or_no_dimension_raises(dim) -> None:
    with pytest.raises(ValueError, match=str(dim)):
        SinusoidalEmbedding(dim)


def test_balanced_inputs_start_with_terms_of_unit_variance() -> None:
    torch.manual_seed(0)
    architecture = VelocityArchitecture(hidden_dim=2000, num_blocks=1, time_features=32, balanced_inputs=True)
    network = architecture.build(2, 5, takes_duration=True)
    assert network.from_condition is not None
    assert network.from_duration is not None
    features = network.embed_time(torch.rand(500))
    terms = {
        "sample": network.from_sample(torch.randn(500, 2)),
        "condition": network.from_condition(torch.randn(500, 5)),
        "time": network.from_time(features),
        "duration": network.from_duration(features),
    }
    for name, term in terms.items():
        assert abs(term.square().mean().item() - 1.0) < 0.15, name


def test_binding_refuses_a_condition_too_many_or_too_few() -> None:
    with pytest.raises(ValueError, match="takes no condition"):
        VelocityArchitecture(hidden_dim=8).build(2, 0).bind(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="takes a condition, got None"):
        VelocityArchitecture(hidden_dim=8).build(2, 3).bind(None)
