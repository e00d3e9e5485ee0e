"""Jobs submitted through submitit, on its local stand-in for a cluster."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flowmatch_rl.checks import UserError
from flowmatch_rl.experiments import plan
from flowmatch_rl.experiments.executors import CUT_OFF, Executor, is_free
from flowmatch_rl.experiments.plan import Job
from flowmatch_rl.experiments.queue import JobQueue
from tests.cli.support import default_signals
from tests.experiments.comparisons import STAND_IN, starts

pytest.importorskip("submitit", reason="the extra slurm is not installed")

from flowmatch_rl.experiments.slurm import SlurmExecutor


def job(folder: Path, name: str, **options: Any) -> Job:
    place = folder / "out" / "swing" / name / "0"
    given = {"seed_everything": 0, "trainer.default_root_dir": place} | options
    return Job("swing", name, 0, place, tuple(f"--{key}={value}" for key, value in given.items()))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROGRAM", (sys.executable, str(STAND_IN)))


@pytest.fixture
def executor() -> Executor:
    return SlurmExecutor(time_min=5, cluster="local")


def wait(path: Path) -> None:
    deadline = time.monotonic() + 60.0
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_submitted_jobs_end_with_results_and_failures(executor: Executor, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    good, bad = job(tmp_path, "good"), job(tmp_path, "bad", act="fail")
    queue = JobQueue([good, bad], executor, 2, None)
    assert queue.work() == 0
    assert good.finished
    assert [(failure.job, failure.status) for failure in queue.failures] == [(bad, 3)]
    assert "line 19" in queue.failures[0].describe()
    assert not list(tmp_path.rglob(".submitted"))
    again = JobQueue([good, bad], executor, 2, None)
    assert (again.work(), again.failures, bad.finished) == (0, [], True)
    assert starts(tmp_path, "swing/bad/0")[1]["options"]["ckpt_path"] == str(bad.last)


def test_job_that_is_cut_off_is_submitted_again_and_resumes(executor: Executor, tmp_path: Path) -> None:
    waiting = job(tmp_path, "waits", act="wait")

    def cut_off() -> None:
        wait(waiting.folder / "alive")
        time.sleep(0.5)  # for its handlers of signals
        number = (waiting.folder / ".submitted").read_text()
        (controlled,) = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        os.kill(int(controlled), signal.SIGUSR2)

    thread = threading.Thread(target=cut_off)
    thread.start()
    queue = JobQueue([waiting], executor, 1, None)
    assert (queue.work(), queue.failures, waiting.finished) == (0, [], True)
    thread.join()
    assert ["ckpt_path" in start["options"] for start in starts(tmp_path, waiting.name)] == [False, True]
    execution = executor.start(waiting, [sys.executable, "-c", f"raise SystemExit({CUT_OFF})"], {})
    wait(waiting.folder / "submitit")
    while execution.poll() is None:
        time.sleep(0.1)
    assert execution.poll() == CUT_OFF


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_asks_submitted_jobs_to_save(number: int, executor: Executor, tmp_path: Path) -> None:
    waiting = job(tmp_path, "waits", act="wait")
    timer = threading.Thread(
        target=lambda: (wait(waiting.folder / "alive"), time.sleep(0.5), os.kill(os.getpid(), number))
    )
    with default_signals():
        timer.start()
        queue = JobQueue([waiting], executor, 1, None)
        assert queue.work() == number
    timer.join()
    assert (waiting.last.is_file(), waiting.finished, is_free(waiting.folder)) == (True, False, True)


def test_what_a_killed_command_left_submitted_is_ended_and_resumed(executor: Executor, tmp_path: Path) -> None:
    waiting = job(tmp_path, "waits", act="wait")
    execution = executor.start(waiting, waiting.command(), {})  # nobody looks after it any more
    wait(waiting.folder / "alive")
    time.sleep(0.5)
    queue = JobQueue([waiting], executor, 1, None)
    assert (queue.work(), queue.failures, waiting.finished) == (0, [], True)
    assert ["ckpt_path" in start["options"] for start in starts(tmp_path, waiting.name)] == [False, True]
    execution.kill()


def test_wrong_sizes_are_refused() -> None:
    for arguments, word in (({"time_min": 1}, "time_min"), ({"cpus": 0}, "cpus"), ({"gpus": -1}, "gpus")):
        with pytest.raises(UserError, match=word):
            SlurmExecutor(**arguments)
