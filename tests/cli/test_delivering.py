"""A run whose server hangs: how signals end it, and the command that delivers what is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.callbacks.fake_server import FakeServer
from tests.cli.support import TWO_MOONS, call, default_signals, environment, flow_arguments


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    """A server that hangs."""
    fake = FakeServer(tmp_path / "artifacts")
    fake.mode = "hangs"
    fake.start()
    yield fake
    fake.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["user", "system"])
def test_signals_end_a_run_whose_server_hangs_with_a_checkpoint_and_the_rest_is_delivered_later(
    server: FakeServer, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    folder, started = tmp_path / "run", tmp_path / "started"
    probe = [{"class_path": "tests.cli.probes.Started", "init_args": {"path": str(started), "batches": 30}}]
    args = flow_arguments(
        "fit",
        TWO_MOONS,
        data__num_updates=10_000_000,
        data__epoch_updates=10_000_000,
        trainer__logger="Tracker",
        trainer__logger__init_args__tracking_uri=server.address,
        trainer__logger__init_args__patience_s=1,
        trainer__log_every_n_steps=5,
        trainer__default_root_dir=folder,
        trainer__callbacks=json.dumps(probe),
    )
    variables = environment(MLFLOW_HTTP_REQUEST_TIMEOUT="2")
    command = [sys.executable, "-m", "flowmatch_rl", *args]
    with default_signals():
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=variables)
    try:
        deadline = time.monotonic() + 300.0
        while not started.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=60)  # MLflow by itself tries for minutes
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == status, err
    begun, left = [line for line in err.splitlines() if line.startswith("flowmatch-rl: ")]
    assert begun.startswith(f"flowmatch-rl: warning: no tracking server answers at {server.address} (timed out); ")
    assert f"were not delivered to {server.address} (" in left
    assert left.endswith(f"deliver them with: flowmatch-rl deliver {folder.relative_to(tmp_path)}")
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    server.mode = "answers"
    outcome = call(["deliver", str(folder)])
    assert outcome.code == 0, outcome.err
    assert server.run["info"]["status"] == "KILLED"
    assert [step for name, step, *_ in server.run["metrics"] if name == "train/loss"][:3] == [4, 9, 14]
    assert {path.name for path in server.files.rglob("*.*")} >= {"config.yaml", "last.ckpt"}


def test_deliver_names_what_it_cannot_use_and_what_does_not_answer(server: FakeServer, tmp_path: Path) -> None:
    server.stop()
    outcome = call(["deliver", str(tmp_path / "none")])
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    assert "there is no folder" in outcome.err
    outcome = call(["deliver", str(tmp_path)])
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    assert "holds no run that was tracked" in outcome.err
    stated = {"address": server.address, "experiment": "e", "artifacts": None, "run_id": None, "key": "k", "tags": {}}
    entries = [
        {"kind": "open", "time": 1, **stated},
        {"kind": "metrics", "time": 2, "step": 1, "values": {"a": 1.0}},
    ]
    for name in ("first", "second"):
        journal = tmp_path / name / "tracking" / "fit-1.jsonl"
        journal.parent.mkdir(parents=True)
        journal.write_text("".join(json.dumps(entry | {"key": name}) + "\n" for entry in entries))
    outcome = call(["deliver", str(tmp_path)])
    assert (outcome.code, len(outcome.error_lines)) == (1, 2), outcome.err
    for name, line in zip(("first", "second"), outcome.error_lines, strict=True):
        assert f"tracking: 1 of 1 metrics were not delivered to {server.address} (" in line
        assert line.endswith(f"deliver {tmp_path / name}")
    server.mode = "answers"
    server.start()
    outcome = call(["deliver", str(tmp_path / "first"), str(tmp_path)])
    assert outcome.code == 0, outcome.err
    named = [line.partition(":")[0] for line in outcome.out.splitlines()]
    assert named == [str(tmp_path / "first"), str(tmp_path / "second")]
    assert [run["info"]["status"] for run in server.runs.values()] == ["KILLED", "KILLED"]
