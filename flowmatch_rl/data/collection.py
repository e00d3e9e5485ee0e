"""Collects transitions of a policy into a data set on disk."""

import math
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from tqdm import tqdm

from flowmatch_rl.batches import ACTION, DONE, EMBEDDING, OBSERVATION, TRUNCATED
from flowmatch_rl.checks import RunError
from flowmatch_rl.data.store import TransitionStore, entries_of
from flowmatch_rl.data.writer import TransitionWriter
from flowmatch_rl.envs.environments import Environment, build_environment, spaces_of
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
    random_share: float = 0.0,
    progress: bool = True,
) -> TransitionStore:
    """Collect transitions into a data set of ordered rows.

    The environments are stepped together, and their steps written block by block. In the file the steps of one
    environment in one block follow each other; where the end of a block cuts a trajectory, that is marked as
    truncated, and goes on as another trajectory in the next block. A collection that was interrupted goes on when it
    is called again with the same arguments, its environments starting afresh.

    Args:
        environment: What to act in.
        path: Folder of the data set; see ``TransitionWriter``.
        num_transitions: Rows, each one step of one environment.
        policy: Who acts, on the CPU; actions are uniform in [-1, 1] if None. For a family of policies each trajectory
            has a member of its own, drawn anew at each reset and stored under ``embedding``.
        num_envs: Environments stepped together. Many are fast where the environment steps them as one batch, and make
            the trajectories shorter, since each takes its share of the rows.
        block_steps: Steps of each environment per block; an interruption loses a block at most.
        seed: Seed of environments, noise and embeddings.
        action_noise: Standard deviation of Gaussian noise added to the policy's actions, in the unit of [-1, 1]; the
            sums are clipped to that range.
        random_share: Share of the steps, drawn independently of each other, whose action is uniform instead.
        progress: Whether to show a bar.

    Returns:
        The data set.

    Raises:
        ValueError: If an argument does not fit, or the folder is occupied or holds another collection.
        RunError: If an observation, a reward or an action is not finite, or an action lies outside [-1, 1].
    """
    counts = {"num_transitions": num_transitions, "num_envs": num_envs, "block_steps": block_steps}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    acting = _Acting(policy, action_noise, random_share)
    probe = environment.make(render=False)
    spaces = spaces_of(probe, environment.label)
    columns = column_names(environment, probe)
    probe.close()
    writer = TransitionWriter(
        path,
        columns=columns,
        action_dim=spaces.action_dim,
        num_transitions=num_transitions,
        ordered=True,
        provenance={
            "made_by": "collect_transitions",
            "environment": repr(environment),
            "policy": repr(policy),
            "num_envs": num_envs,
            "block_steps": block_steps,
            "seed": seed,
            "action_noise": action_noise,
            "random_share": random_share,
        },
        action_low=spaces.action_low,
        action_high=spaces.action_high,
        embedding_dim=acting.embedding_dim,
    )
    bar = tqdm(
        total=num_transitions,
        initial=writer.rows_written,
        unit="row",
        unit_scale=True,
        desc=environment.label,
        disable=not progress,
    )
    env = build_environment(environment, num_envs)
    try:
        blocks = _Blocks(env, num_envs, acting, _seed(seed, writer.rows_written))
        while missing := num_transitions - writer.rows_written:
            block = blocks.take(min(block_steps, math.ceil(missing / num_envs)))[:missing]
            try:
                writer.append(block)
            except ValueError as error:
                raise RunError(f"{environment.label}: {error}") from error
            bar.update(len(block))
    finally:
        env.close()
        bar.close()
    return writer.finish()


def column_names(environment: Environment, env: EnvBase) -> tuple[str, ...]:
    """Names of the entries of an observation.

    Args:
        environment: The recipe; its ``columns`` are taken if it has them.
        env: The bare environment made from it.

    Returns:
        S names: of an entry ``key`` of the environment ``key_0``, ``key_1`` and so on, in the order in which
        ``build_environment`` concatenates the entries.
    """
    named: tuple[str, ...] | None = getattr(environment, "columns", None)
    if named is not None:
        return tuple(named)
    specs = dict(env.observation_spec.items(include_nested=True, leaves_only=True))
    widths = {str(key): spec.shape.numel() for key, spec in specs.items()}
    return tuple(f"{key}_{place}" for key in sorted(widths) for place in range(widths[key]))


class _Acting:
    """Actions of a policy with exploration."""

    def __init__(self, policy: Policy | None, action_noise: float, random_share: float) -> None:
        if not 0.0 <= action_noise < math.inf:
            raise ValueError(f"action_noise must be finite and at least 0, got {action_noise}")
        if not 0.0 <= random_share <= 1.0:
            raise ValueError(f"random_share must lie in [0, 1], got {random_share}")
        if policy is None and (action_noise or random_share):
            raise ValueError(
                f"action_noise {action_noise} and random_share {random_share} need a policy; without one all actions "
                "are uniform"
            )
        self.policy = policy
        self._noise = action_noise
        self._random_share = random_share

    @property
    def embedding_dim(self) -> int:
        """Dimension Z of the embedding; 0 without a family."""
        return 0 if self.policy is None else self.policy.embedding_dim

    def redrawn(self, embedding: Tensor, ended: Tensor, generator: torch.Generator) -> Tensor:
        """Embeddings, shape (num_envs, Z), with new members of the family where a trajectory ended, (num_envs,)."""
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
        if self._noise:
            action = (action + self._noise * torch.randn(size, generator=generator)).clamp(-1.0, 1.0)
        if self._random_share:
            at_random = torch.rand(size[0], 1, generator=generator) < self._random_share
            action = torch.where(at_random, _uniform(size, generator), action)
        return action


class _Blocks:
    """Steps of a batch of environments, a block of them at a time. The next block goes on where the last one ended."""

    def __init__(self, env: EnvBase, num_envs: int, acting: _Acting, seed: int) -> None:
        self._env = env
        self._num_envs = num_envs
        self._acting = acting
        self._generator = torch.Generator().manual_seed(seed)
        self._action_shape = env.action_spec.shape
        observation_dim = env.observation_spec[OBSERVATION].shape[-1]
        self._entries = entries_of(observation_dim, self._action_shape[-1], acting.embedding_dim, False)
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
