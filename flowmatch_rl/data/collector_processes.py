"""Collection in processes of their own, one block ahead of the training."""

import multiprocessing.connection
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.multiprocessing import get_context

from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.data.collector import Key, StepCollector
from flowmatch_rl.envs.building import build_environment
from flowmatch_rl.envs.environments import Environment

_START_S = 300.0
"""Seconds for a process to start and build its environments."""

_END_S = 5.0
"""Seconds for a process to end by itself."""


@dataclass(frozen=True)
class CollectorProcesses:
    """Processes that collect a block of steps while the model trains on the one before.

    The next block begins when one is taken, with the weights of that moment. Its policy is therefore as many updates
    old as a block makes due, never more, and the ratio of updates to steps stays exact. A process that dies, or does
    not return a block in time, is replaced by another, which begins new episodes.

    Args:
        number: Processes of each rank; ``num_envs`` is a multiple of it.
        timeout_s: Seconds for a block, positive.
        max_restarts: Processes that are replaced, at most, before the run ends with an error; at least 0.

    Raises:
        UserError: If a number is out of its range.
    """

    number: int = 1
    timeout_s: float = 60.0
    max_restarts: int = 10

    def __post_init__(self) -> None:
        check_range("[1, inf)", number=self.number)
        check_range("(0, inf)", timeout_s=self.timeout_s)
        check_range("[0, inf)", max_restarts=self.max_restarts)

    def check(self, num_envs: int, parallel: bool) -> None:
        """Raise unless the environments can be divided among the processes.

        Args:
            num_envs: Environments of a rank.
            parallel: Whether each environment is to run in a process of its own.

        Raises:
            UserError: If they cannot.
        """
        if num_envs % self.number or parallel:
            raise UserError(
                f"collector processes divide the environments: num_envs must be a multiple of their number "
                f"{self.number}, and parallel false, got {num_envs} and {parallel}"
            )


class Collecting(Protocol):
    """A module of the same shape as the one that trains, in another process."""

    def collection_policy(self) -> TensorDictModuleBase:
        """Policy that collects."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take weights."""
        ...


@dataclass(frozen=True)
class Recipe:
    """What a process needs to collect.

    Attributes:
        build_module: Makes a module of the shape of the one that trains.
        environment: Environment to act in.
        num_envs: Copies that the process steps together.
        block_steps: Steps of each copy in a block.
        random_steps: Steps of all copies before the policy acts.
        keys: Entries of the blocks.
        seed: Seed of the environments and of the actions.
    """

    build_module: Callable[[], Collecting]
    environment: Environment
    num_envs: int
    block_steps: int
    random_steps: int
    keys: tuple[Key, ...]
    seed: int


class AheadCollector:
    """Blocks of steps that processes collect while the caller does something else.

    Args:
        settings: How many processes, and how long they may take.
        recipes: What each process collects.
        weights: Weights of the module that trains, by name.
        device: Device of the blocks.
        updates: Returns the updates of the weights so far.

    Attributes:
        restarts: Processes that were replaced.
        ages: Updates between the beginning of each of the latest blocks and its arrival.
    """

    def __init__(
        self,
        settings: CollectorProcesses,
        recipes: Sequence[Recipe],
        weights: Mapping[str, Tensor],
        device: torch.device,
        updates: Callable[[], int],
    ) -> None:
        self._settings, self._weights, self._device, self._updates = settings, weights, device, updates
        self._shared = {name: weight.detach().cpu().clone().share_memory_() for name, weight in weights.items()}
        self._workers = [_Worker(recipe, self._shared) for recipe in recipes]
        self._ordered_at: int | None = None  # updates when the next block was begun
        self.restarts = 0
        self.ages: deque[int] = deque(maxlen=1_000)

    def block(self) -> TensorDictBase:
        """The next block, of batch size (E, T); the one after it is begun.

        Raises:
            RunError: If an environment fails, or more processes die or hang than may be replaced.
        """
        began = self._order() if self._ordered_at is None else self._ordered_at
        parts = [self._received(index) for index in range(len(self._workers))]
        self.ages.append(self._updates() - began)
        self._ordered_at = self._order()
        joined: Any = torch.cat(parts)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return joined.to(self._device)

    def shutdown(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            worker.end()

    @torch.no_grad()
    def _order(self) -> int:
        """Have all processes begin a block with the weights of now, after the updates that are returned.

        None of them is acting: all have returned their last block.
        """
        for name, shared in self._shared.items():
            shared.copy_(self._weights[name])
        for worker in self._workers:
            worker.order()
        return self._updates()

    def _received(self, index: int) -> TensorDictBase:
        """Block of a process, which is replaced until it returns one."""
        while True:
            worker = self._workers[index]
            answer = worker.answer(self._settings.timeout_s)
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, dict):
                rows = {key: torch.from_numpy(array) for key, array in answer.items()}
                sizes = worker.recipe.num_envs, worker.recipe.block_steps
                return TensorDict({key: row.reshape(*sizes, -1) for key, row in rows.items()}, sizes)
            self._replace(index, answer)

    def _replace(self, index: int, reason: str) -> None:
        worker, most = self._workers[index], self._settings.max_restarts
        worker.kill()
        label = worker.recipe.environment.label
        if self.restarts == most:
            raise RunError(f"a process that collects in {label} {reason}, after {most} were replaced, the most allowed")
        self.restarts += 1
        print(f"a process that collects in {label} {reason}; replaced, {self.restarts} of at most {most}: new episodes")
        self._workers[index] = fresh = _Worker(worker.next_recipe(self.restarts), self._shared)
        fresh.order()


class _Worker:
    """A process, and the connection to it."""

    def __init__(self, recipe: Recipe, shared: Mapping[str, Tensor]) -> None:
        context = get_context("spawn")
        self.recipe, self._blocks, self._is_ready = recipe, 0, False
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_collect, args=(theirs, recipe, dict(shared)), daemon=True)
        self._process.start()
        theirs.close()

    def order(self) -> None:
        """Have it begin a block; a dead process is found by its missing answer."""
        self._say(True)

    def ask_to_end(self) -> None:
        """Let it end after its block."""
        self._say(False)

    def answer(self, timeout_s: float) -> dict[Key, Any] | Exception | str:
        """The entries of a block, an error of the environment, or what happened to a process that gives no answer."""
        began = time.monotonic()
        try:
            if not self._is_ready:
                if not self._connection.poll(_START_S):
                    return f"did not start within {_START_S:g} s"
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
        self._blocks += 1
        return answer

    def next_recipe(self, number: int) -> Recipe:
        """What a process that replaces this one collects: the random steps that remain, other episodes."""
        recipe = self.recipe
        taken = self._blocks * recipe.block_steps * recipe.num_envs
        remaining = max(0, recipe.random_steps - taken)
        return replace(recipe, random_steps=remaining, seed=(recipe.seed + 7919 * number) % 2**31)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def end(self) -> None:
        """Wait until it has ended, not for long."""
        self._process.join(_END_S)
        self.kill()

    def _say(self, goes_on: bool) -> None:
        try:
            self._connection.send(goes_on)
        except (BrokenPipeError, ConnectionResetError):
            return  # it has died; `answer` says so


def _collect(connection: multiprocessing.connection.Connection, recipe: Recipe, shared: dict[str, Tensor]) -> None:
    """Body of a process: a block for every order, until the other side asks for an end or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what a terminal or a scheduler sends is for the run, which ends this
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    try:
        module = recipe.build_module()
        env = build_environment(recipe.environment, recipe.num_envs)
        env.set_seed(recipe.seed)
        sizes = recipe.block_steps, recipe.random_steps
        collector = StepCollector(env, module.collection_policy(), *sizes, recipe.keys, torch.device("cpu"))
        connection.send(None)
        while connection.recv():
            module.load_state_dict(shared)
            block: Any = collector.block()
            connection.send({key: entry.numpy() for key, entry in block.items(True, True)})
        collector.shutdown()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the run is gone
    except (RunError, UserError) as error:
        connection.send(error)
    except Exception:  # noqa: BLE001 - raised in the run, which receives it; another process would fail alike
        connection.send(RuntimeError(f"a process that collects failed:\n{traceback.format_exc()}"))
