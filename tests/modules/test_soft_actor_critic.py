"""Soft actor-critic: its gradients, its temperature, and what it learns where the answer is known."""

import math

import pytest
import torch
from tensordict import TensorDict

from flowmatch_rl.batches import read_transition
from flowmatch_rl.inference import CheckpointPolicy, TrainedPolicy, load_policy
from flowmatch_rl.modules import SoftActorCritic
from flowmatch_rl.nets import BatchNormLayers, CriticArchitecture, FlowHead, GaussianArchitecture, PreNormBlocks
from flowmatch_rl.objectives import ConstantTemperature, EntropyTemperature
from flowmatch_rl.paths import NoSquash, TanhSquash
from flowmatch_rl.schema import ActionBounds
from tests.combinations import one_test
from tests.modules.options import grouped, quiet_trainer
from tests.modules.test_reverse_flow_actor_critic import A, B, S, saved, transitions

TINY = {"network": GaussianArchitecture(hidden_dim=16), "critic": CriticArchitecture(hidden_dim=16)}


def build(**options) -> SoftActorCritic:
    torch.manual_seed(0)
    module = SoftActorCritic(S, A, **grouped(gaussian=True, **TINY | options))
    module.trainer = quiet_trainer()
    return module


def step(module: SoftActorCritic, optimizer: torch.optim.Optimizer, batch: TensorDict, index: int = 0) -> None:
    """One update, as a trainer makes it."""
    loss = module.loss(batch)
    optimizer.zero_grad()
    loss.backward()
    module.on_before_optimizer_step(optimizer)
    optimizer.step()
    module.after_update()


@pytest.mark.parametrize("squash", [TanhSquash(), NoSquash()], ids=repr)
@pytest.mark.parametrize("reduction", ["min", "mean"])
def test_gradient_of_the_policy_is_that_through_the_critics(reduction, squash) -> None:
    module = build(value_reduction=reduction, temperature=0.3, squash=squash)
    transition = read_transition(transitions())
    torch.manual_seed(5)
    module.losses(transition)[0]["policy"].backward()
    torch.manual_seed(5)
    torch.randn(B, A)  # of the next action
    torch.rand(module.critics.online.num_members)  # of the members
    noise = torch.randn(B, A)
    found = [parameter.grad for parameter in module.policy.parameters()]
    mean, log_std = module.policy.network(transition.observation)
    latent = mean + log_std.exp() * noise
    action = squash.action(latent)
    log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(latent).sum(-1) - squash.log_jacobian(latent)
    values = module.critics.online(transition.observation, action)
    value = values.amin(0) if reduction == "min" else values.mean(0)
    loss = (module.temperature * log_prob - value).mean()
    wanted = torch.autograd.grad(loss, list(module.policy.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in module.critics.online.parameters())


@pytest.mark.parametrize("entropy_backup", [True, False])
def test_target_is_the_reward_and_the_value_with_the_entropy_of_the_next_action(entropy_backup) -> None:
    module = build(discount=0.9, temperature=0.5, entropy_backup=entropy_backup)
    batch = transitions()
    batch["next", "terminated"][: B // 2] = True
    transition = read_transition(batch)
    torch.manual_seed(5)
    loss = module.losses(transition)[0]["critic"]
    torch.manual_seed(5)
    noise = torch.randn(B, A)
    mean, log_std = module.policy.network(transition.next_observation)
    latent = mean + log_std.exp() * noise
    base = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    tanh = torch.distributions.transforms.TanhTransform(cache_size=1)
    log_prob = torch.distributions.TransformedDistribution(base, [tanh]).log_prob(tanh(latent))
    value = module.critics.target(transition.next_observation, latent.tanh()).amin(0)
    value = value - 0.5 * log_prob if entropy_backup else value
    target = transition.reward + 0.9 * value.masked_fill(transition.terminated, 0.0)
    wanted = (module.critics.online(transition.observation, transition.action) - target).square().mean()
    torch.testing.assert_close(loss, wanted)


def test_loss_reaches_each_trained_parameter_and_no_lagging_one() -> None:
    module = build()
    module.loss(transitions()).backward()
    trained = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        if name.startswith("critics.target"):
            assert parameter.grad is None, name
            assert id(parameter) not in trained
        else:
            assert id(parameter) in trained, name
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0.0, name


@pytest.mark.parametrize("size", [1, A, B])
def test_batches_of_any_size_train(size) -> None:
    module = build()
    assert torch.isfinite(module.loss(transitions(size)))


@pytest.mark.parametrize(("target", "rises"), [(5.0, True), (-20.0, False)])
def test_temperature_rises_where_the_policy_has_too_little_entropy(target, rises) -> None:
    module = build(temperature=EntropyTemperature(0.7, target), temperature_learning_rate=0.01)
    optimizer = module.configure_optimizers()
    temperatures = [float(module.temperature)]
    for _ in range(3):
        step(module, optimizer, transitions())
        temperatures.append(float(module.temperature))
        torch.testing.assert_close(module.temperature, module.log_temperature.detach().exp())
    assert temperatures[0] == pytest.approx(0.7)
    assert temperatures == sorted(temperatures, reverse=not rises)
    assert len(set(temperatures)) == 4


def quadratic(observation, actions, reduction="min"):
    """Q = -(a - c)^2 with its gradient, its centre c a function of the state."""
    centre = 0.5 * observation[:, None, :A].tanh()
    return -(actions - centre).square().sum(-1), -2.0 * (actions - centre)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_policy_finds_the_boltzmann_law_of_a_quadratic_value(temperature, monkeypatch) -> None:
    module = build(temperature=temperature, squash=NoSquash(), actor_learning_rate=0.01)
    monkeypatch.setattr(module.critics.online, "action_values_and_gradients", quadratic)
    optimizer = torch.optim.Adam(module.policy.parameters(), lr=0.01)
    batch = transitions(64)
    torch.manual_seed(2)
    for index in range(500):
        if index == 350:
            optimizer.param_groups[0]["lr"] = 0.001
        optimizer.zero_grad()
        module.losses(read_transition(batch))[0]["policy"].backward()
        optimizer.step()
    mean, log_std = module.policy.network(batch["observation"])
    # exp(Q / temperature) is normal with variance temperature / 2.
    torch.testing.assert_close(mean, 0.5 * batch["observation"][:, :A].tanh(), atol=0.2, rtol=0)
    assert float((mean - 0.5 * batch["observation"][:, :A].tanh()).square().mean().sqrt()) < 0.05
    torch.testing.assert_close(log_std.exp().mean(), torch.tensor(math.sqrt(0.5 * temperature)), rtol=0.1, atol=0)


def test_tuned_temperature_gives_the_policy_its_entropy_on_a_quadratic_value(monkeypatch) -> None:
    rule = EntropyTemperature(3.0, 0.3)
    module = build(
        temperature=rule, squash=NoSquash(), actor_learning_rate=0.01, temperature_learning_rate=0.02, discount=0.0
    )
    monkeypatch.setattr(module.critics.online, "action_values_and_gradients", quadratic)
    optimizer, batch = module.configure_optimizers(), transitions(64)
    torch.manual_seed(2)
    for index in range(500):
        step(module, optimizer, batch, index)
    # The entropy per dimension of a normal of variance temperature / 2 is the target.
    wanted = 2.0 * math.exp(2.0 * 0.3) / (2.0 * math.pi * math.e)
    assert float(module.temperature) == pytest.approx(wanted, rel=0.2)


def test_collection_samples_and_evaluation_takes_the_mode() -> None:
    module, observation = build(), torch.randn(B, S)
    mean, log_std = module.policy.network(observation)
    mode = module.evaluation_policy()(TensorDict({"observation": observation}, [B]))["action"]
    torch.testing.assert_close(mode, mean.tanh())
    torch.manual_seed(4)
    noise = torch.randn(B, 1, A)
    torch.manual_seed(4)
    collected = module.collection_policy()(TensorDict({"observation": observation}, [B]))["action"]
    torch.testing.assert_close(collected, (mean + log_std.exp() * noise[:, 0]).tanh())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "temperature": ConstantTemperature(0.4),
            "squash": TanhSquash(limit=0.9),
            "network": GaussianArchitecture(12, 1, "gelu", -3.0, 1.0),
            "critic": CriticArchitecture(3, 12, 1, layer_norm=True),
            "subset_size": 2,
            "action_bounds": ActionBounds((-2.0, -1.0), (2.0, 3.0)),
        },
        {"critic": CriticArchitecture(2, 12, 1, head=FlowHead(), layers=PreNormBlocks(expansion=2))},
        {"critic": CriticArchitecture(layers=BatchNormLayers()), "joint_batch": True, "ema_decay": 0.0},
    ],
    ids=["default", "non-default", "residual flow", "batch norm"],
)
def test_checkpoint_rebuilds_the_same_policy_without_running_code(tmp_path, options) -> None:
    torch.manual_seed(0)
    module = SoftActorCritic(S, A, **grouped(gaussian=True, **TINY | options))
    path = saved(module, tmp_path)
    content = torch.load(path, weights_only=True)
    assert content["actor_critic"] == "SoftActorCritic"
    loaded = SoftActorCritic.load_from_checkpoint(path, weights_only=True)
    assert dict(loaded.hparams) == dict(module.hparams)
    assert loaded.temperature_rule == module.temperature_rule
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    observation = torch.randn(6, S)
    wanted = TrainedPolicy(module)(observation.numpy())
    policy = load_policy(path)
    assert isinstance(policy.module, SoftActorCritic)
    assert (policy(observation.numpy()) == wanted).all()
    mode = module.policy.network(observation)[0].detach().tanh()
    torch.testing.assert_close(CheckpointPolicy(path).act(observation), mode)


@one_test
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"discount": 1.0}, ["discount", "1.0"]),
        ({"temperature": -1.0}, ["temperature", "-1.0"]),
        ({"subset_size": 3}, ["subset_size", "[1, 2]", "3"]),
        ({"temperature_learning_rate": 0.0}, ["temperature_learning_rate", "0.0"]),
        ({"reset_interval": 0}, ["reset_interval", "0"]),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused_by_name_and_value(options, words) -> None:
    with pytest.raises(ValueError) as caught:
        build(**options)
    assert all(word in str(caught.value) for word in words)
