"""Every file in conf/ trains a few steps."""

import functools
import math

import pytest
import torch
import yaml

from tests.cli.support import CONF, PENDULUM, arguments, call

pytestmark = pytest.mark.usefixtures("without_figures")

TASKS = sorted((CONF / "actor_critic").glob("*.yaml"))
PRESETS = sorted((CONF / "actor_critic" / "presets").glob("*.yaml"))
WALKER = CONF / "actor_critic" / "walker_run.yaml"


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
    assert all(math.isfinite(bound) for bound in hyper_parameters["action_low"] + hyper_parameters["action_high"])


@pytest.mark.parametrize("task", [PENDULUM, WALKER], ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_lies_over_a_task_and_keeps_its_environment(preset, task, tmp_path) -> None:
    train(tmp_path, task, preset)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    stated = yaml.safe_load(preset.read_text())["model"]["init_args"]
    model = written["model"]["init_args"]
    assert model["temperature"] == stated["temperature"]
    assert model["share_samples"] == stated.get("share_samples", model["share_samples"])
    for name in ("proposal", "control_variate"):
        given = stated["estimator"]["init_args"][name]
        wanted = given if isinstance(given, str) else given["class_path"]
        assert model["estimator"]["init_args"][name]["class_path"].endswith(f".{wanted}")
    assert written["data"]["init_args"]["environment"] == environment_of(task)


@functools.cache
def environment_of(task) -> dict:
    outcome = call([*arguments("fit", task), "--print_config"])
    return yaml.safe_load(outcome.out)["data"]["init_args"]["environment"]


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
    assert config["model"]["init_args"]["max_gradient_norm"] == 10.0  # a default
    assert "observation_dim" not in config["model"]["init_args"]
    (tmp_path / "config.yaml").write_text(outcome.out)
    again = call(["fit", f"-c={tmp_path / 'config.yaml'}", "--print_config"])
    assert yaml.safe_load(again.out) == config
