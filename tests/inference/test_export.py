"""Exported programs give what the trained models give, for every kind, and what cannot be exported is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from flowmatch_rl.checks import UserError
from flowmatch_rl.inference import TrainedPolicy, export, export_checkpoint, load_flow, load_occupancy, load_policy
from flowmatch_rl.models import FlowPolicyArchitecture, Horizon, OneStepPolicyArchitecture, SoftmaxSelection
from flowmatch_rl.modules import (
    BehaviorCloning,
    Critics,
    DynamicsModule,
    FlowMatchingModel,
    FlowQLearning,
    SoftActorCritic,
)
from flowmatch_rl.modules.settings import Normalisation
from flowmatch_rl.nets import (
    BatchNormLayers,
    CategoricalHead,
    CriticArchitecture,
    FilmUNetArchitecture,
    PreNormBlocks,
    VelocityArchitecture,
)
from flowmatch_rl.objectives import ConditionalFlowMatching, MeanFlow
from flowmatch_rl.paths import AffinePath, ClipSquash, GaussianSource, LinearSchedule, MixtureSource
from flowmatch_rl.samplers import AverageVelocitySampler, DdimSampler, OdeSampler, SdeSampler
from flowmatch_rl.schema import Interface, TableSchema
from flowmatch_rl.solvers import AdaptiveSolver, Euler, Heun
from flowmatch_rl.testbeds import MazeGoalPolicy
from tests.combinations import each_value, one_test
from tests.families import ARCHITECTURES, CRITIC_LAYERS, SAMPLERS, SCHEDULES, SOURCES, VALUE_HEADS
from tests.inference.test_occupancy import MAZE
from tests.inference.test_policy import BOUNDS, module
from tests.modules.occupancy_toys import PLANE, occupancy
from tests.modules.options import grouped
from tests.modules.test_reverse_flow_actor_critic import A, S

runtime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")

NET = VelocityArchitecture(hidden_dim=8, num_blocks=1, time_features=4)
CRITIC = CriticArchitecture(hidden_dim=8, num_layers=1)
BY_AVERAGES = {"sampler": AverageVelocitySampler(), "objective": MeanFlow()}
GOALS = TableSchema(("x", "y"), (1.0, -2.0), (0.5, 3.0))
TABLE = TableSchema(
    ("x", "count"),
    (3.0, 4.0),
    (2.0, 5.0),
    ("angle",),
    (1.0,),
    (2.0,),
    ("part",),
    (("left", "right", "up"),),
    ("count",),
)


def flow_policy(**options: Any) -> LightningModule:
    built = module(action_bounds=BOUNDS, **{"velocity": NET, "critic": CRITIC} | options)
    built.interface = Interface(("x", "v", "w"), action_units=("N", "m"), step_s=0.02)
    if built.units.observations is not None:
        built.units.observations.update(torch.tensor([[1.0, -30.0, 2.0], [3.0, 20.0, 2.5], [2.0, 8.0, 9.0]]))
    return built


POLICIES: dict[str, Callable[[], LightningModule]] = {
    "best particle": lambda: flow_policy(normalisation=Normalisation(True, False, True), sampler=OdeSampler(Euler(1))),
    "stochastic": lambda: flow_policy(
        sampler=DdimSampler(2, eta=1.0, data_limit=1.0),
        eval_selection=SoftmaxSelection(),
        squash=ClipSquash(),
        critic=CriticArchitecture(hidden_dim=8, num_layers=1, layers=BatchNormLayers(warm_up=3)),
        joint_batch=True,
        ema_decay=0.0,
    ),
    "average velocity": lambda: flow_policy(**BY_AVERAGES, value_reduction="mean"),
    "residual critics": lambda: flow_policy(
        critic=CriticArchitecture(hidden_dim=8, layers=PreNormBlocks(), head=CategoricalHead(7, -3.0, 4.0)),
        sampler=OdeSampler(Heun(2)),
    ),
    "Gaussian": lambda: SoftActorCritic(S, A, BOUNDS, **grouped(gaussian=True, critic=CRITIC)),
    "one step": lambda: FlowQLearning(
        S, A, BOUNDS, policy=OneStepPolicyArchitecture(NET), critics=Critics(CRITIC, reduction="mean")
    ),
    "family": lambda: BehaviorCloning(
        S, A, BOUNDS, goal_schema=GOALS, policy=FlowPolicyArchitecture(network=NET, sampler=OdeSampler(Euler(1)))
    ),
}


def saved(built: LightningModule, folder: Path) -> Path:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=0)
    trainer.strategy.connect(built)
    trainer.save_checkpoint(folder / "model.ckpt", weights_only=True)
    return folder / "model.ckpt"


def built(kind: str) -> LightningModule:
    torch.manual_seed(0)
    return POLICIES[kind]()


def outputs(path: Path, **inputs: Any) -> np.ndarray:
    """By the ONNX runtime, of inputs in single precision."""
    session = runtime.InferenceSession(path)
    wanted = {given.name: np.float32 if "float" in given.type else np.int64 for given in session.get_inputs()}
    return session.run(None, {name: np.asarray(value, wanted[name]) for name, value in inputs.items()})[0]


def noise_of(policy: TrainedPolicy, number: int) -> dict[str, np.ndarray]:
    """The noise of a deterministic policy as a program takes it."""
    assert policy.noise is not None
    assert policy.step_noise is not None
    given = {"noise": np.broadcast_to(policy.noise, (number, *policy.noise.shape))}
    if len(policy.step_noise):
        given["step_noise"] = np.broadcast_to(policy.step_noise, (number, *policy.step_noise.shape))
    return given


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "residual critics" else ()) for kind in POLICIES]
)
def test_a_policy_in_onnx_acts_as_the_deterministic_policy_for_any_batch(kind, tmp_path) -> None:
    path = saved(built(kind), tmp_path)
    program = export_checkpoint(path, tmp_path / "policy.onnx")
    policy = load_policy(path, deterministic=True, seed=5)
    random = np.random.default_rng(0)
    for number in (1, 40):
        states = random.normal(size=(number, S)).astype(np.float32)
        goal = {"goal": random.normal(size=(number, 2)).astype(np.float32)} if policy.goal_columns else {}
        noise = noise_of(policy, number)
        if program.metadata["evaluation_noise"] == "zeros":
            noise = {name: 0.0 * value for name, value in noise.items()}
        action = outputs(program.path, observation=states, **noise, **goal)
        np.testing.assert_allclose(action, policy(states, **goal), rtol=1e-5, atol=1e-5)
    assert action.std(0).min() > 0.0
    assert program.difference < 1e-5


def test_the_noise_decides_on_the_action_and_the_best_of_several_particles_is_worth_more_than_one(tmp_path) -> None:
    model = built("best particle")
    path, states = saved(model, tmp_path), np.random.default_rng(0).normal(size=(50, S)).astype(np.float32)
    program = export_checkpoint(path, tmp_path / "policy.onnx", batch_size=50, num_particles=16, num_steps=2)
    several = np.random.default_rng(1).normal(size=(50, 16, A))
    one = np.broadcast_to(several[:, :1], several.shape)
    values = []
    for noise in (one, several):
        action = torch.as_tensor(outputs(program.path, observation=states, noise=noise))
        unit = BOUNDS.standardise(action).float()
        values.append(model.critics.values(torch.as_tensor(states), unit[:, None])[:, 0])
    assert (values[1] > values[0] - 1e-5).all()
    assert (values[1] > values[0] + 1e-3).float().mean() > 0.5
    assert json.loads(program.metadata["inputs"])["noise"] == [50, 16, A]
    assert "the best of 16 particles, 2 steps" in program.metadata["summary"]


@pytest.mark.parametrize(
    ("suffix", "batch_size"), [("pt2", None), pytest.param("pt2", 1, marks=pytest.mark.slow), ("onnx", 1)]
)
def test_a_policy_is_a_program_of_pytorch_too_and_of_a_fixed_batch(suffix, batch_size, tmp_path) -> None:
    path = saved(built("best particle"), tmp_path)
    program = export_checkpoint(path, tmp_path / f"policy.{suffix}", batch_size)
    policy, states = load_policy(path, deterministic=True), np.random.default_rng(2).normal(size=(5, S))
    for rows in (states[:1], states):
        if batch_size is not None and len(rows) != batch_size:
            with pytest.raises(Exception, match=r"[Ii]nvalid|batch|shape|size|guard"):
                export.run_exported(program.path, {"observation": torch.zeros(5, S), "noise": torch.zeros(5, 4, A)})
            continue
        given = {"observation": rows, **noise_of(policy, len(rows))}
        tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in given.items()}
        action = export.run_exported(program.path, tensors)
        np.testing.assert_allclose(action, policy(rows), rtol=1e-5, atol=1e-5)
    if suffix == "pt2":
        inside = {export.METADATA_FILE: ""}
        names = torch.export.load(program.path, extra_files=inside).state_dict
        assert json.loads(inside[export.METADATA_FILE]) == program.metadata
        assert not any("target" in name for name in names)


def test_the_onnx_file_says_what_it_takes_and_returns_and_where_it_comes_from(tmp_path) -> None:
    path = saved(built("best particle"), tmp_path)
    program = export_checkpoint(path, tmp_path / "policy.onnx", batch_size=1, num_particles=1)
    known = runtime.InferenceSession(program.path).get_modelmeta().custom_metadata_map
    assert known == program.metadata
    assert known["checkpoint"] == str(path)
    assert known["observation_columns"] == '["x", "v", "w"]'
    assert (known["action_low"], known["action_high"]) == ("[-2.0, 0.0]", "[2.0, 10.0]")
    assert (known["step_s"], known["evaluation_noise"], known["kind"]) == ("0.02", "normal", "policy")
    (line,) = str(program).splitlines()
    for words in (
        "observation (1, 3), noise (1, 1, 2) -> action (1, 2) in [-2, 0] to [2, 10]",
        "one particle",
        "0.02 s",
    ):
        assert words in line
    assert b"site-packages" not in program.path.read_bytes()


@pytest.mark.parametrize("conditional", [True, False])
def test_a_flow_in_onnx_samples_as_the_model_in_the_units_of_the_data(conditional, tmp_path) -> None:
    torch.manual_seed(0)
    film = FilmUNetArchitecture(block_dims=(8, 8), time_features=4, time_dims=(8,), condition_dims=(8,))
    options: dict[str, Any] = {"sampler": SdeSampler(2)}
    if conditional:
        options = {"guidance": 1.5, "condition_dropout": 0.1, "network": film, "sampler": OdeSampler(Euler(1))}
    schema = TABLE if conditional else TableSchema(("x", "y"), (3.0, -1.0), (2.0, 0.2))
    trained = FlowMatchingModel(schema, **{"network": NET} | options)
    with torch.no_grad():  # a new model does not look at its condition
        for weight in trained.flow.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    trained.flow_ema.load_state_dict(trained.flow.state_dict())
    path = saved(trained, tmp_path)
    program, flow = export_checkpoint(path, tmp_path / "flow.onnx"), load_flow(path)
    random = np.random.default_rng(0)
    for number in (1, 9):
        noise, draws = (random.normal(size=(number, *more, 2)).astype(np.float32) for more in ((), (2,)))
        parts, angles = random.integers(0, 3, number), random.normal(size=number)
        given = {"noise": noise}
        condition = None
        if conditional:
            given |= {"conditions": angles[:, None], "classes": parts[:, None]}
            labels = [TABLE.classes[0][part] for part in parts]
            condition = TABLE.condition({"angle": angles, "part": labels}).float()
        else:
            given["step_noise"] = draws
        fresh = iter(torch.as_tensor(draws).unbind(1))
        model = flow.model
        sample = model.flow.sample(
            torch.as_tensor(noise), model.sampler, condition, model.guidance, lambda like, fresh=fresh: next(fresh)
        )
        wanted = model.schema.restore(sample).numpy()
        np.testing.assert_allclose(outputs(program.path, **given), wanted, rtol=1e-5, atol=1e-5)
    for name in given:
        changed = outputs(program.path, **given | {name: given[name][::-1]})
        assert not np.allclose(changed, wanted, atol=1e-2)
    assert json.loads(program.metadata["columns"]) == list(schema.columns)


def test_an_occupancy_in_onnx_draws_the_future_states_of_the_model(tmp_path) -> None:
    horizon = Horizon(0.9, min_discount=0.5)
    path = saved(
        occupancy(
            MAZE,
            policy=MazeGoalPolicy(),
            horizon=horizon,
            network=NET,
            action_bounds=BOUNDS,
            sampler=OdeSampler(Euler(2)),
        ),
        tmp_path,
    )
    program, model = export_checkpoint(path, tmp_path / "futures.onnx", num_particles=3), load_occupancy(path).model
    random, numbers = np.random.default_rng(0), {"observation": 4, "action": 2, "embedding": 2}
    for number in (1, 6):
        given = {name: random.normal(size=(number, dim)).astype(np.float32) for name, dim in numbers.items()}
        noise, discount = random.normal(size=(number, 3, 4)).astype(np.float32), random.uniform(0.5, 0.9, (number, 1))
        state, member = (torch.as_tensor(given[name])[:, None] for name in ("observation", "embedding"))
        action = BOUNDS.standardise(torch.as_tensor(given["action"])).float()[:, None]
        wanted = model.sample(torch.as_tensor(noise), state, action, member, torch.as_tensor(discount).float())
        futures = outputs(program.path, noise=noise, discount=discount, **given)
        assert futures.shape == (number, 3, 4)
        np.testing.assert_allclose(futures, wanted.numpy(), rtol=1e-5, atol=1e-5)
    assert json.loads(program.metadata["discounts"]) == [0.5, 0.9]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by kind."""
    models = {
        "policy": built("one step"),
        "flow": FlowMatchingModel(GOALS, network=NET, source=MixtureSource([[0.0, 0.0], [1.0, 1.0]])),
        "adaptive": FlowMatchingModel(GOALS, network=NET, sampler=OdeSampler(AdaptiveSolver())),
        "occupancy": occupancy(network=NET),
        "dynamics": DynamicsModule(PLANE, 2),
    }
    return {name: saved(model, tmp_path_factory.mktemp(name)) for name, model in models.items()}


@one_test
@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("none", {}, "there is no checkpoint"),
        ("policy", {"output": "policy.h5"}, "the suffix of output must be one of .onnx, .pt2, got '.h5'"),
        ("policy", {"num_particles": 3}, "one particle, not the best of several; got num_particles 3"),
        ("policy", {"num_particles": 0}, "num_particles must be at least 1, got 0"),
        ("policy", {"num_steps": 3}, "OneStepPolicy takes no steps; num_steps must be null, got 3"),
        ("policy", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("flow", {"num_particles": 3}, "one sample per row, got 3"),
        ("flow", {"samples": True}, "only a policy acts by samples"),
        ("adaptive", {}, "a fixed number of steps, got OdeSampler(solver=AdaptiveSolver("),
        ("adaptive", {"num_steps": 5}, "chooses them by the error"),
        ("occupancy", {"samples": True}, "is of an occupancy"),
        ("dynamics", {}, "is a checkpoint of a one-step model, expected a policy, a flow or an occupancy"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(kind, options, words, checkpoints, tmp_path) -> None:
    given = {"output": "program.onnx"} | options
    with pytest.raises(UserError) as caught:
        export_checkpoint(checkpoints.get(kind, tmp_path / "none.ckpt"), tmp_path / given.pop("output"), **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(checkpoints, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match=r"onnxscript not found; install the extra"):
        export_checkpoint(checkpoints["flow"], tmp_path / "flow.onnx")


def test_what_pytorch_cannot_export_is_refused_with_its_reason(checkpoints, tmp_path, monkeypatch) -> None:
    def depends_on_numbers(self: object, noise: torch.Tensor) -> torch.Tensor:
        return noise if float(noise.sum()) > 0.0 else -noise

    monkeypatch.setattr("flowmatch_rl.inference.sampling_programs.FlowProgram.forward", depends_on_numbers)
    with pytest.raises(UserError, match=r"PyTorch cannot export .*model\.ckpt: \w+: "):
        export_checkpoint(checkpoints["flow"], tmp_path / "flow.pt2")


@pytest.mark.slow
@each_value
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=repr)
@pytest.mark.parametrize("source", SOURCES, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_any_sampler_network_source_and_schedule_is_exported(sampler, architecture, source, schedule, tmp_path) -> None:
    torch.manual_seed(0)
    if sampler.adds_noise:
        source = GaussianSource()
    averages = sampler.needs_average_velocity
    objective = MeanFlow() if averages else ConditionalFlowMatching()
    path = AffinePath(LinearSchedule() if averages else schedule)
    parts = {"network": architecture, "source": source, "path": path, "t_min": 0.01, "objective": objective}
    trained = FlowMatchingModel(GOALS, sampler=sampler.with_steps(2), **parts)
    with torch.no_grad():
        for weight in trained.flow.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    trained.flow_ema.load_state_dict(trained.flow.state_dict())
    program = export_checkpoint(saved(trained, tmp_path), tmp_path / "flow.onnx")
    size = float(
        export.run_exported(program.path, export.load_program(tmp_path / "model.ckpt").examples(9)).abs().max()
    )
    assert program.difference < 1e-5 * size


@pytest.mark.slow
@each_value
@pytest.mark.parametrize("layers", CRITIC_LAYERS, ids=repr)
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_the_choice_by_any_critics_is_exported(layers, head, tmp_path) -> None:
    critic = CriticArchitecture(hidden_dim=8, num_layers=1, layers=layers, head=head)
    joint = {"joint_batch": True, "ema_decay": 0.0} if layers.needs_joint_batch else {}
    trained = flow_policy(critic=critic, sampler=OdeSampler(Euler(1)), **joint)
    program = export_checkpoint(saved(trained, tmp_path), tmp_path / "policy.onnx")
    assert program.difference < 1e-4
