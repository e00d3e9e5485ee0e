"""Files and options on top of each other, and that other parsers of the process are left alone."""

import json
from pathlib import Path
from typing import Any

import jsonargparse
import pytest

import flowmatch_rl.cli.training
from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.arguments import compose, shared_arguments
from flowmatch_rl.cli.parser import make_parser, read_options
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.modules import FlowMatchingModel, ReverseFlowActorCritic, SoftActorCritic
from flowmatch_rl.paths import AffinePath, LinearSchedule, Source, VarianceExplodingSchedule
from flowmatch_rl.paths.sources import GaussianSource, UniformSource
from flowmatch_rl.solvers import Euler, Heun, Solver


def made(*args: str) -> Any:
    parser = make_parser("try", "Try.")
    parser.add_argument("--source", type=Source, default=GaussianSource(2.0))
    parser.add_argument("--solver", type=Solver, default=Euler(7))
    parser.add_argument("--path", type=AffinePath, default=AffinePath(LinearSchedule(0.25)))
    parser.add_argument("--names", type=dict[str, Solver], default={})
    parser.add_argument("--environment", type=ProcessEnvironment, default=None)
    parser.add_argument("--divided", type=Solver | bool | int | None, default=None)
    return read_options(parser, *compose(args))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return f"-c={path}"


def test_a_class_starts_from_its_own_defaults_wherever_the_old_one_was_named(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", "solver: {class_path: Heun, init_args: {num_steps: 3}}\n")
    second = write(tmp_path / "second.yaml", "solver: {class_path: Euler}\n")
    fresh = Euler(7)  # the default of the option
    assert made()["solver"] == fresh
    assert made(first)["solver"] == Heun(3)
    assert made(first, second)["solver"] == fresh
    assert made(first, "--solver=Euler")["solver"] == fresh
    assert made(first, "--solver", "Euler")["solver"] == fresh
    assert made("--solver=Heun", "--solver.num_steps=3", "--solver=Euler")["solver"] == fresh
    assert made("--solver=Heun")["solver"] == Heun()
    assert made("--solver.num_steps=9")["solver"] == Euler(9)
    assert made(first, "--solver.num_steps=4", "--solver=flowmatch_rl.solvers.Heun")["solver"] == Heun(4)
    assert made("--path.schedule=VarianceExplodingSchedule")["path"].schedule == VarianceExplodingSchedule()
    assert made("--path.schedule.sigma_min=0.5")["path"].schedule == LinearSchedule(0.5)
    assert made("--source=UniformSource")["source"] == UniformSource()


@pytest.mark.parametrize(("word", "value"), [("false", False), ("null", None), ("3", 3)])
def test_a_value_replaces_an_object_as_a_class_does(word: str, value: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "divided: {class_path: Heun, init_args: {num_steps: 3}}\n")
    assert made(file)["divided"] == Heun(3)
    assert made(file, f"--divided={word}")["divided"] == value
    assert made(file, write(tmp_path / "b.yaml", f"divided: {word}\n"))["divided"] == value


def test_null_may_be_given_to_an_argument_of_an_object_inside_another() -> None:
    given = ["--environment=ProcessEnvironment", "--environment.process=LinearGaussianProcess"]
    given.append("--environment.process.drift=[0.5, 1.0]")
    assert made(*given)["environment"].process.drift == [0.5, 1.0]
    for option in ("process.drift", "init_args.process.init_args.drift"):
        assert made(*given, f"--environment.{option}=null")["environment"].process.drift is None


def test_a_file_that_loses_arguments_keeps_the_others(tmp_path: Path) -> None:
    text = "solver: {class_path: Heun, init_args: {num_steps: 3}}\nsource: {class_path: UniformSource}\n"
    words, overlays = compose([write(tmp_path / "a.yaml", text), "--solver=Euler"])
    config, option = words
    assert json.loads(config.removeprefix("--config=")) == {
        "solver": {"class_path": "Euler"},
        "source": {"class_path": "UniformSource"},
    }
    assert option == "--solver=Euler"
    assert len(overlays) == 2


def test_a_file_that_loses_nothing_is_read_by_the_parser_itself(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "solver: {class_path: Heun}\n")
    given = [file, "--solver.num_steps=3", "--dry_run", "positional"]
    assert compose(given)[0] == given


def test_models_of_one_family_share_what_has_the_same_name_and_type() -> None:
    shared = shared_arguments(ReverseFlowActorCritic, SoftActorCritic)
    assert {"discount", "temperature"} <= shared
    assert "policy" not in shared
    assert shared_arguments(SoftActorCritic, FlowMatchingModel) == set()
    assert shared_arguments(Euler, Heun) == shared_arguments(None, Heun) == set()


@pytest.mark.parametrize("option", ["--names={a: Euler, a: Heun}", "--config={names: {a: Euler, a: Heun}}"])
def test_keys_given_twice_are_refused_in_options_too(option: str) -> None:
    with pytest.raises(UserError, match="'a' is given twice"):
        made(option)


def test_other_parsers_of_the_process_are_left_alone() -> None:
    assert flowmatch_rl.cli.training.Parser is not jsonargparse.ArgumentParser
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--solver", type=Solver)
    parser.add_argument("--config", action="config")
    config = parser.parse_args(["--solver=Heun", "--solver.num_steps=3", "--solver=Euler"])
    assert config.solver.init_args.num_steps == 3
    assert parser.parse_args(["--config={solver: Heun, solver: Euler}"]).solver.class_path.endswith("Euler")
