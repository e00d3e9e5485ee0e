"""Workers that are actors of Ray, on this machine or others."""

import importlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.data.workers import START_S, Acting, CollectorWorkers, Recipe, Worker

CONNECT_S = 10.0
"""Seconds in which something must answer at the address of a cluster; Ray itself would try for minutes."""

_WORDS = ("auto", "local")
_WANTED = "wanted auto, host:port or ray://host:port of a running cluster, or null to start Ray on this machine"


@dataclass(frozen=True)
class RayActors(CollectorWorkers):
    """Actors of Ray, each of which takes a core somewhere in its cluster; needs the extra ``ray``.

    Every machine of the cluster has this package and the environment installed. Weights and blocks travel by Ray's
    object store.

    Args:
        number: Workers of each rank; ``num_envs`` is a multiple of it.
        timeout_s: Seconds for a block, positive.
        max_restarts: Workers that are replaced, at most, before the run ends with an error; at least 0.
        address: Address of a running cluster, such as ``auto``, ``head:6379`` or ``ray://head:10001``, where it must
            answer within 10 s; None to start Ray on this machine.

    Raises:
        UserError: If a number is out of its range, or the address is none.
    """

    address: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.address not in (None, *_WORDS):
            _host_and_port(self.address)

    def begin(self, recipe: Recipe, weights: Mapping[str, Tensor]) -> Worker:
        """Start an actor.

        Raises:
            UserError: If Ray is not installed, or there is no cluster at the address.
        """
        try:
            ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError as error:
            raise UserError("RayActors needs Ray: pip install 'flowmatch_rl[ray]'") from error
        if not ray.is_initialized():
            if self.address not in (None, *_WORDS):
                _await_answer(self.address)
            try:
                ray.init(address=self.address, log_to_driver=False, include_dashboard=False, configure_logging=False)
            except (ConnectionError, ValueError) as error:
                raise UserError(f"found no Ray cluster at address {self.address}: {error}; {_WANTED}") from error
        return _Actor(ray, recipe, weights)


def _host_and_port(address: str) -> tuple[str, int]:
    """The parts of an address of a machine."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise UserError(f"address must be that of a Ray cluster, got {address!r}; {_WANTED}")
    return host.strip("[]"), int(port)


def _await_answer(address: str) -> None:
    """Raise unless something listens at the address of a machine."""
    try:
        socket.create_connection(_host_and_port(address), timeout=CONNECT_S).close()
    except OSError as error:
        raise UserError(
            f"found no Ray cluster at address {address} within {CONNECT_S:g} s ({error}); {_WANTED}"
        ) from error


class _Remote:
    """What acts, in the process of the actor."""

    def __init__(self, recipe: Recipe) -> None:
        self._acting: Acting = recipe.build()

    def block(self, weights: Mapping[str, Tensor]) -> dict[Any, Any]:
        return self._acting.block(weights)

    def state(self) -> Any:
        return self._acting.state()


class _Actor(Worker):
    """A handle of an actor."""

    def __init__(self, ray: Any, recipe: Recipe, weights: Mapping[str, Tensor]) -> None:
        super().__init__(recipe)
        self._ray, self._weights = ray, weights
        self._handle = ray.remote(_Remote).options(num_cpus=1).remote(recipe)
        self._block: Any = None

    def order(self) -> None:
        """Have it begin a block, with a copy of the weights of now."""
        self._block = self._handle.block.remote({name: weight.clone() for name, weight in self._weights.items()})

    def answer(self, timeout_s: float) -> dict[Any, Any] | Exception | str:
        """The arrays of a block, an error of the environment, or what happened to the actor."""
        limit = timeout_s if self.blocks else START_S
        try:
            return self._ray.get(self._block, timeout=limit)
        except self._ray.exceptions.GetTimeoutError:
            return f"took more than {limit:g} s for a block"
        except self._ray.exceptions.RayActorError as error:
            return f"ended: {' '.join(str(error).split())[:200]}"
        except self._ray.exceptions.RayTaskError as error:
            return error.cause if isinstance(error.cause, RunError | UserError) else error

    def has_answer(self, timeout_s: float) -> bool:
        """Whether there is an answer within some seconds; a dead actor has one."""
        return bool(self._ray.wait([self._block], timeout=timeout_s)[0])

    def state(self, timeout_s: float) -> bytes | Exception | str:
        """Where it is after its last block."""
        try:
            return self._ray.get(self._handle.state.remote(), timeout=timeout_s)
        except (self._ray.exceptions.GetTimeoutError, self._ray.exceptions.RayError) as error:
            return " ".join(str(error).split())[:200]

    def kill(self) -> None:
        """End it at once."""
        self._ray.kill(self._handle)

    def ask_to_end(self) -> None:
        """Nothing: it has no more to do, and is ended by ``end``."""

    def end(self) -> None:
        """End it."""
        self.kill()
