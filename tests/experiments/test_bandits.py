"""Comparisons on bandits: what methods share with the model of a task, and what a report shows of the samples."""

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from flowmatch_rl.checks import UserError
from flowmatch_rl.experiments.plan import Method, Plan, Task
from flowmatch_rl.experiments.record import write_record
from flowmatch_rl.experiments.runs import read_study
from flowmatch_rl.experiments.statistics import BANDIT_METRICS, EXACT, summarize
from tests.cli.support import CONF, call
from tests.combinations import one_test
from tests.experiments.comparisons import compare
from tests.experiments.test_report import Page, make_comparison, report

METHODS = CONF / "actor_critic" / "methods"
SIZES = {
    "data.num_updates": 2,
    "data.batch_size": 8,
    "data.eval_samples": 40,
    "model.policy.network.hidden_dim": 16,
    "trainer.accelerator": "cpu",
    "trainer.limit_val_batches": 0,
}


def task(name: str, **changes) -> Task:
    return Task([str(CONF / "bandit" / f"{name}.yaml")], keeps_model=True, **changes)


def method(*names: str) -> Method:
    return Method([str(CONF / "actor_critic" / f"{name}.yaml") for name in names])


def layers(plan: Plan) -> list[dict]:
    """Arguments of the model that the first job is given as text."""
    arguments = plan.jobs(Path("out"))[0].arguments
    texts = [text for argument in arguments if (text := argument.removeprefix("-c=")).startswith("{")]
    return [json.loads(text)["model"] for text in texts]


def test_a_task_that_keeps_its_model_takes_what_its_class_shares_of_a_method() -> None:
    (model,) = layers(Plan({"b": task("four_modes")}, {"m": method("presets/paper")}))
    stated = yaml.safe_load((CONF / "actor_critic" / "presets" / "paper.yaml").read_text())["model"]["init_args"]
    assert model["class_path"] == "BanditFlow"
    shared = model["init_args"]
    assert all(stated[name] == value for name, value in shared.items())
    assert {"policy", "objective", "estimator", "points", "acting"} <= shared.keys()
    # No critics, and no temperature: an actor-critic's may be a rule.
    assert not {"critics", "discount", "temperature"} & shared.keys()


def test_files_of_a_method_stay_overlays_and_other_tasks_get_them_as_they_are() -> None:
    hundred = str(CONF / "bandit" / "presets" / "hundred_samples.yaml")
    methods = {"m": Method([str(METHODS / "sdac.yaml"), hundred])}
    assert [layer["init_args"]["estimator"]["init_args"] for layer in layers(Plan({"b": task("flat")}, methods))] == [
        {"num_samples": 64, "proposal": "LikelihoodProposal", "control_variate": "NoControlVariate"},
        {"num_samples": 100},
    ]
    (job,) = Plan({"p": Task([str(CONF / "actor_critic" / "pendulum.yaml")])}, methods).jobs(Path("out"))
    assert [f"-c={path}" for path in methods["m"].config] == list(job.arguments[1:3])


@one_test
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trainer: {precision: 32}", "has no section model with a class_path"),
        ("model: {class_path: Blat}", "unknown class 'Blat'"),
        ("model: {class_path: no.such.Flow}", "unknown class 'no.such.Flow'"),
        ("model: {class_path: ReverseFlowActorCritic, init_args: {t_minn: 0.1}}", "the unknown key 't_minn'"),
        ("model: {class_path: SoftActorCritic}", "SoftActorCritic, which has no estimator to give to BanditFlow"),
    ],
)
def test_a_method_that_does_not_serve_a_task_that_keeps_its_model_is_named(content, message, tmp_path) -> None:
    path = tmp_path / "method.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"methods\.m\.config: ") as caught:
        Plan({"b": task("flat")}, {"m": Method([str(path)])}).jobs(tmp_path)
    assert message in str(caught.value)
    with pytest.raises(UserError, match=r"tasks\.b keeps its model, but has no configuration file"):
        Plan({"b": Task([], keeps_model=True)}, {"m": Method([str(path)])}).jobs(tmp_path)


def test_a_plan_that_does_not_serve_ends_the_command_in_one_line(tmp_path) -> None:
    tasks = {"b": {"config": [str(CONF / "bandit" / "flat.yaml")], "keeps_model": True}}
    outcome = compare(tmp_path, tasks=tasks, methods={"sac": {"config": [str(METHODS / "sac.yaml")]}})
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    assert "methods.sac.config" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison whose jobs were run in this process; the last run of its second method is missing."""
    output = tmp_path_factory.mktemp("bandits") / "out"
    tasks = {"moons": task("two_moons"), "six": task("bimodal")}
    methods = {"rfm": method("methods/rfm"), "fast": method("presets/fast")}
    plan = Plan(tasks, methods, [0, 1], SIZES, tracking=False)
    jobs = plan.jobs(output)
    for job in jobs:
        if job.name != "six/fast/1":
            outcome = call(shlex.split(job.describe().partition(" -m flowmatch_rl ")[2]))
            assert outcome.code == 0, outcome.err
            (job.folder / "output.log").touch()
    write_record(output, None, plan.definition(), jobs)
    outcome = report(output)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.split() == [str(output / name) for name in ("report.html", "samples.png", "results.csv")]
    return output


def test_every_run_has_a_row_of_numbers(finished: Path) -> None:
    rows = pd.read_csv(finished / "results.csv")
    places = [(t, m, r) for r in (0, 1) for t in ("moons", "six") for m in ("rfm", "fast")][:-1]
    assert list(zip(rows["task"], rows["method"], rows["run"], strict=True)) == places
    assert set(BANDIT_METRICS) <= set(rows.columns)
    assert (rows["energy_distance"] > 0.0).all()
    assert rows["energy_distance"].nunique() == 7  # methods and seeds differ
    assert rows["exact/energy_distance"].nunique() == 2  # the same exact samples for all runs on a bandit


def test_tables_hold_means_and_deviations_over_runs(finished: Path) -> None:
    rows = pd.read_csv(finished / "results.csv")
    moons, six = Page((finished / "report.html").read_text()).tables
    assert moons[0] == ["method", *BANDIT_METRICS.values(), "runs ended"]
    assert [row[0] for row in moons[1:]] == [EXACT, "rfm", "fast"]
    values = rows[(rows["task"] == "moons") & (rows["method"] == "rfm")]["mmd"]
    assert moons[2][4] == f"{values.mean():.4f} \N{PLUS-MINUS SIGN} {values.std():.4f}"
    assert moons[1][1] == f"{rows['exact/energy_distance'][0]:.4f}"
    assert [row[-1] for row in six[1:]] == ["", "2 of 2", "1 of 2"]
    assert "\N{PLUS-MINUS SIGN}" not in six[3][1]  # of a single run


def test_samples_are_drawn_over_the_exact_density(finished: Path) -> None:
    summary = summarize(read_study([finished]))
    assert (summary.tasks, summary.aggregate.mean, summary.aggregate.improvement) == ((), None, None)
    assert [name for name in summary.bandits] == ["moons", "six"]
    panels = summary.bandits["six"]
    assert panels.action_dim == 6
    actions = panels.samples["fast"]
    assert actions is not None
    written = pd.read_csv(finished / "six" / "fast" / "0" / "actions.csv").to_numpy()
    np.testing.assert_array_equal(actions, written[:, :2])
    assert panels.exact.shape == (40, 2)
    cell = (2.0 / (len(panels.density) - 1)) ** 2
    assert float(panels.density.sum() * cell) == pytest.approx(1.0, abs=0.02)
    assert panels.distance.keys() == {"rfm", "fast"}


def test_folders_of_runs_on_bandits_are_found_below_any_folder(finished: Path, tmp_path: Path) -> None:
    study = read_study([finished / "moons"])
    assert study.tasks == ("two_moons",)
    assert len(study.methods) == 2
    assert all("BanditFlow" in name for name in study.methods)


@pytest.mark.usefixtures("undrawn")
def test_bandits_and_tasks_with_returns_share_a_page(finished: Path, tmp_path: Path) -> None:
    other = make_comparison(tmp_path / "other", {"swing": {"a": [10.0], "b": [20.0]}}, {"swing": [0.0, 100.0]})
    outcome = report(finished, other, f"--output={tmp_path / 'page'}")
    assert outcome.code == 0, outcome.err
    names = [Path(path).name for path in outcome.out.split()]
    assert names == ["report.html", "report.png", "samples.png", "results.csv"]
    page = Page((tmp_path / "page" / "report.html").read_text())
    assert [table[0][0] for table in page.tables] == ["method", "", "method", "method", "method"]
    assert "interquartile mean leaves out" in page.text


def test_a_bandit_with_one_action_has_a_table_but_no_picture(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "out" / "flat"
    job = Plan({"flat": task("flat")}, {"m": method("presets/fast")}, [0], SIZES, tracking=False).jobs(tmp_path)[0]
    arguments = [*job.arguments, "--data.bandit.init_args.dimensions=1", f"--trainer.default_root_dir={run}"]
    assert call(["fit", *arguments]).code == 0
    outcome = report(tmp_path / "out")
    assert [Path(path).name for path in outcome.out.split()] == ["report.html", "results.csv"]
    assert len(Page((tmp_path / "out" / "report.html").read_text()).tables) == 1
