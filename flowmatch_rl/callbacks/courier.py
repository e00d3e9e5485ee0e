"""The process that delivers a journal while a run writes it, as the run sees it."""

import os
import subprocess
import sys
import time
from pathlib import Path

from flowmatch_rl.callbacks.delivered import Delivered, Remainder, remainder
from flowmatch_rl.callbacks.journal import lock_of, log_of
from flowmatch_rl.files import delete_partial_files

START_S = 120.0
"""Seconds that a run waits at its start for the first delivery to succeed or fail; it imports MLflow before."""

_END_S = 1.0
_POLL_S = 0.05


class Courier:
    """Starts the process, waits for it, and ends it.

    Args:
        journal: The journal.
        address: Address of the tracking, with its password if it has one.
    """

    def __init__(self, journal: Path, address: str) -> None:
        self._journal = journal
        self._attempts = Delivered.read(journal).attempts
        # The address goes through the environment: everybody on the machine sees the arguments of a process.
        path = os.pathsep.join(part for part in (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")) if part)
        environment = {"MLFLOW_TRACKING_URI": address, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
        module = "flowmatch_rl.callbacks.deliverer"
        with log_of(journal).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(journal.absolute()), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | environment,
                start_new_session=True,  # Ctrl-C in a terminal is for the run, which has something left to say
            )

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended by itself, which it does only where something is wrong."""
        return self._process.poll() is not None

    def wait_for_first(self) -> Delivered:
        """Wait until the first delivery has reached MLflow, or failed.

        Returns:
            What has been delivered.
        """
        deadline = time.monotonic() + START_S
        while (known := Delivered.read(self._journal)).attempts == self._attempts:
            if self.has_ended or time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        return known

    def wait_for_all(self, patience_s: float, at_most_s: float | None = None) -> Remainder:
        """Wait until everything is delivered.

        Args:
            patience_s: Seconds after which to give up if nothing more is delivered; while a file is copied, which has
                its own limit, no time passes.
            at_most_s: Seconds after which to give up in any case; None for no limit.

        Returns:
            What is left.
        """
        began = time.monotonic()
        deadline, progress = began + patience_s, None
        while True:
            known = Delivered.read(self._journal)
            left = remainder(self._journal, known)
            now = time.monotonic()
            if left.is_empty or self.has_ended:
                return left
            if known.sending or (known.offset, known.files, known.models, known.status) != progress:
                progress = known.offset, known.files, known.models, known.status
                deadline = now + patience_s
            if now > deadline or (at_most_s is not None and now > began + at_most_s):
                return left
            time.sleep(_POLL_S)

    def end(self) -> None:
        """End the process. What it has not delivered stays in the journal."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b".")
            self._process.stdin.close()
        except BrokenPipeError:  # it has ended
            pass
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # it waits for a server or a lock
            self._process.kill()
            self._process.wait()
            lock_of(self._journal).unlink(missing_ok=True)
            delete_partial_files(self._journal.parent)
        log = log_of(self._journal)
        if log.exists() and not log.stat().st_size:
            log.unlink()
