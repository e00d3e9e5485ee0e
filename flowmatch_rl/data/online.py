"""Online data: a policy collects transitions into a replay buffer while it trains on them."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch.utils.data import DataLoader
from torchrl.collectors import Collector

from flowmatch_rl.batches import DONE, REWARD
from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.data.episodes import EpisodeData
from flowmatch_rl.data.replay import Replay
from flowmatch_rl.envs.building import Spaces, build_environment, examine
from flowmatch_rl.envs.environments import Environment, GymnasiumEnvironment
from flowmatch_rl.seeds import process_seed


class OnlineData(EpisodeData):
    """Collects transitions with TorchRL, and yields batches from a replay buffer.

    Everything is counted in environment steps. Training begins after a warm-up of random actions. A virtual epoch ends
    with an evaluation on environments of its own: the validation and test loaders yield whole episodes of the policy
    with fixed initial states. With several processes each has its own environments, buffer and noise, collects an equal
    part of the steps, and trains ``updates_per_env_step`` times per step of its own.

    With ``n_steps`` above 1 the buffer holds transitions of that many steps, see ``Replay``. A run that is resumed
    begins new episodes, and drops the steps that were waiting for those that follow.

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
    ) -> None:
        check_range(
            "[1, inf)",
            epoch_env_steps=epoch_env_steps,
            batch_size=batch_size,
            buffer_capacity=buffer_capacity,
            num_envs=num_envs,
            env_steps_per_collection=env_steps_per_collection,
            n_steps=n_steps,
        )
        check_range("(0, inf)", updates_per_env_step=updates_per_env_step)
        if batch_size > warmup_env_steps:
            raise UserError(
                f"batch_size {batch_size} is more than the {warmup_env_steps} transitions that warm-up collects; "
                "lower batch_size or raise warmup_env_steps"
            )
        if batch_size > buffer_capacity:
            raise UserError(f"batch_size {batch_size} is more than buffer_capacity {buffer_capacity}")
        if total_env_steps <= warmup_env_steps:
            raise UserError(f"total_env_steps {total_env_steps} must exceed warmup_env_steps {warmup_env_steps}")
        if env_steps_per_collection % num_envs:
            raise UserError(
                f"env_steps_per_collection {env_steps_per_collection} must be a multiple of num_envs {num_envs}"
            )
        num_epochs = math.ceil((total_env_steps - warmup_env_steps) / epoch_env_steps)
        super().__init__(num_epochs, environment, eval_episodes, test_episodes, eval_seed, max_episode_steps)
        self._collects_in = environment
        self.spaces: Spaces = examine(environment)[0]
        self.total_env_steps = total_env_steps
        self.warmup_env_steps = warmup_env_steps
        self.updates_per_env_step = updates_per_env_step
        self.batch_size = batch_size
        self.buffer_capacity = buffer_capacity
        self.num_envs = num_envs
        self.parallel = parallel
        self.env_steps_per_collection = env_steps_per_collection
        self.n_steps = n_steps
        self.checkpoint_replay = checkpoint_replay
        self.recent_returns: deque[float] = deque(maxlen=20)
        self._local_env_steps = 0
        self._pending_updates = 0.0
        self._replay: Replay | None = None
        self._restored: TensorDictBase | None = None  # transitions of a checkpoint, until the buffer is made
        self._collector: Collector | None = None
        self._blocks: Iterator[TensorDictBase] | None = None

    @property
    def label(self) -> str:
        """Short name, for run folders."""
        return self._collects_in.label

    @property
    def dimensions(self) -> dict[str, Any]:
        """Arguments of a model that this data determines."""
        return dict(vars(self.spaces))

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
    def env_steps(self) -> int:
        """Environment steps taken so far, over all processes."""
        return self._local_env_steps * self.world_size

    @property
    def replay(self) -> TensorDictBase | None:
        """Transitions that this process holds, oldest first and on the CPU, batch size (N,); None before the first."""
        return self._restored if self._replay is None or len(self._replay) == 0 else self._replay.transitions

    def train_dataloader(self) -> DataLoader:
        """Batches of transitions; collects as it goes."""
        local_steps = (self.total_env_steps - self.warmup_env_steps) / self.world_size
        return self.training_loader(local_steps * self.updates_per_env_step, lambda _: self.next_batch())

    def evaluation_batches(self, number: int, seed: int) -> list[Callable[[], TensorDictBase]]:
        """Episodes alone."""
        return [lambda: self.episodes(number, seed)]

    def next_batch(self) -> TensorDictBase:
        """A batch from the replay buffer, after collecting at the set ratio."""
        replay = self._ready_replay()
        while self._pending_updates < 1.0:
            self._pending_updates += self._collect(replay) * self.updates_per_env_step
        self._pending_updates -= 1.0
        return replay.sample()

    def teardown(self, stage: str) -> None:
        """Close environments and the collector."""
        if self._collector is not None:
            self._collector.shutdown()
        self._collector, self._blocks = None, None
        super().teardown(stage)

    def state_dict(self) -> dict[str, Any]:
        """Counters and, if so configured, the replay buffer of the first process."""
        state: dict[str, Any] = {"local_env_steps": self._local_env_steps, "pending_updates": self._pending_updates}
        held = self.replay if self.checkpoint_replay else None
        if held is not None:  # oldest first, so that a resumed run overwrites in the same order
            state["replay"] = dict(held.flatten_keys("/").items())
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore counters and replay buffer. The environment itself starts a fresh episode.

        Raises:
            UserError: If the transitions of the replay buffer have another number of steps.
        """
        replay = state_dict.get("replay")
        self._restored = None
        if replay is not None:
            number, steps = replay["/".join(REWARD)].shape
            if steps != self.n_steps:
                raise UserError(f"the checkpoint's replay buffer has n_steps {steps}, this run {self.n_steps}")
            self._restored = TensorDict({tuple(key.split("/")): rows for key, rows in replay.items()}, [number])
        self._local_env_steps = state_dict["local_env_steps"]
        self._pending_updates = state_dict["pending_updates"]

    def _ready_replay(self) -> Replay:
        """The replay buffer, filled by warm-up (or from a checkpoint) before its first use."""
        if self._replay is None:
            device = self.module.device
            self._replay = Replay(self.buffer_capacity, self.batch_size, self.n_steps, device, self._restored)
            self._restored = None
        warmup = math.ceil(self.warmup_env_steps / self.world_size)
        while self._local_env_steps < warmup or len(self._replay) < self.batch_size:
            self._collect(self._replay)
        return self._replay

    def _collect(self, replay: Replay) -> int:
        """Collect one block into the replay buffer and return its number of steps."""
        if self._blocks is None:
            replay.begin_episodes()
            self._blocks = iter(self._start_collector())
        try:
            block = next(self._blocks).reshape(-1)
        except RunError:
            self.module.check_finite()  # a network that has diverged is the cause, not what it made of a state
            raise
        ended = block[DONE].squeeze(-1)
        self.recent_returns.extend(block["next", "episode_reward"].squeeze(-1)[ended].tolist())
        self._local_env_steps += len(block)
        replay.add(block.reshape(self.num_envs, -1))
        return len(block)

    def _start_collector(self) -> Collector:
        module = self.module
        random_steps = math.ceil(self.warmup_env_steps / self.world_size) - self._local_env_steps
        before, processes = self._local_env_steps, self.world_size
        env = build_environment(
            self._collects_in, self.num_envs, self.parallel, env_step=lambda taken: (before + taken) * processes
        )
        # Seeded before the collector resets it: seeding starts new episodes, of which a collector would not learn. The
        # seed depends on the step as well, so that a resumed run does not see its first episodes again.
        env.set_seed(process_seed(torch.initial_seed(), self.rank, self._local_env_steps) % 2**31)
        self._collector = Collector(
            env,
            module.collection_policy(),
            frames_per_batch=self.env_steps_per_collection,
            total_frames=-1,
            init_random_frames=max(0, random_steps),
            policy_device=module.device,
            env_device="cpu",
            storing_device=module.device,
            trust_policy=True,
            track_traj_ids=False,
            auto_register_policy_transforms=False,
        )
        return self._collector
