"""A tracked run from its start to a resumed one, and the ways a run can break off."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import torch
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

import tests.toys  # noqa: F401 (registers environments)
from flowmatch_rl.callbacks import Video
from flowmatch_rl.estimators import LikelihoodProposal, RegressControlVariate
from flowmatch_rl.inference import load_policy
from flowmatch_rl.modules import ReverseFlowActorCritic
from flowmatch_rl.paths import AffinePath, CosineSchedule
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Heun
from tests.cli.support import PENDULUM, ROOT, Outcome, arguments, call, default_signals, environment

CONTROL_VARIATE = {"class_path": "RegressControlVariate", "init_args": {"limit": 1.5}}


@dataclass
class Tracked:
    """A finished run, its folder and its record."""

    outcome: Outcome
    folder: Path
    uri: str
    client: MlflowClient
    run: Run

    @property
    def last(self) -> Path:
        """Its last checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.chdir(home)
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("FLOWMATCH_RL_GIT_COMMIT", raising=False)
        outcome = call(
            arguments(
                "fit",
                PENDULUM,
                seed_everything=7,
                model__policy__path__schedule="CosineSchedule",
                model__policy__sampler__init_args__solver="Heun",
                model__estimator__init_args__proposal="LikelihoodProposal",
                model__estimator__init_args__control_variate=json.dumps(CONTROL_VARIATE),
                data__epoch_env_steps=4,
                data__env_steps_per_collection=1,
                trainer__log_every_n_steps=2,
                trainer__logger__init_args__registered_model_name="pendulum",
            )
        )
        assert outcome.code == 0, outcome.err
        uri = f"sqlite:///{home / 'runs' / 'mlflow.db'}"
        client = MlflowClient(uri)
        (run,) = runs_of(client)
        (folder,) = (home / "runs" / "Pendulum-v1").iterdir()
        yield Tracked(outcome, folder, uri, client, run)


def runs_of(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("flowmatch_rl")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def run_in(client: MlflowClient, folder: Path) -> Run:
    """The run whose files lie in a folder."""
    (found,) = [run for run in runs_of(client) if run.data.tags.get("run_dir") == str(folder)]
    return found


def artifacts(tracked: Tracked, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for item in tracked.client.list_artifacts(tracked.run.info.run_id, folder):
        found |= artifacts(tracked, item.path) if item.is_dir else {item.path}
    return found


def test_run_leaves_checkpoints_configuration_and_figures(tracked) -> None:
    files = {str(path.relative_to(tracked.folder)) for path in tracked.folder.rglob("*") if path.is_file()}
    wanted = {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "config.yaml", "figures/learning_curve.csv"}
    wanted |= {"result.json", "model/policy.ckpt", "tracking/fit-1.jsonl", "tracking/fit-1.delivered.json"}
    wanted |= {f"figures/{name}.png" for name in ("learning_curve", "policy", "posterior", "episode")}
    assert files == wanted


def test_summary_names_the_return_and_every_file(tracked) -> None:
    assert re.search(r"return +-?\d+\.\d \+- \d", tracked.outcome.out)
    for name in ("last.ckpt", "best.ckpt", "learning_curve.png", "policy.png", "episode.png", tracked.run.info.run_id):
        assert name in tracked.outcome.out
    assert tracked.outcome.err == ""


def test_run_begins_with_its_folder_environment_and_sizes(tracked) -> None:
    lines = dict(line.split(maxsplit=1) for line in tracked.outcome.out.splitlines()[:7])
    assert list(lines) == ["run", "device", "model", "environment", "training", "tracking", "open"]
    assert lines["run"] == str(tracked.folder.relative_to(Path.cwd()))
    assert re.fullmatch(r"ReverseFlowActorCritic, [\d,]+ weights \(policy [\d,]+, critics [\d,]+\)", lines["model"])
    assert lines["environment"] == "Pendulum-v1, observation of dimension 3, action of dimension 1"
    assert lines["training"] == "40 environment steps, 32 of them a warm-up; then 1 updates of batch 8 per step"
    assert lines["tracking"].partition("?")[0].endswith(f"/runs/{tracked.run.info.run_id}")
    assert lines["open"] == "it      flowmatch-rl ui"


def test_checkpoint_of_the_command_line_rebuilds_its_objects_without_running_code(tracked) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        path = tracked.last.with_name(name)
        torch.load(path, weights_only=True)
        module = ReverseFlowActorCritic.load_from_checkpoint(path, weights_only=True)
        assert module.policy.flow.path == AffinePath(CosineSchedule())
        assert module.policy.sampler == OdeSampler(Heun(2))
        assert module.learner.estimator.proposal == LikelihoodProposal()
        assert module.learner.estimator.control_variate == RegressControlVariate(limit=1.5)
        assert module.temperature == 1.0
    action = load_policy(tracked.last)(np.array([1.0, 0.0, 0.5]))
    assert action.shape == (1,)
    assert abs(action[0]) <= 2.0
    state = torch.load(tracked.last, weights_only=True)["state_dict"]
    policy_state = load_policy(tracked.last).module.state_dict()
    assert all(torch.equal(policy_state[name], state[name]) for name in state)


def test_written_configuration_holds_defaults_and_changes_and_can_be_used_again(tracked) -> None:
    config = yaml.safe_load((tracked.folder / "config.yaml").read_text())
    assert config["seed_everything"] == 7
    assert config["data"]["init_args"]["total_env_steps"] == 40
    assert config["model"]["init_args"]["optimizer"]["max_gradient_norm"] == 10.0
    again = call(["fit", f"-c={tracked.folder / 'config.yaml'}", "--print_config"])
    assert again.code == 0, again.err
    assert yaml.safe_load(again.out)["model"] == config["model"]


def test_record_holds_parameters_and_tags(tracked) -> None:
    data = tracked.run.data
    assert tracked.run.info.status == "FINISHED"
    for name, value in {
        "model.temperature": "1.0",
        "data.total_env_steps": "40",
        "model.optimizer.max_gradient_norm": "10.0",
    }.items():
        assert data.params[name] == value
    assert any("CosineSchedule" in value for value in data.params.values())
    assert "None" not in data.params.values()
    assert data.tags["seed"] == "7"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if head.returncode == 0:
        assert data.tags["commit"].removesuffix("-dirty") == head.stdout.strip()
    assert data.tags["version/torch"] == torch.__version__
    assert data.tags["version/flowmatch_rl"]
    assert data.tags["run_dir"] == str(tracked.folder.relative_to(Path.cwd()))
    assert re.fullmatch(r"Pendulum-v1/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", str(tracked.run.info.run_name))


def test_metrics_are_recorded_over_environment_steps(tracked) -> None:
    def history(name: str) -> dict[int, float]:
        return {m.step: m.value for m in tracked.client.get_metric_history(tracked.run.info.run_id, name)}

    assert list(history("val/return_mean")) == [36, 40]
    assert list(history("test/return_mean")) == [40]
    for name in ("train/loss", "train/loss/critic", "train/loss/policy", "train/effective_sample_size", "train/eta"):
        assert list(history(name)) == [34, 36, 38, 40], name
    by_time = [history(f"train/by_time/eta/{index}") for index in range(10)]
    assert {step for steps in by_time for step in steps} == {36, 40}
    assert all(value > 0.0 for value in history("train/env_steps_per_s").values())
    assert set(history("train/gradient_steps_per_s")) <= {34, 36, 38, 40}


def test_record_holds_files(tracked) -> None:
    found = artifacts(tracked)
    assert "config.yaml" in found
    assert {f"figures/{name}.png" for name in ("learning_curve", "policy", "posterior", "episode")} <= found
    assert {"last/last.ckpt", "best/best.ckpt"} <= found


def test_record_holds_the_environment_as_the_data_of_the_run(tracked) -> None:
    (given,) = tracked.run.inputs.dataset_inputs
    assert (given.dataset.name, len(given.dataset.digest)) == ("Pendulum-v1", 32)
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    assert json.loads(given.dataset.profile)["num_rows"] == 40
    assert "GymnasiumEnvironment" in given.dataset.source
    assert [column["name"] for column in json.loads(given.dataset.schema)["mlflow_colspec"]] == list(
        load_policy(tracked.last).interface.observation_columns
    )


def test_record_holds_the_policy_as_a_model_which_acts_as_the_checkpoint(tracked, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    (output,) = tracked.run.outputs.model_outputs
    (version,) = tracked.client.search_model_versions("name = 'pendulum'")
    assert (version.source, version.run_id) == (f"models:/{output.model_id}", tracked.run.info.run_id)
    assert f"model        runs:/{tracked.run.info.run_id}/policy" in tracked.outcome.out
    observation = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    for address in (f"runs:/{tracked.run.info.run_id}/policy", "models:/pendulum/1"):
        model = mlflow.pyfunc.load_model(address, model_config={"seed": 1})
        np.testing.assert_array_equal(model.predict(observation), load_policy(tracked.last, seed=1)(observation))
    assert model.input_example["observation"].shape == (2, 3)
    logged = tracked.client.get_logged_model(output.model_id)
    measured = {metric.key: metric.value for metric in logged.metrics or ()}
    assert measured["test/return_mean"] == tracked.run.data.metrics["test/return_mean"]
    assert len(tracked.client.get_metric_history(tracked.run.info.run_id, "test/return_mean")) == 1


@pytest.mark.usefixtures("without_figures")
def test_evaluation_of_a_checkpoint_repeats_itself_and_the_end_of_its_run(tracked, tmp_path) -> None:
    def evaluate(checkpoint: Path, **changes) -> str:
        outcome = call(
            arguments(
                "test",
                *untracked(tracked),
                trainer__logger="false",
                trainer__default_root_dir=tmp_path,
                **changes,
                ckpt_path=checkpoint,
            )
        )
        assert outcome.code == 0, outcome.err
        (line,) = [line for line in outcome.out.splitlines() if line.startswith("return")]
        return line

    first = evaluate(tracked.last)
    assert evaluate(tracked.last) == first
    assert first in tracked.outcome.out
    assert evaluate(tracked.last, data__eval_seed=5) != first


def untracked(tracked: Tracked) -> list[Path]:
    """The configuration of a run without its tracking."""
    config = yaml.safe_load((tracked.folder / "config.yaml").read_text())
    kept = {name: config[name] for name in ("model", "data")}
    path = tracked.folder.parent.parent / "again.yaml"
    path.write_text(yaml.safe_dump(kept))
    return [path]


def test_prediction_writes_whole_episodes(tracked, tmp_path) -> None:
    outcome = call(
        arguments(
            "predict",
            *untracked(tracked),
            trainer__logger="false",
            trainer__default_root_dir=tmp_path,
            data__test_episodes=3,
            data__max_episode_steps=6,
            ckpt_path=tracked.last,
        )
    )
    assert outcome.code == 0, outcome.err
    assert "episodes.npz" in outcome.out
    held = np.load(tmp_path / "episodes.npz")
    shapes = {name: held[name].shape for name in held}
    assert shapes == {
        "observation": (18, 3),
        "action": (18, 1),
        "reward": (18,),
        "terminated": (18,),
        "truncated": (18,),
        "next_observation": (18, 3),
        "episode": (18,),
        "action_low": (1,),
        "action_high": (1,),
    }
    # The torque of the pendulum lies in [-2, 2]; its next state follows from it.
    assert (held["action_low"].item(), held["action_high"].item()) == (-2.0, 2.0)
    _, sine, speed = held["observation"].T.astype(float)
    after = np.clip(speed + 0.05 * (15.0 * sine + 3.0 * held["action"][:, 0]), -8.0, 8.0)
    np.testing.assert_allclose(held["next_observation"][:, 2], after, atol=1e-5)
    assert np.bincount(held["episode"]).tolist() == [6, 6, 6]
    within = np.diff(held["episode"]) == 0
    np.testing.assert_array_equal(held["next_observation"][:-1][within], held["observation"][1:][within])


@pytest.mark.usefixtures("without_figures")
def test_resumed_run_goes_on_counting_with_its_buffer(tracked, tmp_path) -> None:
    outcome = call(
        arguments(
            "fit",
            *untracked(tracked),
            trainer__logger="false",
            trainer__default_root_dir=tmp_path,
            data__total_env_steps=48,
            data__epoch_env_steps=4,
            data__env_steps_per_collection=1,
            ckpt_path=tracked.last,
        )
    )
    assert outcome.code == 0, outcome.err
    before = torch.load(tracked.last, weights_only=True)
    after = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert (before["global_step"], after["global_step"]) == (8, 16)
    assert before["OnlineData"]["local_env_steps"] == 40
    assert after["OnlineData"]["local_env_steps"] == 48
    for name, rows in before["OnlineData"]["replay"].items():
        assert torch.equal(after["OnlineData"]["replay"][name][:40], rows), name
    table = (tmp_path / "figures" / "learning_curve.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table[1:]] == ["36", "40", "44", "48"]


def test_environment_of_other_dimensions_is_refused_in_one_line(tracked, tmp_path) -> None:
    outcome = call(
        arguments(
            "test",
            *untracked(tracked),
            trainer__logger="false",
            trainer__default_root_dir=tmp_path,
            data__environment__init_args__name="HalfCheetah-v5",
            ckpt_path=tracked.last,
        )
    )
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1, outcome.err
    assert "observation_dim 3" in outcome.err


@pytest.mark.usefixtures("without_figures")
def test_environment_that_breaks_ends_the_run_in_one_line_and_keeps_the_last_checkpoint(
    tracked, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    environment = {
        "class_path": "GymnasiumEnvironment",
        "init_args": {"name": "ToyCounting-v0", "options": {"bad_reward_at": 44}},
    }
    outcome = call(
        arguments(
            "fit",
            PENDULUM,
            trainer__default_root_dir=tmp_path,
            data__environment=json.dumps(environment),
            data__total_env_steps=56,
            data__env_steps_per_collection=1,
        )
    )
    assert outcome.code == 1
    assert len(outcome.error_lines) == 1, outcome.err
    assert "44" in outcome.err
    assert "ToyCounting-v0" in outcome.err
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["OnlineData"]["local_env_steps"] == 40
    assert np.isfinite(load_policy(tmp_path / "checkpoints" / "last.ckpt")(np.zeros(2))).all()
    assert run_in(tracked.client, tmp_path).info.status == "FAILED"
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.fixture(scope="module")
def interrupted(tracked, tmp_path_factory):
    """Two runs side by side, one ended by the user, one by the system: status, standard error and folder."""
    started = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path_factory.mktemp(number.name)
        args = arguments(
            "fit",
            PENDULUM,
            trainer__default_root_dir=folder,
            data__total_env_steps=2_000_000,
            data__epoch_env_steps=1_000_000,
            data__env_steps_per_collection=1,
        )
        init_args = {"path": str(folder / "started")}
        probe = json.dumps([{"class_path": "tests.cli.probes.Started", "init_args": init_args}])
        with default_signals():
            process = subprocess.Popen(
                [sys.executable, "-m", "flowmatch_rl", *args, f"--trainer.callbacks={probe}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=folder,
                env=environment(MLFLOW_TRACKING_URI=tracked.uri),
            )
        started[number] = process, folder
    ended = {}
    try:
        for number, (process, folder) in started.items():
            deadline = time.monotonic() + 300.0
            while not (folder / "started").exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            os.kill(process.pid, number)
            _, err = process.communicate(timeout=300)
            ended[number] = process.returncode, err, folder
    finally:
        for process, _ in started.values():
            if process.poll() is None:
                process.kill()
    return ended


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["user", "system"])
def test_interrupted_run_keeps_its_state_and_says_so(tracked, interrupted, number, status) -> None:
    code, err, folder = interrupted[number]
    assert code == status, err
    assert "Traceback" not in err
    for word in ("litlogger", "TPU", "Trainer", "LazyTensorStorage", "weights_only", "Warning"):
        assert word not in err, f"a library speaks of itself: {err}"
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] >= 3
    assert last["OnlineData"]["local_env_steps"] >= 35
    assert len(last["OnlineData"]["replay"]["action"]) == last["OnlineData"]["local_env_steps"]
    run = run_in(tracked.client, folder)
    assert (run.info.status, run.outputs.model_outputs) == ("KILLED", [])
    assert load_policy(folder / "checkpoints" / "last.ckpt")(np.zeros(3)).shape == (1,)


@pytest.mark.usefixtures("without_figures")
def test_interrupted_run_can_be_resumed(interrupted, tmp_path) -> None:
    _, _, folder = interrupted[signal.SIGINT]
    last = folder / "checkpoints" / "last.ckpt"
    taken = torch.load(last, weights_only=True)["OnlineData"]["local_env_steps"]
    outcome = call(
        arguments(
            "fit",
            PENDULUM,
            trainer__logger="false",
            trainer__default_root_dir=tmp_path,
            data__total_env_steps=taken + 8,
            data__epoch_env_steps=1_000_000,
            data__env_steps_per_collection=1,
            ckpt_path=last,
        )
    )
    assert outcome.code == 0, outcome.err
    after = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    # A batch that was drawn but not trained on when the signal came is drawn again, after one more step.
    assert after["OnlineData"]["local_env_steps"] - taken in (8, 9)


@pytest.mark.usefixtures("without_figures")
def test_new_run_over_another_is_refused_and_loses_nothing(tmp_path) -> None:
    fit = arguments("fit", PENDULUM, trainer__logger="false", trainer__default_root_dir=tmp_path)
    assert call(fit).code == 0
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    outcome = call(fit)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert f"{tmp_path / 'config.yaml'} --ckpt_path last" in outcome.err
    assert last.read_bytes() == before


@pytest.mark.usefixtures("without_figures")
def test_result_appears_when_the_video_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(Video, "on_test_end", lambda *_: seen.append((tmp_path / "result.json").exists()))
    options = {"video__enabled": "true", "trainer__logger": "false", "trainer__default_root_dir": tmp_path}
    outcome = call(arguments("fit", PENDULUM, **options))
    assert outcome.code == 0, outcome.err
    assert seen == [False]
    assert (tmp_path / "result.json").exists()
