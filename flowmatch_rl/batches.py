"""Keys of batches, which are TorchRL's for transitions, and the dataclasses that batches are read into."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

OBSERVATION = "observation"
ACTION = "action"
REWARD = ("next", "reward")
NEXT_OBSERVATION = ("next", "observation")
TERMINATED = ("next", "terminated")
TRUNCATED = ("next", "truncated")
DONE = ("next", "done")
SUCCESS = ("next", "success")
"""Whether the task is solved, as the environment reports it, shape (B, 1); only where it does."""
NEXT_ACTION = ("next", "action")
"""The action taken in the next observation, shape (B, A)."""
EMBEDDING = "embedding"
"""Embedding of the policy that acted, if it is one of a family, shape (B, Z)."""

GOAL = "goal"
"""Goal that a transition is relabelled with, in the units of the environment, shape (B, G)."""

ACTION_CHUNK = "action_chunk"
"""The h actions, side by side, that an action taken by ``OpenLoop`` is one of, shape (B, h A)."""

LENGTH = "length"
"""Number of steps of a multi-step transition, shape (B, 1); its reward has shape (B, n)."""

FAMILY_OBSERVATION = ("family", "observation")
FAMILY_ACTIONS = ("family", "actions")
FAMILY_VALUES = ("family", "values")
"""States (B, S), actions of members of a family of policies there (B, M, A), and their values (B, M)."""
TRANSITION = (OBSERVATION, ACTION, REWARD, NEXT_OBSERVATION, TERMINATED)
"""Entries of a one-step transition in a replay buffer; a multi-step transition also has ``LENGTH``."""

REFERENCE = "reference"
"""A second sample of exact actions, shape (N, A), to measure the distance between two samples of one distribution."""

SAMPLE = "sample"
CONDITION = "condition"
SOURCE = "source"
EXACT_LOG_PROB = "exact_log_prob"
"""Log-density of the samples in the distribution they come from, nats, in the table's own units, shape (B,)."""


@dataclass(frozen=True)
class FamilyValues:
    """Values of the members of a family of policies at some states, estimated from future states.

    Attributes:
        observation: States, shape (B, S).
        actions: First actions of M members, in [-1, 1], shape (B, M, A).
        values: Estimated values of taking them and following the member, units of the return, shape (B, M).
    """

    observation: Tensor
    actions: Tensor
    values: Tensor


@dataclass(frozen=True)
class Transition:
    """A batch of transitions of up to n steps each.

    Attributes:
        observation: State the first action was taken in, shape (B, S).
        action: First action, in [-1, 1], shape (B, A).
        rewards: Rewards of the steps, not discounted, shape (B, n); padding beyond ``length``.
        next_observation: State arrived at after the last step, shape (B, S).
        terminated: Whether the arrival state is terminal, boolean, shape (B,). A time limit is not a termination.
        length: Steps taken, in 1, ..., n, integer, shape (B,); fewer than n at the end of an episode.
        goal: Goal that it is relabelled with, in the units of the environment, shape (B, G), or None.
        family: Values of a family of policies, at other states; None where the data hold none.
    """

    observation: Tensor
    action: Tensor
    rewards: Tensor
    next_observation: Tensor
    terminated: Tensor
    length: Tensor
    goal: Tensor | None = None
    family: FamilyValues | None = None

    @property
    def reward(self) -> Tensor:
        """Reward of the first step, shape (B,)."""
        return self.rewards[:, 0]


@dataclass(frozen=True)
class Segment:
    """A batch of trajectory segments of up to n consecutive steps, in the units of the environment.

    Attributes:
        observation: State the first action was taken in, shape (B, S).
        action: First action, in [-1, 1], shape (B, A).
        arrivals: States at times 1, ..., n, shape (B, n, S).
        terminated: Whether they are terminal, boolean, shape (B, n).
        length: How many of the n steps were taken, in 1, ..., n, integer, shape (B,); the rest is padding.
        next_action: Action at time ``length`` in the data, shape (B, A), or None where it is unknown.
        embedding: Embedding of the policy that acted, shape (B, Z); Z is 0 for a single policy.
        future: A sample of the occupancy from the same trajectory, shape (B, S), or None.
    """

    observation: Tensor
    action: Tensor
    arrivals: Tensor
    terminated: Tensor
    length: Tensor
    next_action: Tensor | None
    embedding: Tensor
    future: Tensor | None


@dataclass(frozen=True)
class SegmentNeeds:
    """Requirements of a module on the segments it is trained on.

    Attributes:
        num_steps: Steps n of a segment, at least 1.
        next_action: Whether the action after the segment must be known.
        future_discounts: Maps uniform noise (B,) to the discounts (B,) of the occupancies that ``Segment.future`` is
            drawn from; None if it is not needed.
    """

    num_steps: int = 1
    next_action: bool = False
    future_discounts: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class ActionTrials:
    """Requirements of a test on the actions that are tried in its source states.

    Attributes:
        num_actions: Actions tried in each state; 0 for none.
        num_steps: Steps of the trajectories after them, at most.
    """

    num_actions: int = 0
    num_steps: int = 1


@dataclass(frozen=True)
class Rollouts:
    """N source states and trajectories of a policy that start there, in the units of the environment.

    Attributes:
        observation: States at time 0, shape (N, S).
        action: Actions of the policy there, shape (N, A).
        embedding: Embeddings of the policies that act, shape (N, Z).
        states: States at times 1, ..., T of R trajectories each, shape (N, R, T, S), or None without trajectories;
            a terminal state is repeated.
        length: Steps of each trajectory that are known, shape (N, R), or None; T for those that terminated.
        ended: Whether each trajectory had terminated by then, boolean, shape (N, R, T), or None.
        tried_actions: Other first actions tried in each state, uniform on [-1, 1]^A, shape (N, M, A), or None.
        tried_states: States at times 1, ..., T of trajectories after each of them, shape (N, M, R, T, S), or None; a
            terminal state is repeated. Trajectory r may share its noise between all actions of a state.
        tried_ended: Whether each of these had terminated by then, boolean, shape (N, M, R, T), or None.
        actions: Actions at times 1, ..., T, shape (N, R, T, A), of which the last is unknown and padding; None where
            they are not recorded.
    """

    observation: Tensor
    action: Tensor
    embedding: Tensor
    states: Tensor | None
    length: Tensor | None
    ended: Tensor | None
    tried_actions: Tensor | None = None
    tried_states: Tensor | None = None
    tried_ended: Tensor | None = None
    actions: Tensor | None = None


@dataclass(frozen=True)
class Samples:
    """A batch of standardised samples.

    Attributes:
        sample: Samples, shape (B, D).
        condition: What they are conditioned on, shape (B, C), or None.
        source: Points that the samples are paired with at t = 0, shape (B, D), or None to draw them.
    """

    sample: Tensor
    condition: Tensor | None = None
    source: Tensor | None = None


def read_samples(batch: Mapping[str, Tensor]) -> Samples:
    """Read a batch of samples.

    Args:
        batch: Tensors by key: ``SAMPLE`` of shape (B, D), perhaps ``CONDITION`` (B, C) and ``SOURCE`` (B, D).

    Returns:
        The samples.

    Raises:
        KeyError: If there are no samples; the message lists the keys of the batch.
    """
    if SAMPLE not in batch:
        raise KeyError(f"the batch lacks {SAMPLE!r}; it holds {', '.join(sorted(batch))}")
    return Samples(batch[SAMPLE], batch.get(CONDITION), batch.get(SOURCE))


def read_transition(batch: TensorDictBase) -> Transition:
    """Read a batch of transitions.

    Args:
        batch: TensorDict of batch size (B,) with the keys of ``TRANSITION``; flags of shape (B, 1), rewards of shape
            (B, n), and ``LENGTH`` unless n is 1; perhaps ``GOAL``.

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

    family = None
    if batch.get(FAMILY_VALUES, None) is not None:
        family = FamilyValues(read(FAMILY_OBSERVATION), read(FAMILY_ACTIONS), read(FAMILY_VALUES))
    rewards, terminated = read(REWARD), read(TERMINATED).squeeze(-1)
    one_step = rewards.shape[-1] == 1
    return Transition(
        observation=read(OBSERVATION),
        action=read(ACTION),
        rewards=rewards,
        next_observation=read(NEXT_OBSERVATION),
        terminated=terminated,
        length=torch.ones_like(terminated, dtype=torch.long) if one_step else read(LENGTH).squeeze(-1),
        goal=batch.get(GOAL, None),
        family=family,
    )


def read_segment(batch: Mapping[str, Tensor]) -> Segment:
    """Read a batch of segments.

    Args:
        batch: Tensors by the names of the attributes of ``Segment``.

    Returns:
        The segments.

    Raises:
        KeyError: If a required entry is missing; the message names it.
    """
    return _read(Segment, batch, optional=("next_action", "future"))


def read_rollouts(batch: Mapping[str, Tensor]) -> Rollouts:
    """Read source states and the trajectories that start there.

    Args:
        batch: Tensors by the names of the attributes of ``Rollouts``.

    Returns:
        The roll-outs.

    Raises:
        KeyError: If a required entry is missing; the message names it.
    """
    tried = ("tried_actions", "tried_states", "tried_ended")
    return _read(Rollouts, batch, optional=("states", "length", "ended", "actions", *tried))


Read = TypeVar("Read", Segment, Rollouts)


def _read(kind: type[Read], batch: Mapping[str, Tensor], optional: tuple[str, ...]) -> Read:
    names = [field.name for field in dataclasses.fields(kind)]
    if missing := [name for name in names if name not in batch and name not in optional]:
        raise KeyError(f"the batch lacks {missing[0]!r}; it holds {', '.join(sorted(map(str, batch)))}")
    return kind(**{name: batch.get(name) for name in names})  # pyright: ignore[reportArgumentType]
