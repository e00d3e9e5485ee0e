"""Where runs are tracked: the database of a new folder, experiments, names and addresses."""

import http.server
import random
import re
import shutil
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from flowmatch_rl.callbacks import Tracker, database
from flowmatch_rl.checks import UserError


@pytest.fixture(scope="module")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs: to make one takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    database.open_database(f"sqlite:///{path}")
    assert [file.name for file in path.parent.iterdir()] == ["mlflow.db"]
    return path


@pytest.fixture
def address(new_database: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(new_database, tmp_path / 'mlflow.db')}"


def test_a_new_database_is_made_once_and_never_seen_half_made(
    new_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made, opened, seen = tmp_path / "runs" / "mlflow.db", [], [], []
    first_began, second_waits = threading.Event(), threading.Event()

    def client(address: str) -> None:
        target = address.removeprefix("sqlite:///")
        if target == str(path):
            opened.append(path.read_bytes())
            return
        made.append(target)
        first_began.set()
        Path(target).write_bytes(b"half")
        second_waits.wait(10.0)
        seen.append(path.exists())
        shutil.copy(new_database, target)

    monkeypatch.setattr(database, "MlflowClient", client)
    monkeypatch.setattr("flowmatch_rl.files.time.sleep", lambda _: second_waits.set())
    threads = [threading.Thread(target=database.open_database, args=(f"sqlite:///{path}",)) for _ in range(2)]
    threads[0].start()
    first_began.wait(10.0)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert (len(made), seen) == (1, [False])
    assert opened == [new_database.read_bytes()] * 2
    assert list(path.parent.iterdir()) == [path]


def test_a_database_that_was_never_finished_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def client(address: str) -> None:
        Path(address.removeprefix("sqlite:///")).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(database, "MlflowClient", client)
    with pytest.raises(KeyboardInterrupt):
        database.open_database(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["broken off", "outdated", "other"])
def test_a_database_that_cannot_be_used_is_named_in_one_line_and_left_alone(
    address: str, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "mlflow.db"
    if damage == "other":
        path.write_text("not a database at all, but a text that is longer than its header" * 20)
    else:
        with sqlite3.connect(path) as connection:
            (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # that of MLflow 1.0
            if damage == "broken off":
                connection.execute("DROP TABLE trace_info")
        assert revision != "451aebb31d03"
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"^MLflow cannot use .*mlflow\.db: [^\n]+; move the file away[^\n]*$"):
        Tracker(tracking_uri=address)
    if damage != "broken off":
        assert path.read_bytes() == before


def test_addresses_of_files_are_told_from_others() -> None:
    assert database.database_file("sqlite:////runs/mlflow.db") == Path("/runs/mlflow.db")
    assert database.database_file("sqlite:///runs/mlflow.db?timeout=9") == Path("runs/mlflow.db")
    for address in ("http://host:5000", "sqlite://", "sqlite:///:memory:", "postgresql://host/db", "databricks"):
        assert database.database_file(address) is None


def test_runs_are_named_after_their_time_unless_named_otherwise(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(propose: str | None = None, **options: Any) -> str:
        random.seed(0)
        tracker = Tracker(tracking_uri=address, **options)
        if propose:
            tracker.name_run(propose)
        return tracker.experiment.get_run(str(tracker.run_id)).info.run_name

    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", name())
    assert name("task/now") == "task/now"
    assert name("task/now", run_name="mine") == "mine"
    assert name("task/now", tags={"mlflow.runName": "tagged", "other": "tag"}) == "tagged"
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", '{"mlflow.runName": "child"}')
    assert name("task/now", tags={"other": "tag"}) == "child"


def test_an_experiment_that_another_run_makes_meanwhile_is_used(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(address)
    made = Tracker(tracking_uri=address).experiment.get_experiment_by_name("flowmatch_rl")
    assert made is not None
    assert made.tags["mlflow.experimentKind"] == "custom_model_development"
    monkeypatch.setattr(client, "get_experiment_by_name", lambda _: None)
    database.open_experiment(client, "flowmatch_rl", None)
    with pytest.raises(MlflowException, match="Invalid experiment name"):
        database.open_experiment(client, "", None)


def test_what_was_deleted_or_never_was_is_named_in_one_line(address: str) -> None:
    tracker = Tracker(tracking_uri=address)
    tracker.experiment.delete_experiment(str(tracker.experiment_id))
    with pytest.raises(UserError, match=rf"^the experiment 'flowmatch_rl' was deleted; .*-x {tracker.experiment_id}, "):
        _ = Tracker(tracking_uri=address).run_id
    with pytest.raises(UserError, match=r"^MLflow knows no run 'abc' to resume$"):
        _ = Tracker(tracking_uri=address, run_id="abc").experiment


def test_a_server_that_does_not_answer_is_named_at_once_and_without_its_password() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"^no tracking server answers at http://localhost:{port} \(.*refused\); "):
        _ = Tracker(tracking_uri=f"http://me:secret@localhost:{port}").run_id
    assert time.monotonic() - began < 2.0


def test_whatever_a_server_answers_it_is_there() -> None:
    with http.server.HTTPServer(("localhost", 0), http.server.BaseHTTPRequestHandler) as server:  # answers with 501
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        database.check_server(f"http://localhost:{server.server_port}/")
        thread.join()


def test_pages_of_runs_are_on_the_server_or_on_that_which_shows_the_local_file(address: str) -> None:
    tracker = Tracker(tracking_uri=address)
    place = f"experiments/{tracker.experiment_id}/runs/{tracker.run_id}?workflowType=machine_learning"
    assert tracker.page == f"http://localhost:5000/#/{place}"
    assert database.run_page("https://me:secret@host/mlflow/", "1", "a").startswith(
        "https://host/mlflow/#/experiments/1"
    )


def test_an_empty_variable_names_no_server(new_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    (tmp_path / "runs").mkdir()
    shutil.copy(new_database, tmp_path / "runs")
    assert Tracker().address == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_the_page_to_open_is_that_of_the_experiment_with_the_latest_run(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there are no tracked runs: there is no file .*none\.db; make some with "):
        database.latest_runs(f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(UserError, match=r"^there are no tracked runs in .*mlflow\.db; make some with "):
        database.latest_runs(address)
    for name in ("first", "second"):
        tracker = Tracker(name, tracking_uri=address)
        page = f"http://localhost:7/#/experiments/{tracker.experiment_id}/runs?workflowType=machine_learning"
        time.sleep(0.002)  # runs are ordered by milliseconds
        assert database.latest_runs(address, "http://localhost:7") == page
