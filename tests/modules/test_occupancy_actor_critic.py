"""Values from an occupancy, and a policy that is tilted from its family."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from flowmatch_rl.batches import FamilyValues, read_transition
from flowmatch_rl.checks import MissingFileError, UserError
from flowmatch_rl.data.transitions.store import StoreInfo
from flowmatch_rl.evaluation.expected_return import ModelledReturn
from flowmatch_rl.inference import load_policy
from flowmatch_rl.models import DeterministicDynamics, FlowPolicyArchitecture
from flowmatch_rl.modules import Critics, DynamicsModule, OccupancyActorCritic
from flowmatch_rl.nets import CriticArchitecture, DynamicsArchitecture, VelocityArchitecture
from flowmatch_rl.objectives import DivergenceTemperature, EntropyTemperature, SampleSizeTemperature
from flowmatch_rl.paths import ClipSquash
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.schema import ActionBounds
from flowmatch_rl.solvers import Euler
from tests.modules.options import quiet_trainer
from tests.modules.test_reverse_flow_actor_critic import A, B, S, transitions

NETWORK = VelocityArchitecture(hidden_dim=16, time_features=8)
FLOW = FlowPolicyArchitecture(squash=ClipSquash(), network=NETWORK, sampler=OdeSampler(Euler(3)))
M = 5
STORE: dict[str, Any] = {
    "action_dim": A,
    "ordered": True,
    "observation_mean": (0.0,) * S,
    "observation_std": (1.0,) * S,
}


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    small = {"policy": FLOW, "critics": Critics(CriticArchitecture(hidden_dim=16), reduction="mean"), "num_states": B}
    module: Any = OccupancyActorCritic(S, A, **small | options)
    module.trainer = quiet_trainer()
    return module


def batch(members: int = M) -> TensorDict:
    generator = torch.Generator().manual_seed(3)
    family = {
        "observation": torch.randn(B, S, generator=generator),
        "actions": 2.0 * torch.rand(B, members, A, generator=generator) - 1.0,
        "values": 3.0 + torch.randn(B, members, generator=generator),
    }
    return transitions().set("family", TensorDict(family, [B]))


@pytest.fixture(autouse=True)
def plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are what a test says, and Lightning's again afterwards."""
    monkeypatch.setattr(OccupancyActorCritic, "global_step", property(lambda self: getattr(self, "_step", 0)))


@pytest.mark.parametrize("step", [0, 10_000])
def test_loss_reaches_each_trained_parameter_and_no_other(step: int) -> None:
    module = build()
    module._step = step
    module.loss(batch()).backward()
    trained = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    for key, parameter in module.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), key


def test_critics_learn_from_the_occupancy_first_and_then_from_transitions() -> None:
    module, transition = build(occupancy_updates=7), read_transition(batch())
    for step, own in ((6, True), (7, False)):
        module._step = step
        torch.manual_seed(1)
        found = float(module.losses(transition)[0]["critic"])
        torch.manual_seed(1)
        of_occupancy = float(module.occupancy_loss(transition.family))
        torch.manual_seed(1)
        of_transitions = float(module.value_losses(transition)["critic"])
        assert found == (of_occupancy if own else of_transitions)
        assert of_occupancy != of_transitions


def test_the_expectile_of_the_members_that_take_an_action_is_learned() -> None:
    observation = torch.randn(B, S, generator=torch.Generator().manual_seed(0))
    values = torch.tensor([0.0, 0.0, 0.0, 0.0, 10.0]).expand(B, M)
    family = FamilyValues(observation, torch.zeros(B, M, A), values)
    learned = {}
    for expectile in (0.5, 0.9):
        module = build(expectile=expectile)
        optimizer = torch.optim.Adam(module.critics.online.parameters(), 3e-3)
        for _ in range(1500):
            loss = module.occupancy_loss(family)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        learned[expectile] = float(module.critics.values(observation, torch.zeros(B, 1, A)).mean())
    assert learned[0.5] == pytest.approx(2.0, abs=0.5)
    # The expectile e of 0 (4 of 5) and 10 (1 of 5): .9 (10 - e) = .1 * 4 e.
    assert learned[0.9] == pytest.approx(90.0 / 13.0, abs=0.7)


def test_each_value_is_learned_for_the_action_that_it_belongs_to() -> None:
    """Critics that state the sum of state and action make no error for values that are that sum."""
    module, family = build(), read_transition(batch()).family
    assert family is not None
    module.critics.online.forward = lambda states, actions: (states.sum(-1) + actions.sum(-1)).expand(2, -1)
    values = family.observation.sum(-1, keepdim=True) + family.actions.sum(-1)
    own = FamilyValues(family.observation, family.actions, values)
    assert float(module.occupancy_loss(own)) == pytest.approx(0.0, abs=1e-10)
    others = FamilyValues(family.observation, family.actions, values.roll(1, 1))
    assert float(module.occupancy_loss(others)) > 0.01


def test_the_policy_learns_the_actions_of_the_family_tilted_by_value() -> None:
    torch.manual_seed(0)
    exact = replace(FLOW, sampler=OdeSampler(Euler(20)))  # fewer steps draw too much of the more probable action
    module = build(temperature=0.5, actions_per_state=8, policy=exact)
    actions = torch.tensor([-0.6, 0.6])[:, None].expand(2, A)
    family = FamilyValues(torch.zeros(B, S), actions.expand(B, 2, A), torch.zeros(B, 2))
    module.critics.values = lambda _, acts: acts[..., 0]  # the second action is worth 1.2 more, or 2.4 temperatures
    optimizer = torch.optim.Adam(module.policy.parameters(), 3e-3)
    divergence = torch.zeros(())
    for step in range(1000):
        optimizer.param_groups[0]["lr"] = 3e-3 if step < 700 else 3e-4
        loss, divergence = module.policy_loss(family)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = module.policy.squash.action(module.policy.sample_latents(torch.zeros(1, S), torch.randn(1, 4000, A)))
    share = float((drawn[0, :, 0] > 0.0).float().mean())
    wanted = float(torch.sigmoid(torch.tensor(2.4)))
    assert share == pytest.approx(wanted, abs=0.03)
    p = torch.tensor([wanted, 1.0 - wanted])
    assert float(divergence) == pytest.approx(float((p * (2.0 * p).log()).sum()), abs=1e-4)


def test_both_losses_fall_on_a_fixed_batch() -> None:
    module, held, losses = build(), batch(), defaultdict(list)
    optimizer = module.configure_optimizers()
    for step in range(300):
        torch.manual_seed(step % 10)
        terms, _ = module.losses(read_transition(held))
        for name, value in terms.items():
            losses[name].append(float(value))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    for name in ("critic", "policy"):
        assert sum(losses[name][-10:]) < 0.7 * sum(losses[name][:10]), name


def test_the_expected_return_comes_with_the_error_of_states_and_critics() -> None:
    module = build()
    found = module.held_out_losses(read_transition(batch()))
    assert {"loss", "loss/critic", "expected_return", "expected_return_error"} == found.keys()
    with torch.no_grad():
        module.critics.online.value_bias[0] += 4.0  # one of two critics disagrees
    more = module.held_out_losses(read_transition(batch()))
    assert float(more["expected_return"] - found["expected_return"]) == pytest.approx(2.0, abs=0.5)
    assert float(more["expected_return_error"]) > 1.0
    lines = module.result_lines({"test/expected_return": 1.5, "test/expected_return_error": 0.25})
    assert lines[0] == "expected     discounted return of 1.5 +- 0.25 from states of the data"


def one_step_model(folder: Path, **options: Any) -> Path:
    """A checkpoint of a one-step model of states x, y, z."""
    known = {"schema": StoreInfo(num_transitions=1, columns=("x", "y", "z"), **STORE).schema, "action_dim": A} | options
    module: Any = DynamicsModule(**known, dynamics=DeterministicDynamics(DynamicsArchitecture(2, 8, 1)))
    module.trainer = quiet_trainer()
    content: dict[str, Any] = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(content)
    torch.save(content, folder / "dynamics.ckpt")
    return folder / "dynamics.ckpt"


def with_data(module: Any, **changes: Any) -> Any:
    """The module beside a data set whose states are worth their first entry."""
    info = StoreInfo(**{"num_transitions": 1, "columns": ("x", "y", "z")} | STORE | changes)
    module.trainer.datamodule = SimpleNamespace(store=SimpleNamespace(info=info), reward_of=lambda states: states[:, 0])
    return module


def test_the_policy_is_followed_in_a_one_step_model_that_is_read_once(tmp_path) -> None:
    path = one_step_model(tmp_path)
    module, transition = with_data(build(dynamics=str(path))), read_transition(batch())
    weights, before = set(module.state_dict()), torch.get_rng_state()
    assert not any(each.requires_grad for each in module._one_step_model.parameters())
    assert torch.equal(before, torch.get_rng_state())
    found = module.held_out_losses(transition)
    path.unlink()
    again = module.held_out_losses(transition)
    assert {"modelled_return", "modelled_return_error"} <= again.keys() == found.keys()
    assert set(module.state_dict()) == weights
    lines = module.result_lines({f"test/{name}": float(value) for name, value in found.items()})
    assert lines[0].endswith("from states of the data")
    assert lines[1].endswith("by the critics")


def test_the_states_that_are_followed_are_spread_over_the_batch() -> None:
    module, followed = build(dynamics="some.ckpt"), []
    module.modelled_return = lambda states: followed.append(states) or ModelledReturn(torch.zeros(2), 0.0, 1)
    held = transitions(1537)
    held["observation"][:] = torch.arange(1537.0)[:, None]
    module.held_out_losses(read_transition(held))
    assert followed[0].shape == (512, S)
    assert float(followed[0][0, 0]) == 0.0
    assert float(followed[0][-1, 0]) == 1536.0
    assert followed[0][:, 0].diff().unique().tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"columns": ("x", "y", "w")}, r"trained on states \(x, y, z\), this data set has \(x, y, w\)"),
        ({"action_high": (2.0,) * A}, "trained on actions within"),
    ],
    ids=["states", "bounds"],
)
def test_a_one_step_model_of_other_data_is_refused(changes: dict[str, Any], wanted: str, tmp_path) -> None:
    path = one_step_model(tmp_path, action_bounds=ActionBounds.unit(A))
    bounds = {"action_low": (-1.0,) * A, "action_high": (1.0,) * A}
    with_data(build(dynamics=str(path)), **bounds).modelled_return(torch.zeros(2, S))
    with pytest.raises(UserError, match=wanted):
        with_data(build(dynamics=str(path)), **bounds | changes).modelled_return(torch.zeros(2, S))


def test_a_one_step_model_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.ckpt"):
        with_data(build(dynamics="nowhere.ckpt")).modelled_return(torch.zeros(2, S))
    with pytest.raises(UserError, match=r"needs model\.dynamics, its checkpoint, got null"):
        with_data(build()).modelled_return(torch.zeros(2, S))


def test_a_batch_without_values_of_a_family_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.futures"):
        build().losses(read_transition(transitions()))


@pytest.mark.parametrize("rule", [EntropyTemperature(1.0), SampleSizeTemperature(1.0)], ids=repr)
def test_a_temperature_that_cannot_be_measured_is_refused(rule) -> None:
    with pytest.raises(UserError, match="divergence"):
        build(temperature=rule)


def test_a_checkpoint_keeps_the_policy(tmp_path) -> None:
    module = build(temperature=DivergenceTemperature(nats=0.5))
    content: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "global_step": 3,
        "pytorch-lightning_version": "2.5.0",
    }
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "policy.ckpt")
    policy, observation = load_policy(tmp_path / "policy.ckpt"), torch.randn(6, S)
    wanted = module.actor("eval")(observation, torch.Generator().manual_seed(0)).numpy()
    assert policy(observation.numpy()) == pytest.approx(wanted)
