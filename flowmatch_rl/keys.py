"""Keys of batches, those of transitions TorchRL's, and the one place where a batch becomes a dataclass."""

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from flowmatch_rl.types import Rollouts, Samples, Segment, Transition

OBSERVATION = "observation"
ACTION = "action"
REWARD = ("next", "reward")
NEXT_OBSERVATION = ("next", "observation")
TERMINATED = ("next", "terminated")
TRUNCATED = ("next", "truncated")
DONE = ("next", "done")
NEXT_ACTION = ("next", "action")
"""The action taken in the next observation, shape (B, A)."""
EMBEDDING = "embedding"
"""Name of the member of a family of policies that acted, shape (B, Z)."""

LENGTH = "length"
"""Steps that a transition of several steps took, shape (B, 1); its reward has shape (B, n)."""

TRANSITION = (OBSERVATION, ACTION, REWARD, NEXT_OBSERVATION, TERMINATED)
"""The entries that a replay buffer keeps of transitions of one step; those of several steps have ``LENGTH`` as well."""

REFERENCE = "reference"
"""Exact actions beside those of ``ACTION``, shape (N, A): how far apart two samples of one law are."""

SAMPLE = "sample"
CONDITION = "condition"
SOURCE = "source"
EXACT_LOG_PROB = "exact_log_prob"
"""Log-density of the samples under the law they were drawn from, nats, in the table's own units, shape (B,)."""


def read_samples(batch: Mapping[str, Tensor]) -> Samples:
    """Read a batch of samples.

    Args:
        batch: Tensors by key: ``SAMPLE`` of shape (B, D), perhaps ``CONDITION`` (B, C) and ``SOURCE`` (B, D).

    Returns:
        The samples.

    Raises:
        KeyError: If there are no samples; the message names what there is.
    """
    if SAMPLE not in batch:
        raise KeyError(f"the batch lacks {SAMPLE!r}; it holds {', '.join(sorted(batch))}")
    return Samples(batch[SAMPLE], batch.get(CONDITION), batch.get(SOURCE))


def read_transition(batch: TensorDictBase) -> Transition:
    """Read a batch of transitions.

    Args:
        batch: TensorDict of batch size (B,) with the keys of ``TRANSITION``; flags of shape (B, 1), rewards of shape
            (B, n), and ``LENGTH`` unless n is 1.

    Returns:
        The transitions, with flags and lengths of shape (B,).

    Raises:
        KeyError: If an entry is missing; the message names it.
    """

    def read(key: str | tuple[str, str]) -> Tensor:
        value = batch.get(key, None)
        if value is None:
            held = sorted(map(str, batch.keys(include_nested=True, leaves_only=True)))
            raise KeyError(f"the batch lacks {key!r}; it holds {', '.join(held)}")
        return value

    rewards, terminated = read(REWARD), read(TERMINATED).squeeze(-1)
    one_step = rewards.shape[-1] == 1
    return Transition(
        observation=read(OBSERVATION),
        action=read(ACTION),
        rewards=rewards,
        next_observation=read(NEXT_OBSERVATION),
        terminated=terminated,
        length=torch.ones_like(terminated, dtype=torch.long) if one_step else read(LENGTH).squeeze(-1),
    )


def read_segment(batch: Mapping[str, Tensor]) -> Segment:
    """Read a batch of segments.

    Args:
        batch: Tensors by the names of the attributes of ``Segment``.

    Returns:
        The segments.

    Raises:
        KeyError: If an entry is missing that may not be; the message names it.
    """
    return _read(Segment, batch, optional=("next_action", "future"))


def read_rollouts(batch: Mapping[str, Tensor]) -> Rollouts:
    """Read source states with the trajectories that begin there.

    Args:
        batch: Tensors by the names of the attributes of ``Rollouts``.

    Returns:
        The futures.

    Raises:
        KeyError: If an entry is missing that may not be; the message names it.
    """
    return _read(Rollouts, batch, optional=("states", "length", "ended"))


Read = TypeVar("Read", Segment, Rollouts)


def _read(kind: type[Read], batch: Mapping[str, Tensor], optional: tuple[str, ...]) -> Read:
    names = [field.name for field in dataclasses.fields(kind)]
    if missing := [name for name in names if name not in batch and name not in optional]:
        raise KeyError(f"the batch lacks {missing[0]!r}; it holds {', '.join(sorted(map(str, batch)))}")
    return kind(**{name: batch.get(name) for name in names})  # pyright: ignore[reportArgumentType]
