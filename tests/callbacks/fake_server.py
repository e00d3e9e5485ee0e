"""A tracking server in a thread, which answers, refuses, hangs, dies and comes back as a test wants."""

import contextlib
import json
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

Mode = Literal["answers", "fails", "hangs"]


class FakeServer:
    """As much of MLflow's server as a tracked run needs, with one experiment; runs keep what they are given.

    Args:
        artifacts: Folder of the runs' files.

    Attributes:
        mode: What it does with requests: ``answers`` them, ``fails`` with status 500, or ``hangs`` without an answer.
        runs: Runs by identifier, each with ``tags``, ``params``, ``metrics`` in the order in which they came, and
            ``info``.
        calls: Names of the requests that it answered, in order.
        loses_answer_of: Request that is carried out once without an answer.
    """

    def __init__(self, artifacts: Path) -> None:
        self.mode: Mode = "answers"
        self.artifacts = artifacts
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiment: dict[str, Any] | None = None
        self.calls: list[str] = []
        self.loses_answer_of = ""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._server: ThreadingHTTPServer | None = None
        self._released = threading.Event()

    @property
    def address(self) -> str:
        """Address of the server, the same when it comes back."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def run(self) -> dict[str, Any]:
        """The only run."""
        (run,) = self.runs.values()
        return run

    @property
    def files(self) -> Path:
        """Folder of its files."""
        return self.artifacts / self.run["info"]["run_id"]

    def start(self) -> None:
        """Begin to answer, with what it knew before it died."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                place = urlsplit(self.path)
                outer._handle(self, place.path, {name: value[0] for name, value in parse_qs(place.query).items()})

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                outer._handle(self, self.path, json.loads(self.rfile.read(length) or b"{}"))

        class Server(ThreadingHTTPServer):
            daemon_threads, allow_reuse_address = True, True

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Die: connections are refused from now on."""
        self._released.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _handle(self, handler: BaseHTTPRequestHandler, path: str, given: dict[str, Any]) -> None:
        if self.mode == "hangs":
            self._released.wait(30.0)
            return
        name = path.rpartition("/mlflow/")[2]
        self.calls.append(name)
        if self.mode == "fails":
            status, answer = 500, {"error_code": "INTERNAL_ERROR", "message": "the server is ill"}
        else:
            status, answer = self._answer(name, given)
        if self.loses_answer_of == name:
            self.loses_answer_of = ""
            handler.close_connection = True
            return
        body = json.dumps(answer).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            handler.send_response(status)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

    def _answer(self, name: str, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"no {given}"}
        if name == "/health":
            return 200, {}
        if name == "experiments/get-by-name":
            return (404, missing) if self.experiment is None else (200, {"experiment": self.experiment})
        if name == "experiments/create":
            stated = {"experiment_id": "1", "name": given["name"], "lifecycle_stage": "active"}
            self.experiment = {**stated, "artifact_location": self.artifacts.as_uri()}
            return 200, {"experiment_id": "1"}
        if name == "runs/create":
            return 200, {"run": _shown(self._make(given))}
        if name == "runs/search":
            key = given.get("filter", "").rpartition("= ")[2].strip("'")
            return 200, {"runs": [_shown(run) for run in self.runs.values() if key in run["tags"].values()]}
        run = self.runs.get(given.get("run_id", ""))
        if run is None:
            return 404, missing
        if name == "runs/log-batch":
            return self._log(run, given)
        if name == "runs/update":
            run["info"] |= {key: given[key] for key in ("status", "end_time") if key in given}
        return 200, {"run": _shown(run), "run_info": run["info"]}

    def _make(self, given: dict[str, Any]) -> dict[str, Any]:
        run_id = uuid.uuid4().hex  # as MLflow does, which remembers where the files of a run go
        info = {
            "run_id": run_id,
            "run_uuid": run_id,
            "experiment_id": "1",
            "status": "RUNNING",
            "start_time": given.get("start_time", 0),
            "artifact_uri": (self.artifacts / run_id).as_uri(),
            "lifecycle_stage": "active",
        }
        tags = {tag["key"]: tag["value"] for tag in given.get("tags", [])}
        self.runs[run_id] = {"info": info, "tags": tags, "params": {}, "metrics": []}
        return self.runs[run_id]

    def _log(self, run: dict[str, Any], given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        metrics = given.get("metrics", [])
        if any(metric["key"] == "bad" for metric in metrics):
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "a bad metric"}
        run["tags"] |= {tag["key"]: tag["value"] for tag in given.get("tags", [])}
        run["params"] |= {param["key"]: param["value"] for param in given.get("params", [])}
        run["metrics"] += [
            (metric["key"], int(metric["step"]), float(metric["value"]), int(metric["timestamp"])) for metric in metrics
        ]
        return 200, {}


def _shown(run: dict[str, Any]) -> dict[str, Any]:
    data = {kind: [{"key": key, "value": value} for key, value in run[kind].items()] for kind in ("tags", "params")}
    return {"info": run["info"], "data": data}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a SQLite file locked by another connection, in a ``with`` block."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def eventually(condition: Any, seconds: float = 20.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)
