"""The policy of a checkpoint, for an occupancy to model or a collection to follow."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowmatch_rl.checks import MissingFileError, check_range
from flowmatch_rl.inference.policy import load_policy_module
from flowmatch_rl.models import ParticleActor
from flowmatch_rl.types import SinglePolicy


@dataclass(frozen=True)
class CheckpointPolicy(SinglePolicy):
    """The policy that a run was evaluated with.

    Args:
        path: Its checkpoint, a ``.ckpt`` file.
        num_particles: Particles that each action is chosen from; None for as many as in the run's own
            evaluations. The time of an action is proportional to it.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If ``num_particles`` is below 1, or, once it acts, the file is not of a policy.
    """

    path: str
    num_particles: int | None = None

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise MissingFileError(f"there is no checkpoint {self.path!r}")
        check_range("[1, inf)", num_particles=self.num_particles)

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The particle of highest value, shape (*batch, A)."""
        self.check_embedding(embedding)
        actor = _actor(self.path, Path(self.path).stat().st_mtime_ns, str(observation.device))
        if self.num_particles is not None:
            actor = dataclasses.replace(actor, num_particles=self.num_particles)
        return actor(observation.float(), generator).clamp(-1.0, 1.0)


@functools.lru_cache(maxsize=4)
def _actor(path: str, modified_ns: int, device: str) -> ParticleActor:
    """The actor of a file, loaded again where the file has changed."""
    # Building a network draws numbers that must not disturb those of a run.
    with torch.random.fork_rng(devices=[]):
        module = load_policy_module(path, device)
    return module.eval().actor("eval")
