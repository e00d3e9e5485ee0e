"""Where blocks of steps come from: environments in this process, or workers beside it."""

import abc
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tensordict import TensorDictBase

from flowmatch_rl.batches import DONE, TRANSITION
from flowmatch_rl.data.ahead import AheadCollector
from flowmatch_rl.data.collection_settings import CollectionSettings
from flowmatch_rl.data.collector import StepCollector
from flowmatch_rl.data.collector_state import read_collector, write_collector
from flowmatch_rl.data.episodes import EpisodeData
from flowmatch_rl.data.workers import CollectorWorkers, Recipe
from flowmatch_rl.envs.building import build_environment
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.envs.states import UnknownStateError

EPISODE_RETURN = ("next", "episode_reward")
"""Entry of a block: the sum of the rewards of an episode so far."""

_ENTRIES = (*TRANSITION, DONE, EPISODE_RETURN)


@dataclass(frozen=True)
class Beginning:
    """Where collection begins.

    Attributes:
        seed: Seed of the environments.
        random_steps: Steps of this process before the policy acts.
        env_step: Number of an environment step for messages, given how many have been taken since.
        state: State of the episodes that continue, see ``BlockSource.state_dict``; None for new ones.
    """

    seed: int
    random_steps: int
    env_step: Callable[[int], int]
    state: dict[str, Any] | None


class BlockSource(abc.ABC):
    """Blocks of consecutive steps of the policy of one process.

    Attributes:
        ages: Updates by which the policy of the latest blocks was behind the one in training.
        was_cut: Whether some steps of the latest block follow none of the block before.
    """

    def __init__(self) -> None:
        self.ages: deque[int] = deque()
        self.was_cut = False

    @abc.abstractmethod
    def block(self) -> TensorDictBase:
        """The next block, of batch size (E, T), or (T,) for a single environment.

        Raises:
            RunError: If an environment fails.
        """

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state of the environments and of their episodes; where it is not known, ``unknown``, the reason."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the environments."""


class OwnBlocks(BlockSource):
    """Steps that this process takes when a block is wanted.

    Args:
        data: The data module, which knows the trained module.
        environment: Environment to act in.
        settings: How many copies of it, and how many steps.
        beginning: Where collection begins.
    """

    def __init__(
        self, data: EpisodeData, environment: Environment, settings: CollectionSettings, beginning: Beginning
    ) -> None:
        super().__init__()
        self._environment, self._acts_in_chunks = environment, data.action_chunk > 1
        module = data.module
        env = build_environment(environment, settings.num_envs, settings.parallel, env_step=beginning.env_step)
        env.set_seed(beginning.seed)  # before its first reset: seeding starts new episodes
        self._collector = StepCollector(
            env,
            data.acting_policy(module.collection_policy()),
            settings.steps_per_env,
            beginning.random_steps,
            _ENTRIES,
            module.device,
        )
        if beginning.state is not None:
            write_collector(environment, self._collector, beginning.state)

    def block(self) -> TensorDictBase:
        """The next block."""
        return self._collector.block()

    def state_dict(self) -> dict[str, Any]:
        """The state of the environments, and where they are between two blocks."""
        if self._acts_in_chunks:
            return {"unknown": "the rest of a chunk of actions is not kept"}
        try:
            return read_collector(self._environment, self._collector)
        except UnknownStateError as error:
            return {"unknown": f"its state cannot be kept, {error}"}

    def close(self) -> None:
        """Close the environments."""
        self._collector.shutdown()


class WorkerBlocks(BlockSource):
    """Steps that workers take while this process does something else.

    Args:
        data: The data module, which knows the trained module.
        environment: Environment to act in.
        settings: How many copies of it, and how many steps.
        workers: The workers.
        beginning: Where collection begins.
        updates: Returns the updates of the trained module so far.
    """

    def __init__(
        self,
        data: EpisodeData,
        environment: Environment,
        settings: CollectionSettings,
        workers: CollectorWorkers,
        beginning: Beginning,
        updates: Callable[[], int],
    ) -> None:
        super().__init__()
        module, number = data.module, workers.number
        random_steps = math.ceil(beginning.random_steps / number)
        sizes = settings.num_envs // number, settings.steps_per_env, random_steps
        seeds = [(beginning.seed + 104_729 * index) % 2**31 for index in range(number)]
        recipes = [Recipe(module.builder, environment, *sizes, _ENTRIES, seed) for seed in seeds]
        weights = module.state_dict()
        self._collector = AheadCollector(workers, recipes, weights, module.device, updates, beginning.state)
        self.ages = self._collector.ages

    def block(self) -> TensorDictBase:
        """The next block, whose first steps follow none where a worker was replaced."""
        restarts = self._collector.restarts
        block = self._collector.block()
        self.was_cut = self._collector.restarts > restarts
        return block

    def state_dict(self) -> dict[str, Any]:
        """The states of the workers after the block in the making, for which it waits, and that block."""
        try:
            return self._collector.state_dict()
        except UnknownStateError as error:
            return {"unknown": str(error)}

    def close(self) -> None:
        """End the workers."""
        self._collector.shutdown()
