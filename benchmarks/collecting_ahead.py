"""Environment steps per second on two cores: collection between updates, a block ahead, by Ray, and in two ranks.

Whole trainings on cheetah-run with one update per step, a thread per process, by the clock. They take turns of half a
second, with all processes of a training but those of Ray, which have nothing to do once their block is ready. An update
of two ranks (gloo) is one of twice the batch after a step of each; both steps count.
"""

import multiprocessing
import os
import socket
from typing import Any

from benchmarks.interleaved import Loop, Progress, seconds_per_step
from benchmarks.training_speed import METHODS, SKIPPED, ours

TASK, COMPARED = "cheetah_run", ("SAC", "lean")
RANKS = "two ranks"
WAYS: dict[str, str] = {
    "between updates": "null",
    "a block ahead, in a process": "LocalProcesses",
    "a block ahead, by an actor of Ray": "RayActors",
    RANKS: "null",
}
"""Ways of collecting, by their workers."""


def run(turns: int = 40) -> dict[str, Any]:
    """Measure; returns one row per method and way of collecting."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # 15 by default, behind all else that runs here
    loops: dict[tuple[str, str], Loop] = {
        (name, way): (one_of_two if way == RANKS else one, (METHODS[name], workers))
        for name in COMPARED
        for way, workers in WAYS.items()
    }
    taken = seconds_per_step(loops, SKIPPED, turns, by_the_clock=True)
    first = next(iter(WAYS))
    rows = []
    for (name, way), seconds in taken.items():
        steps = 2 if way == RANKS else 1
        ratio = steps * taken[name, first] / seconds
        rows.append({"method": name, "collection": way, "steps_per_s": steps / seconds, "ratio": ratio})
    return {"title": "Environment steps per second by way of collecting, two cores", "threads": 1, "rows": rows}


def one(progress: Progress, overlay: str, workers: str, *more: str) -> None:
    """Train for ever in this process."""
    ours(progress, TASK, overlay, "32-true", False, (f"--data.workers={workers}", *more))


def one_of_two(progress: Progress, overlay: str, workers: str) -> None:
    """Train for ever as the first of two ranks, and start the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    second = multiprocessing.get_context("spawn").Process(target=_rank, args=(1, port, progress, overlay, workers))
    second.start()
    _rank(0, port, progress, overlay, workers)


def _rank(rank: int, port: int, progress: Progress, overlay: str, workers: str) -> None:
    """One of two ranks; the first one reports."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    if rank:
        context = multiprocessing.get_context("spawn")
        progress = Progress(*(context.Value(kind, 0, lock=False) for kind in "qdd"))
    one(progress, overlay, workers, "--trainer.devices=2", "--trainer.strategy=ddp")
