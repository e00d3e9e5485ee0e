"""Data of OGBench's oracles from the command line: every configuration, training on a task, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from flowmatch_rl.data import TransitionStore
from tests.cli.support import CONF, PENDULUM, arguments, call
from tests.combinations import one_test
from tests.data.layout_files import write_ogbench
from tests.settings import NEEDS_OGBENCH

CONFIGURATIONS = sorted(path for path in (CONF / "collect").glob("*.yaml") if "oracle:" in path.read_text())
MAZE = CONF / "collect" / "pointmaze_medium.yaml"
SLOW = pytest.mark.slow  # MuJoCo takes seconds to read the arm


def collect(folder: Path, config: Path, *options: str) -> list[str]:
    more = [f"--output={folder / 'out'}", "--num_transitions=40", "--trajectory_steps=30", "--progress=false"]
    return ["collect", f"-c={config}", *more, *options]


@NEEDS_OGBENCH
@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=() if path == MAZE else SLOW, id=path.stem) for path in CONFIGURATIONS]
)
def test_every_configuration_makes_a_data_set_and_a_file_of_ogbench(path: Path, tmp_path: Path) -> None:
    outcome = call(collect(tmp_path, path, f"--ogbench_file={tmp_path / 'a.npz'}"))
    assert (outcome.code, outcome.err) == (0, "")
    assert "40 transitions" in outcome.out
    store = TransitionStore.open(tmp_path / "out")
    task = yaml.safe_load(path.read_text())["environment"]["init_args"]
    assert f"task_id={task['task_id']}" in store.info.provenance["environment"]
    words = [f"--layout.path={tmp_path / 'a.npz'}", "--layout.task=OgbenchEnvironment"]
    words += [f"--layout.task.{name}={value}" for name, value in task.items()]
    outcome = call(["convert", "--layout=OgbenchFile", *words, f"--output={tmp_path / 'b'}", "--progress=false"])
    assert (outcome.code, outcome.err) == (0, "")
    again = TransitionStore.open(tmp_path / "b").transitions
    assert bool((again == store.transitions).all())


@NEEDS_OGBENCH
def test_null_in_place_of_an_oracle_collects_uniform_actions_of_the_task(tmp_path: Path) -> None:
    options = ["--oracle=null", "--num_envs=2", "--block_steps=20"]
    words = [word for word in collect(tmp_path, MAZE, *options) if not word.startswith("--trajectory_steps")]
    outcome = call(words)
    assert (outcome.code, outcome.err) == (0, "")
    assert len(TransitionStore.open(tmp_path / "out")) == 40


@NEEDS_OGBENCH
@SLOW
def test_an_actor_critic_trains_on_a_task_and_states_its_success_rate(tmp_path: Path) -> None:
    task = ["--data.environment=OgbenchEnvironment", "--data.environment.name=pointmaze-medium-v0"]
    run = arguments("fit", PENDULUM, trainer__logger="false", trainer__default_root_dir=tmp_path)
    outcome = call([*run, *task, "--data.environment.task_id=2"])
    assert (outcome.code, outcome.err) == (0, "")
    assert "pointmaze-medium-task2" in outcome.out
    assert "success      0% of the episodes" in outcome.out
    assert json.loads((tmp_path / "result.json").read_text())["metrics"]["test/success_rate"] == 0.0


@one_test
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--environment.task_id=7"], "pointmaze-medium-v0 has no task 7; task_id must be 1, 2, 3, 4 or 5"),
        (["--environment.name=pointmaze-medum-v0"], "with tasks; did you mean 'pointmaze-medium-v0'"),
        (["--environment.name=antmaze-medium-v0"], "NavigateOracle has no script for antmaze-medium-v0"),
        (
            ["--environment=GymnasiumEnvironment", "--environment.name=Pendulum-v1"],
            "GymnasiumEnvironment Pendulum-v1 has no oracle; NavigateOracle acts in an OgbenchEnvironment",
        ),
        (["--oracle=PlayOracle"], "PlayOracle has no script for pointmaze-medium-v0; it acts in cube-..."),
        (["--oracle=PlayOrcle"], "PlayOrcle"),
        (["--oracle.noise=-1"], "noise must be at least 0, got -1.0"),
        (["--num_envs=3"], "--num_envs"),
        (["--ogbench_file=a.npy"], "a file of OGBench is called NAME.npz, got 'a.npy'"),
    ],
)
@NEEDS_OGBENCH
def test_wrong_argument_is_named_with_status_two(options: list[str], words: str, tmp_path: Path) -> None:
    outcome = call(collect(tmp_path, MAZE, *options))
    assert outcome.code == 2
    assert len(outcome.error_lines) == (2 if "PlayOrcle" in words else 1), outcome.err  # a second line is a hint
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ogbench", None)
    write_ogbench(tmp_path / "a.npz", [0, 0, 1])
    layout = [f"--layout.path={tmp_path / 'a.npz'}", "--layout.task=OgbenchEnvironment"]
    output = f"--output={tmp_path / 'out'}"
    for words in (
        collect(tmp_path, MAZE),
        ["collect", f"-c={MAZE}", "--oracle=null", output],
        ["convert", "--layout=OgbenchFile", *layout, "--layout.task.name=cube-single-v0", output],
    ):
        outcome = call(words)
        assert outcome.code == 2
        assert len(outcome.error_lines) == 1, outcome.err
        assert "pip install flowmatch_rl[ogbench]" in outcome.err
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_help_of_a_collection_names_the_oracles(tmp_path: Path) -> None:
    assert "--oracle" in call(["collect", "--help"]).out
    outcome = call(["collect", "--oracle=NavigateOracle", "--help"])
    assert outcome.code == 0
    assert "--ogbench_file" in outcome.out
    assert "--num_envs" not in outcome.out
