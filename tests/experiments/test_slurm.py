"""Jobs submitted through submitit, on its local stand-in for a cluster."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.experiments import comparison
from flowmatch_rl.experiments.executors import Executor, is_free
from flowmatch_rl.experiments.plan import Job
from flowmatch_rl.experiments.queue import JobQueue, PlannedJobs
from tests.cli.support import default_signals
from tests.experiments.comparisons import compare, starts, write_names

pytest.importorskip("submitit", reason="the extra slurm is not installed")

from flowmatch_rl.experiments.slurm import SlurmExecutor

SLURM = "flowmatch_rl.experiments.slurm.SlurmExecutor"


def job(folder: Path, name: str, **options: Any) -> Job:
    place = folder / "out" / "swing" / name / "0"
    given = {"seed_everything": 0, "trainer.default_root_dir": place} | options
    return Job("swing", name, 0, place, tuple(f"--{key}={value}" for key, value in given.items()))


pytestmark = pytest.mark.usefixtures("stand_in_runs")


@pytest.fixture
def executor() -> Executor:
    return SlurmExecutor(time_min=5, cluster="local")


def wait(path: Path) -> None:
    deadline = time.monotonic() + 250.0
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_command_submits_its_jobs_and_tells_of_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "write_report", write_names)
    monkeypatch.setenv("SLURM_NTASKS", "1")  # as in an allocation
    changes: dict[str, Any] = {"methods": {"good": {}, "bad": {"options": {"act": "fail"}}}, "seeds": [0]}
    changes["executor"] = {"class_path": SLURM, "init_args": {"time_min": 5, "cluster": "local"}}
    outcome = compare(tmp_path, **changes)
    assert (outcome.code, "swing/good/0 is finished" in outcome.out) == (1, True), outcome.err
    assert "swing/bad/0 (status 3)" in outcome.err
    assert "line 19" in outcome.err
    assert not list(tmp_path.rglob(".submitted"))
    assert compare(tmp_path, **changes).code == 0
    last = tmp_path / "out" / "swing" / "bad" / "0" / "checkpoints" / "last.ckpt"
    assert starts(tmp_path, "swing/bad/0")[1]["options"]["ckpt_path"] == str(last)


def test_a_job_asks_slurm_for_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"srun": "", "sacct": "", "sbatch": "cp $1 asked; echo Submitted batch job 12"}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    executor = SlurmExecutor("fast", 60, cpus=2, gpus=1, memory_gb=8, options={"qos": "low"})
    submitted = job(tmp_path, "good")
    assert executor.start(submitted, submitted.command(), {}).poll() is None
    asked = (tmp_path / "asked").read_text()
    wanted = ("partition=fast", "time=60", "cpus-per-task=2", "gpus-per-node=1", "mem=8GB", "qos=low")
    assert all(f"#SBATCH --{word}" in asked for word in (*wanted, "job-name=swing/good/0", "signal=USR2@120")), asked
    assert (submitted.folder / ".submitted").read_text() == "12"


def test_job_that_is_cut_off_is_submitted_again_and_resumes(executor: Executor, tmp_path: Path) -> None:
    waiting = job(tmp_path, "waits", act="wait")

    def cut_off() -> None:
        wait(waiting.folder / "alive")
        wait(waiting.folder / ".submitted")
        number = (waiting.folder / ".submitted").read_text()
        (controlled,) = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        os.kill(int(controlled), signal.SIGUSR2)

    thread = threading.Thread(target=cut_off)
    thread.start()
    planned = PlannedJobs([waiting])
    queue = JobQueue(planned, executor, 1, None)
    assert (queue.work(), planned.failures, waiting.finished) == (0, [], True)
    thread.join()
    assert ["ckpt_path" in start["options"] for start in starts(tmp_path, waiting.name)] == [False, True]


def test_interruption_asks_submitted_jobs_to_save(executor: Executor, tmp_path: Path) -> None:
    waiting = job(tmp_path, "waits", act="wait")
    timer = threading.Thread(target=lambda: (wait(waiting.folder / "alive"), os.kill(os.getpid(), signal.SIGTERM)))
    with default_signals():
        timer.start()
        queue = JobQueue(PlannedJobs([waiting]), executor, 1, None)
        assert queue.work() == signal.SIGTERM
    timer.join()
    assert (waiting.last.is_file(), waiting.finished, is_free(waiting.folder)) == (True, False, True)


def test_what_a_killed_command_left_submitted_is_ended_and_resumed(executor: Executor, tmp_path: Path) -> None:
    waiting = job(tmp_path, "waits", act="wait")
    execution = executor.start(waiting, waiting.command(), {})  # nobody looks after it any more
    wait(waiting.folder / "alive")
    planned = PlannedJobs([waiting])
    queue = JobQueue(planned, executor, 1, None)
    assert (queue.work(), planned.failures, waiting.finished) == (0, [], True)
    assert ["ckpt_path" in start["options"] for start in starts(tmp_path, waiting.name)] == [False, True]
    execution.kill()


def test_wrong_sizes_are_refused() -> None:
    for arguments, word in (({"time_min": 1}, "time_min"), ({"cpus": 0}, "cpus"), ({"gpus": -1}, "gpus")):
        with pytest.raises(UserError, match=word):
            SlurmExecutor(**arguments)


def test_a_machine_without_slurm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="there is no SLURM here"):
        JobQueue(PlannedJobs([job(tmp_path, "good")]), SlurmExecutor(), 1, None).work()
