"""Transitions of a data set for a policy, which is evaluated by episodes and on transitions that are held out."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase
from torch.utils.data import DataLoader

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.episodes import EpisodeData
from flowmatch_rl.data.transitions.reader import TransitionReader
from flowmatch_rl.data.transitions.store import TransitionStore
from flowmatch_rl.envs.building import Spaces, examine
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.schema import ActionBounds
from flowmatch_rl.seeds import process_seed

_MOST_EVALUATED = 4_096
"""Held-out transitions of an evaluation, at most."""


class PolicyData(EpisodeData):
    """Transitions of a data set that ``collect`` or ``convert`` wrote, for the training of a policy.

    Training draws rows with replacement. Evaluations run episodes of the policy, where there is an environment, and
    measure losses on the last rows, which training leaves out.

    Args:
        path: Folder of the data set.
        environment: Environment that the policy is evaluated in; None for losses alone.
        batch_size: Transitions per batch and process.
        num_updates: Gradient steps of the whole run.
        epoch_updates: Gradient steps between two evaluations; the updates are divided evenly into epochs of at most
            about this length.
        n_steps: Steps of a transition, at least 1.
        action_chunk: Actions h that the policy chooses at once and takes one after the other; above 1 transitions have
            h steps, whatever ``n_steps``.
        held_out: Fraction of the rows that training leaves out, the last ones, in [0, 0.5].
        eval_episodes: Episodes of each evaluation during training, divided among the processes.
        test_episodes: Episodes of the ``test`` and ``predict`` commands.
        eval_seed: Seed of the initial states during training; tests have others.
        max_episode_steps: Steps after which an evaluation episode is cut off.
        verify: Whether to compare the data set with its checksums first, which reads it once, about 1 GB per second.

    Raises:
        MissingFileError: If there is no such folder.
        UserError: If it is no data set or a damaged one, of another environment, or a number is out of its range.
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
    ) -> None:
        check_range(
            "[1, inf)", batch_size=batch_size, num_updates=num_updates, epoch_updates=epoch_updates, n_steps=n_steps
        )
        check_range("[0, 0.5]", held_out=held_out)
        num_epochs = math.ceil(num_updates / epoch_updates)
        evaluations = eval_episodes, test_episodes, eval_seed, max_episode_steps
        super().__init__(num_epochs, environment, *evaluations, action_chunk)
        self.store = TransitionStore.open(path)
        if verify:
            self.store.verify()
        self.spaces = self._spaces()
        if action_chunk > 1 and n_steps not in (1, action_chunk):
            raise UserError(f"n_steps must be 1 or action_chunk {action_chunk}, got {n_steps}")
        self.batch_size, self.num_updates, self.n_steps = batch_size, num_updates, max(n_steps, action_chunk)
        self._held_out = int(held_out * len(self.store))
        self._reader: TransitionReader | None = None
        self._drawn = 0  # batches, by the run that is resumed

    @property
    def label(self) -> str:
        """Short name, for run folders."""
        return Path(self.store.path).name

    @property
    def dimensions(self) -> dict[str, Any]:
        """Arguments of a model that this data determines; the actions of a chunk lie side by side."""
        return {
            "observation_dim": self.spaces.observation_dim,
            "action_dim": self.action_chunk * self.spaces.action_dim,
            "action_bounds": self.spaces.action_bounds.repeated(self.action_chunk),
        }

    @property
    def outline(self) -> dict[str, str]:
        """The data set, its dimensions, the environment of evaluations, and the updates of the run."""
        lines = {
            "data": f"{self.store.path}, {len(self.store):,} transitions, {self._held_out:,} of them held out, "
            f"observation of dimension {self.spaces.observation_dim}, action of dimension {self.spaces.action_dim}",
        }
        if self.environment is not None:
            lines["environment"] = f"{self.environment.label}, for evaluations"
        return lines | {"training": f"{self.num_updates:,} updates of batch {self.batch_size:,}"}

    def train_dataloader(self) -> DataLoader:
        """Batches of transitions, see ``batches.read_transition``."""
        reader = self._ready_reader()
        return self.training_loader(self.num_updates, lambda _: reader.take())

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
        self._drawn = self.state_dict()["drawn"]
        self._reader = None
        super().teardown(stage)

    def state_dict(self) -> dict[str, Any]:
        """Number of training batches drawn by each process."""
        return {"drawn": self._drawn if self._reader is None else self._reader.sampler.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume after a number of batches."""
        self._drawn = state_dict["drawn"]

    def _ready_reader(self) -> TransitionReader:
        if self._reader is None:
            seed = process_seed(self.common_seed, self.rank)
            self._reader = TransitionReader(
                self.store, self.n_steps, self.batch_size, seed, self._drawn, self._held_out, self.action_chunk
            )
        return self._reader

    def _spaces(self) -> Spaces:
        """Dimensions of the data set, which the environment must share."""
        info = self.store.info
        if self.environment is None:
            bounds = info.action_bounds or ActionBounds.unit(info.action_dim)
            return Spaces(info.observation_dim, info.action_dim, bounds)
        spaces, columns = examine(self.environment)
        same = not self.environment.names_columns or columns == info.columns
        if not same or (spaces.observation_dim, spaces.action_dim) != (info.observation_dim, info.action_dim):
            raise UserError(
                f"{self.environment.label} has observations of dimension {spaces.observation_dim} and actions of "
                f"dimension {spaces.action_dim}, the data set {info.observation_dim} ({', '.join(info.columns[:4])}"
                f"{', ...' if len(info.columns) > 4 else ''}) and {info.action_dim}"
            )
        return spaces
