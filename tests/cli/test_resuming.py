"""``--ckpt_path last``: the same command begins a run, continues it, and finds what is whole."""

import io
import json
import signal
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient

from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.resuming import read_chosen
from tests.cli.support import PENDULUM, TWO_MOONS, arguments, call, default_signals, flow_arguments

pytestmark = pytest.mark.usefixtures("without_figures")


def last_of(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


def test_the_same_command_begins_a_run_and_continues_it_in_its_folder_and_its_mlflow_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run"
    options = {"trainer__logger": None, "trainer__default_root_dir": folder, "ckpt_path": "last"}
    begun = call(flow_arguments("fit", TWO_MOONS, **options, trainer__max_epochs=1))
    assert begun.code == 0, begun.err
    assert f"starts afresh: there is no checkpoint in {folder / 'checkpoints'}\n" in begun.out
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs(["1"])
    client.update_run(run.info.run_id, status="RUNNING")  # as a killed process leaves it
    half, first = step_of(last_of(folder)), run.info.run_id
    continued = call(flow_arguments("fit", TWO_MOONS, **options))
    assert continued.code == 0, continued.err
    assert "afresh" not in continued.out
    assert (half, step_of(last_of(folder))) == (6, 12)
    (run,) = client.search_runs(["1"])
    assert (run.info.run_id, run.info.status) == (first, "FINISHED")
    # What the run keeps is a configuration of other runs too.
    kept = yaml.safe_load((folder / "config.yaml").read_text())
    assert kept["trainer"]["logger"]["init_args"]["run_id"] is None


def test_the_configuration_in_a_run_s_folder_names_the_folder(tmp_path) -> None:
    (tmp_path / "checkpoints").mkdir()
    outcome = call(flow_arguments("fit", TWO_MOONS, trainer__default_root_dir=tmp_path))
    assert outcome.code == 0, outcome.err
    kept = yaml.safe_load((tmp_path / "config.yaml").read_text())
    kept["trainer"]["default_root_dir"] = None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(kept))
    more = call(["fit", f"-c={tmp_path / 'config.yaml'}", "--ckpt_path=last", "--data.num_updates=18"])
    assert more.code == 0, more.err
    assert step_of(last_of(tmp_path)) == 18


def test_a_damaged_checkpoint_gives_way_to_the_newest_whole_one(tmp_path) -> None:
    options = {"trainer__default_root_dir": tmp_path, "ckpt_path": "last"}
    outcome = call(flow_arguments("fit", TWO_MOONS, **options, trainer__max_epochs=1))
    assert outcome.code == 0, outcome.err
    best, last = last_of(tmp_path).with_name("best.ckpt"), last_of(tmp_path)
    content = last.read_bytes()
    best.write_bytes(content)
    last.write_bytes(content[: len(content) // 2])
    continued = call(flow_arguments("fit", TWO_MOONS, **options))
    assert continued.code == 0, continued.err
    assert f"{last} is damaged: a part of it is missing: tries the next older checkpoint\n" in continued.out
    assert f"resumes      {best}" in continued.out
    for path in (best, last):
        path.write_bytes(content[:-1])
    refused = call(flow_arguments("fit", TWO_MOONS, **options))
    assert refused.code == 2
    assert f"no checkpoint in {last.parent} is whole; delete them to start afresh" in refused.err


def test_last_without_a_folder_is_refused_in_one_line() -> None:
    outcome = call(flow_arguments("fit", TWO_MOONS, ckpt_path="last"))
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert "--ckpt_path last needs the folder of the run" in outcome.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The last checkpoint of a run."""
    folder = tmp_path_factory.mktemp("trained")
    outcome = call(flow_arguments("fit", TWO_MOONS, trainer__default_root_dir=folder))
    assert outcome.code == 0, outcome.err
    return last_of(folder)


def flipped(content: bytes) -> bytes:
    """A checkpoint one bit of which has changed, in its largest tensor: PyTorch would read it without a word."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        tensor = archive.read(max(archive.infolist(), key=lambda record: record.file_size))
    place = content.index(tensor) + len(tensor) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[: len(content) // 2], "is damaged: a part of it is missing"),
        (flipped, "is damaged: it is not what was written"),
        (lambda content: b"", "is damaged: it is empty"),
        (lambda content: b"{}", "is not a checkpoint of flowmatch-rl"),
    ],
    ids=["cut", "flipped", "empty", "other"],
)
def test_a_file_that_cannot_be_resumed_is_named_with_the_command_for_the_newest_that_can(
    trained, tmp_path, damage, words
) -> None:
    (tmp_path / "chosen.ckpt").write_bytes(damage(trained.read_bytes()))
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "of_another_program.ckpt")
    chosen, whole = str(tmp_path / "chosen.ckpt"), str(tmp_path / "whole.ckpt")
    with pytest.raises(UserError, match=rf"^{chosen} {words}$"):
        read_chosen(chosen, "fit", ["--ckpt_path", chosen])
    (tmp_path / "whole.ckpt").write_bytes(trained.read_bytes())
    for given in ([f"--ckpt_path={chosen}"], ["--ckpt_path", chosen], ["-c", "names_it.yaml"]):
        with pytest.raises(UserError) as caught:
            read_chosen(chosen, "fit", given)
        command = " ".join(given).replace("chosen", "whole")
        command = command if whole in command else f"{command} --ckpt_path {whole}"
        assert str(caught.value) == f"{chosen} {words}; the newest whole one: flowmatch-rl fit {command}"


def test_checkpoints_of_other_models_and_versions_are_refused_by_name(trained, tmp_path) -> None:
    content = torch.load(trained, weights_only=True)
    content["hyper_parameters"]["of_tomorrow"] = 1
    torch.save(content, tmp_path / "newer.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": {"lr": 0.1}}, tmp_path / "foreign.ckpt")
    options = {"trainer__default_root_dir": tmp_path / "run", "trainer__logger": "false"}
    newer = call(flow_arguments("fit", TWO_MOONS, ckpt_path=tmp_path / "newer.ckpt", **options))
    other = call(arguments("fit", PENDULUM, ckpt_path=trained, **options))
    foreign = call(arguments("fit", PENDULUM, ckpt_path=tmp_path / "foreign.ckpt", **options))
    for outcome, words in (
        (newer, "newer.ckpt: of another version of flowmatch-rl: FlowMatchingModel has no argument of_tomorrow"),
        (other, f"{trained} is a checkpoint of FlowMatchingModel, the configuration is for ReverseFlowActorCritic"),
        (foreign, "foreign.ckpt: not a checkpoint of ReverseFlowActorCritic: it holds no 'observation_dim'"),
    ):
        assert (outcome.code, len(outcome.error_lines)) == (2, 1)
        assert words in outcome.err


def test_what_killed_runs_left_half_written_is_deleted_at_the_next_start_which_says_so(trained) -> None:
    folder = trained.parents[1]
    leftovers = [trained.with_name("last.ckpt.tmp123"), folder / "figures" / "learning_curve.csv.tmp123"]
    for path in leftovers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1_000_000))
    outcome = call(flow_arguments("fit", TWO_MOONS, trainer__default_root_dir=folder, ckpt_path="last"))
    assert outcome.code == 0, outcome.err
    names = ", ".join(map(str, leftovers))
    assert f"deleted what a killed run left half written, 2.0 MB: {names}\n" in outcome.out
    assert not any(path.exists() for path in leftovers)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)],
    ids=["system", "terminal", "user"],
)
@pytest.mark.parametrize(("evaluates", "kept"), [(True, 6), (False, 4)], ids=["evaluation", "update"])
def test_a_checkpoint_of_whole_updates_is_there_ten_seconds_after_a_signal(
    tmp_path, number, status, evaluates, kept
) -> None:
    init_args = {"path": str(tmp_path / "ended"), "number": int(number), "evaluates": evaluates}
    probe = json.dumps([{"class_path": "tests.cli.probes.Signals", "init_args": init_args}])
    with default_signals():
        outcome = call(
            flow_arguments("fit", TWO_MOONS, trainer__default_root_dir=tmp_path / "run", trainer__callbacks=probe)
        )
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    last = last_of(tmp_path / "run")
    assert outcome.code == status, outcome.err
    assert step_of(last) == kept
    assert last.stat().st_mtime - (tmp_path / "ended").stat().st_mtime < 10.0
    assert "resume with flowmatch-rl fit" in outcome.out


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [("validate", signal.SIGTERM, 143), ("test", signal.SIGHUP, 129), ("predict", signal.SIGINT, 130)],
    ids=["validate", "test", "predict"],
)
def test_an_evaluation_that_a_signal_ends_says_how_to_repeat_it(tmp_path, trained, command, number, status) -> None:
    init_args = {"path": str(tmp_path / "ended"), "number": int(number), "evaluates": True}
    probe = json.dumps([{"class_path": "tests.cli.probes.Signals", "init_args": init_args}])
    options = {"trainer__default_root_dir": tmp_path / "run", "ckpt_path": trained}
    began = time.monotonic()
    with default_signals():
        outcome = call(flow_arguments(command, TWO_MOONS, **options, trainer__callbacks=probe))
    assert outcome.code == status, outcome.err
    assert time.monotonic() - began < 25.0  # the evaluation would take half a minute
    assert len(outcome.error_lines) == 1, outcome.err
    assert f"interrupted; repeat with: flowmatch-rl {command} -c={TWO_MOONS}" in outcome.err
