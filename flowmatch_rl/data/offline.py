"""Offline data: segments of a data set of transitions, and trajectories to evaluate on."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from flowmatch_rl.batches import ACTION, DONE, EMBEDDING, OBSERVATION, SegmentNeeds
from flowmatch_rl.data.loaders import batch_loader
from flowmatch_rl.data.segments import SegmentReader
from flowmatch_rl.data.source_states import Trajectories, follow_policy, stored_trajectories
from flowmatch_rl.data.store import TransitionStore
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.envs.process import ProcessEnvironment
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import PlanarProcess
from flowmatch_rl.types import Policy

_TEST_SEEDS = 1_000_000
"""Distance between the seeds of evaluations and tests."""

_MOST_HELD_OUT = 0.25
"""Share of the trajectories of a data set that may be kept for evaluation."""


class OccupancyLearner(Protocol):
    """What a module must offer to be trained on segments."""

    policy: Policy | None

    @property
    def segment_needs(self) -> SegmentNeeds:
        """What the segments must hold."""
        ...


class OfflineData(LightningDataModule):
    """Segments of a data set that ``collect`` or ``convert`` wrote, read from disk as they are needed.

    Training draws rows with replacement. Evaluations take source states and follow the module's policy from there in an
    environment; without an environment or a policy the last trajectories of an ordered data set serve, which training
    then leaves out. An environment that can be put back into a state, a ``ProcessEnvironment``, may follow the policy
    several times from each state.

    Args:
        path: Folder of the data set.
        batch_size: Segments per batch and process.
        num_updates: Gradient steps of the whole run.
        epoch_updates: Gradient steps between two evaluations; the updates are divided evenly into epochs of at most
            about this length.
        environment: Environment to follow the module's policy in; None for the trajectories of the data set.
        eval_states: Source states of an evaluation during training.
        test_states: Source states of a test.
        eval_copies: Trajectories per source state; more than 1 is for random environments or policies.
        eval_steps: Steps after which a trajectory is cut.
        eval_seed: Seed of the source states during training; tests have others.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is no data set, or a number is out of its range.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 1_024,
        num_updates: int = 100_000,
        epoch_updates: int = 10_000,
        environment: Environment | None = None,
        eval_states: int = 16,
        test_states: int = 64,
        eval_copies: int = 1,
        eval_steps: int = 1_000,
        eval_seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {
            "batch_size": batch_size,
            "num_updates": num_updates,
            "epoch_updates": epoch_updates,
            "eval_states": eval_states,
            "test_states": test_states,
            "eval_copies": eval_copies,
            "eval_steps": eval_steps,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.store = TransitionStore.open(path)
        self.batch_size = batch_size
        self.num_updates = num_updates
        self.num_epochs = math.ceil(num_updates / epoch_updates)
        self.environment = environment
        self.eval_states, self.test_states = eval_states, test_states
        self.eval_copies, self.eval_steps, self.eval_seed = eval_copies, eval_steps, eval_seed
        self._seed: int | None = None
        self._reader: SegmentReader | None = None
        self._drawn = 0  # batches, by a run to go on with
        self._trajectories: dict[tuple[int, int], Trajectories] = {}

    @property
    def label(self) -> str:
        """Short name, for run folders."""
        return Path(self.store.path).name

    @property
    def dimensions(self) -> dict[str, Any]:
        """Arguments of a model that this data determines."""
        info = self.store.info
        return {
            "schema": TableSchema(info.columns, info.observation_mean, info.observation_std),
            "action_dim": info.action_dim,
            "embedding_dim": info.embedding_dim,
            "action_low": None if info.action_low is None else list(info.action_low),
            "action_high": None if info.action_high is None else list(info.action_high),
        }

    @property
    def has_trajectories(self) -> bool:
        """Whether evaluations have trajectories to compare with."""
        return self._follows or self._held_out()[1] > 0

    @property
    def walls(self) -> Tensor | None:
        """Walls of the environment as boxes (x_low, y_low, x_high, y_high) in the plane of the first two columns.

        Of shape (W, 4); None for an environment that is not in the plane.
        """
        process = self.environment.process if isinstance(self.environment, ProcessEnvironment) else None
        return process.walls() if isinstance(process, PlanarProcess) else None

    @property
    def _module(self) -> OccupancyLearner:
        return self.trainer.lightning_module  # pyright: ignore

    @property
    def _follows(self) -> bool:
        return self.environment is not None and self._module.policy is not None

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def setup(self, stage: str) -> None:
        """Note the seed that the processes have in common, before the module gives each a noise of its own."""
        self._seed = torch.initial_seed()

    def train_dataloader(self) -> DataLoader:
        """Batches of segments, see ``keys.read_segment``."""
        if self._reader is None:
            seed = (self._seed or 0) + self._rank
            held_out = 0 if self._follows else self._held_out()[1]
            self._reader = SegmentReader(
                self.store, self._module.segment_needs, self.batch_size, seed, self._drawn, held_out
            )
        return batch_loader(_Segments(self._reader, max(1, round(self.num_updates / self.num_epochs))))

    def val_dataloader(self) -> DataLoader:
        """One batch of source states with trajectories, see ``keys.read_rollouts``."""
        return batch_loader(_Sources(self, self.eval_states, self.eval_seed))

    def test_dataloader(self) -> DataLoader:
        """One batch of source states with trajectories, see ``keys.read_rollouts``."""
        return batch_loader(_Sources(self, self.test_states, self.eval_seed + _TEST_SEEDS))

    def predict_dataloader(self) -> DataLoader:
        """One batch of source states with trajectories, see ``keys.read_rollouts``."""
        return self.test_dataloader()

    def trajectories(self, number: int, seed: int) -> Trajectories:
        """This process's share of ``number`` source states, with trajectories where there are any."""
        share = math.ceil(number / self._world_size)
        key = (share, seed + self._rank * number)
        if key not in self._trajectories:
            self._trajectories[key] = self._follow(*key) if self._follows else self._stored(*key)
        return self._trajectories[key]

    def teardown(self, stage: str) -> None:
        """Keep the place in the sequence of batches."""
        self._drawn = self.state_dict()["drawn"]
        self._reader = None

    def state_dict(self) -> dict[str, Any]:
        """Number of training batches drawn by each process."""
        return {"drawn": self._drawn if self._reader is None else self._reader.sampler.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a number of batches."""
        self._drawn = state_dict["drawn"]

    def _follow(self, number: int, seed: int) -> Trajectories:
        policy = self._module.policy
        if self.environment is None or policy is None:
            raise ValueError("following a policy needs an environment and a policy")
        return follow_policy(self.environment, policy, number, self.eval_copies, self.eval_steps, seed)

    def _stored(self, number: int, seed: int) -> Trajectories:
        """Source states of the data set: where its last trajectories begin, or any of its rows."""
        starts, _ = self._held_out()
        generator = torch.Generator().manual_seed(seed)
        policy = self._module.policy
        if len(starts) and policy is None:
            chosen = starts[torch.randperm(len(starts), generator=generator)[:number]]
            return stored_trajectories(self.store, chosen, self.eval_steps)
        rows = torch.randint(len(self.store), (number,), generator=generator)
        observation, action = (self.store.transitions.get(key)[rows] for key in (OBSERVATION, ACTION))
        if policy is None:
            embedding = torch.empty(number, 0)
            if self.store.info.embedding_dim:
                embedding = self.store.transitions.get(EMBEDDING)[rows]
            return {"observation": observation, "action": action, "embedding": embedding}
        embedding = policy.embeddings(torch.rand(number, policy.embedding_dim, generator=generator))
        action = policy.act(observation, embedding, generator)
        return {"observation": observation, "action": action, "embedding": embedding}

    def _held_out(self) -> tuple[Tensor, int]:
        """Rows where the trajectories kept for evaluation begin, and how many trailing rows they make up."""
        info = self.store.info
        kept = min(self.test_states, int(_MOST_HELD_OUT * (info.num_trajectories or 0)))
        if kept == 0 or self._module.policy is not None:
            return torch.empty(0, dtype=torch.long), 0
        ends = self.store.transitions.get(DONE).reshape(-1).nonzero().reshape(-1)
        starts = torch.cat([torch.zeros(1, dtype=torch.long), ends + 1])
        starts = starts[starts < len(self.store)][-kept:]
        return starts, len(self.store) - int(starts[0])


class _Segments(IterableDataset):
    """A virtual epoch of training batches. Their state lives in the reader: ``iter`` is called every epoch."""

    def __init__(self, reader: SegmentReader, number: int) -> None:
        self.reader = reader
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.number):
            yield self.reader.take()


class _Sources(IterableDataset):
    """One batch: source states."""

    def __init__(self, data: OfflineData, number: int, seed: int) -> None:
        self.data = data
        self.number = number
        self.seed = seed

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Trajectories]:
        yield self.data.trajectories(self.number, self.seed)
