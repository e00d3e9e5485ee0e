"""Offline data: segments of a data set of transitions, and trajectories to evaluate on."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flowmatch_rl.batches import ACTION, DONE, EMBEDDING, OBSERVATION, ActionTrials, SegmentNeeds
from flowmatch_rl.checks import check_range
from flowmatch_rl.data.base import TEST_SEEDS, DataModule, batch_loader
from flowmatch_rl.data.inputs import DataInput, stored_inputs
from flowmatch_rl.data.transitions.rollouts import Trajectories, follow_policy, stored_trajectories, try_actions
from flowmatch_rl.data.transitions.segments import SegmentReader
from flowmatch_rl.data.transitions.store import TransitionStore
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.envs.process import planar_process
from flowmatch_rl.ranks import states_of_ranks
from flowmatch_rl.seeds import process_seed
from flowmatch_rl.types import Policy

_MOST_HELD_OUT = 0.25
"""Fraction of the trajectories of a data set that may be kept for evaluation."""


class OccupancyLearner(Protocol):
    """A module that is trained on segments."""

    policy: Policy | None

    @property
    def segment_needs(self) -> SegmentNeeds:
        """What the segments must hold."""
        ...

    @property
    def action_trials(self) -> ActionTrials:
        """Actions that a test tries in its source states."""
        ...


class OfflineData(DataModule):
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
        eval_lead: Steps of the policy before a source state in ``environment``, at most; their number is uniform in
            0, ..., ``eval_lead``. Source states are initial states of the environment if 0.
        eval_seed: Seed of the source states during training; tests have others.
        verify: Whether to compare the data set with its checksums first, which reads it once, about 1 GB per second.

    Raises:
        MissingFileError: If there is no such folder.
        UserError: If it is no data set or a damaged one, or a number is out of its range.
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
        eval_lead: int = 0,
        eval_seed: int = 0,
        verify: bool = True,
    ) -> None:
        check_range(
            "[1, inf)",
            batch_size=batch_size,
            num_updates=num_updates,
            epoch_updates=epoch_updates,
            eval_states=eval_states,
            test_states=test_states,
            eval_copies=eval_copies,
            eval_steps=eval_steps,
        )
        check_range("[0, inf)", eval_lead=eval_lead)
        super().__init__(math.ceil(num_updates / epoch_updates))
        self.store = TransitionStore.open(path)
        if verify:
            self.store.verify()
        self.batch_size = batch_size
        self.num_updates = num_updates
        self.environment = environment
        self.eval_states, self.test_states = eval_states, test_states
        self.eval_copies, self.eval_steps, self.eval_seed = eval_copies, eval_steps, eval_seed
        self.eval_lead = eval_lead
        self._reader: SegmentReader | None = None
        self._drawn = 0  # batches, by the run that is resumed
        self._trajectories: dict[tuple[int, int], Trajectories] = {}

    @property
    def label(self) -> str:
        """Short name, for run folders."""
        return Path(self.store.path).name

    @property
    def dimensions(self) -> dict[str, Any]:
        """Arguments of a model that this data determines."""
        info = self.store.info
        low, high = self._range
        return {
            "schema": dataclasses.replace(info.schema, low=low, high=high),
            "action_dim": info.action_dim,
            "embedding_dim": info.embedding_dim,
            "action_bounds": info.action_bounds,
        }

    @functools.cached_property
    def _range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Smallest and largest value of each entry of the observations."""
        states = self.store.transitions.get(OBSERVATION)
        return tuple(states.amin(0).tolist()), tuple(states.amax(0).tolist())

    @property
    def inputs(self) -> list[DataInput]:
        """The data set, and the environment of evaluations."""
        return stored_inputs(self.store, self.environment)

    @property
    def outline(self) -> dict[str, str]:
        """The data set, its dimensions, the environment of evaluations, and the updates of the run."""
        info = self.store.info
        lines = {
            "data": f"{self.store.path}, {len(self.store):,} transitions, state of dimension {len(info.columns)}, "
            f"action of dimension {info.action_dim}",
        }
        if self.environment is not None:
            lines["environment"] = f"{self.environment.label}, for evaluations"
        return lines | {"training": f"{self.num_updates:,} updates of batch {self.batch_size:,}"}

    @property
    def has_trajectories(self) -> bool:
        """Whether evaluations have trajectories to compare with."""
        return self._follows or self._held_out()[1] > 0

    @property
    def walls(self) -> Tensor | None:
        """Walls of the environment as boxes (x_low, y_low, x_high, y_high) in the plane of the first two columns.

        Of shape (W, 4); None for an environment that is not in the plane.
        """
        process = planar_process(self.environment)
        return None if process is None else process.walls()

    @property
    def _module(self) -> OccupancyLearner:
        return self.trainer.lightning_module  # pyright: ignore

    @property
    def _follows(self) -> bool:
        return self.environment is not None and self._module.policy is not None

    def train_dataloader(self) -> DataLoader:
        """Batches of segments, see ``batches.read_segment``."""
        if self._reader is None:
            seed = process_seed(self.common_seed, self.rank)
            held_out = 0 if self._follows else self._held_out()[1]
            self._reader = SegmentReader(
                self.store, self._module.segment_needs, self.batch_size, seed, self._drawn, held_out
            )
        reader = self._reader
        return self.training_loader(self.num_updates, lambda _: reader.take())

    def transitions(self, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Batches of segments of one step without end, the same on all processes, beside those of the training.

        Args:
            batch_size: Segments per batch.
        """
        held_out = 0 if self._follows else self._held_out()[1]
        seed = process_seed(self.common_seed, step=-1)
        reader = SegmentReader(self.store, SegmentNeeds(), batch_size, seed, held_out=held_out)
        while True:
            yield reader.take()

    def val_dataloader(self) -> DataLoader:
        """One batch of source states with trajectories, see ``batches.read_rollouts``."""
        return batch_loader(1, lambda _: self.trajectories(self.eval_states, self.eval_seed))

    def test_dataloader(self) -> DataLoader:
        """One batch of source states with trajectories and tried actions, see ``batches.read_rollouts``."""
        return batch_loader(1, lambda _: self._test_trajectories() | self._tried_actions())

    def predict_dataloader(self) -> DataLoader:
        """One batch of source states with trajectories, see ``batches.read_rollouts``."""
        return batch_loader(1, lambda _: self._test_trajectories())

    def trajectories(self, number: int, seed: int) -> Trajectories:
        """This process's part of ``number`` source states, with trajectories where there are any."""
        key = (math.ceil(number / self.world_size), seed + self.rank * number)
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
        """Resume after a number of batches."""
        self._drawn = states_of_ranks(state_dict)[0]["drawn"]

    def _test_trajectories(self) -> Trajectories:
        return self.trajectories(self.test_states, self.eval_seed + TEST_SEEDS)

    def _tried_actions(self) -> Trajectories:
        """Other first actions in the source states of a test, where the environment can be put back into them."""
        environment, policy = self.environment, self._module.policy
        if environment is None or policy is None:
            return {}
        seed = process_seed(self.eval_seed + TEST_SEEDS, self.rank, step=-1)
        trials, known = self._module.action_trials, self._test_trajectories()
        num_steps = min(trials.num_steps, self.eval_steps)
        return try_actions(environment, policy, known, trials.num_actions, num_steps, seed)

    def _follow(self, number: int, seed: int) -> Trajectories:
        environment, policy = self.environment, self._module.policy
        if environment is None or policy is None:
            raise ValueError("following a policy needs an environment and a policy")
        return follow_policy(environment, policy, number, self.eval_copies, self.eval_steps, seed, self.eval_lead)

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
