"""Wrong arguments: three lines at most, status 2, and a suggestion where one is near."""

import gc
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata

import pytest

from flowmatch_rl.cli.main import COMMANDS
from flowmatch_rl.cli.messages import EXAMPLES
from tests.cli.support import PENDULUM, ROOT, arguments, call, environment
from tests.combinations import one_test

SAMPLES = ["estimator__init_args__num_samples"]
STEPS = ["policy__sampler__init_args__solver__init_args__num_steps"]
"""Options that parts named below don't have."""


@one_test
@pytest.mark.parametrize(
    ("extra", "words", "hint"),
    [
        (["--data.total_env_step=50"], ["total_env_step"], "total_env_steps"),
        (["--model.temprature=1.0"], ["temprature"], "temperature"),
        (["--trainer.max_epocs=1"], ["max_epocs"], "max_epochs"),
        (["--model.temperature=warm"], ["temperature", "warm"], None),
        (["--data.batch_size=many"], ["batch_size", "many"], None),
        (["--model.optimizer.reset_interval=often"], ["optimizer.reset_interval: expected int, got 'often'"], None),
        (
            ["--data.environment=DMControlEnvironment"],
            ["data.environment: DMControlEnvironment needs domain, task\n"],
            None,
        ),
        (["--data.batch_size=64"], ["batch_size", "64", "32"], None),
        (["--model.discount=1.5"], ["discount", "1.5"], None),
        (["--model.policy.sampler.solver=Eular"], ["Eular"], "Euler"),
        (["--model.points.x_1_source=buffer"], ["x_1_source", "buffer"], None),
        (["--model=ReverseFlowActorCritik"], ["ReverseFlowActorCritik"], "ReverseFlowActorCritic"),
        (["--data.environment.init_args.name=Pendulun-v1"], ["Pendulun-v1"], "Pendulum-v1"),
        (
            [
                "--data.environment=DMControlEnvironment",
                *(f"--data.environment.{x}" for x in ("domain=walker", "task=rum")),
            ],
            ["walker-rum"],
            "walker-run",
        ),
        (["-c=no/such/file.yaml"], ["no/such/file.yaml"], None),
        (["--ckpt_path=no/such/last.ckpt"], ["no/such/last.ckpt"], None),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_wrong_argument_is_named_in_three_lines_with_status_two(extra, words, hint, tmp_path) -> None:
    outcome = call([*arguments("fit", PENDULUM, trainer__logger="false", trainer__default_root_dir=tmp_path), *extra])
    assert outcome.code == 2
    assert 1 <= len(outcome.error_lines) <= 3, outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert "Traceback" not in outcome.err
    if hint is not None:
        assert f"did you mean '{hint}'" in outcome.err, outcome.err


@one_test
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": -1}, ["temperature must be positive", "-1.0"]),
        ({"temperature": "Tepid"}, ["temperature", "unknown class 'Tepid'"]),
        ({"temperature": "SampleSizeTemperature", "temperature__fraction": 2}, ["fraction must lie in (0, 1)", "2.0"]),
        (
            {"temperature": "SampleSizeTemperature", "estimator": "PointScoreEstimator"} | dict.fromkeys(SAMPLES),
            ["SampleSizeTemperature", "two samples", "PointScoreEstimator()"],
        ),
        ({"critics__subset_size": 3}, ["subset_size must lie in [1, 2]", "got 3"]),
        ({"points__batch_size": 0}, ["batch_size must be at least 1", "got 0"]),
        ({"optimizer__reset_interval": 0}, ["reset_interval must be at least 1", "got 0"]),
        ({"acting__exploration": -0.1}, ["exploration must be at least 0", "got -0.1"]),
        ({"weights__reduction": "largest"}, ["reduction", "'largest'", "'min', 'mean'"]),
        ({"policy__sampler": "AverageVelocitySampler"} | dict.fromkeys(STEPS), ["AverageVelocitySampler", "MeanFlow"]),
        (
            {"policy__sampler": "SdeSampler", "policy__source": "UniformSource"} | dict.fromkeys(STEPS),
            ["SdeSampler", "UniformSource"],
        ),
        ({"policy__source": "UniformSource"}, ["needs a source with a smooth density", "UniformSource"]),
        (
            {"policy__source": "UniformSource", "estimator__proposal": "LikelihoodProposal"},
            ["FisherControlVariate", "UniformSource", "use NoControlVariate"],
        ),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, dict) else "",
)
def test_parts_of_an_actor_critic_that_do_not_fit_are_refused_in_one_line(changes, words, tmp_path) -> None:
    options = {f"model__{name}": value for name, value in changes.items()}
    options |= {"trainer__logger": "false", "trainer__default_root_dir": tmp_path / "run"}
    outcome = call(arguments("fit", PENDULUM, **options))
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1, outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert not (tmp_path / "run").exists()


@one_test
@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("modle: {class_path: ReverseFlowActorCritic}\n", ["modle"], "model"),
        ("model: {class_path: ReverseFlowActorCritic, init_args: {discunt: 0.9}}\n", ["discunt"], "discount"),
        ("model: {class_path: ReverseFlowActorCritic, init_args: {critic: {members: 2}}}\n", ["members"], None),
        ("model: [unclosed\n", ["wrong.yaml"], None),
    ],
    ids=["section", "argument", "nested", "syntax"],
)
def test_wrong_file_is_named_in_three_lines_with_status_two(text, words, hint, tmp_path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    outcome = call(["fit", f"-c={PENDULUM}", f"-c={path}", "--trainer.logger=false"])
    assert outcome.code == 2
    assert 1 <= len(outcome.error_lines) <= 3, outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    if hint is not None:
        assert f"did you mean '{hint}'" in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("args", "word", "hint"),
    [
        (["fitt"], "unknown command 'fitt'", "did you mean 'fit'?"),
        (["train", "-c=x.yaml"], "unknown command 'train'", "did you mean 'fit'?"),
        (["evaluate"], "unknown command 'evaluate'", "did you mean 'test'?"),
        (["xyz"], "unknown command 'xyz'", "flowmatch-rl --help"),
        ([], "no command", "flowmatch-rl --help"),
    ],
    ids=["misspelt", "train", "evaluate", "none of them", "none"],
)
def test_command_that_does_not_exist_is_answered_with_all_commands_and_a_hint(args, word, hint) -> None:
    outcome = call(args)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 2, outcome.err
    assert word in outcome.err
    assert hint in outcome.error_lines[1]
    assert all(name in outcome.error_lines[0] for name in COMMANDS)


@one_test
@pytest.mark.parametrize(
    ("args", "needs", "example"),
    [
        (["fit"], "fit needs data and model; begin with: ", "flowmatch-rl fit -c conf/flow/two_moons.yaml"),
        (["fit", "--model=FlowMatchingModel"], "fit needs data; begin with: ", "fit -c conf/flow/two_moons.yaml"),
        (["test"], "test needs data and model; begin with: ", "flowmatch-rl test -c runs/<task>/<time>/config.yaml"),
        (["compare"], "compare needs output, tasks and methods; ", "-c conf/comparison/pendulum.yaml --output"),
        (["report"], "report needs folders; ", "flowmatch-rl report runs"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, list) else "",
)
def test_command_without_what_it_needs_says_how_to_begin(args, needs, example) -> None:
    outcome = call(args)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 2, outcome.err
    assert needs in outcome.error_lines[0]
    assert example in outcome.error_lines[0]
    assert f"flowmatch-rl {args[0]} --help" in outcome.error_lines[1]


def test_files_that_examples_begin_with_are_there() -> None:
    named = [word for example in EXAMPLES.values() for word in example.split() if word.startswith("conf/")]
    assert len(named) >= 3
    assert all((ROOT / name).is_file() for name in named)
    assert EXAMPLES.keys() <= COMMANDS.keys()


def test_module_and_console_script_print_the_same_help(capsys, monkeypatch) -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="flowmatch-rl")
    printed = []
    for start in (script.load(), lambda: runpy.run_module("flowmatch_rl", run_name="__main__", alter_sys=True)):
        monkeypatch.delitem(sys.modules, "flowmatch_rl.__main__", raising=False)
        monkeypatch.setattr(sys, "argv", ["/somewhere/flowmatch-rl", "--help"])
        with pytest.raises(SystemExit) as ended:
            start()
        assert not ended.value.code
        printed.append(capsys.readouterr().out)
    assert all(word in printed[0] for word in ("usage: flowmatch-rl", "fit", "test", "predict", "validate"))
    assert printed[0] == printed[1]


def test_garbage_is_collected_again_after_the_imports_of_a_command(monkeypatch) -> None:
    seen = []

    def imported() -> Callable[[list[str]], int]:
        seen.append(gc.isenabled())
        return lambda _: seen.append(gc.isenabled()) or 0

    monkeypatch.setitem(COMMANDS, "fit", ("", imported))
    assert call(["fit"]).code == 0
    assert seen == [False, True]


def test_output_that_nobody_reads_ends_a_command_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "flowmatch_rl", "--help"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


def test_console_script_finds_a_users_class_in_the_folder_of_the_command(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "mine.py").write_text(
        "from flowmatch_rl.paths import TanhSquash\n\nclass Mine(TanhSquash):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.setattr(
        sys, "argv", ["flowmatch-rl", "fit", f"-c={PENDULUM}", "--model.policy.squash=mine.Mine", "--print_config"]
    )
    (script,) = metadata.entry_points(group="console_scripts", name="flowmatch-rl")
    with pytest.raises(SystemExit) as ended:
        script.load()()
    assert ended.value.code == 0
    assert "class_path: mine.Mine" in capsys.readouterr().out
