"""What a tracking server that is killed and comes back does to a training: pauses, rates, and metrics that are lost.

A server of MLflow on this machine (SQLite behind it) is killed by SIGKILL in the middle of a training, and started
again before its end. Another row hangs it instead (SIGSTOP, SIGCONT): it accepts connections and never answers. The
pause is the longest time between two batches of a training without evaluations; the slowest window is the number of
batches in the slowest ten seconds, relative to ten seconds at the median rate of all windows. The same is measured
without tracking: what other work on the machine does. Metrics that are left at the end, where the server takes longer
to start than what remains of the training and the patience of 10 seconds, are delivered as by ``flowmatch-rl deliver``;
they are missing if the journal of the run holds them and MLflow does not after that.
"""

import contextlib
import itertools
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from lightning.pytorch import Callback, LightningModule, Trainer
from mlflow.tracking import MlflowClient

from flowmatch_rl.callbacks.delivered import Delivered, remainder
from flowmatch_rl.callbacks.deliverer import deliver_all
from flowmatch_rl.callbacks.journal import METRICS, journals, read_entries
from flowmatch_rl.cli import FlowMatchCLI

CONFIG = "conf/flow/two_moons.yaml"
TRAINING_S, KILLED_AT_S, BACK_AT_S, WINDOW_S = 75.0, 20.0, 50.0, 10.0
OPTIONS = [
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=5",
    "--trainer.max_epochs=1000000",
    "--data.num_updates=100000000",
    "--data.epoch_updates=100000000",
    "--figures.enabled=false",
]


class Batches(Callback):
    """When each batch ended; does something to the server on the way, and ends the training."""

    def __init__(self, events: dict[float, Any], length_s: float) -> None:
        self.times: list[float] = []
        self._events, self._length_s = dict(events), length_s

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time."""
        self.times.append(time.monotonic())
        elapsed = self.times[-1] - self.times[0]
        for due in [due for due in self._events if elapsed >= due]:
            self._events.pop(due)()
        trainer.should_stop = elapsed >= self._length_s


class Server:
    """A server of MLflow on this machine.

    Args:
        folder: Folder of its database and files.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 600.0
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urlopen(f"{self.address}/health", timeout=5.0).close()
                return
            time.sleep(0.2)
        raise TimeoutError((self._folder / "server.log").read_text())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes."""
        assert self._process is not None
        os.killpg(self._process.pid, number)
        if number == signal.SIGKILL:
            self._process.wait()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server that answers, in a ``with`` block."""
    server = Server(folder)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.signal(signal.SIGKILL)


def pauses(times: list[float]) -> tuple[float, float, float]:
    """Longest pause in seconds, slowest window relative to the median, and batches per second at the median."""
    longest = max(after - before for before, after in itertools.pairwise(times))
    starts = [times[0] + float(offset) for offset in range(int(times[-1] - times[0] - WINDOW_S) + 1)]
    counts = [sum(start <= when < start + WINDOW_S for when in times) for start in starts]
    median = statistics.median(counts)
    return longest, min(counts) / median, median / WINDOW_S


def missing(journal: Path, address: str) -> tuple[int, int, int]:
    """Values that the journal holds, those that MLflow lacks, and those that it has twice."""
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("flowmatch_rl")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    wanted: dict[str, list[tuple[int, int]]] = {}
    for entry in read_entries(journal):
        if entry.kind == METRICS:
            for name in entry.values["values"]:
                wanted.setdefault(name, []).append((entry.values["step"], entry.time))
    lacking = twice = 0
    for name, points in wanted.items():
        there = [(point.step, point.timestamp) for point in client.get_metric_history(run.info.run_id, name)]
        lacking += len(set(points) - set(there))
        twice += len(there) - len(set(there))
    assert run.info.status == "FINISHED", run.info.status
    return sum(map(len, wanted.values())), lacking, twice


def measure(outage: str) -> dict[str, Any]:
    """One training, with a server that is killed, hangs or serves all the time, or without tracking."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as held:
        folder = Path(name)
        logger, events, server = ["--trainer.logger=false"], {}, None
        if outage != "no tracking":
            server = held.enter_context(serving(folder))
            logger = ["--trainer.logger=Tracker", f"--trainer.logger.init_args.tracking_uri={server.address}"]
        if outage == "killed" and server is not None:
            events = {KILLED_AT_S: lambda: server.signal(signal.SIGKILL), BACK_AT_S: server.start}
        if outage == "hangs" and server is not None:
            events = {
                KILLED_AT_S: lambda: server.signal(signal.SIGSTOP),
                BACK_AT_S: lambda: server.signal(signal.SIGCONT),
            }
        place = f"--trainer.default_root_dir={folder / 'run'}"
        cli = FlowMatchCLI([f"-c={CONFIG}", *OPTIONS, *logger, place], run=False)
        batches = Batches(events, TRAINING_S)
        trainer: Any = cli.trainer
        trainer.callbacks.append(batches)
        trainer.fit(cli.model, cli.datamodule)
        ended = time.monotonic()
        for tracker in trainer.loggers:
            tracker.close()
        waited = time.monotonic() - ended
        longest, slowest, rate = pauses(batches.times)
        row = {"server": outage, "batches_per_s": rate, "longest_pause_s": longest, "slowest_window": slowest}
        row["wait_at_end_s"] = waited
        counts: tuple[object, ...] = ("-", "-", "-", "-")
        if server is not None:
            (journal,) = journals(folder / "run")
            left = remainder(journal, Delivered.read(journal)).metrics
            server.wait()
            deliver_all(journal, server.address)  # what flowmatch-rl deliver does, where something is left
            counts = (left, *missing(journal, server.address))
        return row | dict(zip(("left_at_end", "metrics", "missing", "twice"), counts, strict=True))


def run() -> dict[str, Any]:
    """Measure; returns one row per kind of outage."""
    rows = [measure(outage) for outage in ("no tracking", "serves", "killed", "hangs")]
    title = f"Training during an outage of the tracking server, from second {KILLED_AT_S:g} to {BACK_AT_S:g}"
    return {"title": title, "threads": 1, "rows": rows}
