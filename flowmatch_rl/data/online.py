"""Online data: a policy collects transitions into a replay buffer while it trains on them."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from tensordict import TensorDictBase
from torch.utils.data import DataLoader

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.collecting import Collection
from flowmatch_rl.data.collection_settings import CollectionSettings
from flowmatch_rl.data.episodes import ActingModule, EpisodeData
from flowmatch_rl.data.inputs import DataInput, recipe_input
from flowmatch_rl.data.replay_storage import MemoryStorage, ReplayStorage
from flowmatch_rl.data.workers import CollectorWorkers
from flowmatch_rl.envs.building import Spaces, examine
from flowmatch_rl.envs.environments import Environment, GymnasiumEnvironment


class OnlineData(EpisodeData):
    """Collects transitions with TorchRL, and yields batches from a replay buffer.

    Everything is counted in environment steps. Training begins after a warm-up of random actions. A virtual epoch ends
    with an evaluation on environments of its own: the validation and test loaders yield whole episodes of the policy
    with fixed initial states. With several processes each has its own environments, buffer and noise, collects an equal
    part of the steps, and trains ``updates_per_env_step`` times per step of its own.

    With ``n_steps`` above 1 the buffer holds transitions of that many steps, see ``Replay``.

    Args:
        environment: Environment to act in.
        total_env_steps: Environment steps of the whole run, warm-up included, over all processes.
        warmup_env_steps: Steps of random actions before the first update, over all processes.
        epoch_env_steps: Steps between two evaluations; the steps after the warm-up are divided evenly into epochs of
            at most about this length.
        updates_per_env_step: Gradient steps per environment step of a process (update-to-data ratio), positive.
        batch_size: Transitions per batch and process.
        buffer_capacity: Transitions a process keeps; the oldest are dropped.
        num_envs: Environments stepped together by each process.
        parallel: Whether each environment runs in a process of its own.
        env_steps_per_collection: Steps collected at a time, a multiple of ``num_envs``; more is faster and makes the
            data a little older.
        n_steps: Steps of a transition, at least 1; the rewards are stored one by one, and discounted by the model.
        eval_episodes: Episodes of each evaluation during training, divided among the processes.
        test_episodes: Episodes of the ``test`` and ``predict`` commands.
        eval_seed: Seed of the initial states during training; tests have others.
        max_episode_steps: Steps after which an evaluation episode is cut off.
        checkpoint_replay: Whether checkpoints hold the replay buffer, so that a resumed run continues with it.
        storage: Where the replay buffer lies, in memory or on a disk.
        workers: Workers that collect while the model trains, see ``CollectorWorkers``; None to collect between
            updates.

    Raises:
        UserError: If the environment or a number does not fit.
    """

    def __init__(
        self,
        environment: Environment = GymnasiumEnvironment(),
        total_env_steps: int = 250_000,
        warmup_env_steps: int = 5_000,
        epoch_env_steps: int = 10_000,
        updates_per_env_step: float = 1.0,
        batch_size: int = 256,
        buffer_capacity: int = 1_000_000,
        num_envs: int = 1,
        parallel: bool = False,
        env_steps_per_collection: int = 1,
        n_steps: int = 1,
        eval_episodes: int = 10,
        test_episodes: int = 20,
        eval_seed: int = 0,
        max_episode_steps: int = 10_000,
        checkpoint_replay: bool = True,
        storage: ReplayStorage = MemoryStorage(),
        workers: CollectorWorkers | None = None,
    ) -> None:
        check_range("[1, inf)", epoch_env_steps=epoch_env_steps, batch_size=batch_size)
        if batch_size > warmup_env_steps:
            raise UserError(
                f"batch_size {batch_size} is more than the {warmup_env_steps} transitions that warm-up collects; "
                "lower batch_size or raise warmup_env_steps"
            )
        if total_env_steps <= warmup_env_steps:
            raise UserError(f"total_env_steps {total_env_steps} must exceed warmup_env_steps {warmup_env_steps}")
        num_epochs = math.ceil((total_env_steps - warmup_env_steps) / epoch_env_steps)
        super().__init__(num_epochs, environment, eval_episodes, test_episodes, eval_seed, max_episode_steps)
        self._collects_in = environment
        settings = CollectionSettings(
            warmup_env_steps=warmup_env_steps,
            batch_size=batch_size,
            updates_per_env_step=updates_per_env_step,
            buffer_capacity=buffer_capacity,
            num_envs=num_envs,
            parallel=parallel,
            env_steps_per_collection=env_steps_per_collection,
            n_steps=n_steps,
            checkpoint_replay=checkpoint_replay,
            storage=storage,
            random_warmup=True,
            workers=workers,
        )
        self._collection = Collection(self, environment, settings)
        self.spaces: Spaces = examine(environment)[0]
        self.total_env_steps = total_env_steps
        self.warmup_env_steps = warmup_env_steps
        self.updates_per_env_step = updates_per_env_step
        self.batch_size = batch_size

    @property
    def label(self) -> str:
        """Short name, for run folders."""
        return self._collects_in.label

    @property
    def dimensions(self) -> dict[str, Any]:
        """Arguments of a model that this data determines."""
        return self.spaces.dimensions

    @property
    def outline(self) -> dict[str, str]:
        """The environment, its dimensions, and the steps and updates of the run."""
        return {
            "environment": f"{self.label}, observation of dimension {self.spaces.observation_dim}, action of dimension "
            f"{self.spaces.action_dim}",
            "training": f"{self.total_env_steps:,} environment steps, {self.warmup_env_steps:,} of them a warm-up; "
            f"then {self.updates_per_env_step:g} updates of batch {self.batch_size:,} per step",
        }

    @property
    def inputs(self) -> list[DataInput]:
        """The environment."""
        columns, steps = self.interface.observation_columns, self.total_env_steps
        return [recipe_input(self.label, self._collects_in, columns, rows=steps)]

    @property
    def env_steps(self) -> int:
        """Environment steps taken so far, over all processes."""
        return self._collection.env_steps

    @property
    def observation_moments(self) -> None:
        """None: there is no data set."""

    @property
    def reward_moments(self) -> None:
        """None: there is no data set."""

    @property
    def recent_returns(self) -> deque[float]:
        """Returns of the latest episodes that this process collected."""
        return self._collection.recent_returns

    @property
    def policy_ages(self) -> deque[int]:
        """Updates by which the policy of the latest blocks was older than the one in training, with ``workers``."""
        return self._collection.policy_ages

    @property
    def replay(self) -> TensorDictBase | None:
        """Transitions that this process holds, oldest first and on the CPU, batch size (N,); None before the first."""
        return self._collection.replay

    def check_module(self, module: ActingModule) -> None:
        """Raise if a module does not learn from rewards: it would imitate itself."""
        if not module.learns_from_rewards:
            raise UserError(f"{type(module).__name__} imitates a data set; use PolicyData, got {type(self).__name__}")

    def train_dataloader(self) -> DataLoader:
        """Rounds of batches of transitions; collects as it goes."""
        local_steps = (self.total_env_steps - self.warmup_env_steps) / self.world_size
        num_updates = local_steps * self.updates_per_env_step
        return self.training_loader(num_updates, lambda _: self.next_batch(), self._per_round)

    def evaluation_batches(self, number: int, seed: int) -> list[Callable[[], TensorDictBase]]:
        """Episodes alone."""
        return [lambda: self.episodes(number, seed)]

    def next_batch(self) -> TensorDictBase:
        """A batch from the replay buffer, after collecting at the set ratio."""
        return self._collection.next_batch()

    def teardown(self, stage: str) -> None:
        """Close environments and the collector."""
        self._collection.close()
        super().teardown(stage)

    def state_dict(self) -> dict[str, Any]:
        """Counters and, if so configured, the replay buffer of this process."""
        return self._collection.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore counters, replay buffer and episodes of this process, see ``Collection``.

        Raises:
            UserError: If the transitions of the replay buffer have another number of steps.
        """
        self._collection.load_state_dict(state_dict)
