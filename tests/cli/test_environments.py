"""Environments of users on the command line: used, refused, broken or hanging, and a disk that is full."""

import errno
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmatch_rl.envs import watchdog
from flowmatch_rl.inference import load_policy
from tests.cli.support import PENDULUM, TWO_MOONS, Outcome, arguments, call, default_signals, flow_arguments
from tests.combinations import one_test
from tests.envs.odd_environments import PREFIX

pytestmark = pytest.mark.usefixtures("without_figures")


def run(command: str, folder: Path, name: str, timeout_s: float = 60.0, **changes) -> Outcome:
    """A command of an actor-critic in an odd environment: 40 steps, of which the warm-up takes 32."""
    options = changes.pop("options", {})
    init_args = {"name": f"{PREFIX}{name}-v0", "options": options, "timeout_s": timeout_s}
    settings = {
        "trainer__logger": "false",
        "trainer__default_root_dir": folder,
        "data__environment": json.dumps({"class_path": "GymnasiumEnvironment", "init_args": init_args}),
        "data__env_steps_per_collection": 1,
        "data__epoch_env_steps": 4,
    }
    return call(arguments(command, PENDULUM, **settings | changes))


def test_policy_is_trained_tested_and_used_where_observations_are_nested(tmp_path) -> None:
    outcome = run("fit", tmp_path / "run", "Nested")
    assert outcome.code == 0, outcome.err
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    again = run("test", tmp_path / "test", "Nested", ckpt_path=last)
    assert again.code == 0, again.err
    assert load_policy(last)(np.zeros(7)).shape == (1,)


@one_test
@pytest.mark.parametrize("name", ["MissingReward", "OldStep", "EmptyObservations", "BreaksWhenMade"])
def test_environment_that_cannot_be_used_is_refused_before_anything_is_written(tmp_path, name) -> None:
    outcome = run("fit", tmp_path / "run", name)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1, outcome.err
    assert f"{name}-v0" in outcome.err
    assert not (tmp_path / "run").exists()


def test_environment_that_breaks_ends_the_run_in_one_line_that_says_how_to_resume(tmp_path) -> None:
    outcome = run("fit", tmp_path, "Breaks", options={"odd_from": 37})
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert outcome.code == 1
    assert len(outcome.error_lines) == 1, outcome.err
    for words in (
        "Breaks-v0 raised ZeroDivisionError in step: the robot fell over",
        f"resume with flowmatch-rl fit -c {tmp_path / 'config.yaml'} --ckpt_path last",
    ):
        assert words in outcome.err
    assert torch.load(last, weights_only=True)["OnlineData"]["local_env_steps"] == 36
    resumed = run("fit", tmp_path, "Breaks", options={"odd_from": 99}, ckpt_path=last)
    assert resumed.code == 0, resumed.err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_run_whose_environment_hangs_is_ended_by_a_signal_and_keeps_its_state(
    tmp_path, monkeypatch, number, status
) -> None:
    monkeypatch.setattr(watchdog, "GRACE_S", 0.5)
    path = tmp_path / "hangs"

    def end() -> None:
        while not path.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    with default_signals():
        threading.Thread(target=end, daemon=True).start()
        outcome = run("fit", tmp_path, "Hangs", options={"odd_from": 38, "path": str(path)})
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert outcome.code == status, outcome.err
    assert f"resume with flowmatch-rl fit -c {tmp_path / 'config.yaml'} --ckpt_path last" in outcome.out
    assert torch.load(last, weights_only=True)["OnlineData"]["local_env_steps"] == 38


def test_full_disk_ends_a_run_in_one_line_that_says_how_to_resume(tmp_path, monkeypatch) -> None:
    save, saved = torch.save, []

    def save_twice(content, file) -> None:
        if len(saved) == 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)
        saved.append(file.name)

    monkeypatch.setattr(torch, "save", save_twice)
    outcome = call(flow_arguments("fit", TWO_MOONS, trainer__default_root_dir=tmp_path))
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert outcome.code == 1
    assert len(outcome.error_lines) == 1, outcome.err
    assert "the disk is full ([Errno 28] No space left on device)" in outcome.err
    assert f"make room, then resume with flowmatch-rl fit -c {tmp_path / 'config.yaml'} --ckpt_path last" in outcome.err
    assert torch.load(last, weights_only=True)["global_step"] == 6
    assert not list(tmp_path.rglob("*.tmp*"))
