"""Collection by workers beside the training, one block ahead of it."""

import abc
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.data.collector import Key, StepCollector
from flowmatch_rl.envs.building import build_environment
from flowmatch_rl.envs.environments import Environment

START_S = 300.0
"""Seconds for a worker to start and build its environments."""


@dataclass(frozen=True)
class CollectorWorkers(abc.ABC):
    """Workers that collect a block of steps while the model trains on the one before.

    The next block begins when one is taken, with the weights of that moment. Its policy is therefore as many updates
    old as a block makes due, never more, and the ratio of updates to steps stays exact. A worker that dies, or does
    not return a block in time, is replaced by another, which begins new episodes.

    Args:
        number: Workers of each rank; ``num_envs`` is a multiple of it.
        timeout_s: Seconds for a block, positive.
        max_restarts: Workers that are replaced, at most, before the run ends with an error; at least 0.

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
        """Raise unless the environments can be divided among the workers.

        Args:
            num_envs: Environments of a rank.
            parallel: Whether each environment is to run in a process of its own.

        Raises:
            UserError: If they cannot.
        """
        if num_envs % self.number or parallel:
            raise UserError(
                f"workers divide the environments: num_envs must be a multiple of their number "
                f"{self.number}, and parallel false, got {num_envs} and {parallel}"
            )

    @abc.abstractmethod
    def begin(self, recipe: "Recipe", weights: Mapping[str, Tensor]) -> "Worker":
        """Start a worker.

        Args:
            recipe: What it collects.
            weights: Weights on the CPU, in shared memory, that it reads at every order.
        """


class Collecting(Protocol):
    """A module of the same shape as the one that trains, for a worker."""

    def collection_policy(self) -> TensorDictModuleBase:
        """Policy that collects."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take weights."""
        ...


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to collect.

    Attributes:
        build_module: Makes a module of the shape of the one that trains.
        environment: Environment to act in.
        num_envs: Copies that the worker steps together.
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

    def after(self, blocks: int, replaced: int) -> "Recipe":
        """What a worker that replaces another collects: the random steps that remain, other episodes.

        Args:
            blocks: Blocks that the other has collected.
            replaced: Workers that were replaced so far.
        """
        remaining = max(0, self.random_steps - blocks * self.block_steps * self.num_envs)
        return replace(self, random_steps=remaining, seed=(self.seed + 7919 * replaced) % 2**31)

    def build(self) -> "Acting":
        """Make the module and the environments, in the process of the worker."""
        torch.set_num_threads(1)
        torch.manual_seed(self.seed)
        module = self.build_module()
        env = build_environment(self.environment, self.num_envs)
        env.set_seed(self.seed)
        sizes = self.block_steps, self.random_steps
        return Acting(module, StepCollector(env, module.collection_policy(), *sizes, self.keys, torch.device("cpu")))


@dataclass(frozen=True, eq=False)
class Acting:
    """What acts, in the process of a worker.

    Attributes:
        module: Holds the weights.
        collector: Steps the environments.
    """

    module: Collecting
    collector: StepCollector

    def block(self, weights: Mapping[str, Tensor]) -> dict[Any, Any]:
        """Arrays of the next block, of a policy with some weights, by their keys."""
        self.module.load_state_dict(weights)
        block: Any = self.collector.block()
        return {key: entry.numpy() for key, entry in block.items(True, True)}


class Worker(abc.ABC):
    """A process that collects.

    Args:
        recipe: What it collects.

    Attributes:
        recipe: What it collects.
        blocks: Blocks that it has returned.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.blocks = recipe, 0

    @abc.abstractmethod
    def order(self) -> None:
        """Have it begin a block; a dead worker is found by its missing answer."""

    @abc.abstractmethod
    def answer(self, timeout_s: float) -> dict[Any, Any] | Exception | str:
        """The arrays of a block, an error of the environment, or what happened to a worker that gives no answer.

        Args:
            timeout_s: Seconds to wait.
        """

    @abc.abstractmethod
    def kill(self) -> None:
        """End it at once."""

    @abc.abstractmethod
    def ask_to_end(self) -> None:
        """Let it end after its block."""

    @abc.abstractmethod
    def end(self) -> None:
        """Wait until it has ended, not for long."""


class AheadCollector:
    """Blocks of steps that workers collect while the caller does something else.

    Args:
        settings: Which workers, and how long they may take.
        recipes: What each of them collects.
        weights: Weights of the module that trains, by name.
        device: Device of the blocks.
        updates: Returns the updates of the weights so far.

    Attributes:
        restarts: Workers that were replaced.
        ages: Updates between the beginning of each of the latest blocks and its arrival.
    """

    def __init__(
        self,
        settings: CollectorWorkers,
        recipes: Sequence[Recipe],
        weights: Mapping[str, Tensor],
        device: torch.device,
        updates: Callable[[], int],
    ) -> None:
        self._settings, self._weights, self._device, self._updates = settings, weights, device, updates
        self._shared = {name: weight.detach().cpu().clone().share_memory_() for name, weight in weights.items()}
        self._workers = [settings.begin(recipe, self._shared) for recipe in recipes]
        self._ordered_at: int | None = None  # updates when the next block was begun
        self.restarts = 0
        self.ages: deque[int] = deque(maxlen=1_000)

    def block(self) -> TensorDictBase:
        """The next block, of batch size (E, T); the one after it is begun.

        Raises:
            RunError: If an environment fails, or more workers die or hang than may be replaced.
        """
        began = self._order() if self._ordered_at is None else self._ordered_at
        parts = [self._received(index) for index in range(len(self._workers))]
        self.ages.append(self._updates() - began)
        self._ordered_at = self._order()
        joined: Any = torch.cat(parts)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return joined.to(self._device)

    def shutdown(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            worker.end()

    @torch.no_grad()
    def _order(self) -> int:
        """Have all workers begin a block with the weights of now, after the updates that are returned.

        None of them is acting: all have returned their last block.
        """
        for name, shared in self._shared.items():
            shared.copy_(self._weights[name])
        for worker in self._workers:
            worker.order()
        return self._updates()

    def _received(self, index: int) -> TensorDictBase:
        """Block of a worker, which is replaced until it returns one."""
        while True:
            worker = self._workers[index]
            answer = worker.answer(self._settings.timeout_s)
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, dict):
                worker.blocks += 1
                rows = {key: torch.from_numpy(array) for key, array in answer.items()}
                sizes = worker.recipe.num_envs, worker.recipe.block_steps
                return TensorDict({key: row.reshape(*sizes, -1) for key, row in rows.items()}, sizes)
            self._replace(index, answer)

    def _replace(self, index: int, reason: str) -> None:
        worker, most = self._workers[index], self._settings.max_restarts
        worker.kill()
        label = worker.recipe.environment.label
        if self.restarts == most:
            raise RunError(f"a worker that collects in {label} {reason}, after {most} were replaced, the most allowed")
        self.restarts += 1
        print(f"a worker that collects in {label} {reason}; replaced, {self.restarts} of at most {most}: new episodes")
        self._workers[index] = fresh = self._settings.begin(
            worker.recipe.after(worker.blocks, self.restarts), self._shared
        )
        fresh.order()
