"""How a collection of transitions goes: its warm-up, the ratio of batches to steps, its environments and its buffer."""

from dataclasses import dataclass

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.replay_storage import ReplayStorage
from flowmatch_rl.data.workers import CollectorWorkers


@dataclass(frozen=True, kw_only=True)
class CollectionSettings:
    """Sizes and places of a ``Collection``.

    Attributes:
        warmup_env_steps: Steps before the first batch, over all processes; more where they make fewer transitions than
            a batch takes.
        batch_size: Transitions per batch.
        updates_per_env_step: Batches per environment step of a process, positive.
        buffer_capacity: Transitions kept; the oldest are dropped.
        num_envs: Environments stepped together.
        parallel: Whether each environment runs in a process of its own.
        env_steps_per_collection: Steps collected at a time, a multiple of ``num_envs``.
        n_steps: Steps of a transition, at least 1.
        checkpoint_replay: Whether checkpoints hold the replay buffer.
        storage: Where the replay buffer lies.
        random_warmup: Whether the actions of the warm-up are random, not the policy's.
        workers: Workers that collect while the caller trains; None to collect in this process, before a batch.

    Raises:
        UserError: If a number does not fit.
    """

    warmup_env_steps: int
    batch_size: int
    updates_per_env_step: float
    buffer_capacity: int
    num_envs: int
    parallel: bool
    env_steps_per_collection: int
    n_steps: int
    checkpoint_replay: bool
    storage: ReplayStorage
    random_warmup: bool
    workers: CollectorWorkers | None = None

    def __post_init__(self) -> None:
        check_range(
            "[1, inf)",
            batch_size=self.batch_size,
            buffer_capacity=self.buffer_capacity,
            num_envs=self.num_envs,
            env_steps_per_collection=self.env_steps_per_collection,
            n_steps=self.n_steps,
        )
        check_range("(0, inf)", updates_per_env_step=self.updates_per_env_step)
        if self.batch_size > self.buffer_capacity:
            raise UserError(
                f"buffer_capacity {self.buffer_capacity} is less than the {self.batch_size} transitions of a batch"
            )
        if self.env_steps_per_collection % self.num_envs:
            raise UserError(
                f"env_steps_per_collection {self.env_steps_per_collection} must be a multiple of num_envs "
                f"{self.num_envs}"
            )
        if self.workers is not None:
            self.workers.check(self.num_envs, self.parallel)

    @property
    def steps_per_env(self) -> int:
        """Steps of each environment that are collected at a time."""
        return self.env_steps_per_collection // self.num_envs
