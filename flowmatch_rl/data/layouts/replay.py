"""The replay buffer in the checkpoint of an actor-critic."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.batches import ACTION, LENGTH, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED
from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import UserError
from flowmatch_rl.data.layouts.base import ArrayLayout, Rows, vector_names
from flowmatch_rl.data.replay_log import with_rows
from flowmatch_rl.data.transitions.store import StoreInfo
from flowmatch_rl.envs.building import examine
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.ranks import states_of_ranks
from flowmatch_rl.schema import ActionBounds


@dataclass(frozen=True)
class CheckpointReplay(ArrayLayout):
    """The replay buffer in the checkpoint of an actor-critic.

    Actions are in [-1, 1], and their bounds in the checkpoint. Rows come trajectory by trajectory, whichever of several
    environments took them: a row follows the latest one that arrived where it begins. What ends without a termination,
    and where nothing follows, is truncated. Transitions of several steps become those of their first step; the last
    ones of the buffer, whose next step is not in it, are left out. Of a run of several processes the checkpoint holds
    the buffer of the first.

    Args:
        path: The checkpoint, a ``.ckpt`` file.
        environment: Environment of the run, for the names of the entries of an observation.
        columns: Names of the entries of an observation; by default those of the environment, ``observation_0`` and so
            on without one.
        action_low: Not for this layout.
        action_high: Not for this layout.

    Raises:
        UserError: If bounds of the action are given, or the buffer holds chunks of actions.
    """

    environment: Environment | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action_low is not None:
            raise UserError(
                f"got action_low {self.action_low} and action_high {self.action_high}, but the actions of a replay "
                "buffer are in [-1, 1], and their bounds in its checkpoint; leave them out"
            )

    def describe(self) -> StoreInfo:
        """Read the buffer and the bounds of its actions."""
        buffer, bounds = _read(self.path)
        held = len(buffer[ACTION])
        steps = _single_steps(buffer)
        if not len(steps.kept):
            raise UserError(
                f"the replay buffer of {self.path!r} holds transitions of {buffer[REWARD].shape[1]} steps of several "
                "environments, whose first steps cannot be told apart; train with n_steps 1 or num_envs 1"
            )
        names = vector_names("observation", buffer[OBSERVATION].shape[1])
        if self.environment is not None:
            names = self._environment_names(self.environment, len(names))
        remarks = [
            f"its last policy: --model.policy CheckpointPolicy --model.policy.path {self.path}",
        ]
        if held > len(steps.kept):
            remarks.append(f"{held - len(steps.kept)} of {held} rows were left out: the step after them is not held")
        info = self.description(self.column_names(names), buffer[ACTION].shape[1], len(steps.kept), remarks=remarks)
        return info if bounds is None else replace(info, action_low=bounds.low, action_high=bounds.high)

    def rows(self) -> Iterator[Rows]:
        """Read the transitions, trajectory by trajectory in the order in which they began."""
        buffer, _ = _read(self.path)
        steps = _single_steps(buffer)
        observation = buffer[OBSERVATION][steps.kept]
        order, last = trajectories(observation, steps.arrival, steps.terminated)
        rows, terminated = steps.kept[order], steps.terminated[order]
        yield Rows(
            place=f"the replay buffer of {self.path!r}",
            observation=observation[order],
            action=buffer[ACTION][rows].astype(np.float64),
            reward=buffer[REWARD][rows, 0],
            next_observation=steps.arrival[order],
            terminated=terminated,
            truncated=last & ~terminated,
        )

    def _environment_names(self, environment: Environment, observation_dim: int) -> list[str]:
        """Names of the entries of an observation in the environment."""
        _, names = examine(environment)
        if len(names) != observation_dim:
            raise UserError(
                f"{environment.label} has observations of dimension {len(names)}, those in {self.path!r} are of "
                f"dimension {observation_dim}; name the environment of the run"
            )
        return list(names)


@dataclass(frozen=True)
class _Steps:
    """Transitions of one step.

    Attributes:
        kept: Rows of the buffer that they begin at, ascending, shape (B,).
        arrival: States after the step, shape (B, S).
        terminated: Whether these are terminal, boolean, shape (B,).
    """

    kept: np.ndarray
    arrival: np.ndarray
    terminated: np.ndarray


def _read(path: str) -> tuple[dict[Any, np.ndarray], ActionBounds | None]:
    """The entries of a replay buffer by their keys in batches, oldest row first, and the bounds of its actions."""
    content = read_checkpoint(path, memory_map=True)
    # A data module writes its state under the name of its class, with several processes that of each.
    parts = [part for part in content.values() if isinstance(part, dict)]
    states = [with_rows(state, path) for part in parts for state in states_of_ranks(part)]
    states = [state for state in states if "replay" in state]
    if not states:
        raise UserError(
            f"{path!r} holds no replay buffer: it is not of an actor-critic, or of a run with checkpoint_replay false"
        )
    if (chunk := states[0].get("action_chunk", 1)) > 1:
        raise UserError(
            f"the replay buffer of {path!r} holds transitions of action_chunk {chunk}, which lack the last steps of "
            "episodes; only those of single actions can be converted"
        )
    held: dict[str, Tensor] = {
        name: torch.cat([state["replay"][name] for state in states]) for name in states[0]["replay"]
    }
    keys = (OBSERVATION, ACTION, REWARD, NEXT_OBSERVATION, TERMINATED, LENGTH)
    named = {key: "/".join(key) if isinstance(key, tuple) else key for key in keys}
    arrays = {key: held[name].numpy() for key, name in named.items() if name in held}
    return arrays, content["hyper_parameters"].get("action_bounds")


def _single_steps(buffer: Mapping[Any, np.ndarray]) -> _Steps:
    """The first step of each transition of a buffer, where it is known where it led."""
    arrival, terminated = buffer[NEXT_OBSERVATION], buffer[TERMINATED][:, 0]
    rows = np.arange(len(arrival))
    if LENGTH not in buffer:
        return _Steps(rows, arrival, terminated)
    # Transitions of one environment are in the order of their first steps, so that the row after a transition begins
    # where its first step led, if it is of the same environment. It is where the steps are all there: where the row
    # at a distance of ``length`` begins where this one arrived, or the one before that is the last of its episode.
    observation, length = buffer[OBSERVATION], buffer[LENGTH][:, 0]
    alone, after = length == 1, np.minimum(rows + length, len(rows) - 1)
    goes_on = (rows + length < len(rows)) & (observation[after] == arrival).all(1)
    end = np.minimum(rows + length, len(rows)) - 1
    ends = (rows + length <= len(rows)) & (length[end] == 1) & (arrival[end] == arrival).all(1)
    kept = rows[alone | goes_on | ends]
    led = np.where(alone[:, None], arrival, observation[np.minimum(rows + 1, len(rows) - 1)])
    return _Steps(kept, led[kept], (terminated & alone)[kept])


def trajectories(observation: np.ndarray, arrival: np.ndarray, terminated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order of transitions in which those of a trajectory follow each other.

    Args:
        observation: States that the transitions begin in, those of each trajectory in their order, shape (B, S).
        arrival: States that they lead to, shape (B, S).
        terminated: Whether these are terminal, boolean, shape (B,).

    Returns:
        Rows, trajectory by trajectory in the order of their first ones, shape (B,), and whether each is the last of its
        trajectory, boolean, shape (B,).
    """
    follower = np.full(len(observation), -1)
    first: list[int] = []
    waiting: dict[bytes, list[int]] = {}
    for row in range(len(observation)):
        begun = observation[row].tobytes()
        before = waiting.get(begun)
        if before:
            follower[before.pop()] = row
            if not before:
                del waiting[begun]
        else:
            first.append(row)
        if not terminated[row]:
            waiting.setdefault(arrival[row].tobytes(), []).append(row)
    order = []
    for row in first:
        while row >= 0:
            order.append(row)
            row = int(follower[row])
    rows = np.array(order, dtype=np.int64)
    return rows, follower[rows] < 0
