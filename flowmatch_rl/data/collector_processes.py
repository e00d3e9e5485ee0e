"""Workers that are processes of this machine."""

import atexit
import multiprocessing.connection
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.multiprocessing import get_context

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.data.workers import START_S, CollectorWorkers, Recipe, Worker

_END_S = 5.0
"""Seconds for a process to end by itself."""


@dataclass(frozen=True)
class LocalProcesses(CollectorWorkers):
    """Processes of this machine, which read the weights in shared memory.

    Args:
        number: Workers of each rank; ``num_envs`` is a multiple of it.
        timeout_s: Seconds for a block, positive.
        max_restarts: Workers that are replaced, at most, before the run ends with an error; at least 0.
    """

    def begin(self, recipe: Recipe, weights: Mapping[str, Tensor]) -> Worker:
        """Start a process."""
        return _Process(recipe, weights)


class _Process(Worker):
    """A process of this machine, and the connection to it."""

    def __init__(self, recipe: Recipe, shared: Mapping[str, Tensor]) -> None:
        super().__init__(recipe)
        context, self._is_ready = get_context("spawn"), False
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_collect, args=(theirs, recipe, dict(shared)), daemon=True)
        self._process.start()
        theirs.close()
        # A run that fails does not shut it down, and multiprocessing would wait for it: SIGTERM does not end it.
        atexit.register(self._process.kill)

    def order(self) -> None:
        """Have it begin a block; a dead process is found by its missing answer."""
        self._say("block")

    def ask_to_end(self) -> None:
        """Let it end after its block."""
        self._say("end")

    def answer(self, timeout_s: float) -> dict[Any, Any] | Exception | str:
        """The entries of a block, an error of the environment, or what happened to a process that gives no answer."""
        began = time.monotonic()
        try:
            if not self._is_ready:
                if not self._connection.poll(START_S):
                    return f"did not start within {START_S:g} s"
                answer = self._connection.recv()
                if isinstance(answer, Exception):
                    return answer
                self._is_ready, began = True, time.monotonic()
            if not self._connection.poll(max(0.0, timeout_s - (time.monotonic() - began))):
                return f"took more than {timeout_s:g} s for a block"
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(_END_S)
            return f"ended with exit status {self._process.exitcode}"
        return answer

    def has_answer(self, timeout_s: float) -> bool:
        """Whether there is an answer within some seconds; a process that is dead has one."""
        return self._is_ready and self._connection.poll(timeout_s)

    def state(self, timeout_s: float) -> bytes | Exception | str:
        """Where it is after its last block; one that does not say so in time is ended."""
        self._say("state")
        try:
            if self._connection.poll(timeout_s):
                return self._connection.recv()
        except (EOFError, ConnectionResetError):
            return "its process has ended"
        self._process.kill()  # a late answer would be taken for another one
        return f"it did not answer within {timeout_s:.1f} s"

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()
        atexit.unregister(self._process.kill)
        self._connection.close()

    def end(self) -> None:
        """Wait until it has ended, not for long."""
        self._process.join(_END_S)
        self.kill()

    def _say(self, order: str) -> None:
        try:
            self._connection.send(order)
        except (BrokenPipeError, ConnectionResetError):
            return  # it has died; `answer` says so


def _collect(connection: multiprocessing.connection.Connection, recipe: Recipe, shared: dict[str, Tensor]) -> None:
    """Body of a process: a block for every order, until the other side asks for an end or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what a terminal or a scheduler sends is for the run, which ends this
    try:
        acting = recipe.build()
        connection.send(None)
        while (order := connection.recv()) != "end":
            connection.send(acting.state() if order == "state" else acting.block(shared))
        acting.collector.shutdown()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the run is gone
    except (RunError, UserError) as error:
        connection.send(error)
    except Exception:  # noqa: BLE001 - raised in the run, which receives it; another process would fail alike
        connection.send(RuntimeError(f"a process that collects failed:\n{traceback.format_exc()}"))
