"""The command that shows tracked runs."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowmatch_rl.cli import pages
from tests.cli.support import call

PAGE = "http://localhost:{port}/#/experiments/1/runs"

STAND_IN = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    server.accept()
sys.exit(int(sys.argv[2]))
"""
"""In place of MLflow's server: it ends, with a status, once somebody has connected."""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, port: int) -> dict[str, Any]:
    """How MLflow's server was started, the status with which it shall end, and what was opened in a browser."""
    seen: dict[str, Any] = {"status": 0, "opened": []}
    begin = subprocess.Popen

    def start(command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        seen.update(command=command, settings=env)
        return begin([sys.executable, "-c", STAND_IN, str(port), str(seen["status"])])

    monkeypatch.setattr(pages.subprocess, "Popen", start)
    monkeypatch.setattr(pages.webbrowser, "open", seen["opened"].append)
    monkeypatch.setattr(pages, "latest_runs", lambda address, ui: f"{ui}/#/experiments/1/runs")
    monkeypatch.setenv("DISPLAY", ":0")
    return seen


def test_local_runs_are_served_to_this_machine_and_their_page_is_printed_and_opened(
    started: dict[str, Any], port: int
) -> None:
    outcome = call(["ui", f"--port={port}", "--tracking_uri=sqlite:///some/file.db"])
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"runs         {PAGE.format(port=port)}\n"
    assert started["opened"] == [PAGE.format(port=port)]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", "sqlite:///some/file.db"]
    assert started["command"][: len(command)] == command
    assert started["command"][-4:] == ["--host", "127.0.0.1", "--port", str(port)]
    assert started["settings"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_without_a_screen_the_page_is_only_printed(
    started: dict[str, Any], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert call(["ui", f"--port={port}"]).out == f"runs         {PAGE.format(port=port)}\n"
    assert started["opened"] == []


def test_a_server_that_ends_with_an_error_is_reported(started: dict[str, Any], port: int) -> None:
    started["status"] = 3
    outcome = call(["ui", f"--port={port}", "--browser=false"])
    assert (outcome.code, len(outcome.error_lines)) == (1, 1)
    assert "MLflow's server ended with status 3" in outcome.err


def test_a_port_in_use_is_named_and_nothing_is_started(started: dict[str, Any], port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        outcome = call(["ui", f"--port={port}"])
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    assert f"port {port} is in use" in outcome.err
    assert "command" not in started


def test_a_server_is_not_started_twice(started: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert call(["ui"]).code == 0
    assert len(started["opened"]) == 1
    assert "command" not in started


def test_a_folder_without_runs_says_how_to_make_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    outcome = call(["ui"])
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    for word in ("no tracked runs", "runs/mlflow.db", "flowmatch-rl fit"):
        assert word in outcome.err
    assert not list(tmp_path.iterdir())
