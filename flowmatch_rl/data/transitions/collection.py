"""Collects transitions of a policy into a data set on disk."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from flowmatch_rl.batches import ACTION, DONE, EMBEDDING, OBSERVATION, TRUNCATED
from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.data.transitions.store import StoreInfo, TransitionStore, entries_of
from flowmatch_rl.data.transitions.writer import TransitionWriter, progress_bar
from flowmatch_rl.envs.building import build_environment, examine
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.types import Policy


def collect_transitions(
    environment: Environment,
    path: str,
    num_transitions: int,
    policy: Policy | None = None,
    num_envs: int = 16,
    block_steps: int = 1000,
    seed: int = 0,
    action_noise: float = 0.0,
    random_fraction: float = 0.0,
    switch_fraction: float = 0.0,
    progress: bool = True,
) -> TransitionStore:
    """Collect transitions into a data set of ordered rows.

    The environments are stepped together, and their steps written block by block. In the file the steps of one
    environment in one block follow each other; where the end of a block cuts a trajectory, that is marked as
    truncated, and continues as another trajectory in the next block. A collection that was interrupted resumes when it
    is called again with the same arguments, its environments beginning new episodes.

    Args:
        environment: What to act in.
        path: Folder of the data set; see ``TransitionWriter``.
        num_transitions: Rows, each one step of one environment.
        policy: Policy that acts, on the CPU; actions are uniform in [-1, 1] if None. For a family of policies each
            trajectory has a member of its own, drawn at each reset and stored under ``embedding``.
        num_envs: Environments stepped together. Many are fast where the environment steps them as one batch, and make
            the trajectories shorter, since the rows are divided among them.
        block_steps: Steps of each environment per block; an interruption loses a block at most.
        seed: Seed of environments, noise and embeddings.
        action_noise: Standard deviation of Gaussian noise added to the policy's actions, in the unit of [-1, 1]; the
            sums are clipped to that range.
        random_fraction: Fraction of the steps, drawn independently of each other, whose action is uniform instead.
        switch_fraction: Fraction of the steps, drawn likewise, after which a trajectory goes on with another member of
            the family. Above 0 no member made a trajectory, and the data set has no embeddings.
        progress: Whether to show a bar.

    Returns:
        The data set.

    Raises:
        UserError: If an argument does not fit, or the folder is occupied or holds another collection.
        RunError: If the environment raises an error or does not return, an observation, a reward or an action is not
            finite, or an action lies outside [-1, 1].
    """
    check_range("[1, inf)", num_transitions=num_transitions, num_envs=num_envs, block_steps=block_steps)
    acting = _Acting(policy, action_noise, random_fraction, switch_fraction)
    spaces, columns = examine(environment)
    info = StoreInfo(
        num_transitions=num_transitions,
        columns=columns,
        action_dim=spaces.action_dim,
        ordered=True,
        action_low=spaces.action_bounds.low,
        action_high=spaces.action_bounds.high,
        embedding_dim=acting.stored_dim,
        provenance={
            "made_by": "collect_transitions",
            "environment": repr(environment),
            "policy": repr(policy),
            "num_envs": num_envs,
            "block_steps": block_steps,
            "seed": seed,
            "action_noise": action_noise,
            "random_fraction": random_fraction,
            **({"switch_fraction": switch_fraction} if switch_fraction else {}),
        },
    )
    with (
        TransitionWriter(path, info) as writer,
        progress_bar(writer, environment.label, progress) as bar,
        _built(environment, num_envs, writer.rows_written) as env,
    ):
        try:
            blocks = _Blocks(env, num_envs, acting, _seed(seed, writer.rows_written))
            while missing := num_transitions - writer.rows_written:
                block = blocks.take(min(block_steps, math.ceil(missing / num_envs)))[:missing]
                _append(writer, block, environment.label)
                bar.update(len(block))
        except RunError as error:
            if rows := writer.rows_written:
                raise RunError(
                    f"{error}; {rows} of {num_transitions} rows are written, the same command resumes after them"
                ) from error
            raise
        return writer.finish()


@contextlib.contextmanager
def _built(environment: Environment, num_envs: int, rows_written: int) -> Iterator[EnvBase]:
    env = build_environment(environment, num_envs, env_step=lambda taken: rows_written + taken)
    try:
        yield env
    finally:
        env.close(raise_if_closed=False)  # copies that were not stepped are closed


def _append(writer: TransitionWriter, block: TensorDict, label: str) -> None:
    try:
        writer.append(block)
    except UserError as error:
        raise RunError(f"{label}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Acting:
    """Actions of a policy with exploration; see ``collect_transitions``."""

    policy: Policy | None
    action_noise: float
    random_fraction: float
    switch_fraction: float

    def __post_init__(self) -> None:
        check_range("[0, inf)", action_noise=self.action_noise)
        check_range("[0, 1]", random_fraction=self.random_fraction, switch_fraction=self.switch_fraction)
        if self.policy is None and (self.action_noise or self.random_fraction):
            raise UserError(
                f"action_noise {self.action_noise} and random_fraction {self.random_fraction} need a policy; without "
                "one all actions are uniform"
            )
        if self.switch_fraction and self.embedding_dim == 0:
            raise UserError(
                f"switch_fraction {self.switch_fraction} needs a family of policies, got {type(self.policy).__name__}"
            )

    @property
    def embedding_dim(self) -> int:
        """Dimension Z of the embedding; 0 without a family."""
        return 0 if self.policy is None else self.policy.embedding_dim

    @property
    def stored_dim(self) -> int:
        """Dimension of the embedding in the data set: none where members change within a trajectory."""
        return 0 if self.switch_fraction else self.embedding_dim

    def redrawn(self, embedding: Tensor, ended: Tensor, generator: torch.Generator) -> Tensor:
        """Embeddings, shape (num_envs, Z), with new members of the family where a trajectory ended, (num_envs,)."""
        if self.switch_fraction:
            ended = ended | (torch.rand(ended.shape, generator=generator) < self.switch_fraction)
        if self.policy is None or self.embedding_dim == 0 or not bool(ended.any()):
            return embedding
        fresh = self.policy.embeddings(torch.rand(embedding.shape, generator=generator))
        return torch.where(ended[:, None], fresh, embedding)

    def act(self, observation: Tensor, embedding: Tensor | None, action_dim: int, generator: torch.Generator) -> Tensor:
        """Actions, shape (num_envs, A)."""
        size = (len(observation), action_dim)
        if self.policy is None:
            return _uniform(size, generator)
        action = self.policy.act(observation, embedding if self.embedding_dim else None, generator)
        if self.action_noise:
            action = (action + self.action_noise * torch.randn(size, generator=generator)).clamp(-1.0, 1.0)
        if self.random_fraction:
            at_random = torch.rand(size[0], 1, generator=generator) < self.random_fraction
            action = torch.where(at_random, _uniform(size, generator), action)
        return action


class _Blocks:
    """Steps of a batch of environments, a block of them at a time. The next block begins where the last one ended."""

    def __init__(self, env: EnvBase, num_envs: int, acting: _Acting, seed: int) -> None:
        self._env = env
        self._num_envs = num_envs
        self._acting = acting
        self._generator = torch.Generator().manual_seed(seed)
        self._action_shape = env.action_spec.shape
        observation_dim = env.observation_spec[OBSERVATION].shape[-1]
        self._entries = entries_of(observation_dim, self._action_shape[-1], acting.stored_dim)
        env.set_seed(seed)
        self._present = env.reset()
        none = torch.zeros(num_envs, acting.embedding_dim)
        self._embedding = acting.redrawn(none, torch.ones(num_envs, dtype=torch.bool), self._generator)

    @torch.no_grad()
    def take(self, steps: int) -> TensorDict:
        """Rows of the next steps, batch size (num_envs * steps,), those of one environment next to each other."""
        rows = {
            entry.key: torch.empty(self._num_envs, steps, entry.width, dtype=entry.dtype) for entry in self._entries
        }
        for step in range(steps):
            taken = self._step()
            for entry in self._entries:
                rows[entry.key][:, step] = taken[entry.key].reshape(self._num_envs, entry.width)
        # What follows the last steps comes in another block, elsewhere in the file.
        rows[TRUNCATED][:, -1] |= ~rows[DONE][:, -1]
        rows[DONE][:, -1] = True
        return TensorDict(rows, [self._num_envs, steps]).reshape(-1)

    def _step(self) -> TensorDictBase:
        observation = self._present[OBSERVATION].reshape(self._num_envs, -1)
        action = self._acting.act(observation, self._embedding, self._action_shape[-1], self._generator)
        self._present[ACTION] = action.reshape(self._action_shape)
        taken, self._present = self._env.step_and_maybe_reset(self._present)
        taken[EMBEDDING] = self._embedding.reshape(*taken.batch_size, -1)
        self._embedding = self._acting.redrawn(self._embedding, taken[DONE].flatten(), self._generator)
        return taken


def _uniform(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.rand(size, generator=generator) - 1.0


def _seed(seed: int, rows_written: int) -> int:
    """Seed of the environments and the noise after some rows: a continued collection must not repeat its start."""
    state: Any = np.random.SeedSequence([seed, rows_written]).generate_state(1)
    return int(state[0]) % 2**31
