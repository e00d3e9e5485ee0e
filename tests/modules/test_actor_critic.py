"""What actor-critics share: temperature, entropy, subsets of critics, fresh starts, and how parts go together."""

import copy
import itertools
import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from flowmatch_rl.batches import read_transition
from flowmatch_rl.estimators import PointScoreEstimator, ReweightedEndpoints
from flowmatch_rl.models import FirstSelection, Likelihood, SoftmaxSelection
from flowmatch_rl.modules import ReverseFlowActorCritic, SoftActorCritic
from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.modules.settings import ActorCriticOptimizer
from flowmatch_rl.nets import (
    BatchNormLayers,
    CategoricalHead,
    CriticArchitecture,
    FlowHead,
    PreNormBlocks,
    QuantileHead,
)
from flowmatch_rl.objectives import (
    AnnealedTemperature,
    ConditionalFlowMatching,
    EntropyTemperature,
    MeanFlow,
    SampleSizeTemperature,
)
from flowmatch_rl.paths import AffinePath, LinearSchedule, VarianceExplodingSchedule
from flowmatch_rl.samplers import AverageVelocitySampler, DdimSampler, OdeSampler, SdeSampler
from flowmatch_rl.solvers import RK4, Euler
from tests.models.exact_policy import SCALES, Law, exact_policy
from tests.modules import test_soft_actor_critic as soft
from tests.modules.options import grouped, quiet_trainer
from tests.modules.test_reverse_flow_actor_critic import TINY, A, B, S, transitions
from tests.oracles import F64

KINDS = [(ReverseFlowActorCritic, TINY), (SoftActorCritic, soft.TINY)]


def build(kind: type[ActorCritic] = ReverseFlowActorCritic, seed: int = 0, **options) -> ActorCritic:
    torch.manual_seed(seed)
    return kind(S, A, **grouped(kind is SoftActorCritic, **dict(KINDS)[kind] | options))


@pytest.mark.parametrize("kind", [ReverseFlowActorCritic, SoftActorCritic])
def test_values_that_hold_an_entropy_are_held_against_returns_with_it(kind: type[ActorCritic]) -> None:
    module = build(kind, temperature=0.5, entropy_backup=True, discount=0.9)
    plain = build(kind, temperature=0.5, entropy_backup=False, discount=0.9)
    states = torch.tensor([[0.3, -0.2, 0.5], [-1.0, 2.0, 0.0]]).repeat_interleave(200, 0)
    shape, reward = (len(states), 60), 0.7
    arrival = {"reward": torch.full((*shape, 1), reward), "terminated": torch.zeros(*shape, 1, dtype=torch.bool)}
    episodes = TensorDict(
        {
            "observation": states[:, None].expand(*shape, S),
            "action": torch.zeros(*shape, A),
            "mask": torch.ones(shape, dtype=torch.bool),
            "next": TensorDict(arrival, shape),
        },
        shape,
    )
    before = torch.random.get_rng_state()
    found, again = module.calibration(episodes), module.calibration(episodes)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found is not None
    assert again is not None
    assert torch.equal(found.observed, again.observed)
    bonus = module.next_bonus(states.repeat(20, 1))
    assert bonus is not None
    bonus = bonus.unflatten(0, (20, 2, 200)).mean((0, 2))  # 0.5 times the entropy in nats
    assert bonus.abs().max() > 0.3
    torch.testing.assert_close(
        found.observed.unflatten(0, (2, 200)).mean(1), 10.0 * reward + 9.0 * bonus, rtol=0.0, atol=0.6
    )
    observed = plain.calibration(episodes).observed
    torch.testing.assert_close(observed, torch.full_like(observed, 10.0 * reward), rtol=0.0, atol=0.02)


class Batches(IterableDataset):
    def __init__(self, size: int = B) -> None:
        self.size = size

    def __iter__(self):
        for index in range(1000):
            yield transitions(self.size, index)


def fit(module: ActorCritic, folder, steps: int, checkpoint=None, seed: int = 3, watch=()) -> Trainer:
    """Some updates by a real trainer."""
    torch.manual_seed(seed)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=list(watch),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = DataLoader(Batches(), batch_size=None, collate_fn=lambda x: x)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer


RULES = [
    (ReverseFlowActorCritic, EntropyTemperature(0.5, 3.0)),
    (ReverseFlowActorCritic, SampleSizeTemperature(0.5, 0.9)),
    (ReverseFlowActorCritic, AnnealedTemperature(0.5, 2.0, 4)),
    (SoftActorCritic, EntropyTemperature(0.5, 3.0)),
    (SoftActorCritic, AnnealedTemperature(0.5, 2.0, 4)),
]


@pytest.mark.parametrize(("kind", "rule"), RULES, ids=repr)
def test_temperature_moves_while_training_and_survives_a_checkpoint(kind, rule, tmp_path) -> None:
    module = build(kind, temperature=rule, temperature_learning_rate=0.01)
    trainer = fit(module, tmp_path, 4)
    # All of these ask for more entropy, more samples, or a rise.
    assert float(module.temperature) > 0.51
    if rule.scheduled(0) is not None:
        assert float(module.temperature) == pytest.approx(2.0)
    path = tmp_path / "some.ckpt"
    trainer.save_checkpoint(path)
    loaded = kind.load_from_checkpoint(path, weights_only=True)
    assert torch.equal(loaded.temperature, module.temperature)
    assert loaded.temperature_rule == rule
    other = build(kind, temperature=rule, temperature_learning_rate=0.01)
    fit(other, tmp_path, 6, path)
    if rule.scheduled(0) is None:
        assert float(other.temperature) > float(module.temperature)
    else:
        assert torch.equal(other.temperature, module.temperature)


def test_constant_temperature_stays_and_is_no_parameter(tmp_path) -> None:
    module = build(temperature=0.25)
    fit(module, tmp_path, 2)
    assert float(module.temperature) == 0.25
    assert "temperature" not in {group["name"] for group in module.configure_optimizers().param_groups}


def test_choices_and_density_use_the_present_temperature(monkeypatch) -> None:
    module = build(temperature=1.0, train_selection=SoftmaxSelection(), train_particles=64)
    actors = [module.actor(role) for role in ("train", "collect", "eval")]
    seen: list[float] = []

    def choose(self, values, temperature, uniform):
        seen.append(float(temperature))
        return uniform.argmax(1)

    monkeypatch.setattr(SoftmaxSelection, "choose", choose)
    module.temperature.fill_(0.125)
    observation, x_1 = torch.randn(B, S), torch.randn(B, A)
    actors[0].latent(observation)
    actors[1].latent(observation)
    assert seen == [0.125, 0.125]
    assert all(actor.temperature is module.temperature for actor in actors)

    def spread(temperature: float) -> float:
        module.temperature.fill_(temperature)
        torch.manual_seed(1)
        _, learned = module.policy_loss(observation, x_1)
        return float(learned.estimate.effective_sample_size.mean())

    assert spread(1e-4) < 1.5
    assert spread(1e4) > 2.0


@pytest.mark.parametrize("solver", [RK4(40)], ids=repr)
def test_target_includes_the_entropy_of_the_flows_own_samples(solver, monkeypatch) -> None:
    torch.set_default_dtype(F64)
    try:
        module = ReverseFlowActorCritic(
            A,
            A,
            **grouped(
                **TINY
                | {
                    "temperature": 0.5,
                    "discount": 0.9,
                    "entropy_backup": True,
                    "train_selection": FirstSelection(),
                    "train_particles": 1,
                    "t_min": 0.05,
                    "likelihood": Likelihood(solver),
                }
            ),
        )
        module.policy.flow.network = exact_policy(LinearSchedule(), OdeSampler(Euler(2))).flow.network
        generator = torch.Generator().manual_seed(1)
        arrival = {
            "reward": torch.randn(B, 1, generator=generator),
            "observation": torch.randn(B, A, generator=generator),
            "terminated": torch.arange(B)[:, None] < B // 2,
        }
        state = {"observation": torch.randn(B, A, generator=generator), "action": torch.rand(B, A) - 0.5}
        transition = read_transition(TensorDict({**state, "next": TensorDict(arrival, [B])}, [B]))
        kept: list[Tensor] = []
        sample = module.endpoints
        monkeypatch.setattr(module, "endpoints", lambda *given: kept.append(sample(*given)) or kept[0])
        losses, state = module.losses(transition)
    finally:
        torch.set_default_dtype(torch.float32)
    latent = kept[0][0]
    law = Law(LinearSchedule(), 0.5 * transition.next_observation, SCALES)
    first, last = torch.tensor([0.05], dtype=F64), torch.tensor([0.95], dtype=F64)
    mean, std = law.carry(torch.zeros_like(latent), first, last), law.std(last) / law.std(first) * 0.95
    log_prob = torch.distributions.Normal(mean, std).log_prob(latent).sum(-1)
    log_prob = log_prob - torch.log1p(-latent.tanh().square()).sum(-1)
    torch.testing.assert_close(state.entropy, -log_prob.mean(), rtol=1e-4, atol=1e-4)
    value = module.critics.target(transition.next_observation, latent.tanh()).amin(0) - 0.5 * log_prob
    target = transition.reward + 0.9 * value.masked_fill(transition.terminated, 0.0)
    wanted = (module.critics.online(transition.observation, transition.action) - target).square().mean()
    torch.testing.assert_close(losses["critic"], wanted, rtol=1e-4, atol=1e-4)


def test_entropy_is_estimated_only_where_it_is_wanted(monkeypatch) -> None:
    for options, calls in (({}, 0), ({"entropy_backup": True}, 1), ({"temperature": EntropyTemperature()}, 1)):
        module, count = build(**options), []
        module.trainer = quiet_trainer()
        original = module.policy.log_prob
        monkeypatch.setattr(module.policy, "log_prob", lambda *a, count=count, f=original: count.append(1) or f(*a))
        module.loss(transitions())
        assert len(count) == calls, options


def test_entropy_tunes_the_temperature_without_entering_the_target() -> None:
    plain, tuned = build(temperature=1.0), build(temperature=EntropyTemperature(1.0))
    transition, losses = read_transition(transitions()), []
    for module in (plain, tuned):
        torch.manual_seed(2)
        losses.append(module.losses(transition)[0]["critic"])
    torch.testing.assert_close(losses[0], losses[1])


METHODS = {
    "one step": {
        "objective": MeanFlow(),
        "sampler": AverageVelocitySampler(),
    },
    "mean flow by a solver": {"objective": MeanFlow(), "sampler": OdeSampler(Euler(2))},
    "noise": {"objective": ConditionalFlowMatching("noise"), "sampler": DdimSampler(2, eta=1.0)},
    "score": {
        "objective": ConditionalFlowMatching("score"),
        "sampler": SdeSampler(2),
        "path": AffinePath(VarianceExplodingSchedule(0.01, 5.0)),
        "normalise": True,
    },
    "data": {"objective": ConditionalFlowMatching("data")},
    "point score": {"estimator": PointScoreEstimator()},
    "reweighted": {"estimator": ReweightedEndpoints(), "share_samples": True},
    "categorical": {"critic": CriticArchitecture(2, 16, 2, True, CategoricalHead(11, -5.0, 5.0))},
    "quantile": {"critic": CriticArchitecture(2, 16, 2, True, QuantileHead(5)), "value_reduction": "mean"},
    "flow": {"critic": CriticArchitecture(2, 16, 2, True, FlowHead(spread=1.0))},
    "joint batch": {
        "critic": CriticArchitecture(2, 16, 2, layers=BatchNormLayers(warm_up=20)),
        "joint_batch": True,
        "ema_decay": 0.0,
    },
    "residual": {"critic": CriticArchitecture(2, 16, 1, layers=PreNormBlocks(expansion=2))},
    "subset": {"critic": CriticArchitecture(5, 16), "subset_size": 2, "weight_reduction": "mean"},
    "entropy": {"entropy_backup": True},
    "sample size": {"temperature": SampleSizeTemperature()},
    "policy batch": {"policy_batch_size": 3},
    "target": {"weight_critic": "target", "x_1_source": "uniform"},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_composition_reaches_each_trained_parameter_and_no_lagging_one(name) -> None:
    module = build(**{"temperature": 1.0} | METHODS[name])
    module.trainer = quiet_trainer()
    torch.manual_seed(1)
    loss = module.loss(transitions())
    assert torch.isfinite(loss)
    loss.backward()
    for key, parameter in module.named_parameters():
        if key.startswith("critics.target"):
            assert parameter.grad is None, key
        elif name == "joint batch" and key.startswith("critics.") and key.endswith(("input_bias", "stages.2.bias")):
            assert parameter.grad.abs().max() < 1e-4, key  # what a norm over the batch takes away
        else:
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0.0, key


@pytest.mark.parametrize("name", METHODS)
def test_critics_of_every_composition_learn_a_fixed_batch(name) -> None:
    module = build(**{"temperature": 1.0, "discount": 0.0, "critic_learning_rate": 5e-3} | METHODS[name])
    module.trainer = quiet_trainer()
    optimizer, batch, losses = module.configure_optimizers(), transitions(), []
    for step in range(40):
        torch.manual_seed(step % 5)
        transition = read_transition(batch)
        losses.append(float(module.losses(transition)[0]["critic"].detach()))
        optimizer.zero_grad()
        module.loss(batch).backward()
        optimizer.step()
        module.after_update()
    start = math.log(11) if name == "categorical" else losses[0]
    assert losses[-1] < 0.8 * start
    assert all(bool(torch.isfinite(weight).all()) for weight in module.state_dict().values())


@pytest.mark.parametrize(("size", "share"), [(3, False), (3, True), (100, False), (1, True)])
def test_policy_learns_at_as_many_states_as_stated_and_the_critics_at_all(size, share) -> None:
    module = build(policy_batch_size=size, share_samples=share)
    transition = read_transition(transitions())
    latent, observation, x_1 = module.endpoints(transition, module.actor("train"))
    kept = min(size, B)
    assert latent.shape == (B, A)
    assert x_1.shape == (kept, A)
    states = transition.next_observation if share else transition.observation
    assert torch.equal(observation, states[:kept])
    if share:
        assert torch.equal(x_1, latent[:kept])


def test_values_in_the_weights_are_reduced_as_stated(monkeypatch) -> None:
    for reduction in ("min", "mean"):
        module, seen = build(weight_reduction=reduction, value_reduction="min"), []
        original = module.critics.online.action_values_and_gradients
        monkeypatch.setattr(
            module.critics.online,
            "action_values_and_gradients",
            lambda o, a, r, s=seen, f=original: s.append(r) or f(o, a, r),
        )
        module.policy_loss(torch.randn(B, S), torch.randn(B, A))
        assert seen == [reduction]


def test_target_is_made_of_a_random_subset_that_changes() -> None:
    module = build(critic=CriticArchitecture(6, 16), subset_size=2)
    transition, action = read_transition(transitions()), torch.rand(B, A)
    members = module.critics.target(transition.next_observation, action)
    targets = set()
    for seed in range(12):
        torch.manual_seed(seed)
        loss = module.critic_loss(transition, action)
        torch.manual_seed(seed)
        chosen = torch.rand(6).argsort()[:2]
        target = transition.reward + 0.99 * members[chosen].amin(0)
        wanted = (module.critics.online(transition.observation, transition.action) - target).square().mean()
        torch.testing.assert_close(loss, wanted)
        targets.add(round(float(loss.detach()), 6))
    assert len(targets) > 3


@pytest.mark.parametrize(("kind", "options"), [(ReverseFlowActorCritic, {}), (SoftActorCritic, {})])
def test_transitions_of_several_steps_train(kind, options) -> None:
    module = build(kind, discount=0.9, **options)
    batch = transitions()
    batch["next", "reward"] = torch.randn(B, 3, generator=torch.Generator().manual_seed(1))
    batch["length"] = length = torch.tensor([3, 2, 1, 3, 3, 2, 1, 3])[:, None]
    transition = read_transition(batch)
    action = torch.rand(B, A)
    value = module.critics.target(transition.next_observation, action).amin(0)
    steps = torch.arange(3)
    taken = batch["next", "reward"] * (steps < length)
    target = (taken * 0.9**steps).sum(1) + 0.9 ** length[:, 0] * value
    wanted = (module.critics.online(transition.observation, transition.action) - target).square().mean()
    torch.testing.assert_close(module.critic_loss(transition, action), wanted)


def first_weights(module: ActorCritic) -> Tensor:
    return torch.cat([p.detach().flatten() for p in (*module.policy.parameters(), *module.critics.online.parameters())])


@pytest.mark.parametrize("kind", [ReverseFlowActorCritic, SoftActorCritic])
def test_networks_start_afresh_on_schedule_and_only_then(kind, tmp_path) -> None:
    module = build(kind, reset_interval=3, temperature=EntropyTemperature(0.5, 3.0), temperature_learning_rate=0.01)
    weights, remembered, temperatures, equal = [], [], [], []

    class Record(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            weights.append(first_weights(module))
            remembered.append(len(trainer.optimizers[0].state))
            temperatures.append(float(module.temperature))
            pairs = zip(module.critics.online.parameters(), module.critics.target.parameters(), strict=True)
            equal.append(all(torch.equal(a, b) for a, b in pairs))

    fit(module, tmp_path, 8, watch=[Record()])
    distances = [float((after - before).norm()) for before, after in itertools.pairwise(weights)]
    # Before batches 3 and 6, numbered from 0; the batch before each learned as well.
    assert [distance > 3.0 for distance in distances] == [False, False, True, False, False, True, False], distances
    assert equal == [True, False, False, True, False, False, True, False]
    trained = sum(p.requires_grad for p in module.parameters())
    assert remembered == [0, trained, trained, 1, trained, trained, 1, trained]
    assert temperatures == sorted(temperatures)
    assert len(set(temperatures)) == 8


@pytest.mark.parametrize("kind", [ReverseFlowActorCritic, SoftActorCritic])
def test_fresh_start_replaces_every_weight_but_keeps_the_temperature(kind, tmp_path) -> None:
    module = build(kind, reset_interval=4, temperature=EntropyTemperature(0.5, 3.0), temperature_learning_rate=0.01)
    trainer = fit(module, tmp_path, 3)
    before, temperature = copy.deepcopy(module.state_dict()), float(module.temperature)
    noise = torch.get_rng_state()
    module.reset_networks()
    assert torch.equal(torch.get_rng_state(), noise)
    for name, value in module.state_dict().items():
        if "temperature" in name:
            assert torch.equal(value, before[name])
        elif "bias" not in name and "embed_time" not in name:
            assert not torch.equal(value, before[name]), name
    assert float(module.temperature) == temperature
    for name, value in module.critics.online.state_dict().items():
        assert torch.equal(module.critics.target.state_dict()[name], value)
    # The optimizer still holds the same parameters, and remembers the temperature's alone.
    optimizer = trainer.optimizers[0]
    assert {id(p) for p in optimizer.state} == {id(module.log_temperature)}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in module.parameters() if p.requires_grad}


def test_fresh_weights_follow_the_seed_and_the_step_not_the_process(tmp_path) -> None:
    def after(seed: int, noise: int, steps: int = 2) -> Tensor:
        module = build(seed=noise, reset_interval=2)
        fit(module, tmp_path, steps, seed=seed)
        return first_weights(module)

    first = after(3, 0)
    assert torch.equal(first, after(3, 1))  # whatever the weights were before
    assert not torch.equal(first, after(4, 0))
    assert not torch.equal(first, after(3, 0, 4))


def test_networks_never_start_afresh_unless_told(tmp_path, monkeypatch) -> None:
    module = build()
    monkeypatch.setattr(module, "reset_networks", lambda: pytest.fail("started afresh"))
    fit(module, tmp_path, 4)


class NoiseStates(Callback):
    """State of the global noise before every batch."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.states.append(torch.get_rng_state())


def test_resumed_run_draws_other_noise_than_that_of_its_beginning(tmp_path) -> None:
    first, again, later = NoiseStates(), NoiseStates(), NoiseStates()
    trainer = fit(build(), tmp_path, 2, watch=[first])
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    fit(build(), tmp_path, 2, watch=[again])
    assert torch.equal(first.states[0], again.states[0])  # one seed, one noise
    fit(build(), tmp_path, 3, checkpoint=str(tmp_path / "some.ckpt"), watch=[later])
    assert not any(torch.equal(later.states[0], state) for state in first.states)


def test_resumed_run_learns_at_the_rates_it_states(tmp_path) -> None:
    fit(build(), tmp_path, 2).save_checkpoint(tmp_path / "some.ckpt")
    slower = build(optimizer=ActorCriticOptimizer(actor_learning_rate=1e-5, critic_learning_rate=2e-5))
    trainer = fit(slower, tmp_path, 3, checkpoint=str(tmp_path / "some.ckpt"))
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [1e-5, 2e-5]
