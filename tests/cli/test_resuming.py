"""``--ckpt_path last``: the same command begins a run, continues it, and finds what is whole."""

from pathlib import Path

import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient

from tests.cli.support import TWO_MOONS, call, flow_arguments

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
    assert f"{last} is damaged: tries the next older checkpoint\n" in continued.out
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
