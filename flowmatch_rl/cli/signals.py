"""How the system ends a run: soon, and with a checkpoint."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from lightning.pytorch.utilities.exceptions import SIGTERMException

from flowmatch_rl.envs.watchdog import listening


@dataclass
class Ending:
    """The signal that ends a run.

    Attributes:
        number: SIGTERM, or SIGHUP where the terminal was closed.
    """

    number: signal.Signals = signal.SIGTERM

    @property
    def status(self) -> int:
        """Exit status."""
        return 128 + self.number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[Ending]:
    """End a run of Lightning by SIGTERM and SIGHUP, in a ``with`` block: also where an environment hangs.

    SIGHUP, which comes when a terminal is closed, ends a run as SIGTERM does unless it is ignored. Other threads than
    the main one get no signals; there the block does nothing.

    Yields:
        The signal.
    """
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def hang_up(number: int, frame: FrameType | None) -> None:
        ending.number = signal.SIGHUP
        silence(terminals)
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGHUP)
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, hang_up)
    try:
        with listening(SIGTERMException):
            yield ending
    finally:
        signal.signal(signal.SIGHUP, before)


def silence(descriptors: list[int]) -> None:
    """Write nowhere what is written to file descriptors: to print on a terminal that is gone raises an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
