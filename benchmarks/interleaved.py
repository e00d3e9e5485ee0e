"""Time per step of several endless loops, which take turns of half a second.

The speed of a processor that others share changes from minute to minute by more than what is to be measured. Loops that
take turns see the same changes.
"""

import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

Name = TypeVar("Name", bound=Hashable)

_TURN_S, _PATIENCE_S = 0.5, 600.0


@dataclass(frozen=True)
class Progress:
    """What a loop reports, shared between processes.

    Attributes:
        steps: Steps so far.
        cpu_s: CPU seconds of its process when the last of them was done.
        clock_s: Time of that by the clock, seconds.
    """

    steps: "Synchronized[int]"
    cpu_s: "Synchronized[float]"
    clock_s: "Synchronized[float]"

    def step(self) -> None:
        """Report that a step is done."""
        self.steps.value += 1
        self.cpu_s.value, self.clock_s.value = time.process_time(), time.monotonic()


Loop = tuple[Callable[..., None], tuple[Any, ...]]
"""A function that runs for ever, called with its ``Progress`` and the arguments."""


def seconds_per_step(
    loops: Mapping[Name, Loop], skipped: int, turns: int, by_the_clock: bool = False
) -> dict[Name, float]:
    """Median over the turns of the time of a step, by name.

    Args:
        loops: The loops; each runs in a process of its own, those that it starts take turns with it.
        skipped: Steps of each loop before the first turn.
        turns: Turns of each loop.
        by_the_clock: Whether the time is that of the clock, not CPU time of the process of the loop alone.

    Raises:
        RuntimeError: If a loop ends, or does not come to its first turn within ten minutes.
    """
    with _stopped(loops, skipped) as processes:
        measured: dict[Name, list[float]] = {name: [] for name in loops}
        for _ in range(turns):
            for name, (process, progress) in processes.items():
                steps, seconds = _turn(process, progress, by_the_clock)
                measured[name].append(seconds / steps)
    return {name: statistics.median(values) for name, values in measured.items()}


@contextmanager
def _stopped(loops: Mapping[Name, Loop], skipped: int) -> Iterator[dict[Name, tuple[SpawnProcess, Progress]]]:
    """Processes of the loops, stopped after their first steps; they are killed in the end."""
    context = multiprocessing.get_context("spawn")
    processes: dict[Name, tuple[SpawnProcess, Progress]] = {}
    try:
        for name, (function, arguments) in loops.items():
            progress = Progress(
                context.Value("q", 0, lock=False),
                context.Value("d", 0.0, lock=False),
                context.Value("d", 0.0, lock=False),
            )
            process = context.Process(target=_lead, args=(function, progress, *arguments))
            process.start()
            processes[name] = process, progress
            end = time.monotonic() + _PATIENCE_S
            _wait(process, lambda p=progress, end=end: p.steps.value >= skipped or time.monotonic() > end)
            _signal(process, signal.SIGSTOP)
            if progress.steps.value < skipped:
                raise RuntimeError(f"{name} took {progress.steps.value} of {skipped} steps in {_PATIENCE_S:g} s")
        yield processes
    finally:
        for process, progress in processes.values():
            if progress.steps.value:
                _signal(process, signal.SIGKILL)
            process.kill()


def _lead(function: Callable[..., None], progress: Progress, *arguments: Any) -> None:
    """A loop in a group of processes of its own."""
    os.setsid()
    function(progress, *arguments)


def _signal(process: SpawnProcess, number: signal.Signals) -> None:
    """Send a signal to the group of a loop that has begun."""
    assert process.pid is not None
    os.killpg(process.pid, number)


def _turn(process: SpawnProcess, progress: Progress, by_the_clock: bool) -> tuple[int, float]:
    """Whole steps of a turn, at least one, and their time."""
    time_of_step = progress.clock_s if by_the_clock else progress.cpu_s
    before = progress.steps.value
    _signal(process, signal.SIGCONT)
    _wait(process, lambda: progress.steps.value > before)  # this one began in an earlier turn
    first, began, end = progress.steps.value, time_of_step.value, time.monotonic() + _TURN_S
    _wait(process, lambda: time.monotonic() > end and progress.steps.value > first)
    _signal(process, signal.SIGSTOP)
    return progress.steps.value - first, time_of_step.value - began


def _wait(process: SpawnProcess, is_over: Callable[[], bool]) -> None:
    """Wait until something is the case."""
    while not is_over():
        if not process.is_alive():
            raise RuntimeError(f"a loop ended with exit status {process.exitcode}")
        time.sleep(0.002)
