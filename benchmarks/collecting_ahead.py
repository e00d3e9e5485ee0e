"""Environment steps per second on two cores, with collection between updates and in a process ahead of them.

Whole trainings on cheetah-run with one update per step, a thread per process, by the clock. They take turns of half a
second, in which the process of a training that collects runs as well.
"""

from typing import Any

from benchmarks.interleaved import Loop, seconds_per_step
from benchmarks.training_speed import METHODS, SKIPPED, ours

TASK, COMPARED = "cheetah_run", ("SAC", "lean", "fast")


def run(turns: int = 40) -> dict[str, Any]:
    """Measure; returns one row per method and way of collecting."""
    loops: dict[tuple[str, bool], Loop] = {
        (name, ahead): (ours, (TASK, METHODS[name], "32-true", False, ahead))
        for name in COMPARED
        for ahead in (False, True)
    }
    taken = seconds_per_step(loops, SKIPPED, turns, by_the_clock=True)
    rows = [
        {
            "method": name,
            "collection": "a block ahead, in a process" if ahead else "between updates",
            "steps_per_s": 1.0 / seconds,
            "ratio": taken[name, False] / seconds,
        }
        for (name, ahead), seconds in taken.items()
    ]
    return {"title": "Environment steps per second by way of collecting, two cores", "threads": 1, "rows": rows}
