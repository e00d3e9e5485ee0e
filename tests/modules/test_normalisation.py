"""Actor-critics that measure the units of their task: what networks see, checkpoints, resets and data sets."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tensordict import TensorDict
from torch import Tensor

from flowmatch_rl.batches import read_transition
from flowmatch_rl.checks import UserError
from flowmatch_rl.inference import load_policy
from flowmatch_rl.modules import (
    Critics,
    FlowQLearning,
    ImplicitFlowQLearning,
    Normalisation,
    ReverseFlowActorCritic,
    SoftActorCritic,
    TiltedFlowActorCritic,
)
from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.nets import (
    CategoricalHead,
    CriticArchitecture,
    CriticEnsemble,
    QuantileHead,
    ScalarHead,
    ValueHead,
    moments_of,
)
from flowmatch_rl.objectives import (
    AnnealedTemperature,
    ConstantTemperature,
    EntropyTemperature,
    SampleSizeTemperature,
)
from tests.modules import test_offline_actor_critics as offline
from tests.modules import test_soft_actor_critic as soft
from tests.modules.options import grouped, quiet_trainer
from tests.modules.test_actor_critic import fit
from tests.modules.test_reverse_flow_actor_critic import TINY, A, B, S, transitions

SEEN = Normalisation(observations=True)
OFFSET, UNIT = torch.tensor([300.0, -2.0, 0.01]), torch.tensor([50.0, 1.0, 1e-3])

KINDS: dict[str, tuple[type[ActorCritic], dict[str, Any]]] = {
    "reverse flow": (ReverseFlowActorCritic, grouped(**TINY)),
    "soft": (SoftActorCritic, grouped(True, **soft.TINY)),
    "flow Q-learning": (FlowQLearning, offline.MODULES["flow Q-learning"][1]),
    "implicit": (ImplicitFlowQLearning, offline.MODULES["implicit"][1]),
    "tilted": (TiltedFlowActorCritic, offline.MODULES["prior"][1]),
}
WHOLE = Normalisation(observations=True, temperature=True, values=True)
SCALED = Normalisation(observations=True, temperature=True)
RULES = {
    "constant": ConstantTemperature(0.25),
    "annealed": AnnealedTemperature(0.5, 0.1, 4),
    "entropy": EntropyTemperature(0.25, 3.0),
    "sample size": SampleSizeTemperature(0.25, 0.9),
}
every_kind = pytest.mark.parametrize("name", KINDS)


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    kind: Any
    kind, arguments = KINDS[name]
    module = kind(S, A, **arguments | options)
    module.trainer = quiet_trainer()
    return module


def in_units(batch: TensorDict, unit: Tensor = UNIT, offset: Tensor = OFFSET) -> TensorDict:
    """The same transitions in other units of the observation."""
    batch = batch.clone()
    for key in ("observation", ("next", "observation")):
        batch.set(key, batch.get(key) * unit + offset)
    return batch


def train(module: ActorCritic, batches: list[TensorDict]) -> list[float]:
    """Losses of some updates."""
    optimizer, losses = module.configure_optimizers(), []
    for step, batch in enumerate(batches):
        torch.manual_seed(step)
        loss = module.loss(batch)
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.after_update()
    return losses


@every_kind
def test_a_task_in_other_units_is_learned_alike(name: str) -> None:
    batches = [transitions(32, seed) for seed in range(4)]
    standard, other, blind = (build(name, normalisation=n) for n in (SEEN, SEEN, Normalisation()))
    losses = train(standard, batches)
    torch.testing.assert_close(train(other, [in_units(b) for b in batches]), losses, rtol=2e-3, atol=1e-4)
    assert abs(train(blind, [in_units(b) for b in batches])[0] / losses[0] - 1.0) > 0.05
    # What acts, and the values that it chooses by, take observations in the units of the environment.
    observation, action = batches[0]["observation"], batches[0]["action"]
    raw = observation * UNIT + OFFSET
    acts = [m.actor("eval")(o, torch.Generator()) for m, o in ((standard, observation), (other, raw))]
    torch.testing.assert_close(acts[1], acts[0], rtol=0.0, atol=5e-3)
    values = [m.critics.values(o, action[:, None]) for m, o in ((standard, observation), (other, raw))]
    torch.testing.assert_close(values[1], values[0], rtol=1e-2, atol=1e-2)


@every_kind
def test_every_network_shares_the_units_and_none_copies_them(name: str) -> None:
    module = build(name, normalisation=SEEN)
    train(module, [in_units(transitions())])
    stored = {key: value for key, value in module.state_dict().items() if key.endswith("units.shift")}
    wanted = {"policy", "critics.online", "critics.target"} | {f"others.{name}" for name in module.others}
    for place in wanted:
        assert any(key.startswith(place) for key in stored), place
    for key, value in stored.items():
        assert value.data_ptr() == module.units.observations.shift.data_ptr(), key


def test_units_count_each_batch_that_is_learned_from_once_and_before_it_is() -> None:
    module, batches = build("reverse flow", normalisation=SEEN), [in_units(transitions(B, k)) for k in range(3)]
    seen: list[float] = []
    losses = module.losses
    module.losses = lambda t: seen.append(float(module.units.observations.moments[0, 0])) or losses(t)
    train(module, batches)
    assert seen == [B, 2 * B, 3 * B]
    rows = torch.cat([batch["observation"] for batch in batches])
    torch.testing.assert_close(module.units.observations.moments, moments_of(rows), rtol=1e-12, atol=0.0)
    module.held_out_losses(read_transition(batches[0]))
    assert float(module.units.observations.moments[0, 0]) == 3 * B


def test_a_resumed_run_and_a_loaded_policy_have_the_units_of_the_checkpoint(tmp_path: Path) -> None:
    module = build("reverse flow", normalisation=SEEN)
    fit(module, tmp_path, 3).save_checkpoint(tmp_path / "some.ckpt")
    moments = module.units.observations.moments.clone()
    assert float(moments[0, 0]) == 3 * B
    policy = load_policy(tmp_path / "some.ckpt")
    assert torch.equal(policy.module.units.observations.moments, moments)
    observation = transitions()["observation"]
    acted = policy(observation.numpy())
    wanted = module.actor("eval")(observation, torch.Generator().manual_seed(0)).clamp(-1.0, 1.0)
    torch.testing.assert_close(torch.from_numpy(acted), wanted, rtol=0.0, atol=1e-6)
    policy.module.units.observations.shift.add_(1.0)
    policy._generator.manual_seed(0)
    assert abs(policy(observation.numpy()) - acted).max() > 1e-3  # it does depend on them
    resumed = build("reverse flow", normalisation=SEEN)
    fit(resumed, tmp_path, 5, tmp_path / "some.ckpt")
    assert float(resumed.units.observations.moments[0, 0]) == 5 * B


def test_new_networks_see_in_the_units_of_those_they_replace(tmp_path: Path) -> None:
    module = build("tilted", normalisation=SEEN)
    fit(module, tmp_path, 2)
    before = copy.deepcopy(module.units.state_dict())
    module.reset_networks()
    after = module.state_dict()
    assert float(before["observations.moments"][0, 0]) == 2 * B
    for key, value in after.items():
        if ".units." in key or key.startswith("units."):
            assert torch.equal(value, before[f"observations.{key.rsplit('.', 1)[1]}"]), key
    assert module.critics.target.features.units is module.units.observations


@every_kind
def test_without_normalisation_there_is_nothing_new_and_older_checkpoints_load(name: str, tmp_path: Path) -> None:
    module = build(name)
    assert not any("units" in key for key in module.state_dict())
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "some.ckpt", weights_only=True)
    content = torch.load(tmp_path / "some.ckpt", weights_only=True)
    del content["hyper_parameters"]["normalisation"]
    torch.save(content, tmp_path / "old.ckpt")
    observation = transitions()["observation"].numpy()
    acted = [load_policy(tmp_path / file)(observation) for file in ("some.ckpt", "old.ckpt")]
    assert (acted[0] == acted[1]).all()


def test_units_of_a_data_set_are_taken_once_and_stay() -> None:
    module, rows = build("tilted", normalisation=SEEN), torch.randn(100, S) * UNIT + OFFSET
    data = SimpleNamespace(observation_moments=moments_of(rows), reward_moments=moments_of(rows[:, :1]))
    for _ in range(2):  # a resumed run takes none again
        module.units.take(data)
        train(module, [in_units(transitions())])
    assert torch.equal(module.units.observations.moments, moments_of(rows))
    torch.testing.assert_close(module.units.observations.scale, rows.std(0, correction=0))


@pytest.mark.parametrize(("before", "after"), [(Normalisation(), SEEN), (SEEN, Normalisation())], ids=["on", "off"])
def test_a_run_that_resumes_with_other_units_is_refused(before: Normalisation, after: Normalisation, tmp_path) -> None:
    fit(build("soft", normalisation=before), tmp_path, 2).save_checkpoint(tmp_path / "some.ckpt")
    with pytest.raises(UserError, match=r"normalised (nothing|observations), this run normalises"):
        fit(build("soft", normalisation=after), tmp_path, 3, tmp_path / "some.ckpt")


def with_rewards(batch: TensorDict, factor: float) -> TensorDict:
    batch = batch.clone()
    return batch.set(("next", "reward"), factor * batch["next", "reward"])


@pytest.mark.parametrize("rule", RULES)
def test_a_temperature_is_its_rules_times_the_root_mean_square_of_all_rewards(rule: str) -> None:
    module = build("reverse flow", normalisation=SCALED, temperature=RULES[rule])
    batches, seen = [with_rewards(transitions(B, k), 10.0 + k) for k in range(3)], []
    losses = module.losses
    module.losses = lambda t: seen.append(module.temperature.clone()) or losses(t)
    relative = []
    for step, batch in enumerate(batches):
        log = module.log_temperature
        relative.append(module.temperature_rule.scheduled(0) if log is None else float(log.detach().exp()))
        train(module, [batch])
        rewards = torch.cat([b["next", "reward"] for b in batches[: step + 1]]).double()
        scale = float(rewards.square().mean().sqrt())
        assert scale > 5.0
        assert float(seen[-1]) == pytest.approx(relative[-1] * scale, rel=1e-5)  # of the losses of this batch too
        assert float(module.units.temperature_unit) == pytest.approx(scale, rel=1e-6)
    if module.log_temperature is not None:
        assert len(set(relative)) == 3


def test_without_normalisation_the_temperature_is_in_units_of_the_return() -> None:
    module = build("reverse flow", normalisation=SEEN, temperature=0.25)
    train(module, [with_rewards(transitions(), 100.0)])
    assert float(module.temperature) == 0.25
    assert module.units.temperature_unit == 1.0


def test_the_scale_is_one_until_there_is_a_reward() -> None:
    module = build("reverse flow", normalisation=SCALED, temperature=0.25)
    assert float(module.units.temperature_unit) == 1.0
    train(module, [with_rewards(transitions(), 0.0)] * 3)
    assert float(module.temperature) == 0.25
    last = transitions()
    train(module, [last])
    wanted = float(last["next", "reward"].square().mean().sqrt()) / 2.0  # one of four batches
    assert float(module.units.temperature_unit) == pytest.approx(wanted, rel=1e-5)


def test_weights_of_samples_do_not_depend_on_the_unit_of_rewards_where_values_are_in_it() -> None:
    """Critics whose last layer is as many times larger: the policy learns the same."""
    found = {}
    for factor in (1.0, 64.0):
        for normalisation in (SCALED, SEEN):
            module = build("reverse flow", normalisation=normalisation, temperature=0.1)
            with torch.no_grad():
                for critics in (module.critics.online, module.critics.target):
                    critics.value_weight.mul_(factor)
                    critics.value_bias.mul_(factor)
            batch = with_rewards(transitions(), factor)
            torch.manual_seed(1)
            module.loss(batch)
            found[factor, normalisation] = float(module.means.take()["train/loss/policy"])
    assert found[64.0, SCALED] == pytest.approx(found[1.0, SCALED], rel=1e-4)
    assert abs(found[64.0, SEEN] / found[1.0, SEEN] - 1.0) > 0.01


def test_the_weight_of_flow_q_learning_is_in_units_of_the_rewards_too() -> None:
    def policy_gradient(factor: float, normalisation: Normalisation) -> Tensor:
        module = build("flow Q-learning", normalisation=normalisation)
        with torch.no_grad():
            module.critics.online.value_weight.mul_(factor)
        torch.manual_seed(1)
        module.loss(with_rewards(transitions(), factor)).backward()
        return torch.cat([p.grad.flatten() for p in module.policy.parameters()])

    torch.testing.assert_close(policy_gradient(64.0, SCALED), policy_gradient(1.0, SCALED), rtol=1e-3, atol=1e-5)
    assert (policy_gradient(64.0, SEEN) - policy_gradient(1.0, SEEN)).norm() > 1.0


def test_the_scale_of_rewards_survives_a_checkpoint_and_a_reset(tmp_path: Path) -> None:
    module = build("soft", normalisation=WHOLE, discount=0.999)
    fit(module, tmp_path, 3).save_checkpoint(tmp_path / "some.ckpt")
    values = module.critics.values(torch.randn(64, S), torch.rand(64, 1, A))
    module.reset_networks()
    fresh = module.critics.values(torch.randn(64, S), torch.rand(64, 1, A))
    assert min(float(values.std()), float(fresh.std())) > 100.0  # outputs of about 1, in the unit
    loaded = load_policy(tmp_path / "some.ckpt").module
    assert float(loaded.critics.target.unit.size) == float(module.critics.online.unit.size) == 1024.0
    scale, temperature = module.units.temperature_unit, module.temperature
    assert float(scale) != 1.0
    assert torch.equal(loaded.units.temperature_unit, scale)
    assert torch.equal(loaded.temperature, temperature)


HEADS = [ScalarHead(), QuantileHead(5)]


def critics_with(name: str, head: ValueHead) -> Critics:
    return Critics(CriticArchitecture(hidden_dim=16, head=head), "min" if name in ("reverse flow", "soft") else "mean")


@every_kind
def test_rewards_in_another_unit_are_learned_alike_to_the_last_digit(name: str) -> None:
    batches = [transitions(32, seed) for seed in range(3)]
    module, other = (build(name, normalisation=WHOLE) for _ in range(2))
    losses = train(module, batches)
    assert train(other, [with_rewards(b, 1024.0) for b in batches]) == losses
    rows = batches[0]["observation"], batches[0]["action"][:, None]
    assert torch.equal(other.critics.values(*rows), 1024.0 * module.critics.values(*rows))
    assert torch.equal(
        other.actor("eval")(rows[0], torch.Generator()), module.actor("eval")(rows[0], torch.Generator())
    )
    assert float(other.temperature) == 1024.0 * float(module.temperature)


@pytest.mark.parametrize("head", HEADS, ids=repr)
@every_kind
def test_no_value_changes_where_the_unit_does(name: str, head: ValueHead) -> None:
    module = build(name, normalisation=WHOLE, critics=critics_with(name, head), discount=0.75)
    module.loss(transitions())
    typical = 4.0 * float(transitions()["next", "reward"].square().mean().sqrt())  # 1 / (1 - discount) is 4
    assert 2.0**-0.5 * typical < float(module.units.returns.size) < 2.0**0.5 * typical
    observation, action = torch.randn(6, S), torch.rand(6, A)
    networks = [module.critics.online, module.critics.target, *module.others.values()]
    critics = [network for network in networks if isinstance(network, CriticEnsemble)]

    def stated() -> list[Tensor]:
        found = [critic(observation, action[:, : critic.action_weight.shape[1]]) for critic in critics]
        return [*found, *module.critics.online.action_values_and_gradients(observation, action[:, None])]

    before = stated()
    for factor in (100.0, 1e-3, 1e4):
        module.units.rewards.moments.zero_()
        module.units.rewards.update(factor * transitions()["next", "reward"])
        module.units.follow_returns(module, [], False)
        assert 2.0**-0.5 * typical < float(module.units.returns.size) / factor < 2.0**0.5 * typical
        assert all(torch.equal(a, b) for a, b in zip(stated(), before, strict=True))
    assert len(critics) == (3 if name == "implicit" else 2)


def test_the_unit_follows_the_scale_of_rewards_only_where_that_has_moved_far() -> None:
    module = build("reverse flow", normalisation=WHOLE, discount=0.5)
    units, seen = module.units, []
    for size in (3.0, 4.4, 7.9, 8.3, 5.0, 2.1):
        units.rewards.moments.zero_()
        units.rewards.update(torch.full((4, 1), 0.5 * size))
        units.follow_returns(module, [], not seen)
        seen.append(float(units.returns.size))
    assert seen == [4.0, 4.0, 4.0, 8.0, 8.0, 2.0]


def test_the_loss_and_the_steps_of_adam_follow_a_change_of_unit() -> None:
    batch = read_transition(transitions())
    moved = {}
    for changes in (False, True):
        module = build("reverse flow", normalisation=WHOLE, discount=0.75)
        optimizer = module.configure_optimizers()

        def step(module=module, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = module.critic_loss(batch, batch.action)
            loss.backward()
            optimizer.step()
            return loss.detach()

        module.loss(transitions())
        for _ in range(5):
            step()
        if changes:
            module.units.rewards.add(moments_of(torch.full((80, 1), 30.0)))
            before = module.critic_loss(batch, batch.action)
            old = module.units.returns.size.clone()
            module.units.follow_returns(module, [optimizer], False)
            factor = float(old / module.units.returns.size)
            assert factor < 0.1
            assert float(module.critic_loss(batch, batch.action)) == factor**2 * float(before)
        start = module.critics.online.observation_weight.detach().clone()
        step()
        moved[changes] = module.critics.online.observation_weight.detach() - start
    assert moved[False].abs().max() > 1e-4
    # Epsilon is added to the root of the second moment, which the change makes smaller.
    assert (moved[True] - moved[False]).norm() < 0.02 * moved[False].norm()


def test_values_are_stated_and_calibrated_in_units_of_the_return(tmp_path: Path) -> None:
    batch = transitions(16)
    batch.set(("next", "reward"), 500.0 + 100.0 * batch["observation"][:, :1])
    observation, action = batch["observation"], batch["action"]
    module, blind = (build("soft", normalisation=n, discount=0.0, entropy_backup=False) for n in (WHOLE, SCALED))
    errors = []
    for each in (blind, module):
        train(each, [batch] * 150)
        values = each.critics.values(observation, action[:, None])[:, 0]
        errors.append(float((values - batch["next", "reward"][:, 0]).abs().mean()))
    assert errors[0] > 300.0
    assert errors[1] < 100.0
    one_step = {"reward": batch["next", "reward"][:, None], "terminated": torch.ones(16, 1, 1, dtype=torch.bool)}
    episodes = TensorDict(
        {
            "observation": observation[:, None],
            "action": action[:, None],
            "mask": torch.ones(16, 1, dtype=torch.bool),
            "next": TensorDict(one_step, [16, 1]),
        },
        [16, 1],
    )
    found = module.calibration(episodes)
    torch.testing.assert_close(found.predicted, values)
    torch.testing.assert_close(found.observed, batch["next", "reward"][:, 0])
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "some.ckpt", weights_only=True)
    loaded = load_policy(tmp_path / "some.ckpt").module
    assert torch.equal(loaded.critics.values(observation, action[:, None])[:, 0], values)


def test_heads_with_bounds_of_their_own_are_refused() -> None:
    bounded = critics_with("reverse flow", CategoricalHead(11, -5.0, 5.0))
    with pytest.raises(UserError, match="values or quantiles, got CategoricalHead"):
        build("reverse flow", normalisation=WHOLE, critics=bounded)
    build("reverse flow", normalisation=SCALED, critics=bounded)
