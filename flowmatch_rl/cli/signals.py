"""How the system ends a run: soon, and with a checkpoint."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flowmatch_rl.cli.messages import print_error
from flowmatch_rl.endings import evaluation_is_ending
from flowmatch_rl.envs.watchdog import listening


@dataclass
class Ending:
    """The signal that ends a run.

    Attributes:
        number: SIGTERM, SIGHUP where the terminal was closed, or SIGINT where the user's interrupt waited.
        is_updating: Tells whether an update is under way, the end of which the user's first interrupt waits for.
        may_end_at_once: Tells whether SIGTERM need not wait for anything.
        has_begun: Whether SIGTERM has ended the run at once.
        remark: What to say of a run that it ends; empty where a checkpoint is written, which says so itself.
    """

    number: signal.Signals = signal.SIGTERM
    is_updating: Callable[[], bool] = lambda: False
    may_end_at_once: Callable[[], bool] = lambda: True
    has_begun: bool = False
    remark: str = ""

    @property
    def status(self) -> int:
        """Exit status."""
        return 128 + self.number

    @property
    def status_of_others(self) -> int:
        """Exit status of another process than the first, which hears of its end, or else must be ended by Lightning."""
        return 0 if not self.remark or evaluation_is_ending() else self.status

    def said(self, status: int) -> int:
        """The exit status of a run that has ended, once it is said."""
        return print_error(self.remark, status) if self.remark else status


@contextlib.contextmanager
def ended_by_signals() -> Iterator[Ending]:
    """End a run of Lightning by SIGTERM, SIGHUP and SIGINT, in a ``with`` block: also where an environment hangs.

    SIGTERM waits for the end of an update that is under way, and ends all else at once, where Lightning would let an
    evaluation go on to its end. SIGHUP, which comes when a terminal is closed, ends a run as SIGTERM does unless it is
    ignored. So does a first SIGINT within an update, so that the checkpoint is one of a whole update; elsewhere, and
    the second time, it is a ``KeyboardInterrupt``. Other threads than the main one get no signals; there the block does
    nothing.

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

    def terminate(number: int, frame: FrameType | None) -> None:
        if not ending.has_begun and ending.may_end_at_once():
            ending.has_begun = True  # a second signal must not end the writing of the checkpoint
            raise SIGTERMException

    def interrupt(number: int, frame: FrameType | None) -> None:
        if ending.number == signal.SIGINT or not ending.is_updating():
            signal.default_int_handler(number, frame)
        ending.number = signal.SIGINT
        if rank_zero_only.rank == 0:  # pyright: ignore[reportFunctionMemberAccess]
            os.write(2, b"\nends after this update; interrupt again to end at once\n")
        signal.raise_signal(signal.SIGTERM)

    terminations = signal.getsignal(signal.SIGTERM)
    if terminations == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)  # Lightning calls it after its own
    before = signal.getsignal(signal.SIGHUP)
    if before == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, hang_up)
    interrupts = signal.getsignal(signal.SIGINT)
    if interrupts == signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        with listening(SIGTERMException):
            yield ending
    finally:
        signal.signal(signal.SIGTERM, terminations)
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGINT, interrupts)


def silence(descriptors: list[int]) -> None:
    """Write nowhere what is written to file descriptors: to print on a terminal that is gone raises an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
