"""Future states that an occupancy was asked for once, to evaluate any reward on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from flowmatch_rl.batches import FAMILY_ACTIONS, FAMILY_OBSERVATION, FAMILY_VALUES
from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import MissingFileError, UserError
from flowmatch_rl.data.transitions.store import TransitionStore
from flowmatch_rl.files import atomic_path
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.types import Reward

_FORMAT = "future_samples"
_PARTS = ("observation", "actions", "embeddings", "futures", "columns", "discount", "source")


@dataclass(frozen=True, eq=False)
class FutureSamples:
    """Discounted future states of members of a family of policies, drawn without any reward.

    Attributes:
        observation: States of a data set, in the units of the environment, shape (N, S).
        actions: First actions of M members in each state, in [-1, 1], shape (N, M, A).
        embeddings: Those members, shape (N, M, Z).
        futures: K future states after each action, in the units of the environment, shape (N, M, K, D).
        columns: Names of the D entries.
        discount: Discount per environment step.
        source: What they were drawn from and how, in one line.
    """

    observation: Tensor
    actions: Tensor
    embeddings: Tensor
    futures: Tensor
    columns: tuple[str, ...]
    discount: float
    source: str

    def __post_init__(self) -> None:
        if self.futures.dim() != 4:
            raise ValueError(f"expected futures of shape (N, M, K, D), got {tuple(self.futures.shape)}")
        size, members = self.futures.shape[:2]
        check_shape("observation", self.observation, (size, self.observation.shape[-1]))
        check_shape("actions", self.actions, (size, members, self.actions.shape[-1]))
        check_shape("embeddings", self.embeddings, (size, members, self.embeddings.shape[-1]))
        check_shape("futures", self.futures, (*self.futures.shape[:3], len(self.columns)))

    @torch.no_grad()
    def values(self, reward_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Estimated values of the actions under a reward, each a mean over K samples.

        Args:
            reward_of: Maps future states (*batch, D) to rewards (*batch).

        Returns:
            Values in units of the return, shape (N, M).

        Raises:
            UserError: If a reward is not finite.
        """
        rewards = torch.stack([reward_of(part) for part in self.futures])
        if wrong := int((~rewards.isfinite()).sum()):
            raise UserError(f"the reward is not finite in {wrong:,} of {rewards.numel():,} future states")
        return rewards.float().mean(-1) / (1.0 - self.discount)

    def save(self, path: str | Path) -> None:
        """Write them to a file, as a whole or not at all."""
        with atomic_path(path) as partial:
            torch.save({_FORMAT: 1} | vars(self), partial)

    @classmethod
    def load(cls, path: str | Path) -> "FutureSamples":
        """Read them from a file.

        Raises:
            MissingFileError: If there is no such file.
            UserError: If it holds something else.
        """
        if not Path(path).is_file():
            raise MissingFileError(f"there is no file of future states {str(path)!r}")
        try:
            held = read_checkpoint(path, parts=(_FORMAT, *_PARTS))
        except UserError as error:
            raise UserError(f"{path} is not a file of future states, or a damaged one") from error
        return cls(**{name: held[name] for name in _PARTS})


class FamilyReader:
    """Batches of the values of members at states of the data set; each depends on the seed and its own number alone.

    Args:
        samples: Future states of the members.
        reward_of: Maps future states (*batch, D) to rewards (*batch).
    """

    def __init__(self, samples: FutureSamples, reward_of: Callable[[Tensor], Tensor]) -> None:
        self.samples, self.values = samples, samples.values(reward_of)

    @classmethod
    def open(cls, path: str, reward: Reward | None, store: TransitionStore) -> "FamilyReader":
        """The values under a reward of the members whose future states a file holds.

        Args:
            path: The file.
            reward: The reward.
            store: The data set of the batches.

        Raises:
            MissingFileError: If there is no such file.
            UserError: If there is no reward, or the file is of other states or actions.
        """
        if reward is None:
            raise UserError(f"data.futures needs data.reward, the reward that the states of {path} are worth, got null")
        samples, info = FutureSamples.load(path), store.info
        held = samples.observation.shape[-1], samples.actions.shape[-1]
        if held != (info.observation_dim, info.action_dim):
            raise UserError(
                f"{path} has states and actions of dimension {held[0]} and {held[1]}, {store.path} of "
                f"{info.observation_dim} and {info.action_dim}"
            )
        return cls(samples, lambda states: reward.evaluate(states, samples.columns))

    def add_to(self, batch: TensorDictBase, seed: int, number: int) -> TensorDictBase:
        """A batch of transitions (B,), with as many states and the values of the members there.

        Args:
            batch: The transitions.
            seed: Seed, of this process.
            number: Number of the batch.
        """
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number + 1) % 2**63)
        rows = torch.randint(len(self.values), (len(batch),), generator=generator)
        family = {
            FAMILY_OBSERVATION: self.samples.observation[rows],
            FAMILY_ACTIONS: self.samples.actions[rows],
            FAMILY_VALUES: self.values[rows],
        }
        return batch.update(TensorDict(family, batch.batch_size))
