"""Policies from data by the command line: every method trains, tests, resumes, and refuses what does not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.cli import run
from flowmatch_rl.data import TransitionStore, collect_transitions
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.inference import load_policy
from flowmatch_rl.schema import ActionBounds
from tests.cli.support import CONF, call, collect
from tests.data.toy_trajectories import TRAJECTORIES, trajectory_store

TASK = CONF / "offline" / "pendulum.yaml"
ONLINE = CONF / "offline" / "online.yaml"
MAZE = CONF / "offline" / "maze.yaml"
FAMILY = CONF / "offline" / "maze_family.yaml"
ORACLES = sorted(set((CONF / "offline").glob("*.yaml")) - {TASK, ONLINE, MAZE, FAMILY})
METHODS = sorted((CONF / "offline" / "methods").glob("*.yaml"))
SIZES = {
    "data.num_updates": 4,
    "data.epoch_updates": 2,
    "data.batch_size": 8,
    "data.eval_episodes": 1,
    "data.test_episodes": 2,
    "data.max_episode_steps": 4,
    "model.policy.network.hidden_dim": 16,
    "video.enabled": "false",
    "trainer.logger": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pendulum"
    collect_transitions(GymnasiumEnvironment("Pendulum-v1"), str(path), 80, progress=False)
    return path


def words(command: str, *files: Path, **options: object) -> list[str]:
    given = SIZES | {name.replace("__", "."): value for name, value in options.items()}
    return [command, *(f"-c={file}" for file in files), *(f"--{name}={value}" for name, value in given.items())]


@pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
def test_every_method_trains_and_its_policy_acts(method: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(words("fit", TASK, method, data__path=data, trainer__default_root_dir=folder)) == 0
    checkpoint = folder / "checkpoints" / "last.ckpt"
    kind = read_checkpoint(checkpoint)["actor_critic"]
    assert f"class_path: {kind}" in method.read_text()
    action = load_policy(checkpoint)(np.zeros((3, 3), np.float32))
    assert action.shape == (3, 1)
    assert (np.abs(action) <= 2.0).all()
    options = {"data__path": data, "trainer__default_root_dir": folder, "ckpt_path": checkpoint}
    tested = call(words("test", TASK, method, **options))
    assert tested.code == 0, tested.err
    shown = {line.split()[0] for line in tested.out.splitlines() if line.strip()}
    assert {"return", "held", "behaviour", "acting"} <= shown
    predicted = call(words("predict", TASK, method, **options))
    assert predicted.code == 0, predicted.err
    assert np.load(folder / "episodes.npz")["action"].shape == (2 * 4, 1)
    drawn = {path.name for path in (folder / "figures").glob("*")}
    assert {"learning_curve.png", "learning_curve.csv", "episode.png"} <= drawn
    assert ("policy.png" in drawn) == (kind != "BehaviorCloning")
    header, *rows = (folder / "figures" / "learning_curve.csv").read_text().splitlines()
    assert header.startswith("gradient_steps,return_mean")
    assert [row.partition(",")[0] for row in rows] == ["2", "4"]


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem == "pointmaze_medium" else pytest.mark.slow)
        for path in ORACLES
    ],
)
def test_tasks_of_ogbench_train_on_data_of_their_oracles(task: Path, tmp_path: Path) -> None:
    pytest.importorskip("ogbench", reason="the extra ogbench is not installed")
    data, source = tmp_path / "data", CONF / "collect" / task.name
    made = call(["collect", f"-c={source}", f"--output={data}", "--num_transitions=120", "--progress=false"])
    assert made.code == 0, made.err
    folder, options = tmp_path / "run", {"model__critics__architecture__hidden_dim": 16}
    outcome = call(words("fit", task, data__path=data, trainer__default_root_dir=folder, **options))
    assert outcome.code == 0, outcome.err
    assert "success      " in outcome.out
    assert (folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.usefixtures("without_figures")
def test_data_without_rewards_train_for_the_one_that_is_given(tmp_path: Path) -> None:
    data, given = tmp_path / "data", ["--num_transitions=120", "--num_envs=4", "--progress=false"]
    made = call(["collect", f"-c={CONF / 'collect' / 'maze.yaml'}", f"--output={data}", *given])
    assert made.code == 0, made.err
    corner = {"data__reward": "BoxReward", "data__reward__low": "[-1.0,-1.0]", "data__reward__high": "[1.0,1.0]"}
    for name, options in (("stated", {}), ("chosen", corner)):
        outcome = call(words("fit", MAZE, data__path=data, trainer__default_root_dir=tmp_path / name, **options))
        assert outcome.code == 0, outcome.err
        assert (tmp_path / name / "checkpoints" / "last.ckpt").is_file()
    assert "BoxReward(low=(-1.0, -1.0)" in outcome.out
    result = json.loads((tmp_path / "chosen" / "result.json").read_text())
    assert result["metrics"]["test/return_mean"] == 4.0  # everywhere in this box, for 4 steps


@pytest.mark.usefixtures("without_figures")
def test_a_family_of_policies_trains_on_walks_and_is_tested_by_held_out_rows(tmp_path: Path) -> None:
    walks, folder = collect(tmp_path / "walks", "maze_walks"), tmp_path / "run"
    options = {"data__path": walks, "trainer__default_root_dir": folder}
    outcome = call(words("fit", FAMILY, **options))
    assert outcome.code == 0, outcome.err
    assert "goals        x, y, " in outcome.out
    assert "held out     loss" in outcome.out
    checkpoint = folder / "checkpoints" / "best.ckpt"
    assert load_policy(checkpoint)(np.zeros((3, 4), np.float32), np.zeros(2)).shape == (3, 2)
    again = call(words("test", FAMILY, ckpt_path=checkpoint, **options))
    assert again.code == 0, again.err
    assert "held out     loss" in again.out
    for changes, message in (
        ({"data__goals": "null"}, "the checkpoint has goals (x, y), the data (none); see data.goals"),
        ({"data__goals__columns": "[x, vx]"}, "the checkpoint has goals (x, y), the data (x, vx); see data.goals"),
        ({"data__goals__columns": "[z]"}, "the state has no column 'z' for a goal; it has x, y, vx, vy"),
    ):
        refused = call(words("test", FAMILY, ckpt_path=checkpoint, **options | changes))
        assert refused.code == 2
        assert message in refused.err
        assert len(refused.err.strip().splitlines()) == 1
    method = CONF / "offline" / "methods" / "flow_q_learning.yaml"
    refused = call(words("fit", FAMILY, method, **options | {"trainer__default_root_dir": tmp_path / "other"}))
    assert refused.code == 2
    assert "FlowQLearning takes no goals; data.goals must be null, got Goals" in refused.err


@pytest.mark.usefixtures("without_figures", "signals")
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its noise is other, but critics and V of implicit Q-learning learn without any."""
    monkeypatch.setattr("flowmatch_rl.data.episodes.UPDATES_PER_ROUND", 1)
    method = CONF / "offline" / "methods" / "implicit_flow_q_learning.yaml"
    options = {"data__path": data, "seed_everything": 3}

    def fit(folder: Path, interrupt_after: int | None = None, **changes: object) -> tuple[int, list[str]]:
        """Exit status, and hashes of the batches of all runs in the folder."""
        probe = {"path": str(tmp_path / f"{folder.name}.txt"), "interrupt_after": interrupt_after}
        callbacks = json.dumps([{"class_path": "tests.cli.probes.Batches", "init_args": probe}])
        given = options | {"trainer__callbacks": callbacks, "trainer__default_root_dir": folder} | changes
        code = run(words("fit", TASK, method, **given))
        return code, Path(probe["path"]).read_text().splitlines()

    whole, half, part = tmp_path / "whole", tmp_path / "half", tmp_path / "part"
    code, batches = fit(whole)
    assert code == 0
    assert len(set(batches)) == 4
    assert fit(part, interrupt_after=1) == (130, batches[:1])
    resumed_within = {"ckpt_path": part / "checkpoints" / "last.ckpt", "trainer__max_epochs": 1}
    assert fit(part, **resumed_within) == (0, batches[:2])
    assert fit(half, trainer__max_epochs=1) == (0, batches[:2])
    last = half / "checkpoints" / "last.ckpt"
    assert fit(half, ckpt_path=last) == (0, batches)
    one, other = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (whole, half))
    assert one["global_step"] == other["global_step"] == 4
    drawn = [content["PolicyData"]["drawn"] for content in (one, other)]
    assert drawn == [4, 4]
    weights, resumed = one["state_dict"], other["state_dict"]
    exact = {name for name in weights if name.startswith(("critics.", "others.value."))}
    assert exact
    for name in exact:
        assert torch.equal(weights[name], resumed[name]), name
    assert all(weights[name].shape == resumed[name].shape for name in weights)
    refused = call(words("fit", TASK, method, ckpt_path=last, data__epoch_updates=4, **options))
    assert refused.code == 2
    assert "the checkpoint has epochs of 2 updates, this run of 4" in refused.err
    assert len(refused.err.strip().splitlines()) == 1


def test_chunks_of_actions_train_and_act(data: Path, tmp_path: Path) -> None:
    folder, options = tmp_path / "run", {"data__action_chunk": 3, "data__max_episode_steps": 7}
    assert run(words("fit", TASK, data__path=data, trainer__default_root_dir=folder, **options)) == 0
    action = load_policy(folder / "checkpoints" / "last.ckpt")(np.zeros((4, 3), np.float32))
    assert action.shape == (4, 3)
    assert {"episode.png", "policy.png"} <= {path.name for path in (folder / "figures").glob("*")}


def test_a_run_on_data_continues_online_from_its_checkpoint_and_resumes_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    monkeypatch.setattr("flowmatch_rl.callbacks.figures.draw_episodes", lambda *given: titles.append(given[-1]))
    method = CONF / "offline" / "methods" / "flow_q_learning.yaml"
    folder, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    options = {"data__path": data, "trainer__default_root_dir": folder}
    assert run(words("fit", TASK, method, **options)) == 0
    assert json.loads((folder / "result.json").read_text())["env_steps"] is None
    # 4 steps before the first update of the phase, then 15 updates in 3 epochs.
    options |= {"data__online__env_steps": 19, "data__online__epoch_env_steps": 7, "ckpt_path": last}
    for epochs, collected in ((3, 9), (5, 19)):  # also resumed within the phase
        assert run(words("fit", TASK, method, ONLINE, trainer__max_epochs=epochs, **options)) == 0
        saved = read_checkpoint(last)
        state = saved["PolicyData"]
        assert state["local_env_steps"] == len(state["replay"]["observation"]) == collected
        assert saved["global_step"] == state["drawn"] == collected
    _, *rows = (folder / "figures" / "learning_curve.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["2", "4", "9", "14", "19"]
    result = json.loads((folder / "result.json").read_text())
    assert (result["env_steps"], result["gradient_steps"]) == (19, 19)
    assert run(words("test", TASK, method, ONLINE, **options)) == 0
    assert titles == [f"pendulum after {steps} gradient steps" for steps in (4, 9, 19, 19)]
    convert = ["convert", "--layout=CheckpointReplay", f"--layout.path={last}"]
    made = call([*convert, f"--output={tmp_path / 'collected'}", "--progress=false"])
    assert made.code == 0, made.err
    store = TransitionStore.open(str(tmp_path / "collected"))
    assert len(store) == 19
    assert torch.equal(store.transitions["observation"], state["replay"]["observation"])
    assert store.info.action_bounds == ActionBounds((-2.0,), (2.0,))


def test_a_run_of_chunks_continues_online(data: Path, tmp_path: Path) -> None:
    method = CONF / "offline" / "methods" / "flow_q_learning.yaml"
    folder, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    options = {"data__path": data, "trainer__default_root_dir": folder, "data__action_chunk": 3}
    options |= {"data__online__env_steps": 12, "data__online__epoch_env_steps": 12}
    assert run(words("fit", TASK, method, ONLINE, **options)) == 0
    state = read_checkpoint(last)["PolicyData"]
    assert state["local_env_steps"] == 12
    assert state["replay"]["action"].shape == state["replay"]["next/reward"].shape == (10, 3)
    convert = ["convert", "--layout=CheckpointReplay", f"--layout.path={last}"]
    refused = call([*convert, f"--output={tmp_path / 'collected'}"])
    assert refused.code == 2
    assert "holds transitions of action_chunk 3" in refused.err
    assert len(refused.err.strip().splitlines()) == 1


def test_a_log_without_rewards_and_environment_is_imitated(tmp_path: Path) -> None:
    trajectory_store(tmp_path / "log", TRAJECTORIES * 4, has_rewards=False)
    method = CONF / "offline" / "methods" / "behavior_cloning.yaml"
    options = {"data__path": tmp_path / "log", "data__environment": "null", "data__held_out": 0.2}
    folder = tmp_path / "run"
    assert run(words("fit", TASK, method, trainer__default_root_dir=folder, **options)) == 0
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    assert load_policy(folder / "checkpoints" / "best.ckpt")(np.zeros(2, np.float32)).shape == (1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data__path": "log", "data__environment": "null"}, "has no rewards"),
        ({"data__path": "log"}, "Pendulum-v1 has observations of dimension 3"),
        ({"data__path": "none"}, "there is no data set"),
        ({"data__n_steps": 0}, "n_steps must"),
        ({"model__temperature": -1.0}, "temperature must"),
        ({"model__estimator": "PosteriorMeanEstimator"}, "expected an estimator relative to the behaviour"),
        ({"data__online": "{env_steps: 50}", "data__environment": "null"}, "online phase of 50 env_steps needs"),
        ({"data__online": "{env_steps: 50, data_fraction: 2}"}, "data_fraction must"),
    ],
    ids=["rewards", "environment", "path", "steps", "temperature", "estimator", "nowhere", "fraction"],
)
def test_what_does_not_fit_is_refused_in_one_line(
    options: dict, message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trajectory_store(tmp_path / "log", TRAJECTORIES * 4, has_rewards=False)
    outcome = call(words("fit", TASK, trainer__default_root_dir="run", **{"data__path": data} | options))
    assert outcome.code != 0
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) <= 3
    assert not (tmp_path / "run").exists()


def test_an_imitator_does_not_act_to_imitate_itself(data: Path, tmp_path: Path) -> None:
    method = CONF / "offline" / "methods" / "behavior_cloning.yaml"
    outcome = call(words("fit", TASK, method, ONLINE, data__path=data, trainer__default_root_dir=tmp_path / "run"))
    assert outcome.code == 2
    assert "BehaviorCloning would imitate itself" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
