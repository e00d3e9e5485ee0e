"""Fixtures of the tracking's tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmatch_rl.callbacks import database
from tests.callbacks.fake_server import FakeServer


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs: to make one takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    database.open_database(f"sqlite:///{path}")
    assert [file.name for file in path.parent.iterdir()] == ["mlflow.db"]
    return path


@pytest.fixture
def address(new_database: Path, tmp_path: Path) -> str:
    """Address of a database of its own."""
    return f"sqlite:///{shutil.copy(new_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A tracking server, and requests that are given up after a second."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    fake = FakeServer(tmp_path / "artifacts")
    fake.start()
    yield fake
    fake.stop()
