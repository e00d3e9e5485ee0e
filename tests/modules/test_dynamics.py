"""One-step models as modules: their runs, checkpoints, and use as the first stage of an occupancy."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.data import OfflineData, collect_transitions
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.models import DeterministicDynamics, DynamicsSettings, StochasticDynamics
from flowmatch_rl.modules import DynamicsModule, Expansion, FlowOptimizer, ObservedSteps, OccupancyModule
from flowmatch_rl.modules.dynamics import load_dynamics
from flowmatch_rl.nets import DynamicsArchitecture, VelocityArchitecture
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.schema import ActionBounds, TableSchema
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import LinearGaussianProcess, LinearPolicy
from tests.families import DYNAMICS
from tests.modules.occupancy_toys import PLANE, PLANE_POLICY
from tests.modules.test_expansion import OPEN, POLICY
from tests.modules.test_occupancy import model_of, tiny_data, trainer

every_model = pytest.mark.parametrize("settings", DYNAMICS, ids=lambda settings: type(settings).__name__)
FEW_WEIGHTS = DeterministicDynamics(DynamicsArchitecture(num_members=2, hidden_dim=5, num_layers=1))


def module_of(data: OfflineData, **options: Any) -> DynamicsModule:
    known = {name: value for name, value in data.dimensions.items() if name != "embedding_dim"}
    return DynamicsModule(**(known | options))


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters())


def checkpoint(folder: Path, **options: Any) -> tuple[DynamicsModule, Path]:
    """A model after a short run, and its checkpoint."""
    module, run = module_of(tiny_data(folder), **options), trainer(folder)
    run.fit(module, datamodule=tiny_data(folder))
    run.save_checkpoint(folder / "dynamics.ckpt")
    return module, folder / "dynamics.ckpt"


@every_model
def test_a_run_is_evaluated_along_trajectories_left_out_and_its_checkpoint_repeats_it(
    settings: DynamicsSettings, tmp_path: Path
) -> None:
    module, path = checkpoint(tmp_path, dynamics=settings)
    assert bool(module.dynamics.trained)
    again = DynamicsModule.load_from_checkpoint(path, weights_only=True)
    assert again.dynamics.settings == settings
    found = []
    for each in (module, again):
        run = trainer(tmp_path)
        found += run.test(each, datamodule=tiny_data(tmp_path), verbose=False)
    assert found[0] == found[1]
    assert found[0].keys() == {"test/loss", "test/dynamics_error/1", "test/dynamics_error/4"}
    assert len(module.result_lines(found[0])) == 2
    (nothing,) = module.result_lines({})
    assert nothing.startswith("measured     nothing: ")


def test_errors_of_a_random_process_fall_in_training(tmp_path: Path) -> None:
    """However random a process is, the error of the mean and the distance of distributions tend to zero."""
    torch.manual_seed(0)
    environment = ProcessEnvironment(LinearGaussianProcess(start_scale=1.0), max_steps=20)
    collect_transitions(environment, str(tmp_path / "set"), 8_000, num_envs=400, block_steps=20, progress=False)
    sizes: dict[str, Any] = {"batch_size": 128, "num_updates": 300, "epoch_updates": 300, "eval_steps": 4}
    data = OfflineData(str(tmp_path / "set"), environment=environment, eval_copies=32, **sizes)
    settings = StochasticDynamics(network=VelocityArchitecture(32, 1, "silu", time_features=8, max_frequency=10.0))
    policy = LinearPolicy(gain=[[-0.5, -0.5]])
    module = module_of(data, policy=policy, dynamics=settings, optimizer=FlowOptimizer(1e-2))
    before = trainer(tmp_path).validate(module, datamodule=data, verbose=False)[0]
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)
    after = trainer(tmp_path).validate(module, datamodule=data, verbose=False)[0]
    assert before.keys() == after.keys() >= {"val/loss", "val/dynamics_distance/1", "val/dynamics_error/4"}
    for name in ("val/loss", "val/dynamics_error/1", "val/dynamics_distance/1"):
        assert after[name] < 0.5 * before[name], name


def test_predictions_are_steps_in_the_units_of_the_environment(tmp_path: Path) -> None:
    module, _ = checkpoint(tmp_path, dynamics=StochasticDynamics(), predict_samples=3)
    (prediction,) = trainer(tmp_path).predict(module, datamodule=tiny_data(tmp_path, test_states=2)) or []
    assert prediction["sample"].shape == (6, 2)  # pyright: ignore
    source = module.schema.restore_condition(prediction["condition"])  # pyright: ignore
    assert list(source) == ["source_trajectory", "source_time", "action_0"]
    assert len(set(zip(source["source_trajectory"], source["source_time"], strict=True))) == 2


def test_a_diverged_model_ends_the_run_by_name(tmp_path: Path) -> None:
    module = module_of(tiny_data(tmp_path), optimizer=FlowOptimizer(1e30))
    with pytest.raises(RunError, match="one-step model"):
        trainer(tmp_path).fit(module, datamodule=tiny_data(tmp_path))


@every_model
def test_an_occupancy_expands_in_the_model_of_a_checkpoint_and_keeps_it(
    settings: DynamicsSettings, tmp_path: Path
) -> None:
    """Whatever model the run would train by itself, and without the file from then on."""
    module, path = checkpoint(tmp_path, dynamics=settings)
    segments = dataclasses.replace(OPEN, dynamics=FEW_WEIGHTS, checkpoint=str(path))
    data = tiny_data(tmp_path)
    occupancy, run = model_of(data, policy=POLICY, segments=segments), trainer(tmp_path, max_epochs=1)
    run.fit(occupancy, datamodule=data)
    run.save_checkpoint(tmp_path / "occupancy.ckpt")
    assert occupancy.dynamics is not None
    assert torch.equal(weights(occupancy.dynamics), weights(module.dynamics))
    path.unlink()
    again = OccupancyModule.load_from_checkpoint(tmp_path / "occupancy.ckpt", weights_only=True)
    assert again.dynamics is not None
    assert torch.equal(weights(again.dynamics), weights(module.dynamics))
    resumed = trainer(tmp_path)
    resumed.fit(again, datamodule=data, ckpt_path=tmp_path / "occupancy.ckpt", weights_only=True)
    assert resumed.callback_metrics["train/expansion_length"] > 1.0
    assert torch.equal(weights(again.dynamics), weights(module.dynamics))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (StochasticDynamics(), "dynamics DeterministicDynamics, got StochasticDynamics"),
        (FEW_WEIGHTS, r"dynamics\.architecture\.num_members 3, got 2"),
        (
            DeterministicDynamics(DynamicsArchitecture(activation="silu")),
            r"dynamics\.architecture\.activation relu, got silu",
        ),
    ],
    ids=["class", "members", "same shapes"],
)
def test_a_run_with_another_model_than_its_checkpoint_is_refused_by_the_setting(
    settings: DynamicsSettings, wanted: str, tmp_path: Path
) -> None:
    _, path = checkpoint(tmp_path)
    data = tiny_data(tmp_path)
    with pytest.raises(UserError, match=f"^the one-step model of the checkpoint was trained with {wanted}$"):
        trainer(tmp_path).test(module_of(data, dynamics=settings), datamodule=data, ckpt_path=path, weights_only=True)
    # The same for the model that an occupancy trains by itself.
    first = model_of(data, policy=POLICY, segments=dataclasses.replace(OPEN, dynamics=DeterministicDynamics()))
    saved: dict[str, Any] = {"hyper_parameters": dict(first.hparams), "state_dict": first.state_dict()}
    first.on_save_checkpoint(saved)
    second = model_of(data, policy=POLICY, segments=dataclasses.replace(OPEN, dynamics=settings))
    with pytest.raises(UserError, match=f"trained with segments\\.{wanted}$"):
        second.on_load_checkpoint(saved)


def test_a_trained_model_may_draw_by_another_sampler(tmp_path: Path) -> None:
    _, path = checkpoint(tmp_path, dynamics=StochasticDynamics())
    data = tiny_data(tmp_path)
    module = module_of(data, dynamics=StochasticDynamics(sampler=OdeSampler(Midpoint(num_steps=1))))
    trainer(tmp_path).test(module, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)


def test_a_model_keeps_its_units_with_data_of_other_ones(tmp_path: Path) -> None:
    module, path = checkpoint(tmp_path)
    other = dataclasses.replace(module.state_schema, shift=(5.0, 5.0), scale=(7.0, 7.0))
    model = load_dynamics(str(path), other, 1, None)
    state, action = torch.randn(6, 2), torch.zeros(6, 1)
    assert torch.equal(model.step(state, action).arrival, module.dynamics.step(state, action).arrival)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"schema": PLANE}, r"trained on states \(trajectory, time\), this data set has \(x, y, speed\)"),
        ({"action_dim": 2}, "trained on actions of dimension 1, this data set has 2"),
        ({"bounds": ActionBounds((-3.0,), (3.0,))}, "trained on actions within"),
    ],
    ids=["states", "actions", "bounds"],
)
def test_data_of_other_spaces_are_refused(changes: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    bounds = ActionBounds((-1.0,), (1.0,))
    module, path = checkpoint(tmp_path, action_bounds=bounds)
    same = {"schema": module.state_schema, "action_dim": 1, "bounds": bounds}
    load_dynamics(str(path), **same)  # pyright: ignore
    with pytest.raises(UserError, match=wanted):
        load_dynamics(str(path), **(same | changes))


def test_checkpoints_of_other_models_are_refused(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    schema = data.dimensions["schema"]
    for segments in (ObservedSteps(), OPEN):
        run = trainer(tmp_path)
        run.fit(model_of(data, policy=POLICY, segments=segments), datamodule=data)
        run.save_checkpoint(tmp_path / "occupancy.ckpt")
        with pytest.raises(UserError, match="not a checkpoint of a one-step model, as DynamicsModule writes it"):
            load_dynamics(str(tmp_path / "occupancy.ckpt"), schema, 1, None)
    with pytest.raises(UserError, match="is a folder, expected the path of a checkpoint"):
        load_dynamics(str(tmp_path), schema, 1, None)
    with pytest.raises(UserError, match=r"there is no checkpoint .*nowhere\.ckpt"):
        model_of(data, policy=POLICY, segments=Expansion(checkpoint="nowhere.ckpt")).load_dynamics()


def test_policies_of_other_states_are_refused() -> None:
    with pytest.raises(UserError, match="cannot act in states of 2 entries"):
        DynamicsModule(TableSchema(("x", "y"), (0.0, 0.0), (1.0, 1.0)), 2, policy=PLANE_POLICY)
