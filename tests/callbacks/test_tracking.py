"""Where runs are tracked: the database of a new folder, experiments, names and addresses."""

import http.server
import os
import random
import re
import shutil
import socket
import sqlite3
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from flowmatch_rl.callbacks import Tracker, addresses, database, tracking
from flowmatch_rl.callbacks.delivered import Delivered, Remainder, record_of, remainder
from flowmatch_rl.callbacks.journal import END, FILE, METRICS, OPEN, read_entries
from flowmatch_rl.checks import UserError
from tests.callbacks.fake_server import FakeServer, eventually
from tests.cli.support import call

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import ModelCheckpoint


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
        database.open_database(address)
    if damage != "broken off":
        assert path.read_bytes() == before


def test_addresses_of_files_are_told_from_others() -> None:
    assert addresses.database_file("sqlite:////runs/mlflow.db") == Path("/runs/mlflow.db")
    assert addresses.database_file("sqlite:///runs/mlflow.db?timeout=9") == Path("runs/mlflow.db")
    for address in ("http://host:5000", "sqlite://", "sqlite:///:memory:", "postgresql://host/db", "databricks"):
        assert addresses.database_file(address) is None


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type["NoCourier"]:
    """Trackers whose journals nobody delivers, in a working folder of their own: to start a process takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "Courier", NoCourier)
    return NoCourier


class NoCourier:
    """Stands for the process that delivers: it has reached MLflow, or what a test says."""

    known = Delivered(run_id="abc", experiment_id="1")
    patience: tuple[float, float | None] = (0.0, None)
    has_ended = False

    def __init__(self, journal: Path, address: str) -> None:
        self.journal = journal
        if not record_of(journal).exists():
            self.known.write(journal)

    def wait_for_first(self) -> Delivered:
        return self.known

    def wait_for_all(self, *patience: Any) -> Remainder:
        type(self).patience = patience
        return remainder(self.journal, Delivered.read(self.journal))

    def end(self) -> None:
        pass


def opened(tracker: Tracker) -> dict[str, Any]:
    """What the journal of a run says first, and no more."""
    tracker.open()
    (path,) = Path().rglob("*.jsonl")
    (entry,) = read_entries(path)
    tracker.close()
    shutil.rmtree(path.parent)
    return entry.values


@pytest.mark.usefixtures("alone")
def test_runs_are_named_after_their_time_unless_named_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(propose: str | None = None, **options: Any) -> str:
        random.seed(0)
        tracker = Tracker(**options)
        if propose:
            tracker.begin_in(Path("run"), propose, "fit", resumes=False)
        return opened(tracker)["tags"]["mlflow.runName"]

    monkeypatch.delenv("MLFLOW_RUN_CONTEXT", raising=False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", name())
    assert name("task/now") == "task/now"
    assert name("task/now", run_name="mine") == "mine"
    assert name("task/now", tags={"mlflow.runName": "tagged", "other": "tag"}) == "tagged"
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", '{"mlflow.runName": "child", "mlflow.parentRunId": "p"}')
    assert name("task/now", tags={"other": "tag"}) == "child"
    assert opened(Tracker(tags={"other": "tag"}))["tags"].items() >= {"mlflow.parentRunId": "p", "other": "tag"}.items()


@pytest.mark.usefixtures("alone")
def test_a_resumed_run_continues_its_journal_and_every_other_begins_one() -> None:
    def begin(command: str, resumes: bool, run_id: str | None = None) -> str:
        tracker = Tracker(run_id=run_id)
        tracker.begin_in(Path("run"), "name", command, resumes)
        tracker.log_metrics({"a": 1.0})
        tracker.finalize()
        assert tracker._journal is not None
        path = tracker._journal.path
        tracker.close()
        return path.stem

    assert begin("fit", resumes=True) == "fit-1"
    assert begin("test", resumes=False) == "test-1"
    assert begin("fit", resumes=True) == "fit-1"
    assert begin("fit", resumes=False) == "fit-2"
    assert begin("fit", resumes=True, run_id="abc") == "fit-2"
    assert begin("fit", resumes=True, run_id="another") == "fit-3"
    kinds = [entry.kind for entry in read_entries(Path("run/tracking/fit-1.jsonl"))]
    assert kinds == [OPEN, METRICS, END, OPEN, METRICS, END]


@pytest.mark.usefixtures("alone")
def test_a_tracker_that_is_used_again_continues_its_run() -> None:
    tracker = Tracker()
    for step in range(2):
        tracker.log_metrics({"a": 1.0}, step)
        tracker.close()
    (path,) = Path().rglob("*.jsonl")
    ends = [entry.values["status"] for entry in read_entries(path) if entry.kind == END]
    assert ends == ["KILLED", "KILLED"]  # nothing said how it ended


@pytest.mark.parametrize(
    ("error", "given", "status"),
    [
        (None, "success", "FINISHED"),
        (ValueError(), "failed", "FAILED"),
        (KeyboardInterrupt(), "failed", "KILLED"),
        (SIGTERMException(), "failed", "KILLED"),
    ],
    ids=["success", "error", "user", "system"],
)
def test_the_end_of_a_run_is_noted_and_waited_for_no_longer_than_its_patience(
    alone: type[NoCourier], error: BaseException | None, given: str, status: str
) -> None:
    tracker = Tracker(patience_s=3.0)
    tracker.log_metrics({"a": 1.0}, 1)
    try:
        if error is not None:
            raise error
        tracker.finalize(given)
    except BaseException:  # noqa: BLE001 (as Lightning does)
        tracker.finalize(given)
    with pytest.warns(
        UserWarning, match=r"^tracking: 1 of 1 metrics were not delivered to .*mlflow\.db; deliver them "
    ):
        tracker.close()
    (path,) = Path().rglob("*.jsonl")
    assert [entry.values["status"] for entry in read_entries(path) if entry.kind == END] == [status]
    assert alone.patience == (3.0, None if status == "FINISHED" else 3.0)


def test_a_tracking_that_does_not_answer_is_a_warning_and_one_that_never_can_an_error(
    alone: type[NoCourier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "known", Delivered(trouble="no tracking server answers at http://host (refused)"))
    tracker = Tracker(tracking_uri="http://host")
    message = r"^no tracking server answers at http://host \(refused\); what is tracked is "
    with pytest.warns(UserWarning, match=message) as caught:
        tracker.log_metrics({"a": 1.0})
    assert caught[0].filename == tracking.__file__  # the command line shows warnings of the package, not of Lightning
    assert (tracker.run_id, tracker.page, tracker.version) == (None, None, None)
    tracker.finalize()
    tracker.close()
    reason = "the experiment 'flowmatch_rl' was deleted"
    monkeypatch.setattr(alone, "known", Delivered(trouble=reason, refusal=reason))
    refused = Tracker()
    refused.begin_in(Path("other"), "name", "fit", resumes=False)
    with pytest.raises(UserError, match="was deleted"):
        refused.log_metrics({"a": 1.0})
    assert not list(Path("other").iterdir())
    refused.close()


@pytest.mark.usefixtures("alone")
def test_a_run_whose_folder_is_deleted_ends_with_a_warning() -> None:
    tracker = Tracker()
    tracker.log_metrics({"a": 1.0})
    shutil.rmtree("runs")
    with pytest.warns(UserWarning, match=r"^runs/.*run-1\.jsonl was deleted; "):
        tracker.close()


@pytest.mark.usefixtures("alone")
def test_checkpoints_are_copied_once_for_each_time_that_they_were_written() -> None:
    tracker = Tracker()
    folder = Path(tracker._folder)
    last = folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    callback = SimpleNamespace(best_k_models={}, best_model_path="", last_model_path=str(last))
    tracker.log_metrics({"a": 1.0})
    for _ in range(2):
        tracker.after_save_checkpoint(cast("ModelCheckpoint", callback))
    for times, changed in ((1, None), (1, None), (2, 7.0)):
        if changed:
            os.utime(last, (changed, changed))
        tracker.finalize()
        (path,) = Path().rglob("*.jsonl")
        files = [entry.values for entry in read_entries(path) if entry.kind == FILE]
        assert files == [{"path": "checkpoints/last.ckpt", "folder": "last"}] * times
    tracker.close()


def test_an_experiment_that_another_run_makes_meanwhile_is_used(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(address)
    experiment = database.open_experiment(client, "flowmatch_rl", None)
    made = client.get_experiment_by_name("flowmatch_rl")
    assert made is not None
    assert made.experiment_id == experiment
    assert made.tags["mlflow.experimentKind"] == "custom_model_development"
    answers = iter([None, made, None])
    monkeypatch.setattr(client, "get_experiment_by_name", lambda _: next(answers))
    assert database.open_experiment(client, "flowmatch_rl", None) == experiment
    with pytest.raises(MlflowException, match="Invalid experiment name"):
        database.open_experiment(client, "", None)


def test_what_was_deleted_or_never_was_is_named_in_one_line(address: str) -> None:
    client = MlflowClient(address)
    experiment = database.open_experiment(client, "flowmatch_rl", None)
    run_id = client.create_run(experiment).info.run_id
    assert database.check_run(client, run_id) == experiment
    client.delete_run(run_id)
    with pytest.raises(UserError, match=rf"^the run '{run_id}' was deleted; .* --run-id {run_id}$"):
        database.check_run(client, run_id)
    with pytest.raises(UserError, match=r"^MLflow knows no run 'abc' to resume$"):
        database.check_run(client, "abc")
    client.delete_experiment(experiment)
    with pytest.raises(UserError, match=rf"^the experiment 'flowmatch_rl' was deleted; .*-x {experiment}, "):
        database.open_experiment(client, "flowmatch_rl", None)


def test_a_server_that_does_not_answer_is_named_at_once_and_without_its_password() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        database.NoAnswerError, match=rf"^no tracking server answers at http://localhost:{port} \(.*refused\)$"
    ):
        database.connect(f"http://me:secret@localhost:{port}")


def test_an_outage_delays_no_training_and_its_end_by_no_more_than_the_patience(
    server: FakeServer, tmp_path: Path
) -> None:
    server.mode = "hangs"
    tracker = Tracker(tracking_uri=server.address, patience_s=1.5, system_interval_s=None)
    tracker.begin_in(tmp_path / "run", "task/now", "fit", resumes=False)
    with pytest.warns(UserWarning, match=r"^no tracking server answers at .*timed out\); what is tracked is kept in "):
        tracker.open()
    began = time.monotonic()
    for step in range(200):
        tracker.log_metrics({"a": float(step)}, step)
    assert time.monotonic() - began < 20.0
    tracker.finalize()
    with pytest.warns(UserWarning, match=rf"^tracking: 200 of 200 metrics were not delivered to {server.address} \("):
        tracker.close()
    assert time.monotonic() - began < 30.0
    assert [path.name for path in sorted((tmp_path / "run" / "tracking").iterdir())] == [
        "fit-1.delivered.json",
        "fit-1.jsonl",
    ]
    server.mode = "answers"
    outcome = call(["deliver", str(tmp_path)])
    assert (outcome.code, outcome.out) == (0, f"{tmp_path / 'run'}: 200 metrics are in {server.address}\n")
    assert [step for _, step, _, _ in server.run["metrics"]] == list(range(200))
    assert server.run["info"]["status"] == "FINISHED"
    resumed = Tracker(tracking_uri=server.address, system_interval_s=None)
    resumed.begin_in(tmp_path / "run", "task/now", "fit", resumes=True)
    resumed.log_metrics({"a": 200.0}, 200)
    assert (resumed.run_id, len(server.runs)) == (server.run["info"]["run_id"], 1)
    eventually(lambda: len(server.run["metrics"]) == 201)  # while it runs
    assert server.run["info"]["status"] == "RUNNING"
    resumed.finalize("failed")
    resumed.close()
    assert server.run["info"]["status"] == "FAILED"


def test_whatever_a_server_answers_it_is_there() -> None:
    with http.server.HTTPServer(("localhost", 0), http.server.BaseHTTPRequestHandler) as server:  # answers with 501
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        database.check_server(f"http://localhost:{server.server_port}/")
        thread.join()


@pytest.mark.usefixtures("alone")
def test_pages_of_runs_are_on_the_server_or_on_that_which_shows_the_local_file(address: str) -> None:
    tracker = Tracker(tracking_uri=address)
    assert tracker.page is None
    tracker.open()
    assert tracker.page == "http://localhost:5000/#/experiments/1/runs/abc?workflowType=machine_learning"
    tracker.close()
    assert addresses.run_page("https://me:secret@host/mlflow/", "1", "a").startswith(
        "https://host/mlflow/#/experiments/1"
    )


def test_an_empty_variable_names_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert Tracker().address == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_the_page_to_open_is_that_of_the_experiment_with_the_latest_run(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^there are no tracked runs: there is no file .*none\.db; make some with "):
        database.latest_runs(f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(UserError, match=r"^there are no tracked runs in .*mlflow\.db; make some with "):
        database.latest_runs(address)
    client = MlflowClient(address)
    for name in ("first", "second"):
        experiment = database.open_experiment(client, name, None)
        client.create_run(experiment)
        page = f"http://localhost:7/#/experiments/{experiment}/runs?workflowType=machine_learning"
        time.sleep(0.002)  # runs are ordered by milliseconds
        assert database.latest_runs(address, "http://localhost:7") == page
