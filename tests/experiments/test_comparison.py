"""Comparisons: which runs there are, how their processes are watched, and what happens when something breaks off."""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from flowmatch_rl.cli import comparisons
from flowmatch_rl.experiments import comparison, plan
from flowmatch_rl.experiments.executors import Execution, LocalExecutor
from flowmatch_rl.experiments.plan import Job
from flowmatch_rl.experiments.queue import JobQueue, PlannedJobs
from tests.cli.support import CONF, PENDULUM, ROOT, SIZES, call, environment
from tests.combinations import one_test
from tests.experiments.comparisons import STAND_IN, compare, definition, starts, write_names

RUNS = [f"swing/{method}/{seed}" for seed in (0, 1) for method in ("plain", "layered")]


def test_dry_run_prints_each_command_and_touches_nothing(tmp_path: Path) -> None:
    options = {"data.batch_size": 8, "video.enabled": False, "model.solver": {"class_path": "Heun"}, "score": 1}
    outcome = compare(tmp_path, "--dry_run", options=options)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert [line.rpartition("=")[2] for line in lines] == [str(tmp_path / "out" / run) for run in RUNS]
    first = lines[0]
    words = [
        f"-m flowmatch_rl fit -c={tmp_path / 'task.yaml'} --",
        "--data.batch_size=8 --video.enabled=false",
        '\'--model.solver={"class_path": "Heun"}\'',
        "--score=1 --score=2 --seed_everything=0",  # those of the method come last
        "--trainer.logger=false",
    ]
    assert all(word in first for word in words), first
    assert f"-c={tmp_path / 'task.yaml'} -c={tmp_path / 'method.yaml'} --" in lines[1]
    assert "--seed_everything=1" in lines[2]
    assert not (tmp_path / "out" / "comparison.json").exists()


@pytest.mark.usefixtures("stand_in_runs")
def test_every_run_is_made_once_and_reported(tmp_path: Path) -> None:
    outcome = compare(tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert "[4 of 4]" in outcome.out
    assert all(f"{run} is finished" in outcome.out for run in RUNS)
    assert all(len(starts(tmp_path, run)) == 1 for run in RUNS)
    assert starts(tmp_path, RUNS[0])[0]["threads"] == ["1", "PASSIVE"]
    assert starts(tmp_path, RUNS[2])[0]["options"]["seed_everything"] == "1"
    assert {path.name for path in (tmp_path / "out").glob("report.*")} == {"report.html", "report.png"}
    again = compare(tmp_path)
    assert again.code == 0
    assert "4 of 4 runs are finished already" in again.out
    assert all(len(starts(tmp_path, run)) == 1 for run in RUNS)


def test_no_more_jobs_than_workers_run_at_a_time(tmp_path: Path) -> None:
    running: list[int] = []

    class Counting(LocalExecutor):
        def start(self, job: Job, command: Sequence[str], environment: Mapping[str, str]) -> Execution:
            running.append(len(list(tmp_path.glob("*/*/*/alive"))))
            program = [sys.executable, str(STAND_IN), "fit", *job.arguments]
            execution = super().start(job, program, environment)
            deadline = time.monotonic() + 30.0
            while not (job.folder / "starts.jsonl").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            return execution

    jobs = []
    for seed in range(4):
        folder = tmp_path / "swing" / "plain" / str(seed)
        arguments = ("--seed_everything=0", f"--trainer.default_root_dir={folder}")
        jobs.append(Job("swing", "plain", seed, folder, arguments))
    planned = PlannedJobs(jobs)
    assert JobQueue(planned, Counting(), 1, None).work() == 0
    assert (running, planned.failures) == ([0, 0, 0, 0], [])


@pytest.mark.usefixtures("stand_in")
def test_failed_run_is_told_at_the_end_while_the_others_go_on_and_is_tried_again(tmp_path: Path) -> None:
    methods = {"bad": {"options": {"act": "fail"}}, "good": {}}
    outcome = compare(tmp_path, methods=methods)
    assert outcome.code == 1
    assert "2 of 4 runs failed" in outcome.err
    for seed in (0, 1):
        assert f"swing/bad/{seed} (status 3)" in outcome.err
        assert f"swing/good/{seed} is finished" in outcome.out
    assert "line 19" in outcome.err
    assert "line 14" not in outcome.err
    assert (tmp_path / "out" / "report.html").exists()  # of those that ended
    again = compare(tmp_path, methods=methods)
    assert (again.code, again.err) == (0, "")
    last = tmp_path / "out" / "swing" / "bad" / "0" / "checkpoints" / "last.ckpt"
    assert starts(tmp_path, "swing/bad/0")[1]["options"]["ckpt_path"] == str(last)


@pytest.mark.usefixtures("stand_in")
def test_process_that_ends_well_without_a_result_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROGRAM", (sys.executable, "-c", "print('nothing done')"))
    outcome = compare(tmp_path, seeds=[0])
    assert outcome.code == 1
    assert "2 of 2 runs failed" in outcome.err
    assert "nothing done" in outcome.err


@pytest.mark.usefixtures("stand_in", "signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["user", "system"])
def test_interruption_stops_the_processes_and_the_same_command_goes_on(number: int, code: int, tmp_path: Path) -> None:
    methods = {"asks": {"options": {"act": "signal", "signal": int(number)}}, "waits": {"options": {"act": "wait"}}}
    outcome = compare(tmp_path, methods=methods)
    assert outcome.code == code
    assert f"continue with: flowmatch-rl compare -c={tmp_path / 'comparison.yaml'}" in outcome.err
    assert len(outcome.error_lines) == 1
    # Seed 1 never began; of the others each has saved if it came to live.
    assert not any(starts(tmp_path, f"swing/{method}/1") for method in methods)
    (asked,) = starts(tmp_path, "swing/asks/0")
    with pytest.raises(ProcessLookupError):
        os.kill(asked["pid"], 0)
    assert (tmp_path / "out" / "swing" / "asks" / "0" / "checkpoints" / "last.ckpt").exists()
    assert not list((tmp_path / "out").glob("*/*/*/alive"))
    again = compare(tmp_path, methods={"asks": methods["asks"]}, seeds=[0])
    assert "swing/asks/0 resumes" in again.out


@pytest.mark.usefixtures("stand_in")
def test_what_a_killed_command_leaves_behind_is_ended_before_its_runs_go_on(tmp_path: Path) -> None:
    changes = {"methods": {"a": {"options": {"act": "wait"}}, "b": {"options": {"act": "wait"}}}, "seeds": [0]}
    definition(tmp_path, **changes)
    code = (
        "import sys; from pathlib import Path; from flowmatch_rl.experiments import plan; "
        "from flowmatch_rl.experiments.executors import LocalExecutor; "
        "from flowmatch_rl.experiments.queue import JobQueue, PlannedJobs; "
        f"plan.PROGRAM = (sys.executable, {str(STAND_IN)!r}); "
        "waits = plan.Method(options={'act': 'wait'}); "
        f"made = plan.Plan({{'swing': plan.Task([{str(tmp_path / 'task.yaml')!r}])}}, {{'a': waits, 'b': waits}}); "
        f"JobQueue(PlannedJobs(made.jobs(Path({str(tmp_path / 'out')!r}))), LocalExecutor(), 2, None).work()"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True
    )
    orphans: list[int] = []
    try:
        deadline = time.monotonic() + 300.0
        while len(list((tmp_path / "out").glob("swing/?/0/alive"))) < 2 and time.monotonic() < deadline:
            assert command.poll() is None
            time.sleep(0.05)
        orphans = [starts(tmp_path, f"swing/{method}/0")[0]["pid"] for method in "ab"]
        command.kill()
        command.wait()
        assert all(Path(f"/proc/{pid}").exists() for pid in orphans)  # they train on, alone
        outcome = compare(tmp_path, **changes)
        assert (outcome.code, outcome.err) == (0, "")
        for method, pid in zip("ab", orphans, strict=True):
            assert f"swing/{method}/0 is still trained by process {pid}" in outcome.out
            second = starts(tmp_path, f"swing/{method}/0")[1]
            assert second["options"]["ckpt_path"].endswith("last.ckpt")
    finally:
        for pid in [command.pid, *orphans]:
            if (
                Path(f"/proc/{pid}/cmdline").exists()
                and str(STAND_IN).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
            ):
                os.kill(pid, signal.SIGKILL)


def test_folder_in_which_another_command_works_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = compare(tmp_path)
    assert outcome.code == 1
    assert "another command works in" in outcome.err
    assert len(outcome.error_lines) == 1


@pytest.mark.usefixtures("stand_in")
def test_run_held_by_an_unknown_process_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "swing" / "plain" / "0"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = compare(tmp_path)
    assert outcome.code == 1
    assert f"{folder} is in use by a process that is not known" in outcome.err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison, whose folder tests leave as it is."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PROGRAM", (sys.executable, str(STAND_IN)))
        patch.setattr(comparison, "write_report", write_names)
        patch.setattr(comparisons, "check_runs", lambda jobs: None)
        assert compare(folder).code == 0
    return folder


METHODS = {"plain": {"options": {"score": 2}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": {"plain": {"options": {"score": 3}}}}, ["method 'plain'", "options.score was 2, is 3"]),
        ({"methods": {"plain": {}}}, ["method 'plain'", "options.score was 2, is not set"]),
        (
            {"methods": METHODS, "options": {"data.batch_size": 7}},
            ["all runs share", "options.data.batch_size", "is 7"],
        ),
    ],
)
def test_changed_definition_of_what_has_runs_is_refused_in_one_line(changes, words, made: Path) -> None:
    for option in ([], ["--dry_run"]):
        outcome = compare(made, *option, **changes)
        assert outcome.code == 2
        assert len(outcome.error_lines) == 1
        assert all(word in outcome.err for word in [*words, str(made / "out")]), outcome.err


def test_entries_of_the_options_of_all_runs_are_changed_one_by_one(tmp_path: Path) -> None:
    words = ["--options.data.batch_size=7", "--options.data.n_steps", "3", "--options.model.scale=1.5"]
    outcome = compare(tmp_path, "--dry_run", *words, options={"data.batch_size": 64, "data.size": 5})
    assert outcome.code == 0
    for line in outcome.out.splitlines():
        given = [word for word in shlex.split(line) if word.startswith(("--data.", "--model."))]
        assert given == ["--data.batch_size=7", "--data.size=5", "--data.n_steps=3", "--model.scale=1.5"]


def test_entry_of_the_options_of_one_method_is_refused_on_the_command_line(tmp_path: Path) -> None:
    outcome = compare(tmp_path, "--dry_run", "--methods.plain.options.data.batch_size=7")
    assert outcome.code == 2
    assert outcome.error_lines[-1].endswith(
        "--methods.plain.options.data.batch_size: options of one task or method are given in the comparison's file"
    )


def test_changed_definition_is_refused_where_records_alone_were_copied(made: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(made, tmp_path / "copied")
    for log in list(copied.rglob("output.log")):
        log.unlink()
    outcome = compare(copied, "--dry_run", methods={"plain": {}})
    assert outcome.code == 2
    assert "options.score was 2, is not set" in outcome.err


def test_changed_content_of_a_file_is_refused_but_not_its_comments_or_its_place(made: Path) -> None:
    definition(made)
    elsewhere = made / "moved.yaml"
    elsewhere.write_text("# a comment\nmodel:\n  init_args: {temperature: 1.0}\n")
    moved = {"layered": {"config": [str(elsewhere)]}}
    assert compare(made, "--dry_run", methods=moved).code == 0
    elsewhere.write_text("model: {init_args: {temperature: 0.5}}\n")
    outcome = compare(made, "--dry_run", methods=moved)
    assert outcome.code == 2
    assert "layers.1.model.init_args.temperature was 1.0, is 0.5" in outcome.err


def test_more_methods_tasks_and_seeds_another_scale_and_tracking_are_fine(made: Path) -> None:
    definition(made)
    tasks = {"swing": {"config": [str(made / "task.yaml")], "return_range": [1.0, 3.0]}}
    tasks["walk"] = {"config": [str(made / "task.yaml")]}
    methods = METHODS | {"layered": {"config": [str(made / "method.yaml")]}, "new": {"options": {"score": 9}}}
    outcome = compare(made, "--dry_run", tasks=tasks, methods=methods, seeds=[0, 1, 2], tracking=True)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert len(lines) == 2 * 3 * 3
    assert sum(line.startswith("# finished: ") for line in lines) == 4


@one_test
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": {"x": {"config": ["missing.yaml"]}}}, ["methods.x.config", "missing.yaml"]),
        ({"methods": {}}, ["methods", "at least one"]),
        ({"methods": {"a/b": {}}}, ["'a/b'"]),
        ({"methods": {"..": {}}}, ["'..'"]),
        ({"methods": {2: {}}}, ["methods", "got 2", "quotes"]),
        ({"tasks": {True: {"config": []}}}, ["tasks", "got True", "quotes"]),
        ({"methods": {"x": {"optoins": {"score": 1}}}}, ["optoins"]),
        ({"methods": {"x": {"options": {"seed_everything": 3}}}}, ["methods.x.options", "seed_everything"]),
        ({"options": {"ckpt_path": "a"}}, ["options", "ckpt_path"]),
        ({"options": {2: 3}}, ["options", "got 2", "quotes"]),
        ({"seeds": [1, 1]}, ["seeds", "[1, 1]"]),
        ({"seeds": []}, ["seeds"]),
        ({"workers": 0}, ["workers", "0"]),
        ({"tasks": {"x": {"config": [], "return_range": [3.0, 1.0]}}}, ["return_range", "3.0"]),
    ],
)
def test_wrong_definition_is_refused_with_status_two(changes, words, tmp_path: Path) -> None:
    outcome = compare(tmp_path, **changes)
    assert outcome.code == 2
    assert len(outcome.error_lines) <= 3
    assert all(word in outcome.err for word in words), outcome.err
    assert not (tmp_path / "out" / "comparison.json").exists()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (b"a: [1", ": not YAML near line 2, column 1"),
        (b"- a", " must hold sections, such as model, got ['a']"),
        (b"\xff\xfe", ": 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_file_that_holds_no_configuration_is_refused_in_one_line(layer: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_bytes(layer)
    outcome = compare(tmp_path, methods={"x": {"config": [str(tmp_path / "broken.yaml")]}})
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    assert f"methods.x.config: {tmp_path / 'broken.yaml'}{reason}" in outcome.err


@pytest.mark.parametrize("path", sorted((CONF / "comparison").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_comparison_of_the_repository_is_made_of_valid_runs(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    outcome = call(["compare", f"-c={path}", f"--output={tmp_path / 'out'}", "--dry_run"])
    assert outcome.code == 0, outcome.err
    seen: set[str] = set()
    for line in outcome.out.splitlines():
        task, method, _ = line.rpartition(f"{tmp_path / 'out'}/")[2].split("/")
        if not {task, method} <= seen:  # each task and each method once
            seen |= {task, method}
            checked = call([*shlex.split(line.partition(" -m flowmatch_rl ")[2]), "--print_config"])
            assert checked.code == 0, checked.err
    assert len(seen) >= 3


@pytest.mark.usefixtures("stand_in")
def test_runs_are_told_their_parent_which_tells_how_it_ended(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    outcome = compare(tmp_path, tracking=True, seeds=[0])
    assert outcome.code == 0, outcome.err
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    context = json.loads(starts(tmp_path, RUNS[0])[0]["context"])
    assert context == {"mlflow.parentRunId": record["parent_run"], "mlflow.runName": RUNS[0]}
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    parent = client.get_run(record["parent_run"])
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "out")
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert files == {"comparison.json", "report.html"}
    methods = METHODS | {"bad": {"options": {"act": "fail"}}}
    assert compare(tmp_path, tracking=True, seeds=[0], methods=methods).code == 1
    (again,) = client.search_runs([parent.info.experiment_id])  # stand-ins are not tracked
    assert (again.info.run_id, again.info.status) == (record["parent_run"], "FAILED")
    client.delete_run(record["parent_run"])
    assert compare(tmp_path, tracking=True, seeds=[0], methods=methods).code == 0
    (another,) = client.search_runs([parent.info.experiment_id])
    assert (another.info.status, another.info.run_id != again.info.run_id) == ("FINISHED", True)


@pytest.mark.slow
@pytest.mark.usefixtures("signals")
def test_real_runs_lie_under_one_parent_and_go_on_after_an_interruption(tmp_path: Path) -> None:
    sizes = {key: value for key, value in SIZES.items() if key.startswith(("data.", "trainer.", "video."))}
    sizes |= {"data.total_env_steps": 200, "data.epoch_env_steps": 50, "model.critics.architecture.hidden_dim": 16}
    content = {
        "tasks": {"pendulum": {"config": [str(PENDULUM)], "return_range": [-100.0, 0.0]}},
        "methods": {
            "flow": {"options": {"model.policy.network.hidden_dim": 16, "model.acting.train_particles": 2}},
            "sac": {"config": [str(CONF / "actor_critic" / "methods" / "sac.yaml")]},
        },
        "seeds": [0],
        "options": sizes,
        "workers": 2,
    }
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    command = [sys.executable, "-m", "flowmatch_rl", "compare", "-c=comparison.yaml", "--output=out"]
    process = subprocess.Popen(command, env=environment(), cwd=tmp_path, start_new_session=True)
    try:
        deadline = time.monotonic() + 300.0
        while not list(tmp_path.glob("out/*/*/0/figures/*.csv")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    finally:
        if process.poll() is None:
            process.kill()
    ended = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("flowmatch_rl")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert set(runs) == {"out", "pendulum/flow/0", "pendulum/sac/0"}
    assert len(found) == 3  # one each, the resumed ones too
    parent = runs.pop("out").info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for method in ("flow", "sac"):
        table = (tmp_path / "out" / "pendulum" / method / "0" / "figures" / "learning_curve.csv").read_text()
        seconds = [float(row.rpartition(",")[2]) for row in table.splitlines()[1:]]
        assert len(seconds) >= 4
        assert seconds == sorted(seconds)
    assert "pendulum" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model.policy.t_min": 0.7}, "t_min must lie in [0, 0.5), got 0.7"),
        ({"data.batch_sise": 3}, "data: unknown key 'batch_sise'"),
        ({"model.estimator.num_samples": "many"}, "model.estimator.num_samples: expected int, got 'many'\n"),
    ],
)
def test_a_value_of_a_method_that_does_not_fit_is_named_before_anything_runs(
    tmp_path: Path, options: dict[str, Any], error: str
) -> None:
    paper = str(CONF / "actor_critic" / "presets" / "paper.yaml")
    task = {"config": [str(CONF / "bandit" / "four_modes.yaml")], "keeps_model": True}
    methods = {"good": {"config": [paper]}, "bad": {"config": [paper], "options": options}}
    outcome = compare(tmp_path, tasks={"four": task}, methods=methods)
    assert outcome.code == 2
    assert f"method 'bad' on task 'four': {error}" in outcome.err
    assert len(outcome.err.splitlines()) <= 3
    assert not (tmp_path / "out" / "comparison.json").exists()
