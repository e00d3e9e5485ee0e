"""The actor-critic module: learning, gradients, targets, checkpoints and refusals."""

from collections import defaultdict
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import Trainer
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader

from flowmatch_rl.estimators import GradientControlVariate, LikelihoodProposal, PosteriorMeanEstimator
from flowmatch_rl.models import FirstSelection, GreedySelection
from flowmatch_rl.modules import ReverseFlowActorCritic
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture
from flowmatch_rl.objectives import CappedSignalWeight, ConditionalFlowMatching
from flowmatch_rl.paths import AffinePath, CosineSchedule, LogitNormalTime, NoSquash, TanhSquash
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.schema import ActionBounds
from flowmatch_rl.solvers import Euler, Heun
from tests.combinations import one_test
from tests.modules.options import grouped, quiet_trainer

S, A, B = 3, 2, 8
TINY = {
    "velocity": VelocityArchitecture(hidden_dim=16, time_features=8),
    "critic": CriticArchitecture(hidden_dim=16),
    "estimator": PosteriorMeanEstimator(num_samples=8),
    "sampler": OdeSampler(Euler(2)),
    "train_particles": 2,
    "collect_particles": 2,
    "eval_particles": 4,
}


def build(**options) -> ReverseFlowActorCritic:
    torch.manual_seed(0)
    module = ReverseFlowActorCritic(S, A, **grouped(**TINY | options))
    module.trainer = quiet_trainer()
    return module


def transitions(size: int = B, seed: int = 1) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    arrival = {"reward": normal(size, 1), "observation": normal(size, S), "terminated": torch.zeros(size, 1).bool()}
    return TensorDict(
        {"observation": normal(size, S), "action": normal(size, A).tanh(), "next": TensorDict(arrival, [size])}, [size]
    )


class Recorded(dict):
    """Terms of the loss, step by step, read off the module's running means."""

    def __init__(self, module: ReverseFlowActorCritic) -> None:
        super().__init__()
        self.steps: dict[str, list[float]] = defaultdict(list)
        add = module.means.add

        def record(values: dict[str, Tensor]) -> None:
            for name, value in values.items():
                self.steps[name].append(float(value))
            add(values)

        module.means.add = record


@pytest.mark.parametrize("seed", [0, 1])
def test_both_losses_fall_on_a_fixed_batch(seed) -> None:
    module = build(discount=0.0, temperature=1.0)
    recorded, batch = Recorded(module), transitions(seed=seed)
    optimizer = module.configure_optimizers()
    for step in range(300):
        torch.manual_seed(step % 10)  # the same ten draws of noise again and again
        loss = module.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        module.after_update()
    for name in ("train/loss/critic", "train/loss/policy", "train/loss"):
        losses = recorded.steps[name]
        assert sum(losses[-10:]) < 0.7 * sum(losses[:10]), name
    assert recorded.steps["train/loss/critic"][-1] < 0.05 * recorded.steps["train/loss/critic"][0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_samples": True},
        {"x_1_source": "replay"},
        {"x_1_source": "uniform"},
        {"weight_critic": "target"},
        {"value_reduction": "mean"},
        {"squash": NoSquash()},
        {"train_selection": FirstSelection()},
    ],
    ids=str,
)
def test_loss_reaches_each_trained_parameter_and_no_lagging_one(options) -> None:
    module = build(temperature=1.0, **options)
    loss = module.loss(transitions())
    assert loss.shape == ()
    loss.backward()
    trained = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        if name.startswith("critics.target"):
            assert parameter.grad is None, name
            assert not parameter.requires_grad
            assert id(parameter) not in trained
        else:
            assert id(parameter) in trained, name
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0.0, name


def test_single_transition_trains() -> None:
    module = build()
    loss = module.loss(transitions(size=1))
    assert torch.isfinite(loss)


def test_policy_loss_sends_no_gradient_to_the_critics_and_the_critic_loss_none_to_the_velocity() -> None:
    module = build()
    observation, x_1 = torch.randn(B, S), torch.randn(B, A)
    module.policy_loss(observation, x_1)[0].backward()
    assert all(p.grad is None for p in (*module.critics.online.parameters(), *module.critics.target.parameters()))
    assert all(p.grad is not None for p in module.policy.flow.network.parameters())
    module.zero_grad()
    transition = transitions()
    next_latent, _, _ = module.endpoints(read(transition), module.actor("train"))
    module.critic_loss(read(transition), next_latent.tanh()).backward()
    assert all(p.grad is None for p in module.policy.flow.network.parameters())
    assert all(p.grad is not None for p in module.critics.online.parameters())


def read(batch: TensorDict):
    from flowmatch_rl.batches import read_transition

    return read_transition(batch)


def critic_loss_of(module: ReverseFlowActorCritic, batch: TensorDict, monkeypatch) -> float:
    """Critic loss with online critics of value 0 and target critics of value 100."""
    monkeypatch.setattr(module.critics.online, "outputs", lambda o, a: torch.zeros(2, len(o), 1))
    monkeypatch.setattr(module.critics.target, "outputs", lambda o, a, m: torch.full((2, len(o), 1), 100.0))
    transition = read(batch)
    return float(module.critic_loss(transition, torch.zeros(B, A)))


def test_termination_stops_bootstrapping_and_truncation_does_not(monkeypatch) -> None:
    module = build(discount=0.9)
    batch = transitions()
    batch["next", "reward"] = torch.ones(B, 1)
    batch["next", "truncated"] = batch["next", "done"] = torch.ones(B, 1).bool()
    assert critic_loss_of(module, batch, monkeypatch) == pytest.approx((1.0 + 0.9 * 100.0) ** 2)
    batch["next", "terminated"] = torch.ones(B, 1).bool()
    assert critic_loss_of(module, batch, monkeypatch) == pytest.approx(1.0)
    batch["next", "terminated"] = torch.arange(B)[:, None] < B // 2
    assert critic_loss_of(module, batch, monkeypatch) == pytest.approx((1.0 + 91.0**2) / 2.0)


def test_target_takes_the_reduced_lagging_value_of_the_next_observation() -> None:
    for reduction in ("min", "mean"):
        module = build(discount=0.5, value_reduction=reduction)
        with torch.no_grad():
            for parameter in module.critics.target.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        transition, next_action = read(transitions()), torch.rand(B, A)
        members = module.critics.target(transition.next_observation, next_action)
        value = members.amin(0) if reduction == "min" else members.mean(0)
        target = transition.reward + 0.5 * value
        wanted = (module.critics.online(transition.observation, transition.action) - target).square().mean()
        torch.testing.assert_close(module.critic_loss(transition, next_action), wanted)


def test_next_action_and_end_point_come_from_the_right_states() -> None:
    transition = read(transitions())

    def endpoints(**options: Any) -> tuple[Tensor, Tensor, Tensor]:
        module = build(**options)
        return module.endpoints(transition, module.actor("train"))

    latent, observation, x_1 = endpoints()
    assert latent.shape == x_1.shape == (B, A)
    assert torch.equal(observation, transition.observation)
    latent, observation, x_1 = endpoints(share_samples=True)
    assert torch.equal(observation, transition.next_observation)
    torch.testing.assert_close(latent, x_1)
    _, observation, x_1 = endpoints(x_1_source="replay")
    assert torch.equal(observation, transition.observation)
    torch.testing.assert_close(x_1.tanh(), transition.action, atol=2e-4, rtol=0)
    _, _, x_1 = endpoints(x_1_source="uniform")
    assert not torch.allclose(x_1.tanh(), transition.action, atol=1e-2)
    assert x_1.tanh().abs().max() <= 1.0


def test_gradients_are_clipped_for_each_network_by_itself() -> None:
    module = build(max_gradient_norm=0.5)
    optimizer = module.configure_optimizers()
    groups = {group["name"]: group["params"] for group in optimizer.param_groups}
    for value, name in ((1e3, "critic"), (1e-4, "actor")):
        for parameter in groups[name]:
            parameter.grad = torch.full_like(parameter, value)
    module.on_before_optimizer_step(optimizer)
    norms = {name: torch.stack([p.grad.norm() for p in params]).norm() for name, params in groups.items()}
    torch.testing.assert_close(norms["critic"], torch.tensor(0.5), atol=1e-4, rtol=0)
    assert all(torch.equal(p.grad, torch.full_like(p, 1e-4)) for p in groups["actor"])


def test_networks_have_their_own_learning_rates() -> None:
    groups = build(actor_learning_rate=1e-4, critic_learning_rate=2e-3).configure_optimizers().param_groups
    assert {group["name"]: group["lr"] for group in groups} == {"actor": 1e-4, "critic": 2e-3}


def test_lagging_critics_follow_after_a_step() -> None:
    module = build(ema_decay=0.9)
    with torch.no_grad():
        for parameter in module.critics.online.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in module.critics.target.parameters()]
    module.after_update()
    for old, new in zip(before, module.critics.target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)


def test_evaluation_repeats_itself_and_leaves_the_trainings_noise_alone() -> None:
    module, state = build(), torch.get_rng_state()
    state = torch.get_rng_state()
    actions = [module.evaluation_policy()(TensorDict({"observation": torch.ones(B, S)}, [B]))["action"] for _ in "ab"]
    assert torch.equal(actions[0], actions[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert actions[0].unique(dim=0).shape[0] > 1


def test_the_summary_says_how_the_policy_acted() -> None:
    module = build(eval_particles=7, collect_particles=8, eval_selection=GreedySelection())
    metrics = {f"test/{name}": 2.0 for name in ("return_mean", "return_std", "episodes", "episode_length")}
    said = "by the best of 7 particles; while training by softmax among 8 particles, at about 0.53 of the temperature"
    assert module.result_lines(metrics)[1] == f"acting       {said}"


def test_roles_have_their_own_particles_and_choice() -> None:
    module = build(eval_particles=7, collect_particles=3, eval_selection=FirstSelection())
    assert module.actor("eval").num_particles == 7
    assert module.actor("eval").selection == FirstSelection()
    assert module.collection_policy().actor.num_particles == 3
    assert module.actor("train").num_particles == 2


def test_collection_shares_the_weights_in_training() -> None:
    module = build()
    assert module.collection_policy().actor.policy.flow.network is module.policy.flow.network


@one_test
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"discount": 1.0}, ["discount", "1.0"]),
        ({"discount": -0.1}, ["discount", "-0.1"]),
        ({"temperature": 0.0}, ["temperature", "0.0"]),
        ({"temperature": float("nan")}, ["temperature", "nan"]),
        ({"t_min": 0.5}, ["t_min", "0.5"]),
        ({"t_min": 0.0}, ["t_min", "0.0"]),
        ({"ema_decay": 1.0}, ["ema_decay", "1.0"]),
        ({"actor_learning_rate": 0.0}, ["actor_learning_rate", "0.0"]),
        ({"critic_learning_rate": -1.0}, ["critic_learning_rate", "-1.0"]),
        ({"max_gradient_norm": 0.0}, ["max_gradient_norm", "0.0"]),
        ({"train_particles": 0}, ["particles", "0"]),
        ({"collect_particles": 0}, ["particles", "0"]),
        ({"eval_particles": -3}, ["particles", "-3"]),
        ({"share_samples": True, "x_1_source": "replay"}, ["share_samples", "replay"]),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused_by_name_and_value(options, words) -> None:
    with pytest.raises(ValueError) as caught:
        build(**options)
    assert all(word in str(caught.value) for word in words)


NON_DEFAULT = {
    "path": AffinePath(CosineSchedule()),
    "squash": TanhSquash(limit=0.99),
    "sampler": OdeSampler(Heun(3)),
    "t_min": 0.05,
    "objective": ConditionalFlowMatching("velocity", LogitNormalTime(mean=0.5), CappedSignalWeight()),
    "estimator": PosteriorMeanEstimator(5, LikelihoodProposal(), GradientControlVariate()),
    "velocity": VelocityArchitecture(hidden_dim=12, num_blocks=1, activation="mish", time_features=4, residual=False),
    "critic": CriticArchitecture(3, 12, 1),
    "eval_selection": FirstSelection(),
    "collect_selection": GreedySelection(),
    "action_bounds": ActionBounds((-2.0, -1.0), (2.0, 3.0)),
}


class Batches(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield transitions()


def saved(module: pl.LightningModule, folder, monkeypatch=None) -> str:
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(Batches(), batch_size=None, collate_fn=lambda x: x))
    path = str(folder / "some.ckpt")
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("options", [{}, NON_DEFAULT], ids=["default", "non-default"])
def test_checkpoint_rebuilds_the_same_module_without_running_code(tmp_path, options) -> None:
    torch.manual_seed(0)
    module = ReverseFlowActorCritic(S, A, **grouped(**TINY | options))
    path = saved(module, tmp_path)
    content = torch.load(path, weights_only=True)
    loaded = ReverseFlowActorCritic.load_from_checkpoint(path, weights_only=True)
    for name in ("path", "t_min", "source", "prediction"):
        assert getattr(loaded.policy.flow, name) == getattr(module.policy.flow, name), name
    assert (loaded.policy.squash, loaded.policy.sampler) == (module.policy.squash, module.policy.sampler)
    assert loaded.learner.objective == module.learner.objective
    assert loaded.learner.estimator == module.learner.estimator
    assert loaded.acting == module.acting
    assert dict(loaded.hparams) == dict(module.hparams)
    assert content["state_dict"].keys() == module.state_dict().keys()
    state = TensorDict({"observation": torch.randn(5, S)}, [5])
    wanted = module.evaluation_policy()(state.clone())["action"]
    assert torch.equal(loaded.evaluation_policy()(state.clone())["action"], wanted)
    x, t = torch.randn(5, A), torch.rand(5)
    assert torch.equal(
        loaded.policy.flow.network(x, t, state["observation"]), module.policy.flow.network(x, t, state["observation"])
    )
    assert torch.equal(loaded.critics.target(state["observation"], x), module.critics.target(state["observation"], x))


@pytest.mark.parametrize(("dims", "name"), [((S + 1, A), "observation_dim"), ((S, A + 1), "action_dim")])
def test_checkpoint_of_other_dimensions_is_refused_in_one_line(tmp_path, dims, name) -> None:
    path = saved(ReverseFlowActorCritic(S, A, **grouped(**TINY)), tmp_path)
    other = ReverseFlowActorCritic(*dims, **grouped(**TINY))
    with pytest.raises(ValueError, match=name) as caught:
        other.on_load_checkpoint(torch.load(path, weights_only=True))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=name):
        Trainer(max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path).fit(
            other, DataLoader(Batches(), batch_size=None, collate_fn=lambda x: x), ckpt_path=path
        )
