"""Spaces of sweeps: what they draw, what is refused before any trial, and the overlay of a point."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowmatch_rl.cli import sweeps
from flowmatch_rl.experiments.plan import named_modules
from flowmatch_rl.experiments.sweeps.plan import Sweep
from flowmatch_rl.experiments.sweeps.space import plain, read_space
from tests.cli.support import CONF, PENDULUM, ROOT, call
from tests.combinations import one_test

FAST = CONF / "actor_critic" / "presets" / "fast.yaml"


def write(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {"base": [str(PENDULUM)], "space": {"model.temperature": {"float": [0.1, 1.0]}}}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


def test_grids_hold_the_ends_and_what_lies_between() -> None:
    space = read_space(
        {
            "a": {"float": [0.0, 1.0], "step": 0.25},
            "b": {"float": [0.01, 1.0], "log": True},
            "c": {"int": [1, 7], "step": 3},
            "d": {"int": [1, 100], "log": True},
            "e": {"choices": [True, {"class_path": "a.Heun"}]},
            "f": {"overlays": {"none": [], "fast": str(FAST)}},
        }
    )
    grids = {key: list(dimension.grid(3)) for key, dimension in space.items()}
    assert grids["a"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert grids["b"] == pytest.approx([0.01, 0.1, 1.0])
    assert (grids["c"], grids["d"]) == ([1, 4, 7], [1, 10, 100])
    assert (grids["e"], grids["f"]) == (["true", "Heun"], ["none", "fast"])
    assert space["e"].arguments("e", "true") == ["--e=true"]
    assert space["f"].arguments("f", "fast") == [f"-c={FAST}"]


def test_files_come_before_classes_and_classes_before_their_arguments() -> None:
    keys = ["model.estimator.init_args.num_samples", "model.init_args.estimator", "preset"]
    entries = [{"int": [1, 2]}, {"choices": ["A", "B"]}, {"overlays": {"a": [], "b": []}}]
    assert list(read_space(dict(zip(keys, entries, strict=True)))) == keys[::-1]
    assert plain(keys[0]) == "model.estimator.num_samples"


@one_test
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"flaot": [1, 2]}, "space.x must have one of float, int, choices and overlays"),
        ({"float": [1, 2], "int": [1, 2]}, "space.x must have one of"),
        ({"float": [1.0, 2.0], "lgo": True}, "space.x: unknown key 'lgo'"),
        ({"choices": [1, 2], "log": True}, "space.x: unknown key 'log'"),
        ({"float": [2.0, 1.0]}, "space.x.float must ascend, got [2.0, 1.0]"),
        ({"float": [1.0, "a"]}, "space.x.float must be two numbers"),
        ({"float": [0.0, 1.0], "log": True}, "space.x.float must be positive on a logarithmic scale"),
        ({"float": [0.0, 1.0], "step": 0.3}, "space.x.step must divide 1"),
        ({"int": [1, 2.5]}, "space.x.int must be two whole numbers"),
        ({"int": [1, 8], "log": True, "step": 2}, "space.x must not have step 2"),
        ({"choices": [1]}, "space.x.choices must be at least two"),
        ({"choices": [{"class_path": "a.A"}, {"class_path": "b.A"}]}, "two are called A; give them names"),
        ({"overlays": ["a.yaml"]}, "space.x.overlays must be files by name"),
        ({"overlays": {"a": [], "b": "missing.yaml"}}, "space.x.overlays.b: there is no file missing.yaml"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_in_one_line(entry, words: str, tmp_path: Path) -> None:
    outcome = call(["sweep", f"-c={write(tmp_path, space={'x': entry})}", f"--output={tmp_path / 'out'}"])
    assert outcome.code == 2
    assert words in outcome.err, outcome.err
    hint = "  did you mean 'log'?" if "lgo" in words else None
    assert outcome.error_lines[1:] == ([hint] if hint else [])
    assert not (tmp_path / "out").exists()


@one_test
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"space": {}}, "space must name at least one key"),
        ({"space": {"seed_everything": {"int": [1, 2]}}}, "space must not set seed_everything: sweep sets it"),
        ({"space": {"a.init_args.b": {"int": [1, 2]}, "a.b": {"int": [1, 2]}}}, "space names one argument twice"),
        ({"options": {"model.temperature": 1}}, "options must not set model.temperature, where space has it"),
        ({"options": {"model": "SoftActorCritic"}}, "options must not set model, where space has model.temperature"),
        ({"metric": "return_mean"}, "metric return_mean needs a direction, max or min"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"base": ["missing.yaml"]}, "base: there is no file missing.yaml"),
        ({"pruner": {"class_path": "HyperbandPruner", "init_args": {"min_steps": 9, "max_steps": 3}}}, "max_steps"),
        ({"sampler": "TepSampler"}, "sampler"),
    ],
)
def test_a_definition_that_does_not_fit_is_refused(changes, words: str, tmp_path: Path) -> None:
    outcome = call(["sweep", f"-c={write(tmp_path, **changes)}", f"--output={tmp_path / 'out'}"])
    assert (outcome.code, len(outcome.error_lines) <= 2) == (2, True), outcome.err
    assert words in outcome.err
    assert not (tmp_path / "out").exists()


@one_test
@pytest.mark.parametrize(
    ("space", "words", "hint"),
    [
        (
            {"data.batch_size": {"int": [8, 16]}, "model.init_args.temprature": {"float": [0.1, 1.0]}},
            ["space.model.init_args.temprature, at 0.1: ", "temprature"],
            "temperature",
        ),
        ({"model.discount": {"float": [0.9, 1.5]}}, ["space.model.discount, at 1.5: ", "discount", "[0, 1)"], None),
        (
            {"model.estimator": {"choices": ["LocalMeanEstimator", "LocalMeenEstimator"]}},
            ["space.model.estimator, at LocalMeenEstimator: ", "LocalMeenEstimator"],
            "LocalMeanEstimator",
        ),
    ],
)
def test_what_the_model_does_not_take_is_refused_before_any_trial(space, words, hint, tmp_path: Path) -> None:
    outcome = call(["sweep", f"-c={write(tmp_path, space=space)}", f"--output={tmp_path / 'out'}"])
    assert (outcome.code, len(outcome.error_lines)) == (2, 1 if hint is None else 2), outcome.err
    assert all(word in outcome.error_lines[0] for word in words), outcome.err
    assert hint is None or f"did you mean '{hint}'?" in outcome.error_lines[1]
    assert not (tmp_path / "out" / "study.db").exists()


def test_the_overlay_of_a_point_makes_the_run_of_its_trial(tmp_path: Path) -> None:
    estimator = {"class_path": "LocalMeanEstimator", "init_args": {"num_samples": 3}}
    space = {
        "preset": {"overlays": {"none": [], "fast": str(FAST)}},
        "model.estimator": {"choices": ["PosteriorMeanEstimator", estimator]},
        "model.init_args.estimator.num_samples": {"int": [5, 9]},
        "model.temperature": {"float": [0.1, 1.0]},
    }
    plan = Sweep([str(PENDULUM)], space, options={"data.batch_size": 16})
    point = {key: dimension.ends()[-1] for key, dimension in plan.dimensions.items()}
    (job,) = plan.jobs(tmp_path, 0, point)
    best = tmp_path / "best.yaml"
    best.write_text(yaml.safe_dump(sweeps.merge(plan.overlays(point))))
    files, options = plan.common()
    own = ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={job.folder}", "--seed_everything=0"]
    printed = [
        call(["fit", *words, "--print_config"]) for words in (job.arguments, [*files, f"-c={best}", *options, *own])
    ]
    assert [outcome.code for outcome in printed] == [0, 0], printed[1].err
    assert printed[0].out == printed[1].out
    config = yaml.safe_load(printed[0].out)["model"]["init_args"]
    assert config["estimator"]["class_path"].endswith("LocalMeanEstimator")
    assert (config["estimator"]["init_args"]["num_samples"], config["temperature"]) == (9, 1.0)
    assert config["points"]["batch_size"] == 128  # as the preset has it


def test_modules_of_a_users_own_are_known_from_options_files_and_the_space(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {init_args: {estimator: {class_path: my_estimators.Mine}}}\n")
    sweep = Sweep(
        base=[str(tmp_path / "mine.yaml")],
        space={"model.policy.squash": {"choices": [{"class_path": "my_parts.Squash"}, {"class_path": "TanhSquash"}]}},
        options={"data": {"class_path": "my_data.Own"}},
    )
    assert named_modules(sweep.contents()) == {"my_estimators", "my_parts", "my_data"}


def test_entries_of_the_options_of_all_trials_are_changed_one_by_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    words = ["--options.data.batch_size=7", "--options.data.eval_samples=90"]
    outcome = call(["sweep", "-c=conf/sweep/two_moons.yaml", f"--output={tmp_path / 'out'}", "--dry_run", *words])
    assert outcome.code == 0, outcome.err
    assert all(
        set(shlex.split(line)) >= {word.replace("options.", "") for word in words} for line in outcome.out.splitlines()
    )


@pytest.mark.parametrize("path", sorted((CONF / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_of_the_repository_is_made_of_valid_runs(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    outcome = call(["sweep", f"-c={path}", f"--output={tmp_path / 'out'}", "--dry_run"])
    assert outcome.code == 0, outcome.err
    assert all(shlex.split(line)[3] == "fit" for line in outcome.out.splitlines())
    assert not (tmp_path / "out").exists()
