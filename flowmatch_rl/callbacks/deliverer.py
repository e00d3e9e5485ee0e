"""The process that delivers a journal beside the run which writes it, and the delivery of what a run has left.

A process of its own delivers while a run trains (``python -m flowmatch_rl.callbacks.deliverer``), so that nothing that
MLflow does can stop the training: a server that does not answer, a locked database, a lock of the interpreter, or a
thread that does not end.
"""

import contextlib
import logging
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path

from flowmatch_rl.callbacks.delivered import Delivered, Remainder, remainder
from flowmatch_rl.callbacks.delivery import Delivery
from flowmatch_rl.callbacks.journal import END, METRICS, OPEN, Entry, add_entry, end_of_killed, lock_of, read_entries
from flowmatch_rl.callbacks.system_metrics import SystemMetrics
from flowmatch_rl.checks import UserError
from flowmatch_rl.files import exclusive, shown
from flowmatch_rl.redaction import redact

INTERVAL_S = 2.0
"""Seconds between two deliveries."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Seconds before a failed delivery is tried again: twice as many after every further one."""

ORPHAN_S = 30.0
"""Seconds in which what a killed run has left is delivered."""

_POLL_S = 0.25


def follow(journal: Path, parent: int, address: str | None) -> None:
    """Deliver a journal while a process writes it, until that process says that it is enough, or has ended.

    The other process says so by a byte on the standard input of this one. Where it was killed, the run is noted as
    killed, and what is left is tried for ``ORPHAN_S``.

    Args:
        journal: The journal.
        parent: Number of the process that writes it.
        address: Address of the tracking; that in the journal if None.
    """
    with exclusive(lock_of(journal), str(journal), wait=True):
        delivery = Delivery(journal, address)
        looked, due, pause, orphaned = 0, 0.0, FIRST_PAUSE_S, None
        system = _System(journal, parent)
        while True:
            now = time.monotonic()
            for entry in read_entries(journal, looked):
                looked = entry.offset
                system.note(entry)
                if entry.kind == OPEN and orphaned is not None:
                    return  # the run was resumed, by a process that delivers by another one
                if entry.kind in (OPEN, END):
                    due, pause = 0.0, FIRST_PAUSE_S
            if orphaned is None and os.getppid() != parent:
                orphaned = now
            if orphaned is None:
                system.measure(now)
            if orphaned is not None:
                has_ended = end_of_killed(journal)
                if now > orphaned + ORPHAN_S or (has_ended and delivery.is_done):
                    return
            if now >= due and not delivery.is_done:
                succeeded = delivery.attempt()
                pause = FIRST_PAUSE_S if succeeded else pause
                due = time.monotonic() + (INTERVAL_S if succeeded else pause)
                pause = pause if succeeded else min(2.0 * pause, LONGEST_PAUSE_S)
            if orphaned is not None:
                time.sleep(_POLL_S)
            elif select.select([0], [], [], _POLL_S)[0]:
                if os.read(0, 1):
                    return
                time.sleep(_POLL_S)  # the other process has just ended


class _System:
    """Adds what a run and its machine are busy with to the run's journal, while it trains.

    Args:
        journal: The journal.
        process: Number of the process that writes it.
    """

    def __init__(self, journal: Path, process: int) -> None:
        self._journal, self._process = journal, process
        self._began_ms: int | None = None
        self._interval_s: float | None = None
        self._metrics: SystemMetrics | None = None
        self._due = 0.0

    def note(self, entry: Entry) -> None:
        """Begin or end to measure, as an entry of the journal says."""
        if entry.kind == OPEN:
            self._began_ms = self._began_ms or entry.time
            self._interval_s, self._metrics = entry.values.get("system_s"), None
        if entry.kind == END:
            self._interval_s = self._metrics = None

    def measure(self, now: float) -> None:
        """Add measurements if they are due; their step is the time since the run began, seconds."""
        if self._interval_s is None or self._began_ms is None:
            return
        if self._metrics is None:
            self._metrics, self._due = SystemMetrics(self._process, os.getpid()), now + self._interval_s
        elif now >= self._due:
            self._due = now + self._interval_s
            step = round(time.time() - self._began_ms / 1000)
            found = self._metrics.measure()
            try:
                if found:
                    add_entry(self._journal, METRICS, values=found, step=step)
            except OSError as error:  # a full disk, of which the run itself warns
                print(f"what the machine is busy with cannot be written: {error}", file=sys.stderr, flush=True)


def deliver_all(journal: Path, address: str | None = None) -> tuple[str, Delivered, Remainder]:
    """Deliver a journal, as far as MLflow takes it.

    A run that was killed before it could say how it ended is marked so; one that still runs stays as it is.

    Args:
        journal: The journal.
        address: Address of the tracking; that in the journal if None, or in ``MLFLOW_TRACKING_URI`` where the journal
            lacks its password.

    Returns:
        The address, what has been delivered, and what is left.

    Raises:
        UserError: If another process delivers it, or MLflow can never take it.
    """
    quieten()
    advice = "wait until it ends: it delivers every few seconds"
    with exclusive(lock_of(journal), f"what {shown(journal.parents[1])} has tracked", advice):
        end_of_killed(journal)
        delivery = Delivery(journal, address)
        if not delivery.is_done:
            delivery.attempt()
        if delivery.delivered.refusal is not None:
            raise UserError(delivery.delivered.refusal)
        return delivery.address, delivery.delivered, remainder(journal, delivery.delivered)


def quieten() -> None:
    """Leave out what MLflow says of itself: the tables of a new file are announced in dozens of lines."""
    for name in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # no page of warnings on machines without git


def main(journal: str, parent: str) -> None:
    """Deliver beside a run.

    Args:
        journal: Path of the journal.
        parent: Number of the process that writes it.
    """
    # Whoever ends a run ends all of its processes: this one waits for what the run says last.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    quieten()
    sys.excepthook = lambda *error: print(redact("".join(traceback.format_exception(*error))), file=sys.stderr)
    with contextlib.suppress(FileNotFoundError):  # the folder of the run was deleted
        follow(Path(journal), int(parent), os.environ.get("MLFLOW_TRACKING_URI"))


if __name__ == "__main__":
    main(*sys.argv[1:])
