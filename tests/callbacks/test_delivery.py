"""What is tracked reaches MLflow once, in order, whatever the server does meanwhile."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.data import get_source
from mlflow.tracking import MlflowClient

from flowmatch_rl.callbacks import delivery
from flowmatch_rl.callbacks.delivered import Delivered, record_of, remainder, what_is_left
from flowmatch_rl.callbacks.deliverer import deliver_all
from flowmatch_rl.callbacks.delivery import Delivery
from flowmatch_rl.callbacks.journal import END, FILE, INPUT, METRICS, OPEN, PARAMETERS, TAGS, Journal, read_entries
from flowmatch_rl.checks import UserError
from tests.callbacks.fake_server import FakeServer, eventually, locked
from tests.cli.support import environment


def begin(folder: Path, address: str, **changes: Any) -> Journal:
    """A journal of a run, or of another part of it."""
    journal = Journal(folder / "run" / "tracking" / "fit-1.jsonl")
    stated: dict[str, Any] = {"experiment": "flowmatch_rl", "artifacts": None, "run_id": None, "key": "k1", "tags": {}}
    journal.append(OPEN, address=address, **stated | changes)
    return journal


def log(journal: Journal, *steps: int) -> None:
    for step in steps:
        journal.append(METRICS, values={"a": step / 2, "b": 1.0}, step=step)


def steps_of(run: dict[str, Any], key: str = "a") -> list[int]:
    return [step for name, step, _, _ in run["metrics"] if name == key]


def test_everything_arrives_in_order_with_its_time_and_the_status_last(server: FakeServer, tmp_path: Path) -> None:
    journal = begin(tmp_path, server.address, tags={"mlflow.runName": "task/now"})
    journal.append(TAGS, values={"seed": "0"})
    journal.append(PARAMETERS, values={"model.width": "16"})
    log(journal, 1, 2)
    (tmp_path / "run" / "a.txt").write_text("a file")
    journal.append(FILE, path="a.txt", folder="figures")
    log(journal, 3)
    journal.append(END, status="FINISHED")
    entries = list(read_entries(journal.path))
    delivered = Delivery(journal.path)
    assert delivered.attempt()
    assert delivered.is_done
    run = server.run
    assert steps_of(run) == [1, 2, 3]
    written = {entry.values["step"]: entry.time for entry in entries if entry.kind == METRICS}
    assert {step: when for _, step, _, when in run["metrics"]} == written
    assert run["tags"]["mlflow.runName"] == "task/now"
    assert (run["tags"]["seed"], run["params"]) == ("0", {"model.width": "16"})
    assert (server.files / "figures" / "a.txt").read_text() == "a file"
    assert (run["info"]["status"], run["info"]["end_time"]) == ("FINISHED", entries[-1].time)
    assert run["info"]["start_time"] == entries[0].time
    assert server.calls[-1] == "runs/update"
    assert Delivered.read(journal.path).metrics == 6


def test_a_server_that_is_down_or_dies_or_fails_loses_and_repeats_nothing(server: FakeServer, tmp_path: Path) -> None:
    server.stop()
    journal = begin(tmp_path, server.address)
    log(journal, 1)
    delivered = Delivery(journal.path)
    assert not delivered.attempt()
    assert "refused" in str(delivered.delivered.trouble)
    assert delivered.delivered.refusal is None
    assert remainder(journal.path, delivered.delivered).metrics == 2
    server.start()
    log(journal, 2)
    assert delivered.attempt()
    server.stop()
    log(journal, 3)
    assert not delivered.attempt()
    server.start()
    server.mode = "fails"
    log(journal, 4)
    assert not delivered.attempt()
    assert "the server is ill" in str(delivered.delivered.trouble) or "500" in str(delivered.delivered.trouble)
    server.mode = "answers"
    assert Delivery(journal.path).attempt()  # as another process does
    run = server.run
    assert steps_of(run) == steps_of(run, "b") == [1, 2, 3, 4]


def test_a_server_that_never_answers_is_given_up_within_seconds(server: FakeServer, tmp_path: Path) -> None:
    server.mode = "hangs"
    journal = begin(tmp_path, server.address)
    log(journal, 1)
    delivered = Delivery(journal.path)
    began = time.monotonic()
    assert not delivered.attempt()
    assert time.monotonic() - began < 30.0  # MLflow by itself tries for a quarter of an hour
    server.mode = "answers"
    assert delivered.attempt()
    server.mode = "hangs"
    log(journal, 2)
    began = time.monotonic()
    assert not delivered.attempt()
    assert time.monotonic() - began < 30.0
    line = what_is_left(journal.path, delivered.delivered, remainder(journal.path, delivered.delivered), server.address)
    assert line.startswith(f"tracking: 2 of 4 metrics were not delivered to {server.address} (")
    assert line.endswith(f"deliver them with: flowmatch-rl deliver {tmp_path / 'run'}")


def test_requests_are_bounded_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    monkeypatch.delenv(names[0], raising=False)
    monkeypatch.setenv(names[1], "5")
    with delivery.bounded_requests(7):
        assert [os.environ.get(name) for name in names] == ["7", "5"]
    assert [os.environ.get(name) for name in names] == [None, "5"]


def test_a_run_whose_making_got_no_answer_is_found_and_not_made_again(server: FakeServer, tmp_path: Path) -> None:
    server.loses_answer_of = "runs/create"
    journal = begin(tmp_path, server.address)
    log(journal, 1)
    assert not Delivery(journal.path).attempt()
    assert len(server.runs) == 1
    assert Delivery(journal.path).attempt()
    run = server.run
    assert steps_of(run) == [1]


def test_to_deliver_twice_adds_no_point_to_a_real_tracking(address: str, tmp_path: Path) -> None:
    journal = begin(tmp_path, address)
    log(journal, 1, 2, 3)
    journal.append(METRICS, values={"a": float("nan")}, step=4)
    data = {"name": "set", "source": "/data/set", "digest": "abc", "columns": ["x"], "rows": 3, "is_file": True}
    journal.append(INPUT, **data, context="training")
    journal.append(END, status="FINISHED")
    client, histories, runs = MlflowClient(address), [], []
    for _ in range(2):
        delivered = Delivery(journal.path)
        assert delivered.attempt(), delivered.delivered.trouble
        run_id = str(delivered.delivered.run_id)
        runs.append(run_id)
        histories.append([(m.step, m.timestamp, str(m.value)) for m in client.get_metric_history(run_id, "a")])
        record_of(journal.path).unlink()  # as if the process had been killed after each of its requests
    assert histories[0] == histories[1]
    assert [step for step, _, _ in histories[0]] == [1, 2, 3, 4]
    run = client.get_run(runs[0])
    assert (runs[0], run.info.status) == (runs[1], "FINISHED")
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.tags[0].value) == ("set", "abc", "training")
    assert get_source(given.dataset).uri == "file:///data/set"
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_a_locked_database_is_given_up_within_seconds_and_tried_again(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "0.2")
    journal = begin(tmp_path, address)
    log(journal, 1)
    delivered = Delivery(journal.path)
    with locked(tmp_path / "mlflow.db"):
        began = time.monotonic()
        assert not delivered.attempt()
        assert time.monotonic() - began < 30.0
        assert "keeps" in str(delivered.delivered.trouble)
        assert delivered.delivered.refusal is None
    assert delivered.attempt()


def test_files_that_cannot_be_copied_keep_nothing_else_back(server: FakeServer, tmp_path: Path) -> None:
    server.artifacts.write_text("no folder can be made here, as on a disk that is read-only")
    journal = begin(tmp_path, server.address)
    for name in ("a.txt", "b.txt", "gone.txt"):
        (tmp_path / "run" / name).write_text(name)
        journal.append(FILE, path=name, folder="")
    log(journal, 1)
    journal.append(END, status="FINISHED")
    delivered = Delivery(journal.path)
    for _ in range(2):
        assert not delivered.attempt()
        run = server.run
        assert (steps_of(run), run["info"]["status"]) == ([1], "FINISHED")
    left = remainder(journal.path, delivered.delivered)
    assert str(left) == "3 files"
    server.artifacts.unlink()
    (tmp_path / "run" / "gone.txt").unlink()
    assert delivered.attempt()
    assert {path.name for path in (server.files).iterdir()} == {"a.txt", "b.txt"}
    line = what_is_left(journal.path, delivered.delivered, remainder(journal.path, delivered.delivered), "")
    assert line == "1 files were gone before they were copied to MLflow"


def test_a_file_that_can_never_be_copied_does_not_keep_back_those_after_it(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = begin(tmp_path, server.address)
    for name in ("bad.txt", "a.txt", "b.txt"):
        (tmp_path / "run" / name).write_text(name)
        journal.append(FILE, path=name, folder="")
    copy = MlflowClient.log_artifact

    def failing(client: MlflowClient, run: str, path: str, folder: str | None) -> None:
        if path.endswith("bad.txt"):
            raise OSError("no room")
        copy(client, run, path, folder)

    monkeypatch.setattr(MlflowClient, "log_artifact", failing)
    delivered = Delivery(journal.path)
    for _ in range(2):
        assert not delivered.attempt()
    assert {path.name for path in server.files.iterdir()} == {"a.txt", "b.txt"}
    assert delivered.delivered.files == [("bad.txt", "")]


@pytest.mark.parametrize(("status", "copied_before"), [("FINISHED", True), ("KILLED", False), ("FAILED", False)])
def test_an_interrupted_run_is_marked_before_its_files_are_copied(
    server: FakeServer, tmp_path: Path, status: str, copied_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = begin(tmp_path, server.address)
    (tmp_path / "run" / "large.ckpt").touch()
    journal.append(FILE, path="large.ckpt", folder="last")
    journal.append(END, status=status)
    seen = []
    copy = MlflowClient.log_artifact
    monkeypatch.setattr(
        MlflowClient,
        "log_artifact",
        lambda *values: (seen.append(server.run["info"]["status"]), copy(*values)),
    )
    assert Delivery(journal.path).attempt()
    assert seen == ["RUNNING" if copied_before else status]


def test_a_value_that_mlflow_refuses_is_left_out_and_named(server: FakeServer, tmp_path: Path) -> None:
    journal = begin(tmp_path, server.address)
    journal.append(METRICS, values={"a": 1.0, "bad": 2.0, "c": 3.0}, step=1)
    log(journal, 2)
    delivered = Delivery(journal.path)
    assert delivered.attempt()
    run = server.run
    assert [name for name, *_ in run["metrics"]] == ["a", "c", "a", "b"]
    known = Delivered.read(journal.path)
    assert (known.metrics, known.refused) == (4, 1)
    assert "MLflow refused 1 values" in what_is_left(journal.path, known, remainder(journal.path, known), "")


def test_values_of_a_run_that_was_deleted_meanwhile_are_kept(server: FakeServer, tmp_path: Path) -> None:
    journal = begin(tmp_path, server.address)
    delivered = Delivery(journal.path)
    assert delivered.attempt()
    server.run["info"]["lifecycle_stage"] = "deleted"
    journal.append(METRICS, values={"bad": 1.0}, step=1)  # refused, as everything is by a deleted run
    assert not delivered.attempt()
    assert delivered.delivered.refused == 0
    with pytest.raises(UserError, match=r"^the run '\w+' was deleted; .* --run-id \w+$"):
        deliver_all(journal.path)
    server.run["info"]["lifecycle_stage"] = "active"
    assert remainder(journal.path, Delivered.read(journal.path)).metrics == 1


def test_many_values_are_delivered_by_few_requests_that_mlflow_takes(server: FakeServer, tmp_path: Path) -> None:
    journal = begin(tmp_path, server.address)
    journal.append(PARAMETERS, values={f"p{number}": "1" for number in range(250)})
    journal.append(METRICS, values={f"m{number}": 1.0 for number in range(1700)}, step=0)
    log(journal, *range(1, 500))
    assert Delivery(journal.path).attempt()
    run = server.run
    assert (len(run["params"]), len(run["metrics"])) == (250, 1700 + 2 * 499)
    assert steps_of(run) == list(range(1, 500))
    assert server.calls.count("runs/log-batch") <= 9


def test_a_resumed_run_continues_the_same_one_and_is_running_again(server: FakeServer, tmp_path: Path) -> None:
    server.stop()
    first = begin(tmp_path, server.address)
    first.append(PARAMETERS, values={"steps": "40"})
    log(first, 1, 2)
    first.append(END, status="KILLED")
    assert not Delivery(first.path).attempt()  # so that its identifier is not known when it is resumed
    first.close()
    server.start()
    second = begin(tmp_path, server.address, key="k2")
    second.append(PARAMETERS, values={"steps": "80", "new": "1"})
    log(second, 3)
    assert Delivery(second.path).attempt()
    run = server.run
    assert (steps_of(run), run["info"]["status"]) == ([1, 2, 3], "RUNNING")
    third = Delivery(second.path)
    second.append(PARAMETERS, values={"steps": "99"})
    second.append(END, status="FINISHED")
    assert third.attempt()
    assert run["info"]["status"] == "FINISHED"
    assert run["params"]["steps"] == "80"  # MLflow changes no parameter


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": "nonsense://host"}, r"^MLflow cannot use nonsense://host: "),
        ({"address": "http://"}, r"^tracking_uri http:.* is not the address of a server "),
        ({"address": "http://me:***@host:5000"}, "lacks its password"),
        ({"run_id": "abc"}, r"^MLflow knows no run 'abc' to resume$"),
    ],
)
def test_what_can_never_be_delivered_is_a_user_error(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    journal = begin(tmp_path, **{"address": server.address} | changes)
    with pytest.raises(UserError, match=message):
        deliver_all(journal.path)


def test_a_run_that_lives_is_not_marked_as_killed_and_one_that_is_gone_is(server: FakeServer, tmp_path: Path) -> None:
    journal = begin(tmp_path, server.address)
    log(journal, 1)
    deliver_all(journal.path)
    assert server.run["info"]["status"] == "RUNNING"
    journal.close()
    _, known, left = deliver_all(journal.path)
    assert left.is_empty
    assert server.run["info"]["status"] == "KILLED"
    assert known.metrics == 2


def test_a_password_that_the_journal_lacks_comes_from_the_environment(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address.replace("//", "//me:pa55w0rd@"))
    journal = begin(tmp_path, server.address.replace("//", "//me:***@"))
    log(journal, 1)
    assert deliver_all(journal.path)[2].is_empty
    assert steps_of(server.run) == [1]
    server.stop()
    log(journal, 2)
    _, known, _ = deliver_all(journal.path)
    assert "pa55w0rd" not in record_of(journal.path).read_text()
    assert "refused" in str(known.trouble)


RUN = """
import sys, time
from pathlib import Path
from flowmatch_rl.callbacks.courier import Courier
from flowmatch_rl.callbacks.journal import METRICS, OPEN, Journal
journal = Journal(Path(sys.argv[1]))
stated = {"experiment": "flowmatch_rl", "artifacts": None, "run_id": None, "key": "k", "tags": {}}
journal.append(OPEN, address=sys.argv[2], **stated)
courier = Courier(journal.path, sys.argv[2])
journal.append(METRICS, values={"a": 1.0}, step=1)
print("begun", flush=True)
time.sleep(60)
"""


def test_the_process_beside_a_run_delivers_what_a_killed_run_left_and_marks_it(
    server: FakeServer, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "tracking" / "fit-1.jsonl"
    command = [sys.executable, "-c", RUN, str(path), server.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    eventually(lambda: server.runs and server.run["info"]["status"] == "KILLED", 240.0)
    assert steps_of(server.run) == [1]
    eventually(lambda: not path.with_suffix(".lock").exists())
