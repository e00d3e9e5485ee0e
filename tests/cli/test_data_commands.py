"""The commands that make data sets: ``convert`` and ``collect``."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from flowmatch_rl.checks import RunError
from flowmatch_rl.cli import datasets
from flowmatch_rl.data import TransitionStore
from tests.cli.support import CONF, PENDULUM, ROOT, arguments, call
from tests.combinations import one_test
from tests.data.arm_log import arm_log, write_log
from tests.data.layout_files import write_d4rl, write_exorl, write_ogbench

COLLECT = """
environment: {class_path: GymnasiumEnvironment, init_args: {name: Pendulum-v1}}
num_envs: 2
block_steps: 10
progress: false
"""


@pytest.fixture
def buffer(tmp_path: Path) -> Path:
    write_exorl(tmp_path / "buffer", {0: 3, 1: 4})
    return tmp_path / "buffer"


def convert(buffer: Path, *options: str) -> list[str]:
    return ["convert", "--layout=ExorlEpisodes", f"--layout.path={buffer}", "--progress=false", *options]


def collect(folder: Path, *options: str) -> list[str]:
    (folder / "collect.yaml").write_text(COLLECT)
    return ["collect", f"-c={folder / 'collect.yaml'}", f"--output={folder / 'out'}", *options]


def test_convert_makes_a_data_set_and_says_how_to_train_on_it(buffer: Path, tmp_path: Path) -> None:
    outcome = call(convert(buffer, f"--output={tmp_path / 'out'}", "--layout.columns=[x,y,z]"))
    assert (outcome.code, outcome.err) == (0, "")
    first, second = outcome.out.splitlines()
    assert all(word in first for word in (str(tmp_path / "out"), "7 transitions", "2 trajectories", "x, y, z"))
    assert f"--data.path {tmp_path / 'out'}" in second
    assert len(TransitionStore.open(tmp_path / "out")) == 7


def test_convert_reads_its_options_from_a_file(buffer: Path, tmp_path: Path) -> None:
    bounds = "action_low: [-1, -1], action_high: [1, 1]"
    (tmp_path / "convert.yaml").write_text(
        f"layout: {{class_path: ExorlEpisodes, init_args: {{path: {buffer}, {bounds}}}}}\nprogress: false\n"
    )
    outcome = call(["convert", f"-c={tmp_path / 'convert.yaml'}", f"--output={tmp_path / 'out'}"])
    assert (outcome.code, outcome.err) == (0, "")
    assert TransitionStore.open(tmp_path / "out").info.action_high == (1.0, 1.0)


def test_convert_prints_what_a_reader_should_know(tmp_path: Path) -> None:
    write_d4rl(tmp_path / "a.hdf5", [0, 1, 0, 0], [0, 0, 0, 1], arrivals=False)
    outcome = call(
        ["convert", "--layout=D4rlFile", f"--layout.path={tmp_path / 'a.hdf5'}", f"--output={tmp_path / 'out'}"]
    )
    assert outcome.code == 0
    assert "1 termination" in outcome.out
    assert "D4rlFile" in outcome.err  # the bar


def test_the_log_of_a_robot_arm_makes_a_data_set_that_shows_its_units(tmp_path: Path) -> None:
    write_log(arm_log(), tmp_path / "logs" / "robot_arm.csv")
    configuration = CONF / "convert" / "robot_arm.yaml"
    with contextlib.chdir(tmp_path):
        outcome = call(["convert", f"-c={configuration}", "--output=data/robot_arm", "--progress=false"])
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[0] == (
        "data/robot_arm: 12 transitions in 3 trajectories; 4 columns (q1 [rad], q2 [rad], dq1 [rad/s], dq2 [rad/s]), "
        "actions of dimension 2 (tau1 [N m], tau2 [N m])"
    )
    store = TransitionStore.open(tmp_path / "data" / "robot_arm")
    assert (store.info.action_high, int(store.transitions["next", "terminated"].sum())) == ((20.0, 10.0), 1)
    bad = ["convert", f"-c={configuration}", f"--output={tmp_path / 'out'}", f"--layout.init_args.path={tmp_path}/logs"]
    outcome = call([*bad, "--layout.init_args.units={q9: rad}", "--layout.init_args.reward=null"])
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    outcome = call([*bad, "--layout.init_args.reward=null", "--progress=false"])
    assert outcome.out.splitlines()[0].endswith("(tau1 [N m], tau2 [N m]); no rewards")


def test_the_page_of_data_sets_shows_the_configuration_of_the_robot_arm() -> None:
    _, _, configuration = (CONF / "convert" / "robot_arm.yaml").read_text().split("\n", 2)
    assert f"```yaml\n{configuration}```" in (ROOT / "docs" / "datasets.md").read_text()


def test_collect_makes_a_data_set(tmp_path: Path) -> None:
    outcome = call(collect(tmp_path, "--num_transitions=45"))
    assert (outcome.code, outcome.err) == (0, "")
    assert "45 transitions" in outcome.out
    info = TransitionStore.open(tmp_path / "out").info
    assert (info.num_transitions, info.action_low, info.action_high) == (45, (-2.0,), (2.0,))


def test_collect_takes_a_policy_and_null_takes_it_back(tmp_path: Path) -> None:
    policy = ["--policy=ConstantPolicy", "--policy.action=[0.25]", "--num_transitions=20"]
    assert call(collect(tmp_path, *policy)).code == 0
    assert TransitionStore.open(tmp_path / "out").transitions["action"].unique().tolist() == [0.25]
    outcome = call([*collect(tmp_path, *policy), "--policy=null", f"--output={tmp_path / 'random'}"])
    assert outcome.code == 0
    assert len(TransitionStore.open(tmp_path / "random").transitions["action"].unique()) == 20


@pytest.mark.parametrize(
    ("change", "words", "hint"),
    [
        ("--layout=ExorlEpisods", ["ExorlEpisods"], "ExorlEpisodes"),
        ("--layout.pth=x", ["pth"], "path"),
        ("--layout.path=no/such/folder", ["no/such/folder"], None),
        ("--layout.action_low=1.0", ["action_low", "both or none"], None),
        ("--layout.columns=[x]", ["1 columns", "3"], None),
        ("--outputt=x", ["outputt"], "output"),
        ("-c=no/such/file.yaml", ["no/such/file.yaml"], None),
    ],
)
def test_wrong_argument_of_convert_is_named_with_status_two(change, words, hint, buffer: Path, tmp_path: Path) -> None:
    outcome = call(convert(buffer, f"--output={tmp_path / 'out'}", change))
    assert outcome.code == 2
    assert 1 <= len(outcome.error_lines) <= 3, outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()
    if hint is not None:
        assert f"did you mean '{hint}'" in outcome.err, outcome.err


@one_test
@pytest.mark.parametrize(
    ("change", "words", "hint"),
    [
        ("--num_transition=5", ["num_transition"], "num_transitions"),
        ("--num_transitions=0", ["num_transitions", "at least 1"], None),
        ("--num_transitions=many", ["num_transitions", "many"], None),
        ("--environment=GymnasiumEnviroment", ["GymnasiumEnviroment"], "GymnasiumEnvironment"),
        ("--environment.name=Pendulun-v1", ["Pendulun-v1"], "Pendulum-v1"),
        ("--policy=ConstntPolicy", ["ConstntPolicy"], "ConstantPolicy"),
        ("--action_noise=0.5", ["action_noise", "policy"], None),
    ],
)
def test_wrong_argument_of_collect_is_named_with_status_two(change, words, hint, tmp_path: Path) -> None:
    outcome = call(collect(tmp_path, "--num_transitions=20", change))
    assert outcome.code == 2
    assert 1 <= len(outcome.error_lines) <= 3, outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert "Traceback" not in outcome.err
    if hint is not None:
        assert hint in outcome.err, outcome.err


def test_folder_that_exists_is_left_alone(buffer: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    outcome = call(convert(buffer, f"--output={tmp_path / 'out'}"))
    assert outcome.code == 2
    assert str(tmp_path / "out") in outcome.err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_damaged_file_is_named_with_status_two(tmp_path: Path) -> None:
    write_ogbench(tmp_path / "a.npz", [0, 1], observations=np.full((2, 3), np.nan))
    outcome = call(
        ["convert", "--layout=OgbenchFile", f"--layout.path={tmp_path / 'a.npz'}", f"--output={tmp_path / 'o'}"]
    )
    assert outcome.code == 2
    assert "a.npz" in outcome.err
    assert "nan" in outcome.err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(KeyboardInterrupt(), 130, "continue with: flowmatch-rl convert"), (RunError("it broke"), 1, "it broke")],
    ids=["interruption", "run"],
)
def test_status_tells_why_a_command_ended(error, code, words, buffer: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "convert_layout", fail)
    outcome = call(convert(buffer, f"--output={tmp_path / 'out'}"))
    assert outcome.code == code
    assert words in outcome.err
    assert len(outcome.error_lines) == 1


def test_mistake_of_a_library_is_not_taken_for_one_of_the_user(buffer: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets, "convert_layout", lambda *_: np.zeros(2).reshape(3))
    with pytest.raises(ValueError, match="reshape"):
        call(convert(buffer, f"--output={tmp_path / 'out'}"))


def test_help_names_both_commands() -> None:
    outcome = call(["--help"])
    assert outcome.code == 0
    assert "convert" in outcome.out
    assert "collect" in outcome.out
    for command, option in (("convert", "--layout"), ("collect", "--environment")):
        outcome = call([command, "--help"])
        assert outcome.code == 0
        assert f"flowmatch-rl {command}" in outcome.out
        assert option in outcome.out


def test_a_test_states_the_success_rate_that_the_environment_reports(tmp_path: Path) -> None:
    environment = {
        "": "GymnasiumEnvironment",
        ".name": "tests.toys:ToyCounting-v0",
        ".options": "{length: 5, solved_from: 4}",
        ".success": "is_success",
    }
    run = arguments("fit", PENDULUM, trainer__logger="false", trainer__default_root_dir=tmp_path)
    outcome = call([*run, *(f"--data.environment{name}={value}" for name, value in environment.items())])
    assert outcome.code == 0, outcome.err
    assert "success      100% of the episodes" in outcome.out
    assert json.loads((tmp_path / "result.json").read_text())["metrics"]["test/success_rate"] == 1.0
