"""The ensemble of critics against its members one by one, and its gradient against autograd."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flowmatch_rl.checks import UserError
from flowmatch_rl.nets import CategoricalHead, CriticArchitecture, CriticEnsemble, QuantileHead, ScalarHead, ValueHead
from tests.combinations import each_pair, each_value, one_test
from tests.families import VALUE_HEADS
from tests.tracing import trace_compilations

S, N = 3, 4


def build(members: int, layers: int, action_dim: int, hidden_dim: int = 8, **options) -> CriticEnsemble:
    critic = CriticArchitecture(members, hidden_dim, layers, **options).build(S, action_dim).double()
    with torch.no_grad():  # zero biases would hide one that is left out
        for name, parameter in critic.named_parameters():
            if "bias" in name or "norm" in name:
                parameter.normal_(1.0 if "norm_weights" in name else 0.0, 0.5)
    return critic


def member_outputs(critic: CriticEnsemble, m: int, observation: Tensor, action: Tensor) -> Tensor:
    """Outputs (..., O) of one member by ``functional.linear`` on joined inputs."""
    first = torch.cat([critic.observation_weight[m], critic.action_weight[m]]).T
    weights = [first, *(weight[m].T for weight in critic.hidden_weights)]
    biases = [critic.input_bias[m, 0], *(bias[m, 0] for bias in critic.hidden_biases)]
    h = torch.cat([observation, action], -1)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = functional.linear(h, weight, bias)
        if len(critic.norm_weights):
            norm = critic.norm_weights[layer][m, 0], critic.norm_biases[layer][m, 0]
            h = functional.layer_norm(h, h.shape[-1:], *norm)
        h = h.relu()
    return functional.linear(h, critic.value_weight[m].T, critic.value_bias[m, 0])


def value_of(head: ValueHead, outputs: Tensor) -> Tensor:
    """Values (...) by their definition."""
    if isinstance(head, CategoricalHead):
        step = (head.v_max - head.v_min) / (head.num_atoms - 1)
        weights = outputs.exp() / outputs.exp().sum(-1, keepdim=True)
        return sum(weights[..., i] * (head.v_min + i * step) for i in range(head.num_atoms))
    return sum(outputs[..., i] for i in range(outputs.shape[-1])) / outputs.shape[-1]


def member_values(critic: CriticEnsemble, m: int, observation: Tensor, action: Tensor) -> Tensor:
    return value_of(critic.head, member_outputs(critic, m, observation, action))


def all_values(critic: CriticEnsemble, observation: Tensor, action: Tensor) -> Tensor:
    return torch.stack([member_values(critic, m, observation, action) for m in range(critic.num_members)])


SIZES = list(itertools.product([1, 2, 3], [1, 2, 3], [(1, 2), (2, 2), (5, 1)]))


@pytest.mark.parametrize(("members", "layers", "size"), SIZES, ids=str)
def test_forward_equals_its_members_one_by_one(members, layers, size) -> None:
    torch.manual_seed(0)
    batch, action_dim = size
    critic = build(members, layers, action_dim)
    observation, action = torch.randn(batch, S).double(), torch.randn(batch, action_dim).double()
    torch.testing.assert_close(critic(observation, action), all_values(critic, observation, action))


@each_value
@pytest.mark.parametrize("reduction", ["min", "mean"])
@pytest.mark.parametrize(("members", "layers", "size"), SIZES, ids=str)
def test_values_and_gradients_equal_autograd(members, layers, size, reduction) -> None:
    torch.manual_seed(1)
    batch, action_dim = size
    critic = build(members, layers, action_dim)
    observation = torch.randn(batch, S).double()
    actions = torch.randn(batch, N, action_dim).double().requires_grad_()
    stacked = all_values(critic, observation[:, None].expand(-1, N, -1), actions)
    wanted = stacked.amin(0) if reduction == "min" else stacked.mean(0)
    (slope,) = torch.autograd.grad(wanted.sum(), actions)
    values, gradients = critic.action_values_and_gradients(observation, actions, reduction)
    torch.testing.assert_close(values, wanted.detach())
    torch.testing.assert_close(gradients, slope)
    torch.testing.assert_close(critic.action_values(observation, actions, reduction), wanted.detach())
    assert slope.abs().max() > 0.0


@each_pair
@pytest.mark.parametrize("reduction", ["min", "mean"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
@pytest.mark.parametrize(("members", "layers", "batch"), [(1, 1, 2), (3, 2, 5), (2, 3, 2)])
def test_every_head_with_or_without_layer_norm_equals_its_members_and_autograd(
    members, layers, batch, head, layer_norm, reduction
) -> None:
    torch.manual_seed(2)
    critic = build(members, layers, 2, layer_norm=layer_norm, head=head)
    observation, actions = torch.randn(batch, S).double(), torch.randn(batch, N, 2).double().requires_grad_()
    stacked = all_values(critic, observation[:, None].expand(-1, N, -1), actions)
    wanted = stacked.amin(0) if reduction == "min" else stacked.mean(0)
    (slope,) = torch.autograd.grad(wanted.sum(), actions)
    values, gradients = critic.action_values_and_gradients(observation, actions, reduction)
    torch.testing.assert_close(values, wanted.detach())
    torch.testing.assert_close(gradients, slope)
    torch.testing.assert_close(critic.action_values(observation, actions, reduction), wanted.detach())
    torch.testing.assert_close(critic(observation, actions[:, 0]), stacked[..., 0])
    assert slope.abs().max() > 0.0


@each_value
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_outputs_of_chosen_members_are_theirs_in_that_order(head, layer_norm) -> None:
    torch.manual_seed(0)
    critic = build(4, 2, 2, layer_norm=layer_norm, head=head)
    observation, action = torch.randn(5, S).double(), torch.randn(5, 2).double()
    outputs = critic.outputs(observation, action, torch.tensor([3, 1]))
    assert outputs.shape == (2, 5, head.num_outputs)
    for place, m in enumerate([3, 1]):
        torch.testing.assert_close(outputs[place], member_outputs(critic, m, observation, action))


@each_value
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_pieces_give_what_the_whole_gives(head, layer_norm, monkeypatch) -> None:
    torch.manual_seed(0)
    critic = build(2, 2, 2, layer_norm=layer_norm, head=head)
    observation, actions = torch.randn(7, S).double(), torch.randn(7, N, 2).double()
    whole = critic.action_values_and_gradients(observation, actions)
    monkeypatch.setattr("flowmatch_rl.nets.chunks.CPU_ROWS", 2 * N)
    pieces = critic.action_values_and_gradients(observation, actions)
    torch.testing.assert_close(pieces, whole)


@each_value
@pytest.mark.parametrize("reduction", ["min", "mean"])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_under_autocast_values_and_gradients_are_float32_and_near_those_without(head, layer_norm, reduction) -> None:
    torch.manual_seed(3)
    critic = CriticArchitecture(3, 32, 2, layer_norm, head).build(S, 2)
    observation, actions = torch.randn(40, S), torch.randn(40, N, 2).tanh()
    exact = critic.action_values_and_gradients(observation, actions, reduction)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = critic.action_values_and_gradients(observation, actions, reduction)
        alone = critic.action_values(observation, actions, reduction)
        several = critic(observation, actions[:, 0])
        several.sum().backward()
    for got, wanted in zip(rounded, exact, strict=True):
        assert got.dtype == torch.float32
        # The median, since where two members are as low as each other rounding chooses the other one.
        error = (got - wanted).abs().median() / wanted.abs().median()
        assert 0.0 < error < 0.05
    assert alone.dtype == several.dtype == torch.float32
    torch.testing.assert_close(alone, rounded[0])
    # Rounded at the last layer, values near one another would be equal.
    assert (rounded[0].bfloat16().float() != rounded[0]).float().mean() > 0.9
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in critic.parameters())


@pytest.mark.parametrize(
    "architecture",
    [
        CriticArchitecture(2, 8, 2),
        CriticArchitecture(2, 8, 2, True, CategoricalHead(5, -1.0, 1.0)),
        CriticArchitecture(2, 8, 2, True, QuantileHead(3)),
    ],
    ids=repr,
)
def test_compiled_evaluation_is_one_graph_and_equals_the_plain_one_also_under_autocast(
    architecture, monkeypatch
) -> None:
    torch.manual_seed(0)
    critic = architecture.build(S, 2)
    observation, actions = torch.randn(5, S), torch.randn(5, N, 2)

    def evaluate() -> list[Tensor]:
        plain = [*critic.action_values_and_gradients(observation, actions), critic.action_values(observation, actions)]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = critic.action_values_and_gradients(observation, actions, "mean")
        return [*plain, *rounded]

    wanted = evaluate()
    graphs = trace_compilations(monkeypatch)
    critic.compile_evaluation()
    torch.testing.assert_close(evaluate(), wanted)
    assert len(graphs) == 3


@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_each_parameter_receives_gradient_with_layer_norm_and_every_head(head) -> None:
    torch.manual_seed(0)
    critic = build(3, 2, 2, layer_norm=True, head=head)
    critic(torch.randn(9, S).double(), torch.randn(9, 2).double()).square().sum().backward()
    for name, parameter in critic.named_parameters():
        assert (parameter.grad.flatten(1).abs().amax(1) > 0.0).all(), name


def test_the_parameters_without_options_are_those_of_earlier_checkpoints() -> None:
    names = [name for name, _ in CriticArchitecture(2, 8, 2, head=ScalarHead(1.0)).build(S, 2).named_parameters()]
    assert names == [
        "observation_weight",
        "action_weight",
        "input_bias",
        "value_weight",
        "value_bias",
        "hidden_weights.0",
        "hidden_biases.0",
    ]


def test_min_and_mean_differ_and_the_minimum_belongs_to_each_point() -> None:
    torch.manual_seed(0)
    critic = build(3, 2, 2)
    observation, actions = torch.randn(50, S).double(), torch.randn(50, N, 2).double()
    lowest = all_values(critic, observation[:, None].expand(-1, N, -1), actions).argmin(0)
    assert len(lowest.unique()) > 1
    assert (
        critic.action_values(observation, actions, "min") < critic.action_values(observation, actions, "mean")
    ).all()


def test_members_start_from_different_weights() -> None:
    critic = CriticArchitecture(2, 8, 2).build(S, 2)
    for parameter in (critic.observation_weight, critic.action_weight, critic.value_weight, *critic.hidden_weights):
        assert not torch.allclose(parameter[0], parameter[1])


def test_no_gradient_reaches_parameters_through_values_of_particles() -> None:
    critic = build(2, 2, 2)
    observation = torch.randn(5, S).double()
    actions = torch.randn(5, N, 2).double().requires_grad_()
    values, gradients = critic.action_values_and_gradients(observation, actions)
    for result in (values, gradients, critic.action_values(observation, actions)):
        assert not result.requires_grad
    assert critic(observation, actions[:, 0]).requires_grad


@one_test
@pytest.mark.parametrize(
    ("observation", "action"), [((4, S), (3, 2)), ((4, 1, S), (4, 1, 2)), ((S,), (2,)), ((4, S), (4, N, 2))], ids=str
)
def test_forward_refuses_other_shapes(observation, action) -> None:
    with pytest.raises(ValueError, match="expected"):
        build(2, 1, 2)(torch.randn(observation).double(), torch.randn(action).double())


@pytest.mark.parametrize("observation", [(3, S), (1, S), (4, N, S)], ids=str)
def test_particles_of_other_batches_are_refused(observation) -> None:
    critic, actions = build(2, 1, 2), torch.randn(4, N, 2).double()
    for function in (critic.action_values, critic.action_values_and_gradients):
        with pytest.raises(ValueError, match="expected"):
            function(torch.randn(observation).double(), actions)


@pytest.mark.parametrize("name", ["num_members", "hidden_dim", "num_layers"])
def test_architecture_below_one_raises(name) -> None:
    with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
        CriticArchitecture(**{name: 0})
