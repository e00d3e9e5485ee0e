"""Transitions of a data set for a policy, which is evaluated by episodes and on transitions that are held out."""

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torch.utils.data import DataLoader

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.base import epoch_batches
from flowmatch_rl.data.collecting import NOTHING_COLLECTED, Collection
from flowmatch_rl.data.collection_settings import CollectionSettings
from flowmatch_rl.data.episodes import ActingModule, EpisodeData
from flowmatch_rl.data.futures import FamilyReader
from flowmatch_rl.data.inputs import DataInput, stored_inputs
from flowmatch_rl.data.online_phase import OnlinePhase, mix
from flowmatch_rl.data.spaces import shared_spaces
from flowmatch_rl.data.transitions.goals import Goals
from flowmatch_rl.data.transitions.reader import TransitionReader
from flowmatch_rl.data.transitions.store import TransitionStore
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.envs.process import planar_process
from flowmatch_rl.ranks import states_of_ranks
from flowmatch_rl.seeds import process_seed
from flowmatch_rl.testbeds import PlanarProcess
from flowmatch_rl.types import Reward

_MOST_EVALUATED = 4_096
"""Held-out transitions of an evaluation, at most."""


class PolicyData(EpisodeData):
    """Transitions of a data set that ``collect`` or ``convert`` wrote, for the training of a policy.

    Training draws rows with replacement. Evaluations run episodes of the policy, where there is an environment, and
    measure losses on the last rows, which training leaves out.

    With an online phase the run continues after its updates: the policy collects transitions in the environment, and
    trains on batches of these and of the data. The checkpoint of a run without one continues with one. Steps are
    gradient steps throughout; the epochs of the phases differ in length, so that each needs new loaders.

    Args:
        path: Folder of the data set.
        environment: Environment that the policy is evaluated in, and acts in online; None for losses alone.
        batch_size: Transitions per batch and process.
        num_updates: Gradient steps on the data set alone.
        epoch_updates: Gradient steps between two evaluations; the updates are divided evenly into epochs of at most
            about this length.
        n_steps: Steps of a transition, at least 1.
        action_chunk: Actions h that the policy chooses at once and takes one after the other; above 1 transitions have
            h steps, with ``n_steps`` 1 or h.
        held_out: Fraction of the rows that training leaves out, the last ones, in [0, 0.5].
        eval_episodes: Episodes of each evaluation during training, divided among the processes.
        test_episodes: Episodes of the ``test`` and ``predict`` commands.
        eval_seed: Seed of the initial states during training; tests have others.
        max_episode_steps: Steps of an evaluation episode, at most.
        verify: Whether to compare the data set with its checksums first, which reads it once, about 1 GB per second.
        online: What follows those updates in the environment; None for nothing.
        reward: Reward for the state that a step arrives in, by its columns, in place of the rewards of the data set,
            which need not have any, and of evaluation episodes; None for their own. What is terminal stays so.
        goals: Goals that the transitions are relabelled with, for a family of policies, which is evaluated without an
            environment; None for a single policy.
        futures: File of future states of a family of policies, whose values under the reward are then in every batch;
            see ``FutureSamples`` and the command ``improve``. Needs ``reward``.

    Raises:
        MissingFileError: If there is no such folder or file.
        UserError: If it is no data set or a damaged one, of another environment, a number is out of its range, there
            is no environment for an online phase, the reward needs other columns or is given with an online phase, or
            goals do not fit the data or are given with an environment.
    """

    def __init__(
        self,
        path: str,
        environment: Environment | None = None,
        batch_size: int = 256,
        num_updates: int = 100_000,
        epoch_updates: int = 10_000,
        n_steps: int = 1,
        action_chunk: int = 1,
        held_out: float = 0.05,
        eval_episodes: int = 10,
        test_episodes: int = 50,
        eval_seed: int = 0,
        max_episode_steps: int = 10_000,
        verify: bool = True,
        online: OnlinePhase | None = None,
        reward: Reward | None = None,
        goals: Goals | None = None,
        futures: str | None = None,
    ) -> None:
        check_range(
            "[1, inf)", batch_size=batch_size, num_updates=num_updates, epoch_updates=epoch_updates, n_steps=n_steps
        )
        check_range("[0, 0.5]", held_out=held_out)
        self._offline_epochs = math.ceil(num_updates / epoch_updates)
        online_epochs = 0 if online is None else math.ceil(online.env_steps / online.epoch_env_steps)
        num_epochs = self._offline_epochs + online_epochs
        evaluations = eval_episodes, test_episodes, eval_seed, max_episode_steps
        store = TransitionStore.open(path)
        columns = store.info.columns
        reward_of = None if reward is None else lambda states: reward.evaluate(states, columns)
        super().__init__(num_epochs, environment, *evaluations, action_chunk, reward_of)
        if verify:
            store.verify()
        if reward is not None and online is not None:
            raise UserError(
                f"an online phase has the rewards of data.environment; data.reward must be null with it, got {reward}"
            )
        self.store, self.reward = store if reward is None else store.relabelled(reward), reward
        self.goals = goals
        self._goal_schema = None if goals is None else goals.schema(self.store.info)
        if goals is not None and environment is not None:
            raise UserError(
                f"a family of policies needs a goal to act, and is evaluated on held-out rows alone: with data.goals "
                f"data.environment must be null, got {environment.label}"
            )
        self.spaces = shared_spaces(self.store.info, environment)
        if action_chunk > 1 and n_steps not in (1, action_chunk):
            raise UserError(f"n_steps must be 1 or action_chunk {action_chunk}, got {n_steps}")
        self.batch_size, self.num_updates, self.n_steps = batch_size, num_updates, max(n_steps, action_chunk)
        self._held_out = int(held_out * len(self.store))
        if environment is None and self._held_out == 0:
            raise UserError(
                f"without an environment held_out must keep a row of the {len(self.store)}, got {held_out:g}: nothing "
                "would be evaluated"
            )
        if futures is not None and self.n_steps > 1:
            raise UserError(
                f"data.futures holds values of single actions and steps: action_chunk and n_steps must be 1, got "
                f"{action_chunk} and {n_steps}"
            )
        self.futures = futures
        self._family = None if futures is None else FamilyReader.open(futures, reward, self.store)
        self._reader: TransitionReader | None = None
        self._drawn = 0  # batches, by the run that is resumed
        self._trains = False
        self.online = online
        self._collection = None if online is None else self._make_collection(online)

    @property
    def label(self) -> str:
        """Short name, for run folders."""
        return Path(self.store.path).name

    @property
    def dimensions(self) -> dict[str, Any]:
        """Arguments of a model that this data determines; the actions of a chunk lie side by side."""
        dimensions = {
            "observation_dim": self.spaces.observation_dim,
            "action_dim": self.action_chunk * self.spaces.action_dim,
            "action_bounds": self.spaces.action_bounds.repeated(self.action_chunk),
        }
        return dimensions if self._goal_schema is None else dimensions | {"goal_schema": self._goal_schema}

    @property
    def observation_moments(self) -> Tensor:
        """Count, mean and squared deviations of all observations of the data set, shape (3, S)."""
        return self.store.info.observation_moments

    @property
    def reward_moments(self) -> Tensor:
        """Count, mean and squared deviations of all rewards of the data set, shape (3, 1)."""
        return self.store.reward_moments

    @property
    def futures_discount(self) -> float | None:
        """Discount of the future states; None if there are none."""
        return None if self._family is None else self._family.samples.discount

    @property
    def plane(self) -> PlanarProcess | None:
        """The process in the plane that the environment is made of; None if there is none."""
        return planar_process(self.environment)

    @property
    def outline(self) -> dict[str, str]:
        """The data set, its dimensions, the environment of evaluations, and the updates of the run."""
        lines = {
            "data": f"{self.store.path}, {len(self.store):,} transitions, {self._held_out:,} of them held out, "
            f"observation of dimension {self.spaces.observation_dim}, action of dimension {self.spaces.action_dim}",
        }
        if self.reward is not None:
            lines["reward"] = f"{self.reward}"
        if self.goals is not None:
            lines["goals"] = (
                f"{', '.join(self.goals.columns)}, of the same trajectory at discount {self.goals.discount:g}"
            )
        if self.environment is not None:
            lines["environment"] = self.environment.label + (", for evaluations" if self.online is None else "")
        lines["training"] = f"{self.num_updates:,} updates of batch {self.batch_size:,}"
        if self.online is not None:
            lines["online"] = (
                f"then {self.online.env_steps:,} environment steps, {self.online.updates_per_env_step:g} updates per "
                f"step, {self.online.data_fraction:.0%} of each batch from the data"
            )
        return lines

    @property
    def inputs(self) -> list[DataInput]:
        """The data set, and the environment of evaluations and of an online phase."""
        return stored_inputs(self.store, self.environment, self.online and self.online.env_steps)

    @property
    def total_updates(self) -> int:
        """Gradient steps of the run, whose phases have epochs of different lengths."""
        if self.online is None:
            return self._offline_updates
        return self._offline_updates + (self.num_epochs - self._offline_epochs) * self._online_batches()

    @property
    def online_env_steps(self) -> int | None:
        """Environment steps of the online phase so far, over all processes; None where there is no such phase.

        They are no measure of the run's progress, which is that of its gradient steps.
        """
        return None if self._collection is None else self._collection.env_steps

    @property
    def recent_returns(self) -> deque[float]:
        """Returns of the latest episodes that this process collected; empty before an online phase."""
        return deque() if self._collection is None else self._collection.recent_returns

    @property
    def replay(self) -> TensorDictBase | None:
        """Transitions that this process collected, oldest first and on the CPU, batch size (N,); None before any."""
        return None if self._collection is None else self._collection.replay

    def check_module(self, module: ActingModule) -> None:
        """Raise if a module learns from rewards that the data set lacks, or would imitate itself in an online phase.

        Or if it takes no goals, and there are some, or the other way round.
        """
        if self.goals is not None and not module.takes_goals:
            raise UserError(f"{type(module).__name__} takes no goals; data.goals must be null, got {self.goals}")
        if self.goals is None and module.takes_goals:
            raise UserError(f"{type(module).__name__} is a family of policies, which needs data.goals, got null")
        if module.learns_from_rewards:
            self.store.require_rewards()
        elif self.online is not None:
            name = type(module).__name__
            raise UserError(
                f"{name} would imitate itself in an online phase; data.online must be null, got {self.online}"
            )

    def setup(self, stage: str) -> None:
        """Have the loaders made for every epoch, if those of the phases differ.

        Raises:
            UserError: If an online phase is too short for an update of each process.
        """
        super().setup(stage)
        self._trains = stage == "fit"
        if self.online is not None and self._trains:
            self.online.num_updates(self._first_env_steps, self.world_size)
        if self.online is not None and self.trainer is not None:
            self.trainer.reload_dataloaders_every_n_epochs = 1  # pyright: ignore[reportAttributeAccessIssue]

    def train_dataloader(self) -> DataLoader:
        """Batches of transitions, see ``batches.read_transition``; collects as it goes in the online phase."""
        if self._collection is not None and self.trainer and self.trainer.current_epoch >= self._offline_epochs:
            collection = self._collection
            return self.epoch_loader(self._online_batches(), lambda _: self._mixed_batch(collection), self._per_round)
        reader, family = self._ready_reader(), self._family
        if family is None:
            return self.epoch_loader(self._offline_batches, lambda _: reader.take(), self._per_round)
        seed = process_seed(self.common_seed, self.rank)
        return self.epoch_loader(
            self._offline_batches,
            lambda _: family.add_to(reader.take(), seed, reader.sampler.drawn),
            self._per_round,
        )

    def goal_table(self, number: int) -> Tensor:
        """Goals of training rows in the units of the environment, the same on all processes, shape (number, G).

        Args:
            number: How many; rows are drawn with replacement.
        """
        return self._ready_reader().goal_table(number, process_seed(self.common_seed, step=-1))

    def evaluation_batches(self, number: int, seed: int) -> list[Callable[[], TensorDictBase]]:
        """Episodes, where there is an environment, and transitions that are held out."""
        makers: list[Callable[[], TensorDictBase]] = []
        if self.environment is not None:
            makers.append(lambda: self.episodes(number, seed))
        if self._held_out:
            makers.append(lambda: self._ready_reader().held_out(_MOST_EVALUATED))
        return makers

    def teardown(self, stage: str) -> None:
        """Keep the place in the sequence of batches, and close environments."""
        self._drawn = self._batches_drawn()
        self._reader = None
        if self._collection is not None:
            self._collection.close()
        super().teardown(stage)

    def state_dict(self) -> dict[str, Any]:
        """Training batches drawn by each process, those of an epoch, and what an online phase has collected."""
        state = {"drawn": self._batches_drawn(), "epoch_batches": self._offline_batches}
        if self._collection is None:
            return state
        return state | {"offline_updates": self._offline_updates} | self._collection.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume after a number of batches, and with what was collected.

        Raises:
            UserError: If an online phase would begin before the updates of the checkpoint, or has begun after other
                updates than those of this run, or epochs on the data have another length, so that training would end,
                or continue online, elsewhere than it says.
        """
        first = states_of_ranks(state_dict)[0]  # places are the same for all processes
        self._drawn, self._reader = first["drawn"], None
        saved = first.get("epoch_batches", self._offline_batches)
        if self._trains and saved != self._offline_batches:
            raise UserError(
                f"the checkpoint has epochs of {saved:,} updates, this run of {self._offline_batches:,} (num_updates "
                f"{self.num_updates:,} in {self._offline_epochs:,} epochs); set epoch_updates to {saved} and "
                "num_updates to a multiple of it"
            )
        if self._collection is None:
            return
        began = first.get("offline_updates", self._offline_updates)
        has_begun = first.get("local_env_steps", 0) > 0
        if self._trains and has_begun and began != self._offline_updates:
            raise UserError(
                f"the online phase of the checkpoint began after {began:,} updates on the data set, that of this run "
                f"begins after {self._offline_updates:,}; set num_updates to {began} and epoch_updates to {saved}"
            )
        if not has_begun and self._drawn > self._offline_updates:
            raise UserError(
                f"the checkpoint has {self._drawn:,} updates on the data set, more than num_updates "
                f"{self.num_updates:,}, after which the online phase begins; set num_updates to {self._drawn}"
            )
        self._collection.load_state_dict(state_dict if "local_env_steps" in first else NOTHING_COLLECTED)

    @property
    def _offline_updates(self) -> int:
        """Gradient steps on the data set alone, of whole epochs."""
        return self._offline_epochs * self._offline_batches

    @property
    def _offline_batches(self) -> int:
        """Gradient steps of an epoch on the data set alone."""
        return epoch_batches(self.num_updates, self._offline_epochs)

    def _batches_drawn(self) -> int:
        return self._drawn if self._reader is None else self._reader.sampler.drawn

    def _mixed_batch(self, collection: Collection) -> TensorDictBase:
        """A batch of the online phase."""
        collected = collection.next_batch()
        if self._stored_rows == 0:
            return collected
        stored = self._ready_reader().take(self._stored_rows)
        return stored if self._stored_rows == self.batch_size else mix(stored, collected)

    def _online_batches(self) -> int:
        """Batches of an epoch of the online phase."""
        assert self.online is not None
        updates = self.online.num_updates(self._first_env_steps, self.world_size)
        return epoch_batches(updates, self.num_epochs - self._offline_epochs)

    def _make_collection(self, online: OnlinePhase) -> Collection:
        if self.environment is None:
            raise UserError(f"an online phase of {online.env_steps} env_steps needs data.environment, got null")
        self._stored_rows = online.stored_rows(self.batch_size)
        collected_rows = max(1, self.batch_size - self._stored_rows)
        self._first_env_steps = online.first_env_steps(collected_rows, self.n_steps)
        online.num_updates(self._first_env_steps, world_size=1)
        settings = CollectionSettings(
            warmup_env_steps=self._first_env_steps,
            batch_size=collected_rows,
            updates_per_env_step=online.updates_per_env_step,
            buffer_capacity=online.buffer_capacity,
            num_envs=online.num_envs,
            parallel=online.parallel,
            env_steps_per_collection=online.env_steps_per_collection,
            n_steps=self.n_steps,
            checkpoint_replay=online.checkpoint_replay,
            storage=online.storage,
            random_warmup=False,
        )
        return Collection(self, self.environment, settings)

    def _ready_reader(self) -> TransitionReader:
        if self._reader is None:
            seed = process_seed(self.common_seed, self.rank)
            rows = self._drawn, self._held_out
            self._reader = TransitionReader(
                self.store, self.n_steps, self.batch_size, seed, *rows, self.action_chunk, self.goals
            )
        return self._reader
