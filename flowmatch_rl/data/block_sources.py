"""Where blocks of steps come from: environments in this process, or workers beside it."""

import abc
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tensordict import TensorDict, TensorDictBase

from flowmatch_rl.batches import DONE, TRANSITION
from flowmatch_rl.data.ahead import AheadCollector, CollectorWorkers, Recipe
from flowmatch_rl.data.collection_settings import CollectionSettings
from flowmatch_rl.data.collector import StepCollector
from flowmatch_rl.data.episodes import EpisodeData
from flowmatch_rl.envs.building import build_environment, read_environment, write_environment
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
    """

    seed: int
    random_steps: int
    env_step: Callable[[int], int]


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
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the episodes of a known state, before the first block."""

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

    def block(self) -> TensorDictBase:
        """The next block."""
        return self._collector.block()

    def state_dict(self) -> dict[str, Any]:
        """The state of the environments, and where they are between two blocks."""
        if self._acts_in_chunks:
            return {"unknown": "the rest of a chunk of actions is not kept"}
        try:
            state = read_environment(self._environment, self._collector.env)
        except UnknownStateError as error:
            return {"unknown": f"its state cannot be kept, {error}"}
        current = self._collector.current
        place = None if current is None else dict(current.clone().flatten_keys("/").items())
        return {"environment": state, "current": place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the environments into a state."""
        env, current = self._collector.env, state_dict["current"]
        write_environment(self._environment, env, state_dict["environment"])
        if current is not None:
            entries = {tuple(name.split("/")): value for name, value in current.items()}
            self._collector.current = TensorDict(entries, env.batch_size, device=env.device)

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
        self._collector = AheadCollector(workers, recipes, module.state_dict(), module.device, updates)
        self.ages = self._collector.ages

    def block(self) -> TensorDictBase:
        """The next block, whose first steps follow none where a worker was replaced."""
        restarts = self._collector.restarts
        block = self._collector.block()
        self.was_cut = self._collector.restarts > restarts
        return block

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the workers collect on."""
        return {"unknown": "workers beside it collect"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: there is no known state."""

    def close(self) -> None:
        """End the workers."""
        self._collector.shutdown()
