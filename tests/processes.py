"""Functions that run in several processes which train together, as Lightning and torchrun start them."""

import importlib
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from tests.cli.support import environment

ALONE = SimpleNamespace(reduce_boolean_decision=lambda decision, all=True: decision, launcher=None)
"""Strategy of a trainer that stands for one of several processes, whose others say what it says."""


@dataclass
class Ended:
    """How a process ended, and what it printed."""

    code: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What Lightning's launcher sets, each process on the same node."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return environment(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(world_size), **address)


def in_processes(function: str, folder: Path, world_size: int = 2, timeout: float = 240.0) -> list[Ended]:
    """Call a function of a test module in several processes at once.

    Args:
        function: ``module:name``; it is called with the folder.
        folder: What it is called with.
        world_size: Number of processes.
        timeout: Seconds until the test fails.

    Returns:
        How each ended, by rank.
    """
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.processes", function, str(folder)],
            env=variables(rank, world_size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        return [
            Ended(process.wait(), *outputs) for process in processes for outputs in [process.communicate(None, timeout)]
        ]
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), name)(Path(sys.argv[2]))
