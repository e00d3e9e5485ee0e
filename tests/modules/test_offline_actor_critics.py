"""Policies from data: what each module learns, where gradients go, checkpoints and refusals."""

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from flowmatch_rl.batches import Transition, read_transition
from flowmatch_rl.checks import UserError
from flowmatch_rl.estimators import (
    PosteriorMeanEstimator,
    PriorMeanEstimator,
    ReweightedEndpoints,
    boltzmann_density,
)
from flowmatch_rl.evaluation import score_actions
from flowmatch_rl.inference import load_policy
from flowmatch_rl.models import (
    Acting,
    FirstSelection,
    FlowPolicyArchitecture,
    OneStepPolicyArchitecture,
    ParticleActor,
    no_values,
)
from flowmatch_rl.modules import (
    ActorCriticOptimizer,
    BanditFlow,
    BehaviorCloning,
    Critics,
    FlowQLearning,
    ImplicitFlowQLearning,
    PolicyModule,
    ReverseFlowActorCritic,
    SoftActorCritic,
    TiltedFlowActorCritic,
    TrainingPoints,
    policy_module,
)
from flowmatch_rl.nets import (
    CategoricalHead,
    CriticArchitecture,
    FlowHead,
    QuantileHead,
    ScalarHead,
    ValueHead,
    VelocityArchitecture,
)
from flowmatch_rl.objectives import (
    ConstantTemperature,
    DivergenceTemperature,
    EntropyTemperature,
    MeanFlow,
    SampleSizeTemperature,
    expectile_loss,
)
from flowmatch_rl.paths import AffinePath, ClipSquash, CosineSchedule, TanhSquash
from flowmatch_rl.samplers import AverageVelocitySampler, OdeSampler
from flowmatch_rl.schema import ActionBounds
from flowmatch_rl.seeds import process_seed
from flowmatch_rl.solvers import Euler
from flowmatch_rl.testbeds import FourModes
from tests.modules.options import quiet_trainer
from tests.modules.test_reverse_flow_actor_critic import A, B, S, transitions

NETWORK = VelocityArchitecture(hidden_dim=16, time_features=8)
FLOW = FlowPolicyArchitecture(squash=ClipSquash(), network=NETWORK, sampler=OdeSampler(Euler(3)))
SMOOTH = FlowPolicyArchitecture(network=NETWORK, sampler=OdeSampler(Euler(3)))
ONE_STEP = OneStepPolicyArchitecture(NETWORK)
CRITICS = Critics(CriticArchitecture(hidden_dim=16), reduction="mean")
TILTED = {"policy": FLOW, "behavior": FLOW, "critics": CRITICS, "estimator": PriorMeanEstimator(3)}
MODULES: dict[str, tuple[type[PolicyModule], dict[str, Any]]] = {
    "cloning": (BehaviorCloning, {"policy": FLOW}),
    "flow Q-learning": (FlowQLearning, {"policy": ONE_STEP, "behavior": FLOW, "critics": CRITICS}),
    "implicit": (ImplicitFlowQLearning, {"policy": FLOW, "critics": CRITICS}),
    "prior": (TiltedFlowActorCritic, TILTED),
    "energy-weighted": (TiltedFlowActorCritic, TILTED | {"estimator": ReweightedEndpoints()}),
}
ACTOR_CRITICS = [name for name in MODULES if name != "cloning"]
every_module = pytest.mark.parametrize("name", MODULES)


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    kind: Any
    kind, arguments = MODULES[name]
    module = kind(S, A, **arguments | options)
    module.trainer = quiet_trainer()
    return module


def loss_of(module: Any, batch: Any) -> torch.Tensor:
    """Loss of an update, with its metrics."""
    return module.training_step(batch, 0) if isinstance(module, BehaviorCloning) else module.loss(batch)


@every_module
def test_loss_reaches_each_trained_parameter_and_no_other(name: str) -> None:
    module = build(name)
    loss_of(module, transitions()).backward()
    trained = {id(p): p for group in module.configure_optimizers().param_groups for p in group["params"]}
    for key, parameter in module.named_parameters():
        has_gradient = parameter.grad is not None
        assert has_gradient == (id(parameter) in trained), key
        assert not has_gradient or bool(parameter.grad.isfinite().all()), key
    assert {id(p) for p in module.parameters() if p.requires_grad} == set(trained)


@every_module
def test_all_losses_fall_on_a_fixed_batch(name: str) -> None:
    module = build(name)
    if name != "cloning":
        module.critics.discount = 0.0
    batch, optimizer, losses = transitions(), module.configure_optimizers(), defaultdict(list)
    add = module.means.add

    def record(values: dict[str, Any]) -> None:
        for key, value in values.items():
            losses[key].append(float(value))
        add(values)

    module.means.add = record
    for step in range(200):
        torch.manual_seed(step % 10)
        loss = loss_of(module, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if name == "cloning":
            module.after_update()
    # The loss of a one-step policy is no error: its value means nothing.
    names = {key for key in losses if key.startswith("train/loss/")}
    assert len(names) == (1 if name == "cloning" else 3)
    for key in names - ({"train/loss/policy"} if name == "flow Q-learning" else set()):
        assert sum(losses[key][-10:]) < 0.8 * sum(losses[key][:10]), key


@pytest.mark.parametrize("name", ["prior", "energy-weighted"])
@pytest.mark.parametrize("role", ["train", "collect", "eval"])
def test_a_tilted_flow_acts_by_plain_samples_as_it_would_without_critics(name: str, role: Any) -> None:
    module, observation = build(name), torch.randn(64, S)
    plain = ParticleActor(module.policy, no_values, 1, FirstSelection(), 1.0)
    expected = plain(observation, torch.Generator().manual_seed(5))
    assert torch.equal(module.actor(role)(observation, torch.Generator().manual_seed(5)), expected)


@every_module
def test_a_checkpoint_keeps_the_policy(name: str, tmp_path: Path) -> None:
    module = build(name, action_bounds=ActionBounds((-2.0, 0.0), (2.0, 1.0)))
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches: Any = [transitions(seed=seed) for seed in range(2)]
    loader = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    policy = load_policy(tmp_path / "last.ckpt")
    observation = torch.randn(5, S)
    wanted = module.eval().actor("eval")(observation, torch.Generator().manual_seed(0)).clamp(-1.0, 1.0)
    found = torch.from_numpy(policy(observation.numpy()))
    torch.testing.assert_close(found, wanted * torch.tensor([2.0, 0.5]) + torch.tensor([0.0, 0.5]))


def test_cloning_acts_as_the_data_do() -> None:
    """Actions that are 0.5 or -0.5 by the sign of the observation."""
    network = VelocityArchitecture(hidden_dim=64, time_features=16, balanced_inputs=True)
    module = build("cloning", policy=FlowPolicyArchitecture(squash=ClipSquash(), network=network))
    optimizer = torch.optim.Adam(module.trained_policy.parameters(), 5e-3)
    for seed in range(300):
        observation = torch.randn(64, S, generator=torch.Generator().manual_seed(seed))
        action = 0.5 * observation[:, :1].sign().expand(-1, A) + 0.02 * torch.randn(64, A)
        loss = module.trained_policy.cloning_loss(module.objective, observation, action).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.policy.load_state_dict(module.trained_policy.state_dict())
    observation = torch.randn(200, S)
    acted = module.actor("eval")(observation)
    assert ((acted * observation[:, :1]).mean(1) > 0.0).float().mean() > 0.9
    assert abs(float(acted.abs().mean()) - 0.5) < 0.12


def test_cloning_in_one_step_by_mean_flow() -> None:
    policy = FlowPolicyArchitecture(squash=ClipSquash(), network=NETWORK, sampler=AverageVelocitySampler(1))
    module = build("cloning", policy=policy, objective=MeanFlow())
    loss_of(module, transitions()).backward()
    assert module.actor("eval")(torch.randn(4, S)).shape == (4, A)


@pytest.mark.parametrize("normalise", [False, True])
def test_flow_q_learning_has_the_gradient_of_its_published_loss(normalise: bool) -> None:
    module = build("flow Q-learning", alpha=3.0, normalise_values=normalise)
    observation = torch.randn(B, S)
    torch.manual_seed(5)
    module.policy_loss(observation).mean().backward()
    found = [parameter.grad for parameter in module.policy.parameters()]
    torch.manual_seed(5)
    noise = torch.randn(B, A)
    latent = module.policy(observation, noise)
    cloned = module.behavior.sample_latents(observation, noise[:, None])[:, 0].clamp(-1.0, 1.0)
    values = module.critics.online(observation, latent.clamp(-1.0, 1.0)).mean(0)
    scale = values.detach().abs().mean() if normalise else 1.0
    loss = 3.0 * (latent - cloned).square().mean() - values.mean() / scale
    wanted = torch.autograd.grad(loss, list(module.policy.parameters()), allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_flow_q_learning_bootstraps_from_its_policy() -> None:
    module = build("flow Q-learning", discount=0.9)
    transition = read_transition(transitions())
    torch.manual_seed(5)
    found = module.losses(transition)[0]["critic"]
    torch.manual_seed(5)
    noise = torch.randn(B, 1, A)
    action = module.policy(transition.next_observation[:, None], noise)[:, 0].clamp(-1.0, 1.0)
    target = transition.reward + 0.9 * module.critics.target(transition.next_observation, action).mean(0)
    values = module.critics.online(transition.observation, transition.action)
    torch.testing.assert_close(found, (values - target).square().mean())


@pytest.mark.parametrize(
    "head", [ScalarHead(), CategoricalHead(num_atoms=21, v_min=-5.0, v_max=5.0), QuantileHead(5), FlowHead()], ids=repr
)
def test_implicit_critics_learn_from_the_value_of_the_state(head: ValueHead) -> None:
    critics = Critics(CriticArchitecture(hidden_dim=16, head=head), reduction="mean")
    module = build("implicit", critics=critics, discount=0.9, expectile=0.7)
    batch = transitions()
    batch["next", "terminated"][:3] = True
    transition = read_transition(batch)
    torch.manual_seed(1)
    losses = module.value_losses(transition)
    torch.manual_seed(1)
    noise = torch.rand(B, head.num_uniforms)
    next_value = module.state_values(transition.next_observation).detach()
    target = transition.reward + 0.9 * next_value * ~transition.terminated
    outputs = module.critics.online.outputs(transition.observation, transition.action)
    certain = head.distribution(torch.zeros_like(outputs[0]))
    wanted = module.critics.online.head.loss(outputs, certain, target, torch.zeros_like(target), noise).mean()
    torch.testing.assert_close(losses["critic"], wanted)
    action_values = module.critics.target(transition.observation, transition.action).mean(0).detach()
    value = module.state_values(transition.observation)
    torch.testing.assert_close(losses["value"], expectile_loss(value, action_values, 0.7).mean())


def test_implicit_critics_with_one_number_have_the_squared_error() -> None:
    module = build("implicit", discount=0.9)
    transition = read_transition(transitions())
    target = transition.reward + 0.9 * module.state_values(transition.next_observation).detach()
    values = module.critics.online(transition.observation, transition.action)
    torch.testing.assert_close(module.losses(transition)[0]["critic"], (values - target).square().mean())


@pytest.mark.parametrize("name", ["prior", "energy-weighted"])
def test_at_a_high_temperature_a_tilted_flow_learns_the_behavior(name: str) -> None:
    """Equal weights: the policy's targets are the pairs of the data."""
    module = build(name, temperature=1e9, points=TrainingPoints("replay"))
    transition, noted = read_transition(transitions()), {}
    module.means.add = noted.update
    squash = module.policy.squash
    density = boltzmann_density(lambda a: (a.sum(-1), a), module.temperature, squash, jacobian=False)
    prior = module.prior(transition.observation)
    _, learned = module.learner.loss(transition.observation, squash.latent(transition.action), density, prior)
    found, estimator = learned.estimate, module.learner.estimator
    torch.testing.assert_close(found.weight, torch.ones(B), rtol=0.0, atol=1e-4)
    if estimator.needs_prior:
        equal = torch.full((B,), float(estimator.num_samples))
        torch.testing.assert_close(found.effective_sample_size, equal, rtol=1e-3, atol=0.0)
    else:
        torch.testing.assert_close(found.x_1, transition.action)
    module.policy_loss(transition.observation, transition.action)
    spread = float(noted["train/log_density_spread"])
    assert 0.0 < spread < 1e-6


@pytest.mark.parametrize("name", ["prior", "energy-weighted"])
def test_states_of_high_value_count_no_more_than_others(name: str) -> None:
    """Values that differ between states alone say nothing about actions: all points weigh the same."""
    module = build(name, temperature=0.1, points=TrainingPoints("replay"))
    transition, weights, learn = read_transition(transitions()), [], module.learner.loss

    def watched(*arguments: Any) -> Any:
        loss, learned = learn(*arguments)
        weights.append(learned.estimate.weight)
        return loss, learned

    def state_values(observation: Any, actions: Any, reduction: str) -> Any:
        return (100.0 * observation[:, :1]).expand(actions.shape[:2])

    online = module.critics.online
    online.action_values = state_values
    online.action_values_and_gradients = lambda *given: (state_values(*given), torch.zeros_like(given[1]))
    object.__setattr__(module.learner, "loss", watched)
    module.policy_loss(transition.observation, transition.action)
    torch.testing.assert_close(weights[0], torch.ones(B))


def test_the_temperature_falls_until_the_divergence_is_met() -> None:
    module = build("prior", temperature=DivergenceTemperature(start=100.0, nats=0.3))
    observation = torch.randn(16, S)
    assert module.divergence(observation) < 0.01
    module.temperature.fill_(1e-4)
    assert module.divergence(observation) > 1.0
    module.temperature.fill_(100.0)
    module.log_temperature.data.fill_(torch.tensor(100.0).log())
    optimizer = torch.optim.Adam([module.log_temperature], 0.1)
    for _ in range(150):
        surplus = module.temperature_rule.surplus(module.losses(read_transition(transitions()))[1])
        optimizer.zero_grad()
        (module.log_temperature * surplus).backward()
        optimizer.step()
        module.temperature.copy_(module.log_temperature.detach().exp())
    found = torch.stack([module.divergence(torch.randn(16, S)) for _ in range(20)]).mean()
    assert 0.15 < float(found) < 0.45


def test_a_tuned_temperature_stays_positive() -> None:
    module = build("prior", temperature=DivergenceTemperature())
    module.log_temperature.data.fill_(-200.0)
    module.after_update()
    assert 0.0 < float(module.temperature) == pytest.approx(1e-6)
    assert module.loss(transitions()).isfinite()


@pytest.mark.parametrize("rule", [1.0, DivergenceTemperature()])
def test_the_divergence_is_measured_for_a_rule_and_else_when_it_is_logged(rule: Any) -> None:
    module = build("energy-weighted", temperature=rule)
    state = module.losses(read_transition(transitions()))[1]
    assert (state.divergence is not None) == isinstance(rule, DivergenceTemperature)
    module.logs_after = lambda updates: True
    assert module.losses(read_transition(transitions()))[1].divergence is not None


@pytest.mark.parametrize("name", ACTOR_CRITICS)
def test_a_fresh_start_is_one_of_the_networks_beside_the_policy_too(name: str) -> None:
    module = build(name, optimizer=ActorCriticOptimizer(reset_interval=3))
    for parameter in module.parameters():
        parameter.data.mul_(0.5)
    before, changed = copy.deepcopy(module.state_dict()), []
    optimizer = module.configure_optimizers()
    module.optimizers = lambda use_pl_optimizer: optimizer
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[parameter]["step"] = torch.ones(())
    module.reset_networks()
    for key, value in module.state_dict().items():
        if "temperature" in key:
            assert torch.equal(value, before[key])
        elif key.endswith("weight") and value.numel():  # V takes no action
            assert not torch.equal(value, before[key]), key
            changed.append(key)
    beside = "value" if name == "implicit" else "behavior"
    assert any(key.startswith(f"others.{beside}.") for key in changed)
    assert all("temperature" in key for key, p in module.named_parameters() if p in optimizer.state)


ONLINE: dict[str, Any] = {
    "soft": lambda: SoftActorCritic(S, A, critics=CRITICS),
    "reverse flow": lambda: ReverseFlowActorCritic(
        S, A, policy=SMOOTH, critics=CRITICS, points=TrainingPoints(share_samples=True), entropy_backup=True
    ),
}


@pytest.mark.parametrize("name", ACTOR_CRITICS + list(ONLINE))
def test_the_held_out_loss_is_what_values_are_learned_by(name: str) -> None:
    torch.manual_seed(0)
    module = ONLINE[name]() if name in ONLINE else build(name)
    module.temperature.fill_(10.0)  # so that an entropy counts
    transition, noted = read_transition(transitions()), []
    torch.manual_seed(5)
    losses = module.losses(transition)[0]
    module.means.add = noted.append
    torch.manual_seed(5)
    with torch.inference_mode():  # as Lightning evaluates
        found = module.held_out_losses(transition)
    terms = {"critic", "value"} if name == "implicit" else {"critic"}
    assert found.keys() == {"loss"} | {f"loss/{term}" for term in terms}
    for term in terms:
        torch.testing.assert_close(found[f"loss/{term}"], losses[term])
    torch.testing.assert_close(found["loss"], sum(losses[term] for term in terms))
    assert noted == []  # means are those of training


def held_out_metrics(module: Any, size: int = 40) -> dict[str, float]:
    """What a test logs of held-out transitions."""
    logged: dict[str, Any] = {}
    module.log_dict = lambda values, **_: logged.update(values)
    module.test_step(transitions(size), 0)
    return {name: float(value) for name, value in logged.items()}


@every_module
def test_a_test_scores_the_policy_at_actions_of_the_data(name: str) -> None:
    module = build(name)
    state = torch.get_rng_state()
    found = held_out_metrics(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == held_out_metrics(module)
    batch = transitions(40)
    score = score_actions(module.actor("eval"), batch["observation"], batch["action"], seed=process_seed(0, 0))
    assert found["test/energy_score"] == pytest.approx(float(score))
    (line,) = [line for line in module.result_lines(found) if "energy score" in line]
    assert line.startswith("behaviour    ")
    assert ("from the behaviour flow" in line) == (name != "cloning")
    if name == "cloning":
        assert "test/behavior_energy_distance" not in found
        return
    flow = module.policy if name == "implicit" else module.others["behavior"]
    actor = ParticleActor(flow, no_values, 1, FirstSelection(), 1.0)
    excess = score - score_actions(actor, batch["observation"], batch["action"], seed=process_seed(0, 0))
    assert found["test/behavior_energy_distance"] == pytest.approx(2.0 * float(excess), rel=1e-4)


def test_a_policy_that_acts_as_the_behavior_has_no_distance_from_it() -> None:
    module = build("implicit", acting=Acting(eval_particles=1))
    assert held_out_metrics(module)["test/behavior_energy_distance"] == 0.0
    module = build("energy-weighted", acting=Acting(eval_particles=1))
    module.policy.load_state_dict(module.behavior.state_dict())
    assert held_out_metrics(module)["test/behavior_energy_distance"] == 0.0


def test_a_large_set_is_scored_at_some_of_its_states(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []
    score = policy_module.score_actions

    def watched(actor: Any, observation: Any, action: Any, **options: Any) -> Any:
        scored.append(observation)
        return score(actor, observation, action, **options)

    monkeypatch.setattr(policy_module, "score_actions", watched)
    held_out_metrics(build("cloning"), 700)
    observation = transitions(700)["observation"]
    assert len(scored[0]) == 256
    assert torch.equal(scored[0][[0, -1]], observation[[0, -1]])


def refusals() -> dict[str, tuple[Any, str]]:
    other = FlowPolicyArchitecture(path=AffinePath(CosineSchedule()), squash=ClipSquash())
    tanh = FlowPolicyArchitecture(squash=TanhSquash())

    def tilted(**options: Any) -> Any:
        return lambda: TiltedFlowActorCritic(S, A, **options)

    return {
        "jacobian": (tilted(estimator=PosteriorMeanEstimator()), "expected an estimator relative to the behaviour"),
        "points": (
            tilted(estimator=ReweightedEndpoints(), points=TrainingPoints("policy")),
            "expected points.x_1_source replay",
        ),
        "path": (tilted(behavior=other), "behavior.path must be that of policy"),
        "squash": (tilted(behavior=tanh), "behavior.squash must be that of policy"),
        "entropy": (tilted(temperature=EntropyTemperature()), "cannot be measured"),
        "samples": (
            tilted(temperature=SampleSizeTemperature(), estimator=ReweightedEndpoints()),
            "cannot be measured",
        ),
        "start": (
            tilted(behavior=FlowPolicyArchitecture(squash=ClipSquash(), t_min=0.1)),
            "behavior.t_min must be that of policy, 0.01, got 0.1",
        ),
        "distance": (
            lambda: FlowQLearning(S, A, behavior=tanh),
            "expected a behavior with the squash of policy",
        ),
        "subset": (
            lambda: ImplicitFlowQLearning(S, A, critics=Critics(subset_size=1)),
            "critics.subset_size must be null",
        ),
        "joint batch": (
            lambda: ImplicitFlowQLearning(S, A, critics=Critics(joint_batch=True, ema_decay=0.0)),
            "critics.joint_batch must be false",
        ),
        "training particles": (
            lambda: ImplicitFlowQLearning(S, A, acting=Acting(train_particles=1)),
            "acting.train_particles must be 16: no action is drawn for training, got 1",
        ),
        "training choice": (
            lambda: ImplicitFlowQLearning(S, A, acting=Acting(train_selection=FirstSelection())),
            r"acting.train_selection must be SoftmaxSelection\(\): .* got FirstSelection\(\)",
        ),
        "alpha": (lambda: FlowQLearning(S, A, alpha=-1.0), "alpha must"),
        "expectile": (lambda: ImplicitFlowQLearning(S, A, expectile=1.0), "expectile must"),
        "online prior": (lambda: ReverseFlowActorCritic(S, A, estimator=PriorMeanEstimator()), "needs a behaviour"),
        "online divergence": (
            lambda: ReverseFlowActorCritic(S, A, temperature=DivergenceTemperature()),
            "needs a behaviour",
        ),
        "Gaussian": (lambda: SoftActorCritic(S, A, temperature=DivergenceTemperature()), "needs a behaviour"),
        "bandit": (lambda: BanditFlow(FourModes(), estimator=PriorMeanEstimator()), "needs a behaviour"),
        "temperature": (lambda: ConstantTemperature(0.0), "temperature must"),
    }


@pytest.mark.parametrize("case", refusals())
def test_what_does_not_fit_is_refused_in_one_line(case: str) -> None:
    make, message = refusals()[case]
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_n_steps_are_discounted_step_by_step() -> None:
    module = build("flow Q-learning", discount=0.5)
    base = read_transition(transitions())
    rewards = torch.randn(B, 3)
    length = torch.tensor([3, 3, 2, 1, 3, 2, 3, 1])
    several = Transition(base.observation, base.action, rewards, base.next_observation, base.terminated, length)
    torch.manual_seed(5)
    found = module.losses(several)[0]["critic"]
    torch.manual_seed(5)
    noise = torch.randn(B, 1, A)
    action = module.policy(base.next_observation[:, None], noise)[:, 0].clamp(-1.0, 1.0)
    steps = torch.arange(3)
    kept = rewards * (steps < length[:, None])
    target = (kept * 0.5**steps).sum(1) + 0.5**length * module.critics.target(base.next_observation, action).mean(0)
    values = module.critics.online(base.observation, base.action)
    torch.testing.assert_close(found, (values - target).square().mean())
