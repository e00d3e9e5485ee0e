"""Runs at Weights & Biases, offline: what they are called, what they hold, and what they must not."""

import sys
from pathlib import Path

import pytest

from flowmatch_rl.callbacks import WandbTracker
from flowmatch_rl.checks import UserError
from tests.callbacks.fake_server import eventually

pytest.importorskip("wandb", reason="needs the extra 'wandb'")


def begun(folder: Path, resumes: bool) -> WandbTracker:
    tracker = WandbTracker(mode="offline")
    tracker.begin_in(folder, "task/now", "fit", resumes)
    return tracker


def content(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*.wandb")))


def test_a_resumed_run_continues_the_run_of_its_folder_and_every_other_begins_one(tmp_path: Path) -> None:
    names = []
    for resumes in (True, True, False):
        log = begun(tmp_path, resumes)
        log.log_metrics({"a": 1.0}, 3)
        names.append(log.version)
        log.close()
    assert names[0] == names[1] != names[2]


def test_a_password_among_the_arguments_is_kept_from_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["flowmatch-rl", "--a=http://me:hunter2@host"])
    log = begun(tmp_path, resumes=False)
    log.log_parameters({"model.discount": 0.5})
    log.finalize("failed")
    log.close()
    eventually(lambda: b"model.discount" in content(tmp_path))  # another process of its own writes it
    assert b"hunter2" not in content(tmp_path)


def test_without_an_account_the_run_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"^Weights & Biases cannot begin a run: [^\n]+mode to offline$"):
        WandbTracker(mode="online").lines()
