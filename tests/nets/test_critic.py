"""The ensemble of critics against its members one by one, and its gradient against autograd."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from flowmatch_rl.checks import UserError
from flowmatch_rl.nets import (
    BatchNormLayers,
    CategoricalHead,
    CriticArchitecture,
    CriticEnsemble,
    FlowHead,
    PostNormBlocks,
    PreNormBlocks,
    QuantileHead,
    ScalarHead,
    ValueHead,
)
from flowmatch_rl.nets.critic_stages import UnitScale
from flowmatch_rl.objectives import ValueReduction
from tests.combinations import each_pair, each_value, one_test
from tests.families import CRITIC_LAYERS, VALUE_HEADS
from tests.tracing import trace_compilations

S, N = 3, 4

LAYERS: list[dict[str, Any]] = [
    {},
    {"layer_norm": True},
    {"normalised_features": True},
    *({"layers": layers} for layers in CRITIC_LAYERS),
    {"layers": PostNormBlocks(), "normalised_features": True},
]


def build(members: int, num_layers: int, action_dim: int, hidden_dim: int = 8, **options) -> CriticEnsemble:
    critic = CriticArchitecture(members, hidden_dim, num_layers, **options).build(S, action_dim).double()
    with torch.no_grad():  # zero biases would hide one that is left out
        for name, parameter in critic.named_parameters():
            if "bias" in name:
                parameter.normal_(0.0, 0.5)
            elif parameter.dim() == 3 and parameter.shape[1] == 1:  # weights of layer norms
                parameter.normal_(1.0, 0.5)
        for name, buffer in critic.named_buffers():
            if name.endswith("mean"):
                buffer.normal_()
            elif name.endswith("variance"):
                buffer.uniform_(0.5, 2.0)
    return critic


def member_outputs(critic: CriticEnsemble, m: int, observation: Tensor, action: Tensor) -> Tensor:
    """Outputs (..., O) of one member by ``functional.linear`` on joined inputs."""
    weights = {name: value[m].squeeze(0) for name, value in critic.state_dict().items() if value.dim()}
    first = torch.cat([critic.observation_weight[m], critic.action_weight[m]])
    h = functional.linear(torch.cat([observation, action], -1), first.T, weights["input_bias"])
    trunk = {name.removeprefix("trunk."): weight for name, weight in weights.items() if name.startswith("trunk.")}
    normalised = isinstance([*critic.trunk.modules()][-1], UnitScale)
    if normalised:
        trunk = {name.removeprefix("stages.0."): weight for name, weight in trunk.items()}
    residual, batch = any(".step" in name for name in trunk), "stages.0.mean" in trunk
    h = (residual_features if residual else batch_features if batch else plain_features)(trunk, h)
    if normalised:
        h = h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return functional.linear(h, critic.value_weight[m].T, weights["value_bias"])


def batch_features(weights: dict[str, Tensor], h: Tensor) -> Tensor:
    """By running statistics."""
    for stage in range(0, 1 + max(int(name.split(".")[1]) for name in weights), 3):
        if stage:
            h = functional.linear(h, weights[f"stages.{stage - 1}.weight"].T, weights[f"stages.{stage - 1}.bias"])
        mean, variance, weight, bias = (
            weights[f"stages.{stage}.{name}"] for name in ("mean", "variance", "weight", "bias")
        )
        h = ((h - mean) / (variance + 1e-5).sqrt() * weight + bias).relu()
    return h


def plain_features(weights: dict[str, Tensor], h: Tensor) -> Tensor:
    for layer in range(sum(name.startswith("hidden_weights") for name in weights) + 1):
        if layer:
            h = functional.linear(h, weights[f"hidden_weights.{layer - 1}"].T, weights[f"hidden_biases.{layer - 1}"])
        if f"norm_weights.{layer}" in weights:
            norm = weights[f"norm_weights.{layer}"], weights[f"norm_biases.{layer}"]
            h = functional.layer_norm(h, h.shape[-1:], *norm)
        h = h.relu()
    return h


def residual_features(weights: dict[str, Tensor], h: Tensor) -> Tensor:
    """By what the papers draw: normalised before a block and at the end, or after every linear map."""

    def linear(h: Tensor, name: str) -> Tensor:
        return functional.linear(h, weights[f"{name}.weight"].T, weights[f"{name}.bias"])

    def norm(h: Tensor, name: str) -> Tensor:
        return functional.layer_norm(h, h.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    blocks = sorted({name.partition(".step")[0] for name in weights if ".step" in name})
    before = "stages.0.weight" not in weights
    h = h if before else norm(h, "stages.0").relu()
    for inner in (f"{block}.step.stages" for block in blocks):
        if before:
            h = h + linear(linear(norm(h, f"{inner}.0"), f"{inner}.1").relu(), f"{inner}.3")
        else:
            first = norm(linear(h, f"{inner}.0"), f"{inner}.1").relu()
            h = h + norm(linear(first, f"{inner}.3"), f"{inner}.4")
    return norm(h, f"stages.{len(blocks)}") if before else h


def value_of(head: ValueHead, outputs: Tensor) -> Tensor:
    """Values (...) by their definition."""
    if isinstance(head, CategoricalHead):
        step = (head.v_max - head.v_min) / (head.num_atoms - 1)
        weights = outputs.exp() / outputs.exp().sum(-1, keepdim=True)
        return sum(weights[..., i] * (head.v_min + i * step) for i in range(head.num_atoms))
    if isinstance(head, FlowHead):
        return outputs[..., 0]
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
@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
@pytest.mark.parametrize(("members", "layers", "batch"), [(1, 1, 2), (3, 2, 5), (2, 3, 2)])
def test_every_head_and_kind_of_layers_equals_its_members_and_autograd(
    members, layers, batch, head, options, reduction
) -> None:
    torch.manual_seed(2)
    critic = build(members, layers, 2, head=head, **options)
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
@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_outputs_of_chosen_members_are_theirs_in_that_order(head, options) -> None:
    torch.manual_seed(0)
    critic = build(4, 2, 2, head=head, **options)
    observation, action = torch.randn(5, S).double(), torch.randn(5, 2).double()
    outputs = critic.outputs(observation, action, torch.tensor([3, 1]))
    assert outputs.shape == (2, 5, head.num_outputs)
    for place, m in enumerate([3, 1]):
        torch.testing.assert_close(outputs[place], member_outputs(critic, m, observation, action))


@each_value
@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_pieces_give_what_the_whole_gives(head, options, monkeypatch) -> None:
    torch.manual_seed(0)
    critic = build(2, 2, 2, head=head, **options)
    observation, actions = torch.randn(7, S).double(), torch.randn(7, N, 2).double()
    whole = critic.action_values_and_gradients(observation, actions)
    monkeypatch.setattr("flowmatch_rl.nets.chunks.CPU_ROWS", 2 * N)
    pieces = critic.action_values_and_gradients(observation, actions)
    torch.testing.assert_close(pieces, whole)


@each_value
@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_gradients_of_the_lowest_members_alone_are_those_of_all_members_by_weight(head, options, monkeypatch) -> None:
    critic = build(3, 2, 2, head=head, **options)
    observation, actions = torch.randn(6, S).double(), torch.randn(6, N, 2).double()
    values, gradients = critic.action_values_and_gradients(observation, actions)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    same, by_weight = critic.action_values_and_gradients(observation, actions)
    torch.testing.assert_close(values, same)
    torch.testing.assert_close(gradients, by_weight)


def test_each_point_goes_back_through_one_member_however_many_there_are() -> None:
    def flops(members: int, reduction: ValueReduction) -> int:
        critic = build(members, 3, 2)
        with FlopCounterMode(display=False) as counter:
            critic.action_values_and_gradients(torch.randn(6, S).double(), torch.randn(6, N, 2).double(), reduction)
        return counter.get_total_flops()

    one, all_members = flops(1, "min"), flops(4, "mean")
    assert all_members == 4 * one
    forward = (flops(4, "min") - one) / 3  # three members more go forward alone
    assert 0.4 * one < forward < 0.7 * one


@each_value
@pytest.mark.parametrize("reduction", ["min", "mean"])
@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_under_autocast_values_and_gradients_are_float32_and_near_those_without(head, options, reduction) -> None:
    torch.manual_seed(3)
    critic = CriticArchitecture(3, 32, 2, head=head, **options).build(S, 2)
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
        CriticArchitecture(2, 8, 2, True, FlowHead()),
        *(CriticArchitecture(2, 8, 2, layers=layers) for layers in CRITIC_LAYERS),
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


@each_value
@pytest.mark.parametrize("options", LAYERS[1:], ids=str)
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_each_parameter_receives_gradient_with_every_head_and_kind_of_layers(head, options) -> None:
    torch.manual_seed(0)
    critic = build(3, 2, 2, head=head, **options)
    critic(torch.randn(9, S).double(), torch.randn(9, 2).double()).square().sum().backward()
    for name, parameter in critic.named_parameters():
        assert (parameter.grad.flatten(1).abs().amax(1) > 0.0).all(), name


@pytest.mark.parametrize("layer_norm", [False, True])
def test_plain_critics_take_weights_and_optimizer_states_of_earlier_checkpoints(layer_norm) -> None:
    """They were parameters of the ensemble, in this order, by which optimizers know them."""
    critic = CriticArchitecture(2, 8, 3, layer_norm, ScalarHead(1.0)).build(S, 2)
    names = ["observation_weight", "action_weight", "input_bias", "value_weight", "value_bias"]
    names += ["hidden_weights.0", "hidden_weights.1", "hidden_biases.0", "hidden_biases.1"]
    names += [f"norm_{kind}.{layer}" for kind in ("weights", "biases") for layer in range(3)] if layer_norm else []
    assert [name.removeprefix("trunk.") for name, _ in critic.named_parameters()] == names
    earlier = {name: torch.randn_like(p) for name, p in zip(names, critic.parameters(), strict=True)}
    whole = torch.nn.ModuleDict({"online": critic, "other": torch.nn.Linear(1, 1)})
    others = {f"other.{name}": parameter for name, parameter in whole["other"].state_dict().items()}
    whole.load_state_dict({f"online.{name}": value for name, value in earlier.items()} | others)
    for name, parameter in zip(names, critic.parameters(), strict=True):
        assert torch.equal(parameter, earlier[name]), name


@each_value
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_several_members_learn_what_each_learns_alone(options) -> None:
    """A step of gradient descent on an ensemble is one on each of its members."""
    torch.manual_seed(0)
    critic, observation, action = build(3, 2, 2, **options), torch.randn(6, S).double(), torch.randn(6, 2).double()
    alone = [build(1, 2, 2, **options) for _ in range(3)]
    for m, single in enumerate(alone):
        state = critic.state_dict().items()
        single.load_state_dict({name: value[m : m + 1] if value.dim() else value for name, value in state})
    for ensemble in (critic, *alone):
        optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.01)
        ensemble(observation, action).square().sum().backward()
        optimizer.step()
    for m, single in enumerate(alone):
        torch.testing.assert_close(single(observation, action)[0], critic(observation, action)[m])


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
    for parameter in (
        critic.observation_weight,
        critic.action_weight,
        critic.value_weight,
        *critic.trunk.hidden_weights,
    ):
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


BATCH_NORM = {"layers": BatchNormLayers(momentum=0.9, warm_up=2)}


def by_their_statistics(h: Tensor) -> Tensor:
    return (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()


def test_a_joint_pass_normalises_by_both_batches_and_the_running_statistics_learn_from_them() -> None:
    torch.manual_seed(0)
    critic, (one, two) = build(2, 1, 2, **BATCH_NORM), torch.randn(2, 5, S).double()
    actions = torch.randn(2, 5, 2).double()
    norm = critic.trunk.stages[0]
    mean, variance = norm.mean.clone(), norm.variance.clone()
    outputs, next_outputs = critic.joint_outputs(one, actions[0], two, actions[1])
    for m in range(2):
        rows = torch.cat([torch.cat([one, two]), actions.flatten(0, 1)], -1)
        h = rows @ torch.cat([critic.observation_weight[m], critic.action_weight[m]]) + critic.input_bias[m]
        features = (by_their_statistics(h) * norm.weight[m] + norm.bias[m]).relu()
        wanted = features @ critic.value_weight[m] + critic.value_bias[m]
        torch.testing.assert_close(torch.cat([outputs[m], next_outputs[m]]), wanted)
        # The first update is all of the average.
        torch.testing.assert_close(norm.mean[m, 0], h.mean(0))
        torch.testing.assert_close(norm.variance[m, 0], h.var(0, correction=0))
    assert not torch.allclose(norm.mean, mean)
    assert not torch.allclose(norm.variance, variance)
    assert int(norm.num_updates) == 1


def test_after_the_warm_up_a_joint_pass_is_corrected_toward_the_running_statistics() -> None:
    torch.manual_seed(0)
    critic, batches = build(1, 1, 2, **BATCH_NORM), torch.randn(3, 2, 5, S).double()
    action, norm = torch.randn(5, 2).double(), critic.trunk.stages[0]
    for one, two in batches[:2]:
        critic.joint_outputs(one, action, two, action)
    with torch.no_grad():
        norm.mean += 100.0 * torch.eye(1, 8)  # beyond what a shift corrects
    mean, variance = norm.mean[0, 0].clone(), norm.variance[0, 0].clone()
    one, two = batches[2]
    outputs, _ = critic.joint_outputs(one, action, two, action)
    rows = torch.cat([torch.cat([one, two]), torch.cat([action, action])], -1)
    h = rows @ torch.cat([critic.observation_weight[0], critic.action_weight[0]]) + critic.input_bias[0]
    ratio = ((h.var(0, correction=0) + 1e-5) / (variance + 1e-5)).sqrt().clamp(1 / 3, 3)
    shift = ((h.mean(0) - mean) / (variance + 1e-5).sqrt()).clamp(-5, 5)
    assert shift[0] == -5.0
    corrected = by_their_statistics(h) * ratio + shift
    features = (corrected * norm.weight[0] + norm.bias[0]).relu()
    torch.testing.assert_close(outputs[0], (features @ critic.value_weight[0] + critic.value_bias[0])[:5])
    # The third update: one of three by an average, which is above 1 - momentum.
    torch.testing.assert_close(norm.mean[0, 0], mean + (h.mean(0) - mean) / 3.0)


@pytest.mark.parametrize("options", [{"layer_norm": True}, BATCH_NORM], ids=str)
def test_without_training_a_joint_pass_gives_what_each_gives_alone_and_learns_nothing(options) -> None:
    torch.manual_seed(0)
    critic, (one, two) = build(2, 2, 2, **options).eval(), torch.randn(2, 5, S).double()
    actions, state = torch.randn(2, 5, 2).double(), {k: v.clone() for k, v in critic.state_dict().items()}
    outputs, next_outputs = critic.joint_outputs(one, actions[0], two, actions[1])
    torch.testing.assert_close(outputs, critic.outputs(one, actions[0]))
    torch.testing.assert_close(next_outputs, critic.outputs(two, actions[1]))
    critic.train()(one, actions[0])  # neither do values that nothing learns from
    critic.action_values(one, actions[0][:, None])
    assert all(torch.equal(value, state[name]) for name, value in critic.state_dict().items())


def test_a_joint_pass_of_other_batches_is_refused() -> None:
    critic, x = build(2, 1, 2), torch.zeros(5, S).double()
    with pytest.raises(ValueError, match="next_observation"):
        critic.joint_outputs(x, x[:, :2], x[:4], x[:, :2])


def test_layers_that_do_not_fit_are_refused() -> None:
    for options in ({"momentum": 1.0}, {"warm_up": -1}):
        with pytest.raises(UserError, match=next(iter(options))):
            BatchNormLayers(**options)
    with pytest.raises(UserError, match="expansion must be at least 1, got 0"):
        PreNormBlocks(expansion=0)
    with pytest.raises(UserError, match="layer_norm must be false"):
        CriticArchitecture(layer_norm=True, layers=PostNormBlocks())
