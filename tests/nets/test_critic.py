"""The ensemble of critics against its members one by one, and its gradient against autograd."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flowmatch_rl.nets import CriticArchitecture, CriticEnsemble

S, N = 3, 4


def build(members: int, layers: int, action_dim: int, hidden_dim: int = 8) -> CriticEnsemble:
    critic = CriticArchitecture(members, hidden_dim, layers).build(S, action_dim).double()
    with torch.no_grad():  # zero biases would hide one that is left out
        for name, parameter in critic.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return critic


def member_values(critic: CriticEnsemble, m: int, observation: Tensor, action: Tensor) -> Tensor:
    """Values (...) of one member by ``functional.linear`` on joined inputs."""
    weight = torch.cat([critic.observation_weight[m], critic.action_weight[m]]).T
    h = functional.linear(torch.cat([observation, action], -1), weight, critic.input_bias[m, 0]).relu()
    for hidden_weight, bias in zip(critic.hidden_weights, critic.hidden_biases, strict=True):
        h = functional.linear(h, hidden_weight[m].T, bias[m, 0]).relu()
    return functional.linear(h, critic.value_weight[m].T, critic.value_bias[m, 0]).squeeze(-1)


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
    with pytest.raises(ValueError, match=f"{name}=0"):
        CriticArchitecture(**{name: 0})
