"""Online data: a policy collects transitions into a replay buffer while it trains on them."""

import dataclasses
import math
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch.utils.data import DataLoader, IterableDataset
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase

from flowmatch_rl.batches import DONE, LENGTH, NEXT_OBSERVATION, OBSERVATION, REWARD, TRANSITION
from flowmatch_rl.checks import RunError
from flowmatch_rl.data.loaders import batch_loader
from flowmatch_rl.envs.environments import Environment, GymnasiumEnvironment, Spaces, build_environment, spaces_of
from flowmatch_rl.envs.multi_step import MultiStep
from flowmatch_rl.envs.rendered import RenderedEnvironment
from flowmatch_rl.envs.rollouts import roll_out_episodes

_TEST_SEEDS = 1_000_000
"""Distance between the seeds of evaluations and tests."""


class ActingModule(Protocol):
    """What a module must offer to be trained on collected data."""

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        ...

    def collection_policy(self) -> TensorDictModuleBase:
        """Policy that collects."""
        ...

    def evaluation_policy(self) -> TensorDictModuleBase:
        """Policy that is evaluated, with its noise seeded afresh."""
        ...


class OnlineData(LightningDataModule):
    """Collects transitions with TorchRL, and yields batches from a replay buffer.

    Everything is counted in environment steps. Training begins after a warm-up of random actions. A virtual epoch ends
    with an evaluation on environments of its own: the validation and test loaders yield whole episodes of the policy
    with fixed initial states. With several processes each has its own environments, buffer and noise, collects its
    share of the steps, and trains ``updates_per_env_step`` times per step of its own.

    With ``n_steps`` above 1 the buffer holds transitions of that many steps, shorter ones at the end of an episode. The
    last ``n_steps - 1`` steps of each environment wait for those that follow; a run that is resumed begins new episodes
    and does without the steps that were waiting.

    Args:
        environment: What to act in.
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
        eval_episodes: Episodes of each evaluation during training, shared among the processes.
        test_episodes: Episodes of the ``test`` and ``predict`` commands.
        eval_seed: Seed of the initial states during training; tests have others.
        max_episode_steps: Steps after which an evaluation episode is cut off.
        checkpoint_replay: Whether checkpoints hold the replay buffer, so that a resumed run goes on with it.

    Raises:
        ValueError: If the environment or a number does not fit.
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
        super().__init__()
        counts = {
            "epoch_env_steps": epoch_env_steps,
            "batch_size": batch_size,
            "buffer_capacity": buffer_capacity,
            "num_envs": num_envs,
            "env_steps_per_collection": env_steps_per_collection,
            "n_steps": n_steps,
            "eval_episodes": eval_episodes,
            "test_episodes": test_episodes,
            "max_episode_steps": max_episode_steps,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not updates_per_env_step > 0.0:
            raise ValueError(f"updates_per_env_step must be positive, got {updates_per_env_step}")
        if batch_size > warmup_env_steps:
            raise ValueError(
                f"batch_size {batch_size} is more than the {warmup_env_steps} transitions that warm-up collects; "
                "lower batch_size or raise warmup_env_steps"
            )
        if batch_size > buffer_capacity:
            raise ValueError(f"batch_size {batch_size} is more than buffer_capacity {buffer_capacity}")
        if total_env_steps <= warmup_env_steps:
            raise ValueError(f"total_env_steps {total_env_steps} must exceed warmup_env_steps {warmup_env_steps}")
        if env_steps_per_collection % num_envs:
            raise ValueError(
                f"env_steps_per_collection {env_steps_per_collection} must be a multiple of num_envs {num_envs}"
            )
        self.environment = environment
        self.total_env_steps = total_env_steps
        self.warmup_env_steps = warmup_env_steps
        self.num_epochs = math.ceil((total_env_steps - warmup_env_steps) / epoch_env_steps)
        self.updates_per_env_step = updates_per_env_step
        self.batch_size = batch_size
        self.buffer_capacity = buffer_capacity
        self.num_envs = num_envs
        self.parallel = parallel
        self.env_steps_per_collection = env_steps_per_collection
        self.n_steps = n_steps
        self.eval_episodes = eval_episodes
        self.test_episodes = test_episodes
        self.eval_seed = eval_seed
        self.max_episode_steps = max_episode_steps
        self.checkpoint_replay = checkpoint_replay
        probe = environment.make(render=False)
        self.spaces: Spaces = spaces_of(probe, environment.label)
        probe.close()
        self.recent_returns: deque[float] = deque(maxlen=20)
        self._local_env_steps = 0
        self._pending_updates = 0.0
        self._written = 0  # transitions put into this buffer, restored ones included
        self._restored: TensorDictBase | None = None  # transitions of a checkpoint, until the buffer is made
        self._multi_step = MultiStep(n_steps)
        self._buffer: TensorDictReplayBuffer | None = None
        self._collector: Collector | None = None
        self._blocks: Iterator[TensorDictBase] | None = None
        self._evaluation_envs: dict[int, EnvBase] = {}

    @property
    def label(self) -> str:
        """Short name, for run folders."""
        return self.environment.label

    @property
    def dimensions(self) -> dict[str, Any]:
        """Arguments of a model that this data determines."""
        return dataclasses.asdict(self.spaces)

    @property
    def env_steps(self) -> int:
        """Environment steps taken so far, over all processes."""
        return self._local_env_steps * self._world_size

    @property
    def replay(self) -> TensorDictBase | None:
        """Transitions that this process holds, oldest first and on the CPU, batch size (N,); None before the first."""
        if self._buffer is None or len(self._buffer) == 0:
            return self._restored
        held = self._buffer[:].select(*self._stored_keys).cpu()
        oldest = self._written % self.buffer_capacity if len(held) == self.buffer_capacity else 0
        return held.apply(lambda entry: entry.roll(-oldest, 0))

    @property
    def _stored_keys(self) -> tuple[str | tuple[str, str], ...]:
        return TRANSITION if self.n_steps == 1 else (*TRANSITION, LENGTH)

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _module(self) -> ActingModule:
        assert self.trainer is not None, "loaders are made by a Trainer"
        return self.trainer.lightning_module  # pyright: ignore[reportReturnType]

    def train_dataloader(self) -> DataLoader:
        """Batches of transitions; collects as it goes."""
        local_steps = (self.total_env_steps - self.warmup_env_steps) / self._world_size
        batches = max(1, round(local_steps * self.updates_per_env_step / self.num_epochs))
        return batch_loader(_Batches(self, batches))

    def val_dataloader(self) -> DataLoader:
        """One TensorDict of whole episodes, see ``roll_out_episodes``."""
        return batch_loader(_Episodes(self, self.eval_episodes, self.eval_seed))

    def test_dataloader(self) -> DataLoader:
        """One TensorDict of whole episodes, see ``roll_out_episodes``."""
        return batch_loader(_Episodes(self, self.test_episodes, self.eval_seed + _TEST_SEEDS))

    def predict_dataloader(self) -> DataLoader:
        """One TensorDict of whole episodes, see ``roll_out_episodes``."""
        return batch_loader(_Episodes(self, self.test_episodes, self.eval_seed + _TEST_SEEDS))

    def collected_batches(self, number: int) -> Iterator[TensorDictBase]:
        """Yield batches from the replay buffer, collecting between them at the set ratio."""
        buffer = self._ready_buffer()
        for _ in range(number):
            while self._pending_updates < 1.0:
                self._pending_updates += self._collect(buffer) * self.updates_per_env_step
            self._pending_updates -= 1.0
            yield buffer.sample()

    def episodes(self, number: int, seed: int) -> TensorDictBase:
        """Run evaluation episodes, this process's share of ``number`` (rounded up), and return their transitions."""
        share = math.ceil(number / self._world_size)
        if share not in self._evaluation_envs:
            self._evaluation_envs[share] = build_environment(self.environment, share)
        seed += self._rank * number
        return roll_out_episodes(
            self._evaluation_envs[share], self._module.evaluation_policy(), seed, self.max_episode_steps
        )

    def rendering_environment(self) -> RenderedEnvironment:
        """An environment to film, which starts where the first evaluation episode does. The caller closes it."""
        env = build_environment(self.environment, render=True)
        env.set_seed(self.eval_seed)
        return RenderedEnvironment(self.environment, env)

    def teardown(self, stage: str) -> None:
        """Close environments and the collector."""
        if self._collector is not None:
            self._collector.shutdown()
        for env in self._evaluation_envs.values():
            env.close()
        self._collector, self._blocks, self._evaluation_envs = None, None, {}

    def state_dict(self) -> dict[str, Any]:
        """Counters and, if so configured, the replay buffer of the first process."""
        state: dict[str, Any] = {"local_env_steps": self._local_env_steps, "pending_updates": self._pending_updates}
        held = self.replay if self.checkpoint_replay else None
        if held is not None:  # oldest first, so that a resumed run overwrites in the same order
            state["replay"] = {"/".join(k) if isinstance(k, tuple) else k: held[k] for k in self._stored_keys}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore counters and replay buffer. The environment itself starts a fresh episode.

        Raises:
            ValueError: If the transitions of the replay buffer have another number of steps.
        """
        replay = state_dict.get("replay")
        if replay is not None and (saved := replay["/".join(REWARD)].shape[-1]) != self.n_steps:
            raise ValueError(f"the checkpoint's replay buffer has n_steps {saved}, this run {self.n_steps}")
        self._local_env_steps = state_dict["local_env_steps"]
        self._pending_updates = state_dict["pending_updates"]
        self._restored = None
        if replay is not None:
            entries = {tuple(key.split("/")): values for key, values in replay.items()}
            self._restored = TensorDict(entries, [len(replay["/".join(REWARD)])])

    def _ready_buffer(self) -> TensorDictReplayBuffer:
        """The replay buffer, filled by warm-up (or from a checkpoint) before its first use."""
        if self._buffer is None:
            storage = LazyTensorStorage(self.buffer_capacity, device=self._module.device)
            self._buffer = TensorDictReplayBuffer(storage=storage, batch_size=self.batch_size)
            if self._restored is not None:
                self._buffer.extend(self._restored)
                self._written += len(self._restored)
                self._restored = None
        warmup = math.ceil(self.warmup_env_steps / self._world_size)
        while self._local_env_steps < warmup or len(self._buffer) < self.batch_size:
            self._collect(self._buffer)
        return self._buffer

    def _collect(self, buffer: TensorDictReplayBuffer) -> int:
        """Collect one block into the buffer and return its number of steps."""
        if self._blocks is None:
            self._blocks = iter(self._start_collector())
        block = next(self._blocks).reshape(-1)
        for key in (REWARD, NEXT_OBSERVATION, OBSERVATION):
            if not bool(torch.isfinite(block[key]).all()):
                bad = int((~torch.isfinite(block[key]).flatten(1).all(1)).nonzero()[0])
                raise RunError(
                    f"{self.environment.label} returned a {'/'.join(key) if isinstance(key, tuple) else key} that is "
                    f"not finite at environment step {(self._local_env_steps + bad + 1) * self._world_size}"
                )
        ended = block[DONE].squeeze(-1)
        self.recent_returns.extend(block["next", "episode_reward"].squeeze(-1)[ended].tolist())
        self._local_env_steps += len(block)
        rows = block.select(*TRANSITION)
        if self.n_steps > 1:
            rows = self._multi_step.fold(block.reshape(self.num_envs, -1))
        if len(rows):
            buffer.extend(rows)
        self._written += len(rows)
        return len(block)

    def _start_collector(self) -> Collector:
        module = self._module
        self._multi_step = MultiStep(self.n_steps)  # the environments begin new episodes
        random_steps = math.ceil(self.warmup_env_steps / self._world_size) - self._local_env_steps
        env = build_environment(self.environment, self.num_envs, self.parallel)
        # Seeded before the collector resets it: seeding starts new episodes, of which a collector would not learn. The
        # seed depends on the step as well, so that a resumed run does not see its first episodes again.
        seed = torch.initial_seed() % 2**31
        env.set_seed((seed + 1_000 * self._rank + self._local_env_steps) % 2**31)
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


class _Batches(IterableDataset):
    """A virtual epoch of training batches. Its state lives in the data module: ``iter`` is called every epoch."""

    def __init__(self, data: OnlineData, number: int) -> None:
        self.data = data
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[TensorDictBase]:
        return self.data.collected_batches(self.number)


class _Episodes(IterableDataset):
    """One batch: the evaluation episodes."""

    def __init__(self, data: OnlineData, number: int, seed: int) -> None:
        self.data = data
        self.number = number
        self.seed = seed

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[TensorDictBase]:
        yield self.data.episodes(self.number, self.seed)
