"""Workers that collect beside the training: what they are made of, and what they answer."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from flowmatch_rl.checkpoints import pack_state, unpack_state
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.collector import Key, StepCollector
from flowmatch_rl.data.collector_state import read_collector, write_collector
from flowmatch_rl.envs.building import build_environment
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.envs.states import UnknownStateError
from flowmatch_rl.generators import read_generators, seed_generators, write_generators

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
        state: What ``Acting.state`` returned, to continue from; None for new episodes.
    """

    build_module: Callable[[], Collecting]
    environment: Environment
    num_envs: int
    block_steps: int
    random_steps: int
    keys: tuple[Key, ...]
    seed: int
    state: bytes | None = None

    def after(self, blocks: int, replaced: int) -> "Recipe":
        """What a worker that replaces another collects: the random steps that remain, other episodes.

        Args:
            blocks: Blocks that the other has collected.
            replaced: Workers that were replaced so far.
        """
        remaining = max(0, self.random_steps - blocks * self.block_steps * self.num_envs)
        return replace(self, random_steps=remaining, seed=(self.seed + 7919 * replaced) % 2**31, state=None)

    def continued(self, state: dict[str, Any]) -> "Recipe":
        """What a worker collects that continues from a state that ``AheadCollector.state_dict`` holds."""
        return replace(self, random_steps=state["random_steps"], state=pack_state(state))

    def build(self) -> "Acting":
        """Make the module and the environments, in the process of the worker."""
        torch.set_num_threads(1)
        seed_generators(self.seed)
        module = self.build_module()
        env = build_environment(self.environment, self.num_envs)
        env.set_seed(self.seed)
        sizes = self.block_steps, self.random_steps
        collector = StepCollector(env, module.collection_policy(), *sizes, self.keys, torch.device("cpu"))
        if self.state is not None:
            state = unpack_state(self.state)
            write_collector(self.environment, collector, state)
            write_generators(state["generators"])
        return Acting(module, self.environment, collector)


@dataclass(frozen=True, eq=False)
class Acting:
    """What acts, in the process of a worker.

    Attributes:
        module: Holds the weights.
        environment: What the environments were made of.
        collector: Steps them.
    """

    module: Collecting
    environment: Environment
    collector: StepCollector

    def block(self, weights: Mapping[str, Tensor]) -> dict[Any, Any]:
        """Arrays of the next block, of a policy with some weights, by their keys."""
        self.module.load_state_dict(weights)
        block: Any = self.collector.block()
        return {key: entry.numpy() for key, entry in block.items(True, True)}

    def state(self) -> bytes | UnknownStateError:
        """What the next block begins from, see ``unpack_state``; an error where it cannot be written down."""
        try:
            state = read_collector(self.environment, self.collector)
        except UnknownStateError as error:
            return error
        return pack_state(state | {"random_steps": self.collector.random_steps, "generators": read_generators()})


class Worker(abc.ABC):
    """A process that collects.

    Args:
        recipe: What it collects.

    Attributes:
        recipe: What it collects.
        blocks: Blocks that it has returned.
        arrived: Its answer to the last order, if that was taken before it was wanted.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.blocks = recipe, 0
        self.arrived: TensorDictBase | Exception | str | None = None

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
    def has_answer(self, timeout_s: float) -> bool:
        """Whether ``answer`` returns at once, or will within some seconds.

        Args:
            timeout_s: Seconds to wait.
        """

    @abc.abstractmethod
    def state(self, timeout_s: float) -> bytes | Exception | str:
        """What ``Acting.state`` returns after the last block, or what happened to a worker that does not say.

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
