"""Blocks of code that a keyboard interrupt must not leave half done."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold a keyboard interrupt back until a ``with`` block has ended.

    For a few milliseconds in which several things change together, of which a checkpoint of the interrupted run must
    hold all or none. Other threads than the main one get no signals; there the block does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)
