"""A training against MLflow's server on PostgreSQL, both as compose.yaml starts them, without containers."""

import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from flowmatch_rl.inference import load_policy
from tests.cli.support import CONF, PENDULUM, arguments, environment
from tests.test_compose import SERVICES

PASSWORD = "a-pa55word"


def program(name: str) -> str | None:
    """Path of a program of PostgreSQL, which Debian keeps out of the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Address of a new database that asks for the password, without it."""
    pytest.importorskip("psycopg2", reason="the extra postgres is not installed")
    if program("initdb") is None or program("postgres") is None:
        pytest.skip("PostgreSQL's programs initdb and postgres are not installed")
    port, user = free_port(), {"user": "nobody"} if os.getuid() == 0 else {}  # it refuses to run as root
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        (Path(name) / "password").write_text(PASSWORD)
        if user:
            for path in (name, f"{name}/password"):
                shutil.chown(path, "nobody")
        options: dict[str, Any] = {"cwd": name, **user}
        words = ["--pgdata=data", "--username=mlflow", "--auth=scram-sha-256", "--pwfile=password"]
        made = subprocess.run([str(program("initdb")), *words], capture_output=True, text=True, **options)
        assert made.returncode == 0, made.stderr
        command = [str(program("postgres")), "-D", "data", "-p", str(port), "-k", "", "-h", "127.0.0.1"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
        with ended(process, signal.SIGINT):
            wait_for(lambda: create_database(port), process)
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"


def create_database(port: int) -> None:
    """Make the database, on a server that answers; ``ConnectionError`` if it does not."""
    driver = importlib.import_module("psycopg2")
    try:
        connection = driver.connect(host="127.0.0.1", port=port, user="mlflow", password=PASSWORD, dbname="postgres")
    except driver.OperationalError as error:
        raise ConnectionError from error
    connection.autocommit = True
    connection.cursor().execute("CREATE DATABASE mlflow")
    connection.close()


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that is started with the words of compose.yaml, but for places and names."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    places = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--backend-store-uri": database,
        "--artifacts-destination": str(folder / "artifacts"),
        "--allowed-hosts": f"mlflow:5000,localhost:{port},127.0.0.1:{port}",
    }
    words = [word.partition("=") for word in SERVICES["mlflow"]["command"]]
    assert {name for name, _, _ in words} > places.keys()
    command = [f"{name}={places.get(name, value)}" if equals else name for name, equals, value in words]
    variables = environment(**SERVICES["mlflow"]["environment"], PGPASSWORD=PASSWORD)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            cwd=folder,
            env=variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        with ended(process, signal.SIGTERM):
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: urlopen(f"{address}/health", timeout=5).close(), process)
            yield address
    assert PASSWORD not in (folder / "log").read_text()


@pytest.mark.slow
def test_a_training_reaches_a_server_on_postgresql_whole(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with urlopen(Request(f"{server}/health", headers={"Host": "mlflow:5000"}), timeout=30) as answer:
        assert answer.status == 200
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(f"{server}/api/2.0/mlflow/experiments/search", headers={"Host": "evil.org"}), timeout=30)
    args = arguments(
        "fit",
        PENDULUM,
        CONF / "logger" / "server.yaml",
        trainer__logger__init_args__tracking_uri=server,
        trainer__logger__init_args__registered_model_name="pendulum",
        trainer__log_every_n_steps=2,
    )
    command = [sys.executable, "-m", "flowmatch_rl", *args]
    outcome = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=500)
    assert outcome.returncode == 0, outcome.stderr
    assert "were not delivered" not in outcome.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("flowmatch_rl")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert f"tracking     {server}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}" in outcome.stdout
    assert (run.info.status, run.data.params["data.total_env_steps"]) == ("FINISHED", "40")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/return_mean")] == [40]
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    (folder,) = (tmp_path / "runs" / "Pendulum-v1").iterdir()
    kept = client.download_artifacts(run.info.run_id, "last/last.ckpt", str(tmp_path))
    assert Path(kept).read_bytes() == (folder / "checkpoints" / "last.ckpt").read_bytes()
    assert run.inputs.dataset_inputs[0].dataset.name == "Pendulum-v1"
    (version,) = client.search_model_versions("name = 'pendulum'")
    assert version.run_id == run.info.run_id
    observation = np.ones((3, 3), np.float32)
    wanted = load_policy(folder / "checkpoints" / "last.ckpt")(observation)
    np.testing.assert_array_equal(mlflow.pyfunc.load_model("models:/pendulum/1").predict(observation), wanted)


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes], number: signal.Signals) -> Iterator[None]:
    """End a server by a signal, in a ``with`` block."""
    try:
        yield
    finally:
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(attempt: Callable[[], None], process: subprocess.Popen[bytes], seconds: float = 240.0) -> None:
    """Repeat what fails until a server answers, as long as its process lives."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            attempt()
        except OSError:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server never answered"
            time.sleep(0.5)
        else:
            return
