"""The occupancy from the command line: data sets, training, evaluation, samples in files, resuming."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from flowmatch_rl.data import TransitionStore
from flowmatch_rl.inference import CheckpointPolicy, load_occupancy
from flowmatch_rl.modules import OccupancyModule
from tests.cli.support import CONF, MAZE_LOOP, Outcome, arguments, call, collect, occupancy_arguments

pytestmark = pytest.mark.usefixtures("without_figures")

COLLECTIONS = sorted(path.stem for path in (CONF / "collect").glob("*.yaml") if "oracle:" not in path.read_text())
CONVERSIONS = sorted(path.stem for path in (CONF / "convert").glob("*.yaml") if "CheckpointReplay" in path.read_text())
"""Conversions of the replay buffers of runs."""
TASKS = sorted((CONF / "occupancy").glob("*.yaml"))
PRESETS = sorted((CONF / "occupancy" / "presets").glob("*.yaml"))
OBJECTIVES = ["TDCFM", "CoupledTDCFM"]
DATA_OF = {
    "maze_family": "maze_walks",
    "maze_goals": "maze",
    "maze_intentions": "maze_two",
    "maze_loop": "maze",
}
"""Collections of the tasks that are not called like one."""
LONG: dict[str, object] = {"num_transitions": 800, "num_envs": 2, "block_steps": 400}
"""Trajectories in which most of an occupancy at a discount of 0.99 is observed."""
UNSTATED = {f"model__{name}": None for name in ("network", "network__init_args__hidden_dim")}
UNSTATED |= {"model__network__init_args__num_blocks": None, "model__likelihood__solver__init_args__num_steps": None}
"""Leaves the model's sizes to the checkpoint."""

Data = Callable[[str], Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    """Data set of a configuration in ``conf/collect`` or ``conf/convert``, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("data")

    def get(name: str) -> Path:
        output = folder / name
        if output.exists():
            return output
        if name in CONVERSIONS:
            checkpoint = f"--layout.init_args.path={actor_critic(folder, name)}"
            outcome = call(["convert", f"-c={CONF / 'convert' / name}.yaml", f"--output={output}", checkpoint])
            assert outcome.code == 0, outcome.err
            return output
        options = LONG if name == "maze_loop" else {}
        if "CheckpointPolicy" in (CONF / "collect" / f"{name}.yaml").read_text():
            # Eight trajectories, of which a quarter may be kept for evaluation.
            options = {"policy__init_args__path": actor_critic(folder, name)}
            options |= {"num_transitions": 80, "block_steps": 10}
        return collect(output, name, **options)

    return get


def actor_critic(folder: Path, name: str) -> Path:
    """Checkpoint of an actor-critic that was trained for a few steps."""
    options = arguments("fit", CONF / "actor_critic" / f"{name}.yaml", trainer__logger="false")
    assert call([*options, f"--trainer.default_root_dir={folder / 'policies' / name}"]).code == 0
    return last_of(folder / "policies" / name)


def cloned_family(source: Path) -> Path:
    """Checkpoint of a family of policies that was cloned for a few steps."""
    folder = source.parent / "policies" / "maze_family"
    sizes = {"data.num_updates": 4, "data.epoch_updates": 2, "model.policy.network.hidden_dim": 16}
    quiet = {"trainer.logger": "false", "trainer.enable_progress_bar": "false", "trainer.accelerator": "cpu"}
    options = sizes | quiet | {"data.path": source, "trainer.default_root_dir": folder}
    config = f"-c={CONF / 'offline' / 'maze_family.yaml'}"
    assert call(["fit", config, *(f"--{name}={value}" for name, value in options.items())]).code == 0
    return last_of(folder)


def policy_of(path: Path, source: Path) -> dict[str, object]:
    """Options of a task whose policy is in a checkpoint, which was made with the data set in ``source``."""
    if path.stem == "maze_family":
        return {"model__policy__init_args__path": cloned_family(source)}
    if path.stem not in CONVERSIONS:
        return {}
    options: dict[str, object] = {"model__policy__init_args__num_particles": 1}
    if "segments: {class_path: Expansion" in path.read_text():
        options["model__segments__init_args__num_updates"] = 200
    return options | {"model__policy__init_args__path": last_of(source.parent / "policies" / path.stem)}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> tuple[Path, Outcome]:
    """Folder of a run of the loop in the maze, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, command("fit", folder, MAZE_LOOP, data__path=data("maze"))


def command(name: str, folder: Path, *configs: Path, **changes: object) -> Outcome:
    outcome = call(occupancy_arguments(name, *configs, trainer__default_root_dir=folder, **changes))
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    return outcome


def last_of(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def trained_state(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run, after a look at what every run must leave."""
    checkpoint = torch.load(last_of(folder), weights_only=True)
    assert all(bool(torch.isfinite(weight).all()) for weight in checkpoint["state_dict"].values())
    assert checkpoint["global_step"] == checkpoint["OfflineData"]["drawn"] == 6
    return checkpoint


def written(folder: Path) -> dict[str, Any]:
    """Arguments of the model in the configuration that a run wrote."""
    return yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]


@pytest.mark.parametrize("name", COLLECTIONS)
def test_every_collection_makes_a_data_set(name, data) -> None:
    store = TransitionStore.open(data(name))
    assert store.info.ordered
    assert store.info.num_transitions == len(store) > 0
    assert bool(torch.isfinite(store.transitions["observation"]).all())
    assert store.transitions["action"].std() > 0.0


def test_collection_tells_the_checkpoint_of_its_policy(data) -> None:
    checkpoint = last_of(data("halfcheetah").parent / "policies" / "halfcheetah")
    made_by = TransitionStore.open(data("halfcheetah")).info.provenance
    assert str(checkpoint) in made_by["policy"]


@pytest.mark.parametrize("name", CONVERSIONS)
def test_every_conversion_makes_the_data_set_of_the_policy_that_is_in_its_checkpoint(name, data) -> None:
    store, checkpoint = TransitionStore.open(data(name)), last_of(data(name).parent / "policies" / name)
    held = torch.load(checkpoint, weights_only=True)
    assert store.info.ordered
    assert store.info.action_bounds == held["hyper_parameters"]["action_bounds"]
    assert torch.equal(torch.as_tensor(store.transitions["observation"]), held["OnlineData"]["replay"]["observation"])
    policy = CheckpointPolicy(str(checkpoint))
    assert policy.act(torch.as_tensor(store.transitions["observation"])).shape == (40, store.info.action_dim)


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_every_task_trains_and_ends_with_a_summary(path, data, tmp_path) -> None:
    source = data(DATA_OF.get(path.stem, path.stem))
    outcome = command("fit", tmp_path, path, data__path=source, **policy_of(path, source))
    rewards = list(yaml.safe_load(path.read_text())["model"]["init_args"]["rewards"])
    expands = "class_path: Expansion" in path.read_text()
    values, files = ["value"] * len(rewards), ["checkpoint", "checkpoint", "figure", *["figure"] * (2 * expands)]
    model = ["clock", "dynamics"] if expands else ["clock"]
    # Whether so small a model is warned to be blind to the action is chance.
    words = [word for word in outcome.last_words if word != "warning"]
    assert words == ["distance", "likelihood", *values, "action", *model, *files]
    assert all(f"{name}: " in outcome.out for name in rewards)
    assert all("roll-outs" in line for line in outcome.out.splitlines() if line.startswith("value"))
    hyper_parameters = trained_state(tmp_path)["hyper_parameters"]
    assert hyper_parameters["schema"].columns == TransitionStore.open(source).info.columns
    assert list(hyper_parameters["rewards"]) == rewards
    assert load_occupancy(last_of(tmp_path)).columns == hyper_parameters["schema"].columns


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_lies_over_the_loop_in_the_maze(preset, data, tmp_path) -> None:
    source = data("maze_loop" if preset.stem == "monte_carlo" else "maze")
    stated = yaml.safe_load(preset.read_text())["model"]["init_args"]
    kept = {"model__segments__init_args__pool_batches": None} if "pool_batches" in preset.read_text() else {}
    outcome = command("fit", tmp_path, MAZE_LOOP, preset, data__path=source, **kept)
    assert "distance" in outcome.out
    assert_contains(written(tmp_path), stated)
    trained_state(tmp_path)


def assert_contains(full: Any, stated: Any) -> None:
    """Whether a written configuration holds what a shorter one states."""
    if isinstance(stated, dict):
        for name, value in stated.items():
            assert_contains(full[name], value)
    elif isinstance(full, str):
        assert full.rpartition(".")[2] == str(stated).rpartition(".")[2]
    else:
        assert full == stated


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objective_is_one_option(objective, data, tmp_path) -> None:
    changes = {"model__init_args__objective": objective}
    command("fit", tmp_path, MAZE_LOOP, data__path=data("maze"), **changes)
    trained_state(tmp_path)
    assert type(OccupancyModule.load_from_checkpoint(last_of(tmp_path)).objective).__name__ == objective


def test_a_model_of_version_0_2_0_states_the_steps_of_its_segments(trained, tmp_path) -> None:
    checkpoint = torch.load(last_of(trained[0]), weights_only=True)
    del checkpoint["hyper_parameters"]["segments"]
    checkpoint["hyper_parameters"]["num_steps"] = 1
    torch.save(checkpoint, tmp_path / "old.ckpt")
    load_occupancy(tmp_path / "old.ckpt")


def test_prediction_writes_future_states_with_what_they_follow(trained, data, tmp_path) -> None:
    options = UNSTATED | {"data__path": data("maze"), "ckpt_path": last_of(trained[0])}
    outcome = command("predict", tmp_path, MAZE_LOOP, **options)
    assert outcome.out == f"15 samples in {tmp_path / 'samples.csv'}\n"
    table = pd.read_csv(tmp_path / "samples.csv")
    states = ["x", "y", "vx", "vy"]
    sources = [*(f"source_{name}" for name in states), "action_0", "action_1"]
    assert list(table) == [*states, *sources]
    assert len(table.drop_duplicates(sources)) == 3
    assert len(table.drop_duplicates(states)) == 15
    model = load_occupancy(last_of(trained[0]))
    source = torch.tensor(table[sources[:4]].to_numpy(), dtype=torch.float32)
    actions = model.model.act(source, torch.empty(len(source), 0)).numpy()
    np.testing.assert_allclose(table[sources[4:]].to_numpy(), actions, atol=1e-5)


def results(outcome: Outcome) -> list[str]:
    return [line for line in outcome.out.splitlines() if line.startswith(("distance", "likelihood", "value"))]


def test_evaluation_repeats_the_end_of_training_with_the_model_of_the_checkpoint(trained, data, tmp_path) -> None:
    folder, fit = trained
    options = UNSTATED | {"data__path": data("maze"), "ckpt_path": last_of(folder)}
    test = command("test", tmp_path, MAZE_LOOP, **options)
    assert len(results(fit)) == 4
    assert results(test) == results(fit)
    validation = command("validate", tmp_path, MAZE_LOOP, **options)
    assert "val/wasserstein" in validation.out


def test_checkpoint_is_asked_about_new_rewards(trained, data, tmp_path) -> None:
    folder, fit = trained
    rewards = {
        "speed": {"class_path": "SpeedReward", "init_args": {"scale": 0.4}},
        "loop": {"class_path": "CirculationReward", "init_args": {"scale": 0.4}},
    }
    options = UNSTATED | {"data__path": data("maze"), "ckpt_path": last_of(folder)}
    outcome = command("test", tmp_path, MAZE_LOOP, **options, model__init_args__rewards=json.dumps(rewards))
    speed, loop = results(outcome)[2:]
    assert "speed: " in speed
    assert loop == results(fit)[2]


def probes(name: str, **init_args: object) -> str:
    return json.dumps([{"class_path": f"tests.cli.probes.{name}", "init_args": init_args}])


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("stop", [{"trainer__max_epochs": 1}, {"interrupt_after": 2}], ids=["finished", "interrupted"])
def test_resumed_run_continues_with_the_batches_that_would_have_come(stop, data, tmp_path) -> None:
    def fit(name: str, **changes: object) -> Outcome:
        probe = probes("Batches", path=str(tmp_path / name), interrupt_after=changes.pop("interrupt_after", None))
        options: dict[str, object] = {"data__path": data("maze"), "trainer__callbacks": probe}
        options |= {"trainer__default_root_dir": tmp_path / f"{name}_run"} | changes
        return call(occupancy_arguments("fit", MAZE_LOOP, **options))

    def batches(*names: str) -> list[str]:
        return [line for name in names for line in (tmp_path / name).read_text().splitlines()]

    assert fit("whole").code == 0
    first = fit("first", **stop)
    assert first.code == (130 if "interrupt_after" in stop else 0), first.err
    second = fit("second", ckpt_path=last_of(tmp_path / "first_run"))
    assert second.code == 0, second.err
    assert batches("first", "second") == batches("whole")
    assert len(set(batches("whole"))) == 6
    units = [trained_state(tmp_path / f"{name}_run")["hyper_parameters"]["schema"] for name in ("whole", "second")]
    assert units[0] == units[1]


def test_resumed_run_keeps_the_units_it_began_with(trained, data, tmp_path) -> None:
    folder, _ = trained
    options: dict[str, object] = {"data__path": data("maze_loop"), "data__num_updates": 9}
    command("fit", tmp_path, MAZE_LOOP, **options, ckpt_path=last_of(folder))
    began, went_on = (torch.load(last_of(path), weights_only=True) for path in (folder, tmp_path))
    assert went_on["hyper_parameters"]["schema"] == began["hyper_parameters"]["schema"]
    assert went_on["OfflineData"]["drawn"] == went_on["global_step"] == 9
    other = TransitionStore.open(data("maze_loop")).info
    assert went_on["hyper_parameters"]["schema"].scale != other.observation_std


def test_new_run_over_another_is_refused_and_loses_nothing(trained, data) -> None:
    folder, _ = trained
    before = last_of(folder).read_bytes()
    options = {"data__path": data("maze"), "trainer__default_root_dir": folder}
    outcome = call(occupancy_arguments("fit", MAZE_LOOP, **options))
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert f"{folder / 'config.yaml'} --ckpt_path last" in outcome.err
    assert last_of(folder).read_bytes() == before


def test_written_configuration_can_be_used_again(trained) -> None:
    path = trained[0] / "config.yaml"
    first = yaml.safe_load(path.read_text())
    again = call(["fit", f"-c={path}", "--print_config"])
    assert again.code == 0, again.err
    second = yaml.safe_load(again.out)
    assert (second["model"], second["data"]) == (first["model"], first["data"])
    assert first["model"]["init_args"]["rewards"]["loop"]["init_args"]["scale"] == 0.4
    assert "schema" not in first["model"]["init_args"]
