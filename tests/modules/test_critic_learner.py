"""The learner of critics: targets, subsets, bonuses, gradients and what it learns on a known chain."""

import itertools
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import Transition
from flowmatch_rl.modules.critic_learner import CriticLearner, Critics
from flowmatch_rl.modules.settings import WeightCritics
from flowmatch_rl.nets import BatchNormLayers, CriticArchitecture, CriticLayers, QuantileHead, ScalarHead, ValueHead
from flowmatch_rl.objectives import critic_loss
from tests.combinations import each_value, one_test
from tests.families import CRITIC_LAYERS, VALUE_HEADS
from tests.oracles import F64, normal, uniform

S, A, B = 3, 2, 6


def learner_of(
    head: ValueHead = ScalarHead(),
    members: int = 2,
    discount: float = 0.9,
    layers: CriticLayers | None = None,
    **options: Any,
) -> CriticLearner:
    """Critics with other target networks."""
    torch.manual_seed(0)
    critics = Critics(CriticArchitecture(members, 8, 2, head=head, layers=layers), **options)
    learner = CriticLearner(critics, S, A, discount).double()
    with torch.no_grad():
        for parameter in learner.target.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return learner


def transitions(n: int = 1, batch: int = B) -> Transition:
    return Transition(
        observation=normal(batch, S, seed=1),
        action=normal(batch, A, seed=2).tanh(),
        rewards=normal(batch, n, seed=3),
        next_observation=normal(batch, S, seed=4),
        terminated=torch.arange(batch) % 3 == 1,
        length=torch.arange(batch) % n + 1,
    )


NEXT_ACTION = normal(B, A, seed=5).tanh()


@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_the_loss_of_scalar_critics_and_one_step_is_the_squared_error_of_the_one_step_target(reduction) -> None:
    learner = learner_of(reduction=reduction)
    critic, ema, transition = learner.online, learner.target, transitions()
    values = ema(transition.next_observation, NEXT_ACTION)
    value = values.amin(0) if reduction == "min" else values.mean(0)
    target = transition.reward + 0.9 * value.masked_fill(transition.terminated, 0.0)
    wanted = critic_loss(critic(transition.observation, transition.action), target)
    assert (values.amin(0) - values.mean(0)).abs().min() > 0.0
    torch.testing.assert_close(learner.loss(transition, NEXT_ACTION), wanted)


def target_of(transition: Transition, next_value: Tensor, discount: float, b: int) -> float:
    """Target of one transition, step by step from the last to the first."""
    value = 0.0 if transition.terminated[b] else float(next_value[b])
    for k in reversed(range(int(transition.length[b]))):
        value = float(transition.rewards[b, k]) + discount * value
    return value


@pytest.mark.parametrize("with_bonus", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_several_steps_a_bonus_and_a_subset_give_the_target_of_a_slow_reference(n, with_bonus) -> None:
    learner = learner_of(members=4, subset_size=2)
    critic, ema = learner.online, learner.target
    transition, members = transitions(n), torch.tensor([3, 1])
    next_values = ema(transition.next_observation, NEXT_ACTION)[members].amin(0)
    bonus = normal(B, seed=7) if with_bonus else None
    loss = learner.loss(transition, NEXT_ACTION, bonus, members)
    values = critic(transition.observation, transition.action)
    for b in range(B):
        target = target_of(transition, next_values + (0.0 if bonus is None else bonus), 0.9, b)
        torch.testing.assert_close(loss[b], (values[:, b] - target).square().mean())


@each_value
@pytest.mark.parametrize("reduction", ["min", "mean"])
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_the_target_is_the_distribution_of_the_lowest_member_or_the_mean_of_all(head, reduction) -> None:
    learner = learner_of(head, 4, reduction=reduction, subset_size=3)
    critic, ema = learner.online, learner.target
    transition, members = transitions(2), torch.tensor([2, 0, 3])
    torch.manual_seed(1)
    loss = learner.loss(transition, NEXT_ACTION, members=members)
    torch.manual_seed(1)
    noise = torch.rand(B, head.num_uniforms, dtype=F64)
    outputs = critic.outputs(transition.observation, transition.action)
    laws = head.distribution(ema.outputs(transition.next_observation, NEXT_ACTION))
    values = ema(transition.next_observation, NEXT_ACTION)
    for b in range(B):
        lowest = min((2, 0, 3), key=lambda m, b=b: float(values[m, b]))
        law = laws[lowest, b] if reduction == "min" else (laws[0, b] + laws[2, b] + laws[3, b]) / 3.0
        length = int(transition.length[b])
        shift = sum(0.9**k * transition.rewards[b, k] for k in range(length))
        scale = torch.tensor(0.0 if transition.terminated[b] else 0.9**length, dtype=F64)
        torch.testing.assert_close(
            loss[b : b + 1], head.loss(outputs[:, b : b + 1], law[None], shift[None], scale[None], noise[b : b + 1])
        )


@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_gradient_reaches_every_learned_critic_and_nothing_else(head) -> None:
    learner = learner_of(head, 3, subset_size=1)
    critic, ema = learner.online, learner.target
    next_action, bonus = NEXT_ACTION.clone().requires_grad_(), normal(B, seed=7).requires_grad_()
    loss = learner.loss(transitions(), next_action, bonus, torch.tensor([1]))
    (uniform(B, seed=8) * loss).sum().backward()  # weighted: slopes of the quantile loss are alike and may cancel
    assert all((p.grad.flatten(1).abs().amax(1) > 0.0).all() for p in critic.parameters())
    assert all(p.grad is None for p in ema.parameters())
    assert next_action.grad is None
    assert bonus.grad is None


@pytest.mark.parametrize(("members", "size"), [(4, 1), (4, 2), (3, 3)])
def test_every_subset_is_as_likely_as_the_others(members, size) -> None:
    learner = learner_of(members=members, subset_size=size)
    draws = uniform(4000, members, seed=1)
    counts = Counter(tuple(sorted(learner.choose_members(row).tolist())) for row in draws)
    subsets = list(itertools.combinations(range(members), size))
    assert set(counts) == set(subsets)
    expected = 4000 / len(subsets)
    assert sum((counts[s] - expected) ** 2 / expected for s in subsets) < 25.0


@pytest.mark.parametrize("network", ["online", "target"])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_values_in_weights_are_those_of_their_critics_and_not_rounded_if_in_full_precision(
    network, with_gradient
) -> None:
    learner = learner_of().float()
    observation, actions = normal(B, S, seed=1).float(), normal(B, 3, A, seed=2).float()
    critic = getattr(learner, network)
    wanted = critic.action_values_and_gradients(observation, actions, "mean")
    if not with_gradient:
        wanted = wanted[0], torch.zeros_like(actions)
    full = WeightCritics(network, "mean", full_precision=True)
    with torch.autocast("cpu", torch.bfloat16):
        exact = learner.weight_values(full, observation, actions, with_gradient)
        rounded = learner.weight_values(replace(full, full_precision=False), observation, actions, with_gradient)
    torch.testing.assert_close(exact, wanted, rtol=0.0, atol=0.0)
    assert not torch.equal(rounded[0], wanted[0])


def test_without_a_subset_all_members_serve() -> None:
    assert learner_of().choose_members(torch.rand(2)) is None
    with pytest.raises(ValueError, match="uniform of shape"):
        learner_of().choose_members(torch.rand(3))


def test_metrics_are_the_mean_value_and_the_mean_reward_of_a_step() -> None:
    learner, transition = learner_of(QuantileHead(5)), transitions(3)
    critic = learner.online
    assert learner.metrics == {}
    learner.loss(transition, NEXT_ACTION)
    assert set(learner.metrics) == {"train/value", "train/reward"}
    values = critic(transition.observation, transition.action)
    torch.testing.assert_close(learner.metrics["train/value"], values.mean().detach())
    torch.testing.assert_close(learner.metrics["train/reward"], transition.rewards[:, 0].mean())
    assert not any(value.requires_grad for value in learner.metrics.values())


def without_targets(architecture: CriticArchitecture) -> dict[str, Any]:
    """Options of critics that are their own targets, where the architecture needs them."""
    needed = architecture.layers is not None and architecture.layers.needs_joint_batch
    return {"joint_batch": True, "ema_decay": 0.0} if needed else {}


@pytest.mark.parametrize("layers", [None, BatchNormLayers(warm_up=0)], ids=repr)
def test_with_a_joint_batch_the_target_is_of_the_same_pass_and_gradient_reaches_the_critics_alone(layers) -> None:
    torch.manual_seed(0)
    architecture = CriticArchitecture(3, 8, 2, layers=layers)
    learner = CriticLearner(Critics(architecture, subset_size=2, joint_batch=True, ema_decay=0.0), S, A, 0.9).double()
    assert learner.target is learner.online
    assert len(list(learner.parameters())) == len(list(learner.online.parameters()))
    transition, members, twin = transitions(), torch.tensor([2, 0]), deepcopy(learner.online)
    next_action, bonus = NEXT_ACTION.clone().requires_grad_(), normal(B, seed=7).requires_grad_()
    loss = learner.loss(transition, next_action, bonus, members)
    pairs = transition.observation, transition.action, transition.next_observation, NEXT_ACTION
    outputs, next_outputs = twin.joint_outputs(*pairs)
    value = next_outputs[[2, 0], :, 0].amin(0).detach() + bonus.detach()
    target = transition.reward + 0.9 * value.masked_fill(transition.terminated, 0.0)
    wanted = (outputs[..., 0] - target).square().mean(0)
    torch.testing.assert_close(loss, wanted)
    loss.sum().backward()
    wanted.sum().backward()
    for (name, found), (_, other) in zip(learner.online.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, other.grad, msg=name)
    assert next_action.grad is None
    assert bonus.grad is None


@each_value
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    "kind", [*({"head": head} for head in VALUE_HEADS), *({"layers": layers} for layers in CRITIC_LAYERS)], ids=str
)
def test_on_a_ring_of_three_states_the_values_are_those_of_the_linear_system(kind, n) -> None:
    """States 0, 1, 2 with rewards 0.2, 0.4, -0.3, the discount 0.8; critics that are linear in the state."""
    reward, discount = torch.tensor([0.2, 0.4, -0.3], dtype=F64), 0.8
    ring = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=F64)
    wanted = torch.linalg.solve(torch.eye(3, dtype=F64) - discount * ring, reward)
    steps = (torch.arange(3)[:, None] + torch.arange(n)) % 3
    transition = Transition(
        observation=torch.eye(3, dtype=F64),
        action=torch.zeros(3, A, dtype=F64),
        rewards=reward[steps],
        next_observation=torch.eye(3, dtype=F64)[(torch.arange(3) + n) % 3],
        terminated=torch.zeros(3, dtype=torch.bool),
        length=torch.full((3,), n),
    )
    torch.manual_seed(0)
    architecture = CriticArchitecture(2, 16, 1, **kind)
    learner = CriticLearner(Critics(architecture, "mean", **without_targets(architecture)), S, A, discount).double()
    critic = learner.online
    learner.target = critic
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.02)
    for step in range(800):
        if step == 600:
            optimizer.param_groups[0]["lr"] = 0.001
        optimizer.zero_grad()
        learner.loss(transition, transition.action).sum().backward()
        optimizer.step()
    values = critic(transition.observation, transition.action).detach()
    torch.testing.assert_close(values, wanted.expand(2, 3), atol=0.03, rtol=0.0)


@one_test
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"discount": 1.0}, ["discount", "1.0"]),
        ({"discount": -0.1}, ["discount", "-0.1"]),
        ({"reduction": "max"}, ["reduction", "'max'"]),
        ({"subset_size": 0}, ["subset_size", "at least 1", "0"]),
        ({"subset_size": 3}, ["subset_size", "[1, 2]", "3"]),
        ({"joint_batch": True}, ["ema_decay must be 0", "0.995"]),
        ({"layers": BatchNormLayers()}, ["joint_batch must be true", "BatchNormLayers"]),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options, words) -> None:
    with pytest.raises(ValueError) as caught:
        learner_of(**options)
    assert all(word in str(caught.value) for word in words)


@one_test
@pytest.mark.parametrize(("size", "members"), [(None, [0]), (2, None), (2, [0]), (2, [0, 1, 1])])
def test_members_that_are_not_the_subset_are_refused(size, members) -> None:
    learner = learner_of(subset_size=size)
    with pytest.raises(ValueError, match="expected members"):
        learner.loss(transitions(), NEXT_ACTION, members=None if members is None else torch.tensor(members))


def test_a_bonus_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="bonus"):
        learner_of().loss(transitions(), NEXT_ACTION, bonus=torch.zeros(B, 1, dtype=F64))
