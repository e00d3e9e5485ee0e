"""The online phase of a policy that was trained on a data set: its length, and what its batches are made of."""

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.replay_storage import MemoryStorage, ReplayStorage


@dataclass(frozen=True)
class OnlinePhase:
    """After its training on a data set a policy acts in its environment, and trains on what it collects and the data.

    Attributes:
        env_steps: Environment steps of the phase, over all processes. The first ones, as many as a batch takes, come
            before its first update.
        updates_per_env_step: Gradient steps per environment step of a process after those, positive.
        data_fraction: Fraction of each batch that comes from the data set, in [0, 1]; the rest was collected. With 1
            the policy acts, and trains on the data alone.
        epoch_env_steps: Steps between two evaluations; the steps are divided evenly into epochs of at most about this
            length.
        buffer_capacity: Collected transitions that a process keeps; the oldest are dropped.
        num_envs: Environments stepped together by each process.
        parallel: Whether each environment runs in a process of its own.
        env_steps_per_collection: Steps collected at a time, a multiple of ``num_envs``.
        checkpoint_replay: Whether checkpoints hold the collected transitions.
        storage: Where the collected transitions lie, in memory or on a disk.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Ball et al., arXiv:2302.02948, symmetric sampling: half of each batch from the data.
    """

    env_steps: int
    updates_per_env_step: float = 1.0
    data_fraction: float = 0.5
    epoch_env_steps: int = 10_000
    buffer_capacity: int = 1_000_000
    num_envs: int = 1
    parallel: bool = False
    env_steps_per_collection: int = 1
    checkpoint_replay: bool = True
    storage: ReplayStorage = MemoryStorage()

    def __post_init__(self) -> None:
        check_range(
            "[1, inf)",
            env_steps=self.env_steps,
            epoch_env_steps=self.epoch_env_steps,
            num_envs=self.num_envs,
            env_steps_per_collection=self.env_steps_per_collection,
        )
        check_range("(0, inf)", updates_per_env_step=self.updates_per_env_step)
        check_range("[0, 1]", data_fraction=self.data_fraction)

    def stored_rows(self, batch_size: int) -> int:
        """Transitions of a batch that come from the data set.

        Args:
            batch_size: Transitions of a batch.

        Raises:
            UserError: If the fraction is neither 0 nor 1 and leaves none of one kind.
        """
        number = round(self.data_fraction * batch_size)
        if 0.0 < self.data_fraction < 1.0 and number in (0, batch_size):
            raise UserError(
                f"data_fraction {self.data_fraction:g} of batch_size {batch_size} is {number}; it must leave at least "
                "one stored and one collected transition, or be 0 or 1"
            )
        return number

    def first_env_steps(self, collected_rows: int, n_steps: int) -> int:
        """Steps of one process before its first update: whole collections, which make the transitions of a batch.

        Args:
            collected_rows: Transitions of a batch that were collected.
            n_steps: Steps of a transition; each environment holds the last ``n_steps - 1`` back.
        """
        needed, block = collected_rows + (n_steps - 1) * self.num_envs, self.env_steps_per_collection
        return -(-needed // block) * block

    def num_updates(self, first_env_steps: int, world_size: int) -> float:
        """Gradient steps of each process.

        Args:
            first_env_steps: Steps of a process before its first update.
            world_size: Number of processes.

        Raises:
            UserError: If not a single one is left.
        """
        number = (self.env_steps / world_size - first_env_steps) * self.updates_per_env_step
        if number < 1.0:
            raise UserError(
                f"an online phase of env_steps {self.env_steps} has no update: each of {world_size} processes takes "
                f"{first_env_steps} steps before its first one, then updates_per_env_step {self.updates_per_env_step:g}"
            )
        return number


def mix(stored: TensorDictBase, collected: TensorDictBase) -> TensorDictBase:
    """One batch of two, spread evenly: modules train some networks on the first rows of a batch alone.

    Args:
        stored: Transitions of the data set, batch size (B,).
        collected: Transitions with the same entries and perhaps more, batch size (C,).

    Returns:
        Transitions on the device of those collected, batch size (B + C,).
    """
    places = torch.cat([(torch.arange(len(rows)) + 0.5) / len(rows) for rows in (stored, collected)])
    names = stored.keys(include_nested=True, leaves_only=True)
    joined: Any = torch.cat([stored.to(collected.device), collected.select(*names)])
    return joined[places.argsort(stable=True).to(joined.device)]
