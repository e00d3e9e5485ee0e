"""The policy of a checkpoint, or its family, for an occupancy to model or a collection to follow."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowmatch_rl.checks import MissingFileError, check_range
from flowmatch_rl.inference.policy import load_policy_module
from flowmatch_rl.models import GoalTable, ParticleActor
from flowmatch_rl.types import Policy
from flowmatch_rl.zoo import checkpoint_path


@dataclass(frozen=True)
class CheckpointPolicy(Policy):
    """The policy that a run was evaluated with, or the family of policies that it trained, one for each goal.

    The embedding of a member of a family is its goal in standard deviations of the data; members are drawn from the
    goals that the checkpoint holds.

    Args:
        path: Its checkpoint, a ``.ckpt`` file, or ``zoo:NAME`` for a trained model of the package.
        num_particles: Particles that each action is chosen from; None for as many as in the run's own
            evaluations. The time of an action is proportional to it.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If ``num_particles`` is below 1, or, once it is used, the file is not of a policy.
    """

    path: str
    num_particles: int | None = None

    def __post_init__(self) -> None:
        if not Path(checkpoint_path(self.path)).is_file():
            raise MissingFileError(f"there is no checkpoint {self.path!r}")
        check_range("[1, inf)", num_particles=self.num_particles)

    @property
    def embedding_dim(self) -> int:
        """Dimension of the goals of a family; 0 for a single policy."""
        goals = self._loaded("cpu").goals
        return 0 if goals is None else goals.dim

    def embeddings(self, uniform: Tensor) -> Tensor:
        """Embeddings of goals of the checkpoint, shape (B, Z)."""
        goals = self._loaded(str(uniform.device)).goals
        return uniform if goals is None else goals.draw(uniform)

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The particle of highest value, shape (*batch, A)."""
        self.check_embedding(embedding)
        loaded = self._loaded(str(observation.device))
        actor, seen = loaded.actor, observation.float()
        if self.num_particles is not None:
            actor = dataclasses.replace(actor, num_particles=self.num_particles)
        if loaded.goals is not None and embedding is not None:
            seen = loaded.goals.beside(seen, embedding)
        return actor(seen, generator).clamp(-1.0, 1.0)

    def _loaded(self, device: str) -> "_Loaded":
        return _load(self.path, Path(checkpoint_path(self.path)).stat().st_mtime_ns, device)


@dataclass(frozen=True)
class _Loaded:
    """What a checkpoint holds."""

    actor: ParticleActor
    goals: GoalTable | None


@functools.lru_cache(maxsize=4)
def _load(path: str, modified_ns: int, device: str) -> _Loaded:
    """What a file holds, loaded again where the file has changed."""
    # Building a network draws numbers that must not disturb those of a run.
    with torch.random.fork_rng(devices=[]):
        module = load_policy_module(path, device).eval()
    return _Loaded(module.actor("eval"), module.goals)
