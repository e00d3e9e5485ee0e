"""The command ``laboratory``, and runs of ``fit`` on bandits."""

import contextlib
import csv
import fcntl
import json
import os
import signal
import time

import pytest
import torch
import yaml

from flowmatch_rl.checks import RunError
from flowmatch_rl.experiments import laboratory as laboratory_command
from flowmatch_rl.modules import BanditFlow
from tests.cli.support import CONF, call
from tests.combinations import one_test

BANDITS = sorted(path for path in (CONF / "bandit").glob("*.yaml") if path.stem != "laboratory")
METHODS = CONF / "actor_critic" / "methods"

SETTINGS = {
    "methods": {"rfm": [str(METHODS / "rfm.yaml")], "sdac": [str(METHODS / "sdac.yaml")]},
    "bandits": {
        "flat": {"class_path": "Flat", "init_args": {"dimensions": 2}},
        "six": {"class_path": "Bimodal"},
    },
    "estimators": {
        "product": {"class_path": "PosteriorMeanEstimator", "init_args": {"num_samples": 4}},
        "point": {"class_path": "PointScoreEstimator"},
    },
    "seeds": [0, 1],
    "model": {
        "acting": {"train_particles": 2},
        "policy": {"network": {"hidden_dim": 16, "num_blocks": 1}},
        "eval_steps": [3],
    },
    "training": {"num_updates": 2, "batch_size": 8, "eval_samples": 40},
    "study": {"times": [0.2, 0.7], "num_points": 2, "num_repeats": 3},
    "workers": 1,
    "progress": False,
}


def write(folder, **changes):
    path = folder / "laboratory.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | changes))
    return path


def laboratory(folder, **changes):
    return call(["laboratory", f"-c={write(folder, **changes)}", f"--output={folder / 'results'}"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laboratory")
    outcome = laboratory(folder)
    assert outcome.code == 0, outcome.err
    return folder, outcome


def test_it_names_its_files(finished) -> None:
    folder, outcome = finished
    names = ["results.csv", "table.md", "samples.png", "estimators.png"]
    assert outcome.out.split() == [str(folder / "results" / name) for name in names]
    assert all((folder / "results" / name).stat().st_size > 100 for name in names)


def test_every_method_bandit_and_seed_has_a_row_of_numbers(finished) -> None:
    folder, _ = finished
    rows = list(csv.DictReader((folder / "results" / "results.csv").open()))
    cells = {(row["bandit"], row["method"], row["seed"]) for row in rows}
    assert cells == {(b, m, s) for b in ("flat", "six") for m in ("rfm", "sdac") for s in "01"}
    assert len(rows) == 8
    for row in rows:
        assert float(row["energy_distance"]) > 0.0
        assert float(row["seconds"]) > 0.0
        assert row["energy_distance/3_steps"]
        assert row["error"] == ""
    assert rows[0]["energy_distance"] != rows[4]["energy_distance"]  # another seed
    assert rows[0]["exact/energy_distance"] == rows[4]["exact/energy_distance"]


def test_the_table_holds_means_over_seeds(finished) -> None:
    folder, _ = finished
    rows = list(csv.DictReader((folder / "results" / "results.csv").open()))
    values = torch.tensor([float(r["mmd"]) for r in rows if (r["bandit"], r["method"]) == ("six", "rfm")])
    text = (folder / "results" / "table.md").read_text()
    block = text[text.index("## six") :]
    line = next(line for line in block.splitlines() if line.startswith("| rfm"))
    assert f"| {values.mean():.4f} +- {values.std():.4f} |" in line
    assert "| two exact samples |" in block


def test_errors_of_estimators_are_kept(finished) -> None:
    folder, _ = finished
    kept = json.loads((folder / "results" / "estimators" / "six.json").read_text())["errors"]
    assert kept.keys() == {"product", "point"}
    assert kept["product"]["t"] == [0.2, 0.7]
    assert kept["point"]["deviation"] == [0.0, 0.0]


def test_a_second_run_does_what_is_missing_and_no_more(finished) -> None:
    folder, _ = finished
    files = sorted((folder / "results").rglob("*.json"))
    assert len(files) == 8 + 2
    before = {path: path.stat().st_mtime_ns for path in files}
    table = (folder / "results" / "results.csv").read_text()
    missing = folder / "results" / "policies" / "flat" / "rfm" / "1.json"
    kept = json.loads(missing.read_text())
    missing.unlink()
    assert laboratory(folder).code == 0
    assert {path for path in files if path.stat().st_mtime_ns != before[path]} == {missing}
    again = json.loads(missing.read_text())
    assert again["samples"] == kept["samples"]  # the seed decides
    assert len((folder / "results" / "results.csv").read_text().splitlines()) == len(table.splitlines())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"num_updates": 3, "batch_size": 8, "eval_samples": 40}}, "made with another num_updates"),
        ({"temperature": 2.0}, "made with another temperature"),
        ({"bandits": {"flat": {"class_path": "Flat", "init_args": {"dimensions": 3}}}}, "made with another bandit"),
    ],
)
def test_results_of_other_settings_are_not_mixed(finished, changes, message) -> None:
    folder, _ = finished
    outcome = laboratory(folder, **changes)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert message in outcome.err


@one_test
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (b"\xff\xfe", "is not YAML"),
        (b"model: [1", "is not YAML"),
        (b"- model", "must hold sections"),
        (b"model: {class_path: ReverseFlowActorCritic, init_args: {t_minn: 0.1}}", "the unknown key 't_minn'"),
    ],
)
def test_a_layer_that_does_not_serve_is_named(layer, message, tmp_path) -> None:
    path = tmp_path / "layer.yaml"
    path.write_bytes(layer)
    outcome = laboratory(tmp_path, methods={"rfm": [str(path)]})
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert f"methods.rfm: {path}" in outcome.err
    assert message in outcome.err


@one_test
@pytest.mark.parametrize("text", [b"{", b"[]", b'{"definition": 3}', b"\xff\xfe"])
def test_a_broken_file_is_named(text, tmp_path) -> None:
    cell = tmp_path / "results" / "policies" / "flat" / "rfm" / "0.json"
    cell.parent.mkdir(parents=True)
    cell.write_bytes(text)
    outcome = laboratory(tmp_path)
    assert outcome.code == 2
    assert f"{cell} is not a result of the laboratory" in outcome.err


@one_test
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {}}, "methods must name at least one"),
        ({"methods": {"a/b": [str(METHODS / "rfm.yaml")]}}, "methods.'a/b': a name is made of"),
        ({"methods": {2: [str(METHODS / "rfm.yaml")]}}, "methods: a name must be a word, got 2; put it in quotes"),
        ({"methods": {"rfm": ["no/such.yaml"]}}, "methods.rfm: there is no file no/such.yaml"),
        ({"methods": {"sac": [str(METHODS / "sac.yaml")]}}, "configures SoftActorCritic, which has no estimator"),
        ({"methods": {"none": [str(CONF / "logger" / "none.yaml")]}}, "has no section model"),
        ({"bandits": {"one": {"class_path": "Flat", "init_args": {"dimensions": 1}}}}, "bandits.one: the figure needs"),
        ({"bandits": {"bad": {"class_path": "Flat", "init_args": {"dimensions": 0}}}}, "at least 1, got 0"),
        ({"bandits": {"bad": {"class_path": "Blat"}}}, "Blat"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": 1e-6}, "bandits.six: Bimodal is resolved at a temperature of at least"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"model": {"particles": 3}}, "model: unknown key 'particles'"),
        ({"model": {"t_min": 0.7}}, "methods.rfm: t_min must lie in (0, 0.5), got 0.7"),
        ({"model": {"squash": "TanSquash"}}, "methods.rfm: "),
        ({"training": {"num_updates": 0}}, "num_updates"),
        ({"training": {"accelerator": "abacus"}}, "training.accelerator: "),
        ({"study": {"times": [0.0]}}, "times must lie in (0, 1)"),
        ({"estimators": {"md": {"class_path": "ReweightedEndpoints"}}}, "estimators.md: ReweightedEndpoints weights"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(changes, message, tmp_path) -> None:
    outcome = laboratory(tmp_path, **changes)
    assert outcome.code == 2
    assert len(outcome.error_lines) <= 2
    assert message in outcome.err
    assert not (tmp_path / "results").exists()


def test_a_class_in_the_model_section_is_left_as_it_is_written(monkeypatch, tmp_path) -> None:
    cells = []

    def note(given, *_) -> None:
        cells.extend(given)
        raise RunError("noted")

    monkeypatch.setattr(laboratory_command, "_work", note)
    squash = {"class_path": "flowmatch_rl.paths.TanhSquash"}
    assert "noted" in laboratory(tmp_path, model=SETTINGS["model"] | {"squash": squash}).err
    assert json.loads(json.dumps(cells[-1].definition))["layers"][-1]["squash"] == squash


def test_a_policy_that_breaks_off_is_noted_and_the_rest_goes_on(tmp_path) -> None:
    changes = {
        "methods": {"rfm": [str(METHODS / "rfm.yaml")]},
        "bandits": {"six": {"class_path": "Bimodal"}},
        "seeds": [0],
        "estimators": None,
        "model": SETTINGS["model"] | {"actor_learning_rate": 1e30, "max_gradient_norm": 1e30},
    }
    outcome = laboratory(tmp_path, **changes)
    assert outcome.code == 0, outcome.err
    assert "not finite" in (tmp_path / "results" / "results.csv").read_text()
    assert "| rfm (1 of 1 broke off) |" in (tmp_path / "results" / "table.md").read_text()
    assert not (tmp_path / "results" / "estimators.png").exists()


def test_a_process_that_is_ended_from_outside_is_an_error_for_the_user(monkeypatch) -> None:
    monkeypatch.setattr(laboratory_command, "finish", os._exit)
    with pytest.raises(RunError, match="a process of the laboratory was ended"):
        list(laboratory_command._finished([9, 9], workers=2))  # pyright: ignore[reportArgumentType]


def test_processes_are_ended_at_once_by_an_interruption() -> None:
    begun = time.monotonic()
    pids, waiting = [], []
    with contextlib.suppress(KeyboardInterrupt), laboratory_command._processes(2) as pool:
        waiting = [pool.submit(time.sleep, 600.0) for _ in range(5)]
        pids = list(pool._processes)
        raise KeyboardInterrupt
    assert (len(pids), len(waiting)) == (2, 5)
    assert time.monotonic() - begun < 300.0
    assert all(future.done() for future in waiting)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.usefixtures("signals")
def test_processes_leave_ctrl_c_to_the_command() -> None:
    with laboratory_command._processes(1) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["user", "system"])
def test_an_interruption_ends_the_command_in_one_line(number, code, monkeypatch, tmp_path) -> None:
    def interrupt(_) -> None:
        assert signal.getsignal(number) != signal.SIG_DFL
        os.kill(os.getpid(), number)
        time.sleep(60.0)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(laboratory_command, "finish", interrupt)
    outcome = laboratory(tmp_path)
    assert outcome.code == code
    (line,) = outcome.error_lines
    assert line.startswith("flowmatch-rl: error: interrupted; continue with: flowmatch-rl laboratory -c=")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("signals")
def test_an_interruption_in_the_midst_of_a_training_ends_the_command_too(monkeypatch, tmp_path) -> None:
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BanditFlow, "training_step", interrupt)
    outcome = laboratory(tmp_path, estimators=None)
    assert outcome.code == 130
    assert len(outcome.error_lines) == 1


def test_a_folder_in_which_another_command_works_is_refused(tmp_path) -> None:
    (tmp_path / "results").mkdir()
    with (tmp_path / "results" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = laboratory(tmp_path)
    assert outcome.code == 1
    assert len(outcome.error_lines) == 1
    assert "another command works in" in outcome.err


@pytest.mark.slow
def test_workers_give_the_results_of_one_process(finished, tmp_path) -> None:
    folder, _ = finished
    assert laboratory(tmp_path, workers=2, seeds=[0]).code == 0
    for bandit in ("flat", "six"):
        here, there = (
            json.loads((root / "results" / "policies" / bandit / "sdac" / "0.json").read_text())
            for root in (tmp_path, folder)
        )
        assert here["samples"] == there["samples"]


def test_the_configuration_of_the_laboratory_is_valid(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(CONF.parent)
    path = CONF / "bandit" / "laboratory.yaml"
    outcome = call(["laboratory", f"-c={path}", f"--output={tmp_path / 'results'}", "--workers=0"])
    assert "workers must be at least 1" in outcome.err
    stated = yaml.safe_load(path.read_text())
    assert all((CONF.parent / file).is_file() for files in stated["methods"].values() for file in files)


@pytest.mark.parametrize("path", BANDITS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("without_figures")
def test_every_bandit_trains(path, tmp_path) -> None:
    sizes = {
        "data.num_updates": 4,
        "data.epoch_updates": 2,
        "data.batch_size": 8,
        "data.eval_samples": 20,
        "model.policy.network.hidden_dim": 16,
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": tmp_path,
    }
    outcome = call(["fit", f"-c={path}", *(f"--{name}={value}" for name, value in sizes.items())])
    assert outcome.code == 0, outcome.err
    assert "distance     " in outcome.out
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    wanted = yaml.safe_load(path.read_text())["data"]["init_args"]["bandit"]["class_path"]
    assert type(checkpoint["hyper_parameters"]["bandit"]).__name__ == wanted
    assert all(bool(torch.isfinite(weight).all()) for weight in checkpoint["state_dict"].values())
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


@pytest.mark.usefixtures("without_figures")
def test_a_checkpoint_is_tested_on_its_bandit_only(tmp_path) -> None:
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    small = [
        "--data.num_updates=2",
        "--data.batch_size=8",
        "--data.eval_samples=20",
        "--model.policy.network.hidden_dim=16",
    ]
    flat = CONF / "bandit" / "flat.yaml"
    outcome = call(["fit", f"-c={flat}", *quiet, *small, f"--trainer.default_root_dir={tmp_path}"])
    assert outcome.code == 0, outcome.err
    last = tmp_path / "checkpoints" / "last.ckpt"
    again = ["--data.eval_samples=20", f"--ckpt_path={last}", f"--trainer.default_root_dir={tmp_path}", *quiet]
    outcome = call(["test", f"-c={flat}", *again])
    assert outcome.code == 0, outcome.err
    assert "distance     " in outcome.out
    other = call(["test", f"-c={CONF / 'bandit' / 'quadratic.yaml'}", *again])
    assert other.code == 2
    assert "the checkpoint was trained on Flat" in other.err
