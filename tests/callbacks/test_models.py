"""Models reach MLflow once, whatever breaks off meanwhile, and are served as they act here."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from flowmatch_rl.callbacks import Tracker, delivery
from flowmatch_rl.callbacks.delivered import Delivered, record_of, remainder
from flowmatch_rl.callbacks.delivery import Delivery
from flowmatch_rl.callbacks.journal import END, METRICS, MODEL, OPEN, Journal
from flowmatch_rl.checks import UserError
from flowmatch_rl.inference import load_policy, serving
from tests.callbacks.fake_server import FakeServer
from tests.cli.support import environment

OBSERVATION = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, -2.0]], np.float32)


def journal_of_model(folder: Path, address: str, **changes: Any) -> Journal:
    """The journal of a run with a policy."""
    described = serving.pack_policy(Path("zoo:pendulum"), folder / "run" / "model" / "policy.ckpt", OBSERVATION)
    journal = Journal(folder / "run" / "tracking" / "fit-1.jsonl")
    stated = {"experiment": "flowmatch_rl", "run_id": None, "key": "k1", "tags": {}}
    journal.append(OPEN, address=address, artifacts=(folder / "artifacts").as_uri(), **stated)
    journal.append(METRICS, values={"test/return_mean": -200.0}, step=40)
    known = {"name": "policy", "path": "model/policy.ckpt", "step": 40, "registered": "pendulum"}
    journal.append(MODEL, **described | known | {"metrics": ["test/return_mean"]} | changes)
    return journal


def test_a_model_whose_logging_broke_off_is_completed_and_logged_and_registered_once(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journal_of_model(tmp_path, address)
    journal.append(END, status="FINISHED")
    client, broken = MlflowClient(address), []

    def break_off(step: str) -> Any:
        original = getattr(MlflowClient, step)

        def breaking(*values: Any, **options: Any) -> Any:
            if step not in broken:
                broken.append(step)
                raise ConnectionError(step)
            return original(*values, **options)

        return breaking

    steps = ("log_model_artifacts", "finalize_logged_model", "log_outputs", "create_model_version")
    for step in steps:
        monkeypatch.setattr(MlflowClient, step, break_off(step))
    for step in steps:
        delivered = Delivery(journal.path)
        assert not delivered.attempt()
        assert delivered.delivered.trouble == step
        assert str(remainder(journal.path, delivered.delivered)) == "1 model"
    assert Delivery(journal.path).attempt()
    record_of(journal.path).unlink()  # as if the process had been killed before it noted that
    delivered = Delivery(journal.path)
    assert delivered.attempt(), delivered.delivered.trouble
    run = client.get_run(str(delivered.delivered.run_id))
    (output,), (logged,) = run.outputs.model_outputs, client.search_logged_models([run.info.experiment_id])
    (version,) = client.search_model_versions("name = 'pendulum'")
    assert (output.model_id, output.step, version.source) == (logged.model_id, 40, f"models:/{logged.model_id}")
    assert (logged.status, logged.name, logged.source_run_id) == ("READY", "policy", run.info.run_id)
    assert [(m.key, m.value) for m in logged.metrics or ()] == [("test/return_mean", -200.0)]
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "pendulum", "version": "1"}]
    assert run.info.status == "FINISHED"
    size = sum(path.stat().st_size for path in (tmp_path / "artifacts" / "models").rglob("*") if path.is_file())
    assert size < 1.5 * (tmp_path / "run" / "model" / "policy.ckpt").stat().st_size + 10_000


def test_a_server_that_knows_no_models_gets_all_else_and_the_model_is_named(server: FakeServer, tmp_path: Path) -> None:
    journal = journal_of_model(tmp_path, server.address)
    journal.append(END, status="FINISHED")
    assert Delivery(journal.path).attempt()
    known = Delivered.read(journal.path)
    assert (known.refused, known.models, server.run["info"]["status"]) == (1, [], "FINISHED")


def test_a_model_that_cannot_be_logged_now_keeps_nothing_else_back(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*values: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(delivery, "log_model", failing)
    journal = journal_of_model(tmp_path, server.address)
    (tmp_path / "run" / "a.txt").write_text("a")
    journal.append(END, status="FINISHED")
    delivered = Delivery(journal.path)
    assert not delivered.attempt()
    assert (server.run["info"]["status"], delivered.delivered.trouble) == ("FINISHED", "no room")
    assert (len(delivered.delivered.models), delivered.is_done) == (1, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"registered_model_name": "a/b"}, "must be a name without '/' and ':', got 'a/b'"),
        ({"registered_model_name": " "}, "must be a name without"),
        ({"registered_model_name": "a", "log_model": False}, "'a' needs log_model true, got false"),
    ],
)
def test_a_name_that_nothing_is_registered_under_is_refused_at_the_start(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"^registered_model_name .*{message}"):
        Tracker(**options)


@pytest.mark.slow
def test_a_logged_model_is_served_over_http(address: str, tmp_path: Path) -> None:
    """``mlflow models serve`` answers with the actions of ``load_policy``."""
    delivered = Delivery(journal_of_model(tmp_path, address, options={"seed": 0, "deterministic": True}).path)
    assert delivered.attempt(), delivered.delivered.trouble
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"runs:/{delivered.delivered.run_id}/policy"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    # Its own server would stay where only the command is ended.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = environment(MLFLOW_TRACKING_URI=address, PATH=path)
    process = subprocess.Popen(command, env=variables, cwd=tmp_path, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping")
        wanted = load_policy("zoo:pendulum", deterministic=True)(OBSERVATION)
        for given in ({"inputs": {"observation": OBSERVATION.tolist()}}, {"inputs": OBSERVATION.tolist()}):
            body = json.dumps(given).encode()
            request = Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
            with urlopen(request, timeout=30) as answer:
                np.testing.assert_allclose(json.load(answer)["predictions"], wanted, rtol=1e-6)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(page: str, seconds: float = 240.0) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urlopen(page, timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline, f"{page} never answered"
            time.sleep(0.5)
        else:
            return
