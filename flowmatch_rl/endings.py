"""The end of a run of several processes: all of them stop at the same update, whichever of them a signal reaches.

An evaluation has no such point, and writes no checkpoint: there each process ends at once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

AGREEMENT_S = 20.0
"""Seconds after a signal in which the processes reach the end of an update; then the one that waits ends by itself.

An evaluation of several processes ends within the same time.
"""


class SharedEnd(BaseException):
    """All processes of a run end here, after the same update, so that they can write a checkpoint together."""


class _Request:
    """Whether the system, or the user, has asked this process to end."""

    def __init__(self) -> None:
        self.is_shared = self.was_made = False
        self._forward: Callable[[int], None] = lambda number: None
        self._timer: threading.Timer | None = None

    def listen(self, forward: Callable[[int], None]) -> None:
        """Take termination signals from here on."""
        self.is_shared, self.was_made, self._forward = True, False, forward
        signal.signal(signal.SIGTERM, self._receive)

    def settle(self) -> None:
        """Be done with a request: the processes have agreed on it, or their training is over."""
        self.is_shared = self.was_made = False
        if self._timer is not None:
            self._timer.cancel()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.was_made and self.is_shared:
            self.was_made = True
            self._timer = _start_timer("its processes did not reach the end of an update")
            self._forward(number)


_request = _Request()


def share_ending(forward: Callable[[int], None]) -> None:
    """Let a termination signal end all processes of a run after the same update, see ``end_is_requested``.

    A library that ends the process that a signal reaches, or talks to the others from within the handler, leaves them
    waiting for each other.

    Args:
        forward: Sends a signal to the processes that this one has started.
    """
    _request.listen(forward)


def end_is_requested() -> bool:
    """Whether a signal has asked this process to end since ``share_ending``."""
    return _request.was_made


def ending_is_shared() -> bool:
    """Whether a signal ends this process together with others, at a point that they all reach, and not by itself."""
    return _request.is_shared


def settle_ending() -> None:
    """Say that the processes have agreed to end, or that training is over: nothing ends them after some seconds."""
    _request.settle()


class _Evaluation:
    """An evaluation of several processes, which a signal ends."""

    def __init__(self) -> None:
        self.is_ending = False
        self._forward: Callable[[int], None] | None = None
        self._ending: type[BaseException] = SystemExit
        self._is_raised = False
        self._timer: threading.Timer | None = None

    def listen(self, forward: Callable[[int], None], ending: type[BaseException]) -> None:
        """Take termination signals from here on."""
        self.settle()
        self._forward, self._ending, self.is_ending, self._is_raised = forward, ending, False, False
        signal.signal(signal.SIGTERM, self._receive)

    def note(self) -> None:
        """Pass the first signal on, from any thread: the main one may wait for another process."""
        if self._forward is None or self.is_ending:
            return
        self.is_ending = True
        self._timer = _start_timer("it did not end")
        with contextlib.suppress(ProcessLookupError):
            self._forward(signal.SIGTERM)

    def settle(self) -> None:
        """Be done: the evaluation is over."""
        self._forward = None
        if self._timer is not None:
            self._timer.cancel()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.note()
        if not self._is_raised:
            self._is_raised = True
            raise self._ending(f"it was ended by {signal.Signals(number).name}")


_evaluation = _Evaluation()


def end_evaluation(forward: Callable[[int], None], ending: type[BaseException]) -> None:
    """Let a termination signal end this process of an evaluation at once, and those that it has started.

    Args:
        forward: Sends a signal to the processes that this one has started.
        ending: What is raised in the main thread.
    """
    _evaluation.listen(forward, ending)


def note_ending() -> None:
    """Say that a signal has come that ends an evaluation, if one is under way, before the main thread can take it."""
    _evaluation.note()


def evaluation_is_ending() -> bool:
    """Whether a signal has ended the evaluation, so that nobody needs to say why this process or another is gone."""
    return _evaluation.is_ending


def settle_evaluation() -> None:
    """Say that the evaluation is over: nothing ends this process after some seconds."""
    _evaluation.settle()


def _start_timer(what: str) -> threading.Timer:
    """End the process after some seconds, whatever its main thread does."""
    timer = threading.Timer(AGREEMENT_S, _end_alone, [what])
    timer.daemon = True
    timer.start()
    return timer


def _end_alone(what: str) -> None:
    print(
        f"flowmatch-rl: error: the run was asked to end, but {what} within {AGREEMENT_S:g} s; the last checkpoint "
        "stays as it is",
        file=sys.stderr,
        flush=True,
    )
    os._exit(128 + signal.SIGTERM)


class _Progress:
    """How far this process has come, for those that wait for it."""

    def __init__(self) -> None:
        self.stages = self.actions = 0


_progress = _Progress()


def mark_stage() -> None:
    """Count a point of the run that all processes reach, in the same order, such as the end of an update."""
    _progress.stages += 1


def mark_action() -> None:
    """Count something that shows that this process is at work, such as a step of an environment."""
    _progress.actions += 1


def progress() -> tuple[int, int]:
    """Stages and actions of this process so far."""
    return _progress.stages, _progress.actions
