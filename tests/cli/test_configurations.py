"""Every file in conf/ trains a few steps."""

import functools
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.cli.support import CONF, PENDULUM, SIZES, arguments, call
from tests.combinations import each_value

pytestmark = pytest.mark.usefixtures("without_figures")

TASKS = sorted((CONF / "actor_critic").glob("*.yaml"))
PRESETS = sorted((CONF / "actor_critic" / "presets").glob("*.yaml"))
METHODS = sorted((CONF / "actor_critic" / "methods").glob("*.yaml"))
CRITICS = sorted((CONF / "actor_critic" / "critics").glob("*.yaml"))
WALKER = CONF / "actor_critic" / "walker_run.yaml"
WALKER_WALK = CONF / "actor_critic" / "walker_walk.yaml"
METHOD_SIZES = {"model.policy.sampler.init_args.num_steps": 2, "model.policy.network.hidden_dim": 16}
"""Tiny sizes of parts that the default method doesn't have."""


def train(folder, *configs, **changes):
    outcome = call(arguments("fit", *configs, trainer__logger="false", trainer__default_root_dir=folder, **changes))
    assert outcome.code == 0, outcome.err
    assert "return" in outcome.out
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] >= 8
    assert checkpoint["OnlineData"]["local_env_steps"] >= 40
    assert all(bool(torch.isfinite(weight).all()) for weight in checkpoint["state_dict"].values())
    return checkpoint


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_every_task_trains(path, tmp_path) -> None:
    checkpoint = train(tmp_path, path)
    hyper_parameters = checkpoint["hyper_parameters"]
    observation = checkpoint["OnlineData"]["replay"]["observation"]
    assert observation.shape == (40, hyper_parameters["observation_dim"])
    bounds = hyper_parameters["action_bounds"]
    assert all(math.isfinite(bound) for bound in (*bounds.low, *bounds.high))


@each_value
@pytest.mark.parametrize("task", [PENDULUM, WALKER], ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_lies_over_a_task_and_keeps_its_environment(preset, task, tmp_path) -> None:
    train(tmp_path, task, preset, **sizes_of(preset))
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    stated = yaml.safe_load(preset.read_text())["model"]["init_args"]
    model = written["model"]["init_args"]
    check_stated(stated, model, "model", sizes_of(preset))
    assert written["data"]["init_args"]["environment"] == environment_of(task)


def check_stated(stated: dict[str, Any], written: dict[str, Any], where: str, sizes: dict[str, object]) -> None:
    """Check that a configuration holds everything that an overlay states, but for the tiny sizes."""
    for name, value in stated.items():
        place, found = f"{where}__{name}", written[name]
        if isinstance(found, dict) and "class_path" in found:
            wanted = value if isinstance(value, str) else value["class_path"]
            assert found["class_path"].endswith(f".{wanted}"), place
            if isinstance(value, dict):
                check_stated(value.get("init_args", {}), found["init_args"], f"{place}__init_args", sizes)
        elif isinstance(value, dict):
            check_stated(value, found, place, sizes)
        elif sizes.get(place) is None:
            assert found == value, place


def test_a_run_that_collects_in_a_process_takes_its_steps_and_continues_its_episodes_when_resumed(tmp_path) -> None:
    overlay = CONF / "collectors" / "processes.yaml"
    state = train(tmp_path, PENDULUM, overlay)["OnlineData"]
    assert (state["local_env_steps"], len(state["replay"]["observation"])) == (40, 40)
    options = {"trainer__logger": "false", "trainer__default_root_dir": tmp_path, "ckpt_path": "last"}
    outcome = call(arguments("fit", PENDULUM, overlay, **options, data__total_env_steps=48))
    assert outcome.code == 0, outcome.err
    assert "begins new episodes" not in outcome.out
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["OnlineData"]["local_env_steps"] == 48
    assert multiprocessing.active_children() == []


def test_a_run_that_is_not_tested_ends_with_where_its_files_are(tmp_path) -> None:
    options = {"trainer__logger": "false", "trainer__default_root_dir": tmp_path, "trainer__limit_test_batches": 0}
    outcome = call(arguments("fit", PENDULUM, **options))
    assert (outcome.code, outcome.err) == (0, "")
    assert set(outcome.last_words) <= {"checkpoint", "figure"}


@functools.cache
def environment_of(task) -> dict:
    return printed(task)["data"]["init_args"]["environment"]


@functools.cache
def printed(*configs: Path) -> dict[str, Any]:
    outcome = call(["fit", *(f"-c={path}" for path in configs), "--print_config"])
    assert (outcome.code, outcome.err) == (0, "")
    return yaml.safe_load(outcome.out)


def sizes_of(layer: Path) -> dict[str, object]:
    """Tiny sizes of the options that a layer leads to; None for those that it doesn't."""

    def has(option: str) -> bool:
        node = printed(PENDULUM, layer)["model"]["init_args"]
        for name in option.split(".")[1:]:
            if not isinstance(node, dict) or name not in node:
                return False
            node = node[name]
        return True

    sizes = {option: value if has(option) else None for option, value in (SIZES | METHOD_SIZES).items()}
    return {name.replace(".", "__"): value for name, value in sizes.items() if name.startswith("model.")}


@each_value
@pytest.mark.parametrize("task", [PENDULUM, WALKER_WALK], ids=lambda path: path.stem)
@pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
def test_every_method_lies_over_a_task_and_keeps_its_environment(method, task, tmp_path) -> None:
    options = {"trainer__logger": "false", "trainer__default_root_dir": tmp_path}
    sizes = sizes_of(method)
    outcome = call(arguments("fit", task, method, **options | sizes))
    assert (outcome.code, outcome.err) == (0, "")
    assert "return" in outcome.out
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["data"]["init_args"]["environment"] == environment_of(task)
    stated = yaml.safe_load(method.read_text())["model"]["init_args"]
    model = written["model"]["init_args"]
    for name in ("discount", "temperature"):
        if name not in stated:
            assert model[name] == printed(task)["model"]["init_args"][name], name
    assert model["critics"]["ema_decay"] == printed(task)["model"]["init_args"]["critics"]["ema_decay"]
    check_stated(stated, model, "model", sizes)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["actor_critic"] == written["model"]["class_path"].rpartition(".")[2]
    assert all(bool(torch.isfinite(weight).all()) for weight in checkpoint["state_dict"].values())


@each_value
@pytest.mark.parametrize("method", ["methods/sac", "presets/fast"])
@pytest.mark.parametrize("critics", CRITICS, ids=lambda path: path.stem)
def test_every_kind_of_critics_lies_over_a_method_and_keeps_the_rest(critics, method, tmp_path) -> None:
    below = PENDULUM, CONF / "actor_critic" / f"{method}.yaml"
    sizes = sizes_of(below[1])
    train(tmp_path, *below, critics, **sizes)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]
    stated = yaml.safe_load(critics.read_text())["model"]["init_args"]
    check_stated(stated, written["init_args"], "model", sizes)
    before = printed(*below)["model"]
    assert written["class_path"] == before["class_path"]
    for name in ("discount", "temperature"):
        assert written["init_args"][name] == before["init_args"][name], name


def test_change_of_the_method_keeps_what_both_know_and_nothing_else(tmp_path) -> None:
    model = printed(PENDULUM, CONF / "actor_critic" / "methods" / "sac.yaml")["model"]
    task = yaml.safe_load(PENDULUM.read_text())["model"]["init_args"]
    assert model["class_path"].endswith(".SoftActorCritic")
    arguments_of = model["init_args"]
    assert arguments_of["discount"] == task["discount"] != 0.99
    assert arguments_of["critics"]["ema_decay"] == task["critics"]["ema_decay"] != 0.995
    assert arguments_of["critics"]["architecture"]["hidden_dim"] == 128 != 256
    assert arguments_of["temperature"]["init_args"] == {"start": 1.0, "entropy_per_dimension": -1.0}
    assert not {"estimator", "points", "acting", "weights"} & arguments_of.keys()
    assert not {"sampler", "path", "t_min"} & arguments_of["policy"].keys()
    (tmp_path / "class.yaml").write_text("model: {class_path: SoftActorCritic}\n")
    plain = printed(PENDULUM, tmp_path / "class.yaml")["model"]["init_args"]
    assert plain["temperature"] == task["temperature"]  # the layer states none
    default = printed(WALKER_WALK, tmp_path / "class.yaml")["model"]["init_args"]
    assert default["temperature"]["class_path"].endswith(".EntropyTemperature")


@pytest.mark.parametrize("name", ["bf16", "ddp"])
def test_every_trainer_layer_is_valid_and_changes_what_it_states(name) -> None:
    path = CONF / "trainer" / f"{name}.yaml"
    outcome = call(["fit", f"-c={PENDULUM}", f"-c={path}", "--print_config"])
    assert outcome.code == 0, outcome.err
    trainer = yaml.safe_load(outcome.out)["trainer"]
    assert {key: trainer[key] for key in yaml.safe_load(path.read_text())["trainer"]} == yaml.safe_load(
        path.read_text()
    )["trainer"]


def test_mixed_precision_layer_trains(tmp_path) -> None:
    train(tmp_path, PENDULUM, CONF / "trainer" / "bf16.yaml")


def test_server_layer_names_a_server_and_the_other_none() -> None:
    def logger(name: str):
        outcome = call(["fit", f"-c={PENDULUM}", f"-c={CONF / 'logger' / name}", "--print_config"])
        assert outcome.code == 0, outcome.err
        return yaml.safe_load(outcome.out)["trainer"]["logger"]

    assert logger("none.yaml") is False
    assert logger("server.yaml")["init_args"]["tracking_uri"].startswith("http")


def test_printed_configuration_is_the_whole_and_can_be_read_again(tmp_path) -> None:
    outcome = call(["fit", f"-c={PENDULUM}", "--print_config"])
    assert outcome.code == 0
    config = yaml.safe_load(outcome.out)
    assert config["model"]["init_args"]["temperature"] == 1.0
    assert config["model"]["init_args"]["optimizer"]["max_gradient_norm"] == 10.0  # a default
    assert "observation_dim" not in config["model"]["init_args"]
    (tmp_path / "config.yaml").write_text(outcome.out)
    again = call(["fit", f"-c={tmp_path / 'config.yaml'}", "--print_config"])
    assert yaml.safe_load(again.out) == config
