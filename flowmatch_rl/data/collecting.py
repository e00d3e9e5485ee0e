"""Collection of transitions: a policy acts in an environment while it trains, and its steps fill a replay buffer."""

import contextlib
import math
from collections import deque
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from tensordict import TensorDictBase

from flowmatch_rl.batches import DONE
from flowmatch_rl.checks import RunError
from flowmatch_rl.data.block_sources import EPISODE_RETURN, Beginning, BlockSource, OwnBlocks, WorkerBlocks
from flowmatch_rl.data.collection_settings import CollectionSettings
from flowmatch_rl.data.division import divided_state, division_line
from flowmatch_rl.data.episodes import EpisodeData
from flowmatch_rl.data.kept_replay import KeptReplay
from flowmatch_rl.data.replay import Replay
from flowmatch_rl.data.replay_log import FILES, with_rows
from flowmatch_rl.endings import mark_action, mark_stage
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.generators import kept_generators
from flowmatch_rl.interrupts import uninterrupted
from flowmatch_rl.ranks import own_state, states_of_ranks
from flowmatch_rl.seeds import process_seed

NOTHING_COLLECTED: dict[str, Any] = {"local_env_steps": 0, "pending_updates": 0.0}
"""State of a collection before its first step."""

_MOST_RETURNS = 20
"""Latest episodes whose returns are kept."""


class Collection:
    """Steps of the policy of one process, collected with TorchRL at a fixed ratio to the batches that it is asked for.

    A resumed run of as many processes continues the episodes where the state of the environment can be written down,
    see ``envs.states``. Elsewhere it says why it begins new ones, and drops the steps that were waiting for those that
    follow, see ``Replay``. Another number of processes divide the transitions among them, see ``division``.

    Args:
        data: The data module that owns this, which knows the trained module and the processes.
        environment: Environment to act in.
        settings: How much is collected and kept.
    """

    def __init__(self, data: EpisodeData, environment: Environment, settings: CollectionSettings) -> None:
        self._data, self._environment, self._settings = data, environment, settings
        self._batches = 0  # that were returned
        self.recent_returns: deque[float] = deque(maxlen=_MOST_RETURNS)
        self._local_env_steps = 0
        self._extra_env_steps = 0  # of an earlier run in another number of processes, which does not divide them evenly
        self._pending_updates = 0.0
        self._replay = KeptReplay(data, settings)
        self._source: BlockSource | None = None
        self._is_collecting = False
        self._saved_processes = 1  # of the run that is resumed
        self._held: dict[str, Any] | None = None  # state of the episodes in a checkpoint, until they continue

    @property
    def env_steps(self) -> int:
        """Environment steps taken so far, over all processes."""
        return self._total_env_steps(self._local_env_steps)

    @property
    def policy_ages(self) -> deque[int]:
        """Updates by which the policy of the latest blocks was behind; empty without ``workers``."""
        return deque() if self._source is None else self._source.ages

    @property
    def replay(self) -> TensorDictBase | None:
        """Transitions that this process holds, oldest first and on the CPU, batch size (N,); None before the first."""
        return self._replay.rows

    def next_batch(self) -> TensorDictBase:
        """A batch from the replay buffer, after collecting at the set ratio."""
        replay = self._ready_replay()
        while self._pending_updates < 1.0:
            self._collect(replay, self._settings.updates_per_env_step)
        self._pending_updates -= 1.0
        self._batches += 1
        return replay.sample()

    def close(self) -> None:
        """Close the environments; the next batch begins new episodes."""
        if self._source is not None:
            self._source.close()
        self._source = None

    def state_dict(self) -> dict[str, Any]:
        """Counters and, if so configured, the replay buffer of this process and the state of its episodes."""
        state: dict[str, Any] = {"local_env_steps": self._local_env_steps, "pending_updates": self._pending_updates}
        if self._extra_env_steps:
            state["extra_env_steps"] = self._extra_env_steps
        if self._data.action_chunk > 1:
            state["action_chunk"] = self._data.action_chunk
        held = self._replay.state_dict() if self._settings.checkpoint_replay else {}
        return state | held | {"episodes": self._episodes()} if held else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore counters, replay buffer and episodes, in place of what was collected so far.

        Args:
            state_dict: State of one process, or of all of them, see ``ranks``.

        Raises:
            UserError: If the transitions of the replay buffer have another number of steps or actions.
        """
        self.close()
        self.recent_returns.clear()
        state_dict = self._state_of_this_process(state_dict)
        self._replay.load_state_dict(state_dict)
        self._local_env_steps = state_dict["local_env_steps"]
        self._extra_env_steps = state_dict.get("extra_env_steps", 0)
        self._pending_updates = state_dict["pending_updates"]
        episodes: Any = state_dict.get("episodes") or {"unknown": "the checkpoint does not hold their state"}
        reason = self._reason_for_new_episodes(episodes)
        if reason and self._local_env_steps:
            rank_zero_only(print)(f"{self._environment.label} begins new episodes: {reason}")
        self._held = None if reason else episodes
        self.recent_returns.extend([] if reason else episodes["returns"])

    def _state_of_this_process(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """What this process continues with, of the states of all processes of the run that is resumed."""
        states, rank, processes = states_of_ranks(state_dict), self._data.rank, self._data.world_size
        capacity = self._settings.buffer_capacity
        self._saved_processes = len(states)
        if len(states) == processes:
            return own_state(state_dict, rank)
        if self._settings.checkpoint_replay and any(FILES in state for state in states):
            states = [with_rows(state, self._data.checkpoint_path) for state in states]
        if line := division_line(states, processes, capacity):
            rank_zero_only(print)(f"{self._environment.label}: {line}")
        return divided_state(states, rank, processes, capacity)

    def _episodes(self) -> dict[str, Any] | None:
        """The state of the environment and of its episodes, or why it is not known; None before the first."""
        if self._source is None or self._replay.buffer is None:
            return self._held
        if self._is_collecting:
            return {"unknown": "the run was ended within a step"}
        state = self._source.state_dict()
        if "unknown" in state:
            return state
        beside = {"returns": list(self.recent_returns), "replay": self._replay.buffer.state_dict()}
        return {"recipe": self._recipe} | state | beside

    def _reason_for_new_episodes(self, held: dict[str, Any]) -> str:
        """Why the episodes of a checkpoint cannot continue; empty if they can."""
        if self._saved_processes != self._data.world_size:
            return f"it ran in {self._saved_processes} processes, now in {self._data.world_size}"
        if "unknown" in held:
            return held["unknown"]
        return "" if held["recipe"] == self._recipe else "the run that is resumed has another environment or workers"

    @property
    def _recipe(self) -> str:
        """What must be alike for episodes to continue."""
        workers = self._settings.workers
        beside = "" if workers is None else f" by {workers.number} workers"
        return f"{self._settings.num_envs} x {self._environment!r}{beside}"

    def _total_env_steps(self, local: int) -> int:
        """Environment steps of all processes, when this one has taken a number of them."""
        return local * self._data.world_size + self._extra_env_steps

    def _ready_replay(self) -> Replay:
        """The replay buffer, filled by warm-up (or from a checkpoint) before its first use."""
        buffer = self._replay.buffer
        replay = self._replay.make(None if self._held is None else self._held["replay"]) if buffer is None else buffer
        while self._local_env_steps < self._local_warmup() or len(replay) < self._settings.batch_size:
            if self._data.is_ending:  # between two blocks: a warm-up may take long
                break
            self._collect(replay, 0.0)
            if len(replay) == 0 and len(self.recent_returns) == _MOST_RETURNS:
                raise RunError(
                    f"{_MOST_RETURNS} episodes of {self._environment.label} or more, {self._local_env_steps} steps, "
                    f"are shorter than action_chunk {self._data.action_chunk}: they make no transition"
                )
        if buffer is None:
            mark_stage()
            self._data.end_if_asked()
        return replay

    def _local_warmup(self) -> int:
        """Warm-up steps of this process."""
        return math.ceil(self._settings.warmup_env_steps / self._data.world_size)

    def _collect(self, replay: Replay, updates_per_env_step: float) -> None:
        """Collect one block into the replay buffer; each of its steps makes so many updates due."""
        if self._source is None and self._held is None:
            replay.begin_episodes()
        source = self._begin() if self._source is None else self._source
        self._is_collecting = True
        try:
            block = source.block().reshape(-1)
        except RunError:
            self._data.module.check_finite()  # a network that has diverged is the cause, not what it made of a state
            raise
        if source.was_cut:
            replay.begin_episodes()
        ended = block[DONE].squeeze(-1)
        self.recent_returns.extend(block[EPISODE_RETURN].squeeze(-1)[ended].tolist())
        with uninterrupted():  # a checkpoint of an interrupted run counts the steps that its buffer holds
            replay.add(block.reshape(self._settings.num_envs, -1))
            self._local_env_steps += len(block)
            self._pending_updates += len(block) * updates_per_env_step
            self._is_collecting = False
        mark_action()  # environments in processes of their own count there

    def _begin(self) -> BlockSource:
        """Begin episodes, or continue those of a checkpoint; then no number is drawn that others would miss."""
        before, settings = self._local_env_steps, self._settings
        remaining = max(0, self._local_warmup() - before) if settings.random_warmup else 0
        # The seed depends on the step as well, so that a resumed run does not see its first episodes again.
        seed = process_seed(torch.initial_seed(), self._data.rank, before) % 2**31
        beginning = Beginning(seed, remaining, lambda taken: self._total_env_steps(before + taken), self._held)
        parts = self._data, self._environment, settings
        with contextlib.nullcontext() if self._held is None else kept_generators():
            if settings.workers is None:
                self._source = OwnBlocks(*parts, beginning)
            else:
                self._source = WorkerBlocks(*parts, settings.workers, beginning, lambda: self._batches)
        self._held = None
        return self._source
