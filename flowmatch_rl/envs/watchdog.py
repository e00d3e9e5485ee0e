"""Ends calls that do not return: after a time-out, and when the system asks the process to end."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

from flowmatch_rl.endings import ending_is_shared, note_ending

POLL_S = 0.25
"""Seconds between two looks at the running call. Looks are counted, not seconds: a stopped process is not late."""

GRACE_S = 2.0
"""Seconds that a call may go on after the system has asked for the end."""

PATIENCE_S = 3.0
"""Seconds after which the whole process ends if the call can't be interrupted."""

_WAKE = signal.SIGURG  # which does nothing where nothing handles it
_ENDING = (signal.SIGTERM, signal.SIGHUP)


class CallTimeout(BaseException):
    """A call did not return in time. No ``Exception``, so that code that catches all of them does not go on."""


@dataclass(eq=False)
class _Call:
    """A call of the main thread."""

    label: str
    method: str
    timeout_s: float | None
    report: Callable[[str], None]
    looks: int = 0
    looks_when_woken: int | None = None
    verdict: BaseException | None = None


class _Watchdog:
    """Looks at the running call of the main thread, from a thread of its own."""

    def __init__(self) -> None:
        self.call: _Call | None = None
        self.ending: type[BaseException] = SystemExit
        self.looks_since_signal: int | None = None
        self._process: int | None = None
        self._signals, self._wakeup = -1, -1

    @property
    def is_ending(self) -> bool:
        """Whether the time after a signal is over in which calls may go on."""
        return self.looks_since_signal is not None and self.looks_since_signal * POLL_S >= GRACE_S

    def begin(self) -> None:
        """Start the thread, once per process, and handle the signal by which it calls the main thread."""
        if signal.getsignal(_WAKE) is not _raise_verdict:
            signal.signal(_WAKE, _raise_verdict)
        if self._process != os.getpid():
            self._process = os.getpid()
            self._signals, self._wakeup = os.pipe()
            os.set_blocking(self._wakeup, False)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def listening(self, ending: type[BaseException]) -> Iterator[None]:
        """Learn of signals also while the main thread can't handle them, in a ``with`` block."""
        self.begin()
        self.ending = ending
        before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            self.looks_since_signal = None

    def _watch(self) -> None:
        while True:
            if select.select([self._signals], [], [], POLL_S)[0]:
                signals = set(os.read(self._signals, 64))
                if signals & {signal.SIGINT, *_ENDING}:
                    note_ending()
                came = signals & set(_ENDING)
                if came and self.looks_since_signal is None and not ending_is_shared():
                    self.looks_since_signal = 0
                continue
            if self.looks_since_signal is not None:
                self.looks_since_signal += 1
            if (call := self.call) is not None:
                call.looks += 1
                self._judge(call)

    def _judge(self, call: _Call) -> None:
        if call.looks_when_woken is not None:
            if (call.looks - call.looks_when_woken) * POLL_S >= PATIENCE_S:
                _end_process(call)
            return
        if self.is_ending:
            call.verdict = self.ending()
        elif call.timeout_s is not None and call.looks * POLL_S > call.timeout_s:
            call.verdict = CallTimeout(
                f"{call.label} did not return from {call.method} within {call.timeout_s:g} s; "
                "raise timeout_s if it needs longer"
            )
        else:
            return
        call.looks_when_woken = call.looks
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, _WAKE)


def _raise_verdict(number: int, frame: FrameType | None) -> None:
    call = _watchdog.call
    if call is not None and call.verdict is not None:
        raise call.verdict


def _end_process(call: _Call) -> None:
    """End the process without its main thread, which is somewhere that no exception reaches."""
    if isinstance(call.verdict, CallTimeout):
        message, code = str(call.verdict), 1
    else:
        message, code = f"{call.label} did not return from {call.method} when the run was ended", 128 + signal.SIGTERM
    call.report(message)
    print(f"flowmatch-rl: error: {message}; the last checkpoint stays as it is", file=sys.stderr, flush=True)
    os._exit(code)


_watchdog = _Watchdog()


@contextlib.contextmanager
def watched(label: str, method: str, timeout_s: float | None, report: Callable[[str], None]) -> Iterator[None]:
    """End a call that does not return, in a ``with`` block. Calls of other threads than the main one are not watched.

    Args:
        label: Name of what is called.
        method: What is called of it.
        timeout_s: Seconds after which the call is given up; None for no end.
        report: Takes the message if the whole process has to end.

    Raises:
        CallTimeout: If the time is over.
        BaseException: That of ``listening``, if the system has asked for the end and calls go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _watchdog.begin()
    if _watchdog.is_ending:
        raise _watchdog.ending
    outer, _watchdog.call = _watchdog.call, _Call(label, method, timeout_s, report)
    try:
        yield
    finally:
        _watchdog.call = outer


def ends_run(error: BaseException) -> bool:
    """Whether an error in a call is the end of the run that the system has asked for, and not one of the call's own.

    Args:
        error: What was raised.
    """
    if not isinstance(error, SystemExit):
        return False
    return _watchdog.is_ending or (_watchdog.ending is not SystemExit and isinstance(error, _watchdog.ending))


def listening(ending: type[BaseException]) -> contextlib.AbstractContextManager[None]:
    """End watched calls soon after SIGTERM and SIGHUP, in a ``with`` block of the main thread.

    Without it these signals are the business of whoever handles them, and so are those of processes that end together.

    Args:
        ending: What to raise in a call that goes on.
    """
    return _watchdog.listening(ending)
