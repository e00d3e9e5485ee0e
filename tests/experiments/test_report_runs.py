"""Which runs a report is about: how they are found below folders, told apart, and put together."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowmatch_rl.experiments.runs import read_study
from tests.experiments.test_report import OFFLINE, make_comparison, make_run, model, report

DM_CONTROL = {"domain": "cheetah", "task": "run", "camera": 0}


def test_models_that_differ_in_much_are_named_by_their_first_run(tmp_path: Path) -> None:
    for name, value in {"x": 1, "y": 2, "z": 1}.items():
        make_run(tmp_path / name, 1.0)
        (tmp_path / name / "config.yaml").write_text(model(**dict.fromkeys("abcd", value)))
    assert read_study([tmp_path]).methods == ("SomeModel as in x", "SomeModel as in y")


def test_several_folders_come_together(tmp_path: Path) -> None:
    first = make_comparison(tmp_path / "one", {"swing": {"a": [10.0]}})
    second = make_comparison(tmp_path / "two", {"swing": {"a": [20.0], "b": [30.0]}})
    study = read_study([first, second])
    assert study.methods == ("a", "b")
    assert study.planned == {("swing", "a"): 2, ("swing", "b"): 1}


def test_copies_that_mlflow_keeps_of_tracked_runs_are_no_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "Made-up-v0" / "1", 1.0)
    copy = tmp_path / "mlflow_artifacts" / "0a1b" / "artifacts"
    make_run(copy, None)
    assert read_study([tmp_path]).planned == {("Made-up-v0", "run"): 1}
    assert len(read_study([copy]).runs) == 1  # unless it is asked for


@pytest.mark.parametrize(
    ("environment", "task"),
    [
        ({"class_path": "flowmatch_rl.envs.DMControlEnvironment", "init_args": DM_CONTROL}, "cheetah-run"),
        ({"class_path": "flowmatch_rl.envs.GymnasiumEnvironment", "init_args": {"name": "Made-up-v0"}}, "Made-up-v0"),
        (None, "method"),
    ],
)
def test_task_of_a_run_that_goes_on_is_its_environment(environment: Any, task: str, tmp_path: Path) -> None:
    place = tmp_path / "out" / "task" / "method" / "0"
    make_run(place, None)
    config = yaml.safe_load(model()) | {"data": {"init_args": {"environment": environment}}}
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_study([tmp_path]).tasks == (task,)


@pytest.mark.parametrize("score", [None, 1.0])
def test_task_of_a_run_on_data_is_the_data_set_and_the_environment(score: float | None, tmp_path: Path) -> None:
    for number, name in enumerate(("expert", "expert", "random")):
        place = tmp_path / str(number)
        make_run(place, score, head=OFFLINE)
        environment = {"class_path": "flowmatch_rl.envs.GymnasiumEnvironment", "init_args": {"name": f"Made-v{number}"}}
        data = {"init_args": {"path": f"data/{name}", "environment": environment}}
        (place / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(model()) | {"data": data}))
    assert read_study([tmp_path]).tasks == ("expert in Made-v0", "expert in Made-v1", "random in Made-v2")


def on_data(place: Path, path: str, options: dict[str, Any], name: str = "Made-v0", **settings: Any) -> None:
    """A run that learns from a data set; an environment, options of the data and settings of the model."""
    make_run(place, 1.0, head=OFFLINE)
    environment = {"class_path": "flowmatch_rl.envs.GymnasiumEnvironment", "init_args": {"name": name}}
    data = {"init_args": {"path": path, "environment": environment, "eval_episodes": len(place.name)} | options}
    (place / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(model(**settings)) | {"data": data}))


def test_data_sets_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = ("x/a/expert", "x/b/expert/", "x/./b/expert", "a/expert", "/x/random")
    for number, path in enumerate(paths):
        on_data(tmp_path / str(number), path, {})
    tasks = tuple(f"{name} in Made-v0" for name in ("x/a/expert", "b/expert", "a/expert", "random"))
    study = read_study([tmp_path])
    assert study.tasks == tasks
    assert study.planned == dict(zip(((task, "SomeModel") for task in tasks), (1, 2, 1, 1), strict=True))


@pytest.mark.parametrize(
    ("runs", "methods"),
    [
        ([{"action_chunk": 1}, {"action_chunk": 5}], ["data.action_chunk=1", "data.action_chunk=5"]),
        ([{"n_steps": 1}, {"n_steps": 3}], ["data.n_steps=1", "data.n_steps=3"]),
        ([{"num_updates": 10}, {"num_updates": 20}], ["data.num_updates=10", "data.num_updates=20"]),
        ([{"batch_size": 10}, {"batch_size": 20}], ["data.batch_size=10", "data.batch_size=20"]),
        (
            [{"online": None}, {"online": {"env_steps": 9, "num_envs": 1, "parallel": False, "data_fraction": 0.5}}],
            ["data.online=False", "data.online=True"],
        ),
        (
            [{"online": {"env_steps": 9, "num_envs": 1}}, {"online": {"env_steps": 8, "num_envs": 1}}],
            ["data.online.env_steps=9", "data.online.env_steps=8"],
        ),
    ],
    ids=lambda value: next(iter(value[0])) if isinstance(value[0], dict) else "",
)
def test_methods_differ_in_what_is_made_of_the_data_too(runs: list[Any], methods: list[str], tmp_path: Path) -> None:
    for number, options in enumerate([*runs, runs[0]]):
        on_data(tmp_path / ("run" + number * "+"), "data/expert", options)
    study = read_study([tmp_path])
    assert study.methods == tuple(f"SomeModel {method}" for method in methods)
    assert list(study.planned.values()) == [2, 1]


@pytest.mark.parametrize(("settings", "names"), [("a", ("a=0", "a=1")), ("abcd", ("as in 0", "as in 1"))])
def test_methods_are_the_same_on_tasks_with_updates_of_their_own(
    settings: str, names: tuple[str, str], tmp_path: Path
) -> None:
    for number in range(4):
        task, method = divmod(number, 2)
        options = {"num_updates": task}
        on_data(tmp_path / str(number), "expert", options, f"Made-v{task}", **dict.fromkeys(settings, method))
    study = read_study([tmp_path])
    assert study.methods == tuple(f"SomeModel {name}" for name in names)
    assert len(study.planned) == 4


def test_settings_of_parts_of_different_classes_do_not_name_methods(tmp_path: Path) -> None:
    parts = [("rooms.X", {"a": 1, "b": 1, "c": 1}), ("rooms.X", {"a": 2, "b": 1, "c": 1}), ("rooms.Y", {"d": 1})]
    for number, (kind, arguments) in enumerate(parts):
        on_data(tmp_path / str(number), "data/expert", {}, part={"class_path": kind, "init_args": arguments})
    names = ("part=rooms.X part.a=1", "part=rooms.X part.a=2", "part=rooms.Y")
    assert read_study([tmp_path]).methods == tuple(f"SomeModel {name}" for name in names)


def test_runs_in_several_folders_are_told_apart_by_what_differs_between_folders(tmp_path: Path) -> None:
    for name, temperature in {"x": 1.0, "y": 0.5}.items():
        make_run(tmp_path / name, 1.0)
        (tmp_path / name / "config.yaml").write_text(model(temperature=temperature))
    study = read_study([tmp_path / "x", tmp_path / "y"])
    assert study.methods == ("SomeModel temperature=1.0", "SomeModel temperature=0.5")
    assert read_study([tmp_path, tmp_path / "y"]).planned == dict.fromkeys(
        (("Made-up-v0", m) for m in study.methods), 1
    )
    for name, value in {"x": 1, "y": 2}.items():
        (tmp_path / name / "config.yaml").write_text(model(**dict.fromkeys("abcd", value)))
    assert read_study([tmp_path / "x", tmp_path / "y"]).methods == ("SomeModel as in x", "SomeModel as in y")


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("options", {"steps": 10}, "steps in options is not set in one and 10 in the other"),
        ("tasks", {"swing": {"return_range": None, "options": {"n": 3}}}, "options.n in tasks.swing is not set in one"),
        ("methods", {"a": {"options": {"n": 3}}}, "options.n in methods.a is not set in one and 3 in the other"),
    ],
)
def test_comparisons_that_mean_different_things_by_one_name_are_refused(kind, change, words, tmp_path: Path) -> None:
    first = make_comparison(tmp_path / "one", {"swing": {"a": [10.0]}})
    second = make_comparison(tmp_path / "two", {"swing": {"a": [20.0]}})
    other = make_comparison(tmp_path / "three", {"walk": {"c": [20.0]}})
    path = second / "comparison.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {kind: change}))
    outcome = report(first, second)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert f"{first} and {second} cannot be put together: {words}" in outcome.err
    assert read_study([second, other]).tasks == ("swing", "walk")  # they share nothing
