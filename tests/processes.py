"""Functions that run in several processes which train together, as Lightning and torchrun start them.

The processes are forked from one that has imported the package, which takes longer than what they do: it is started
when it is first needed, and ends with the tests.
"""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from lightning.fabric.utilities.rank_zero import rank_zero_only

from tests.cli.support import default_signals, environment

ALONE = SimpleNamespace(reduce_boolean_decision=lambda decision, all=True: decision, launcher=None)
"""Strategy of a trainer that stands for one of several processes, whose others say what it says."""

FORKS = multiprocessing.get_context("forkserver")
"""How processes are started that have imported the package already, in place of ``spawn``."""

FORKS.set_forkserver_preload(["flowmatch_rl.cli.training", "tests.test_exact_resume"])


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


def in_processes(
    function: Callable[..., object], folder: Path, *arguments: object, world_size: int = 2, timeout: float = 240.0
) -> list[Ended]:
    """Call a function of a test module in several processes at once.

    Args:
        function: Called with the folder and the other arguments.
        folder: The folder of the processes, for which what they print is kept.
        *arguments: Further arguments.
        world_size: Number of processes.
        timeout: Seconds after which those that still run are ended by SIGALRM.

    Returns:
        How each ended, by rank.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    processes = []
    for rank in range(world_size):
        variables = environment(**shared, LOCAL_RANK=str(rank), NODE_RANK="0")
        process = FORKS.Process(target=_call, args=(function, folder, arguments, rank, variables, timeout))
        process.start()
        processes.append(process)
    for process in processes:
        process.join()
    texts = [[(folder / f"{name}{rank}").read_text() for name in ("out", "err")] for rank in range(world_size)]
    return [Ended(process.exitcode or 0, *words) for process, words in zip(processes, texts, strict=True)]


def _call(
    function: Callable[..., object],
    folder: Path,
    arguments: tuple[object, ...],
    rank: int,
    variables: dict[str, str],
    timeout: float,
) -> None:
    """Body of a process."""
    signal.setitimer(signal.ITIMER_REAL, timeout)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    rank_zero_only.rank = rank  # pyright: ignore[reportFunctionMemberAccess] - read from the variables at the import
    with default_signals():
        function(folder, *arguments)
