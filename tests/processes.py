"""Functions that run in several processes which train together, as Lightning and torchrun start them."""

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from tests.cli.support import environment

ALONE = SimpleNamespace(reduce_boolean_decision=lambda decision, all=True: decision, launcher=None)
"""Strategy of a trainer that stands for one of several processes, whose others say what it says."""


@dataclass
class Ended:
    """How a process ended (minus the signal, if by one), and what it printed."""

    code: int
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_processes(function: str, folder: Path, world_size: int = 2, timeout: float = 240.0) -> list[Ended]:
    """Call a function of a test module in several processes at once, which are forked after the imports.

    Args:
        function: ``module:name``; it is called with the folder.
        folder: What it is called with.
        world_size: Number of processes.
        timeout: Seconds until all that still run are killed.

    Returns:
        How each ended, by rank.
    """
    words = [function, str(folder), str(world_size), str(free_port()), str(timeout)]
    subprocess.run([sys.executable, "-m", "tests.processes", *words], env=environment(), check=True)
    read = [[(folder / f"{name}{rank}").read_text() for name in ("code", "out", "err")] for rank in range(world_size)]
    return [Ended(int(code), out, err) for code, out, err in read]


def _fork(call: Callable[[Path], object], folder: Path, rank: int, world_size: str, port: str) -> int:
    """Number of a new process of a rank, in which the variables are those that Lightning's launcher sets."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT), descriptor)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update(address, LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=world_size)
        call(folder)
        status = 0
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _main(function: str, path: str, world_size: str, port: str, timeout: str) -> None:
    module, _, name = function.partition(":")
    call, folder = getattr(importlib.import_module(module), name), Path(path)
    processes = [_fork(call, folder, rank, world_size, port) for rank in range(int(world_size))]
    killer = threading.Timer(float(timeout), lambda: [os.kill(pid, signal.SIGKILL) for pid in processes])
    killer.start()
    for rank, pid in enumerate(processes):
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        (folder / f"code{rank}").write_text(str(code))
    killer.cancel()


if __name__ == "__main__":
    _main(*sys.argv[1:])
