"""Collection of transitions: a policy acts in an environment while it trains, and its steps fill a replay buffer."""

import contextlib
import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from tensordict import TensorDict, TensorDictBase

from flowmatch_rl.batches import DONE, REWARD, TRANSITION
from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.data.ahead import AheadCollector, CollectorWorkers, Recipe
from flowmatch_rl.data.collector import StepCollector
from flowmatch_rl.data.division import divided_state, division_line
from flowmatch_rl.data.episodes import EpisodeData
from flowmatch_rl.data.replay import Replay, Restored, RestoredRows
from flowmatch_rl.data.replay_log import FILES, Named, ReplayLog, folders_beside, with_rows
from flowmatch_rl.data.replay_storage import ReplayStorage
from flowmatch_rl.endings import mark_action, mark_stage
from flowmatch_rl.envs.building import build_environment, read_environment, write_environment
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.envs.states import UnknownStateError
from flowmatch_rl.generators import kept_generators
from flowmatch_rl.interrupts import uninterrupted
from flowmatch_rl.ranks import own_state, states_of_ranks
from flowmatch_rl.seeds import process_seed

NOTHING_COLLECTED: dict[str, Any] = {"local_env_steps": 0, "pending_updates": 0.0}
"""State of a collection before its first step."""

_RETURN = ("next", "episode_reward")
_ENTRIES = (*TRANSITION, DONE, _RETURN)
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
        warmup_env_steps: Steps before the first batch, over all processes; more where they make fewer transitions than
            a batch takes.
        updates_per_env_step: Batches per environment step of a process, positive.
        batch_size: Transitions per batch.
        buffer_capacity: Transitions kept; the oldest are dropped.
        num_envs: Environments stepped together.
        parallel: Whether each environment runs in a process of its own.
        env_steps_per_collection: Steps collected at a time, a multiple of ``num_envs``.
        n_steps: Steps of a transition, at least 1.
        checkpoint_replay: Whether ``state_dict`` holds the replay buffer.
        storage: Where the replay buffer lies.
        random_warmup: Whether the actions of the warm-up are random, not the policy's.
        workers: Workers that collect while the caller trains; None to collect in this one, before a batch.

    Raises:
        UserError: If a number does not fit.
    """

    def __init__(
        self,
        data: EpisodeData,
        environment: Environment,
        warmup_env_steps: int,
        updates_per_env_step: float,
        batch_size: int,
        buffer_capacity: int,
        num_envs: int,
        parallel: bool,
        env_steps_per_collection: int,
        n_steps: int,
        checkpoint_replay: bool,
        storage: ReplayStorage,
        random_warmup: bool,
        workers: CollectorWorkers | None = None,
    ) -> None:
        check_range(
            "[1, inf)",
            batch_size=batch_size,
            buffer_capacity=buffer_capacity,
            num_envs=num_envs,
            env_steps_per_collection=env_steps_per_collection,
            n_steps=n_steps,
        )
        check_range("(0, inf)", updates_per_env_step=updates_per_env_step)
        if batch_size > buffer_capacity:
            raise UserError(f"buffer_capacity {buffer_capacity} is less than the {batch_size} transitions of a batch")
        if env_steps_per_collection % num_envs:
            raise UserError(
                f"env_steps_per_collection {env_steps_per_collection} must be a multiple of num_envs {num_envs}"
            )
        if workers is not None:
            workers.check(num_envs, parallel)
        self._data, self._environment = data, environment
        self._workers = workers
        self._batches = 0  # that were returned
        self._warmup_env_steps, self._random_warmup = warmup_env_steps, random_warmup
        self._updates_per_env_step = updates_per_env_step
        self._batch_size, self._capacity, self._n_steps = batch_size, buffer_capacity, n_steps
        self._num_envs, self._parallel, self._block_steps = num_envs, parallel, env_steps_per_collection
        self._checkpoint_replay, self._storage = checkpoint_replay, storage
        self.recent_returns: deque[float] = deque(maxlen=_MOST_RETURNS)
        self._local_env_steps = 0
        self._extra_env_steps = 0  # of an earlier run in another number of processes, which does not divide them evenly
        self._pending_updates = 0.0
        self._replay: Replay | None = None
        self._restored: Restored | None = None  # transitions of a checkpoint, until the buffer is made
        self._log: ReplayLog | None = None
        self._collector: StepCollector | AheadCollector | None = None
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
        return self._collector.ages if isinstance(self._collector, AheadCollector) else deque()

    @property
    def replay(self) -> TensorDictBase | None:
        """Transitions that this process holds, oldest first and on the CPU, batch size (N,); None before the first."""
        if self._replay is not None and len(self._replay):
            return self._replay.transitions
        restored = self._restored
        return None if restored is None else torch.cat(list(restored.read(0, len(restored))))  # pyright: ignore

    def next_batch(self) -> TensorDictBase:
        """A batch from the replay buffer, after collecting at the set ratio."""
        replay = self._ready_replay()
        while self._pending_updates < 1.0:
            self._collect(replay, self._updates_per_env_step)
        self._pending_updates -= 1.0
        self._batches += 1
        return replay.sample()

    def close(self) -> None:
        """Close the environments; the next batch begins new episodes."""
        if self._collector is not None:
            self._collector.shutdown()
        self._collector = None

    def state_dict(self) -> dict[str, Any]:
        """Counters and, if so configured, the replay buffer of this process and the state of its episodes."""
        state: dict[str, Any] = {"local_env_steps": self._local_env_steps, "pending_updates": self._pending_updates}
        if self._extra_env_steps:
            state["extra_env_steps"] = self._extra_env_steps
        if self._data.action_chunk > 1:
            state["action_chunk"] = self._data.action_chunk
        if not self._checkpoint_replay:
            return state
        held = self._log_state() if self._storage.is_logged else self._replay_state()
        return state | held | {"episodes": self._episodes()} if held else state

    def _replay_state(self) -> dict[str, Any]:
        """The transitions, oldest first, so that a resumed run overwrites in the same order; empty before the first."""
        held = self.replay
        return {} if held is None else {"replay": dict(held.flatten_keys("/").items())}

    def _log_state(self) -> dict[str, Any]:
        """The names of the files that hold the transitions, once those are written that none holds."""
        if self._replay is None and isinstance(self._restored, RestoredRows):
            return self._replay_state()  # until the buffer is made
        if self._replay is not None and len(self._replay):
            log = self._ready_log()
            log.save(self._replay)
            log.prune(self._data.checkpoint_folders)
        return {FILES: self._log.held.state_dict()} if self._log is not None and len(self._log.held) else {}

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
        self._replay = self._log = None
        self._restored = restored = self._held_by(state_dict)
        if restored is not None:
            steps = next(restored.read(0, 1))[REWARD].shape[1]
            if steps != self._n_steps:
                raise UserError(f"the checkpoint's replay buffer has n_steps {steps}, this run {self._n_steps}")
            chunk = state_dict.get("action_chunk", 1)
            if chunk != self._data.action_chunk:
                own = self._data.action_chunk
                raise UserError(f"the checkpoint's replay buffer has action_chunk {chunk}, this run {own}")
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
        self._saved_processes = len(states)
        if len(states) == processes:
            return own_state(state_dict, rank)
        if self._checkpoint_replay and any(FILES in state for state in states):
            states = [with_rows(state, self._data.checkpoint_path) for state in states]
        if line := division_line(states, processes, self._capacity):
            rank_zero_only(print)(f"{self._environment.label}: {line}")
        return divided_state(states, rank, processes, self._capacity)

    def _total_env_steps(self, local: int) -> int:
        """Environment steps of all processes, when this one has taken a number of them."""
        return local * self._data.world_size + self._extra_env_steps

    def _held_by(self, state: dict[str, Any]) -> Restored | None:
        """The transitions of a checkpoint, in this process's own files where the buffer is logged."""
        if FILES in state and not self._checkpoint_replay:
            return None
        if FILES in state:
            named = Named.of(state[FILES])
            beside = folders_beside(self._data.checkpoint_path, named)
            if not self._storage.is_logged:
                return named.found(beside)
            log = self._ready_log()
            log.adopt(named.found([log.held.folder, *beside]))
            return log.held
        if "replay" not in state:
            return None
        rows = {tuple(key.split("/")): entry for key, entry in state["replay"].items()}
        return RestoredRows(TensorDict(rows, [len(next(iter(rows.values())))]))

    def _ready_log(self) -> ReplayLog:
        if self._log is None:
            self._log = ReplayLog(self._replay_folder / f"rank_{self._data.rank}")
        return self._log

    @property
    def _replay_folder(self) -> Path:
        return self._data.run_folder / "replay"

    def _ready_replay(self) -> Replay:
        """The replay buffer, filled by warm-up (or from a checkpoint) before its first use."""
        is_first = self._replay is None
        if self._replay is None:
            device = self._data.module.device
            chunk = self._data.action_chunk
            state = None if self._held is None else self._held["replay"]
            sizes = self._capacity, self._batch_size, self._n_steps, chunk
            place = self._storage, self._replay_folder if self._storage.is_logged else Path()
            self._replay = Replay(*sizes, device, *place, self._restored, state)
            self._restored = None
        while self._local_env_steps < self._local_warmup() or len(self._replay) < self._batch_size:
            if self._data.is_ending:  # between two blocks: a warm-up may take long
                break
            self._collect(self._replay, 0.0)
            if len(self._replay) == 0 and len(self.recent_returns) == _MOST_RETURNS:
                raise RunError(
                    f"{_MOST_RETURNS} episodes of {self._environment.label} or more, {self._local_env_steps} steps, "
                    f"are shorter than action_chunk {self._data.action_chunk}: they make no transition"
                )
        if is_first:
            mark_stage()
            self._data.end_if_asked()
        return self._replay

    def _local_warmup(self) -> int:
        """Warm-up steps of this process."""
        return math.ceil(self._warmup_env_steps / self._data.world_size)

    def _collect(self, replay: Replay, updates_per_env_step: float) -> None:
        """Collect one block into the replay buffer; each of its steps makes so many updates due."""
        if self._collector is None and self._held is None:
            replay.begin_episodes()
        collector = self._start_collector() if self._collector is None else self._collector
        self._is_collecting = True
        try:
            block = self._next_block(collector, replay).reshape(-1)
        except RunError:
            self._data.module.check_finite()  # a network that has diverged is the cause, not what it made of a state
            raise
        ended = block[DONE].squeeze(-1)
        self.recent_returns.extend(block[_RETURN].squeeze(-1)[ended].tolist())
        with uninterrupted():  # a checkpoint of an interrupted run counts the steps that its buffer holds
            replay.add(block.reshape(self._num_envs, -1))
            self._local_env_steps += len(block)
            self._pending_updates += len(block) * updates_per_env_step
            self._is_collecting = False
        mark_action()  # environments in processes of their own count there

    def _next_block(self, collector: StepCollector | AheadCollector, replay: Replay) -> TensorDictBase:
        """The next block; where a process was replaced its first steps follow none that wait."""
        if not isinstance(collector, AheadCollector):
            return collector.block()
        restarts = collector.restarts
        block = collector.block()
        if collector.restarts > restarts:
            replay.begin_episodes()
        return block

    def _episodes(self) -> dict[str, Any] | None:
        """The state of the environment and of its episodes, or why it is not known; None before the first."""
        if self._collector is None or self._replay is None:
            return self._held
        if isinstance(self._collector, AheadCollector):
            return {"unknown": "workers beside it collect"}
        if self._is_collecting:
            return {"unknown": "the run was ended within a step"}
        if self._data.action_chunk > 1:
            return {"unknown": "the rest of a chunk of actions is not kept"}
        try:
            state = read_environment(self._environment, self._collector.env)
        except UnknownStateError as error:
            return {"unknown": f"its state cannot be kept, {error}"}
        current = self._collector.current
        return {
            "recipe": self._recipe,
            "environment": state,
            "current": None if current is None else dict(current.clone().flatten_keys("/").items()),
            "returns": list(self.recent_returns),
            "replay": self._replay.state_dict(),
        }

    def _reason_for_new_episodes(self, held: dict[str, Any]) -> str:
        """Why the episodes of a checkpoint cannot continue; empty if they can."""
        if self._saved_processes != self._data.world_size:
            return f"it ran in {self._saved_processes} processes, now in {self._data.world_size}"
        if "unknown" in held:
            return held["unknown"]
        return "" if held["recipe"] == self._recipe else "the run that is resumed has another environment"

    @property
    def _recipe(self) -> str:
        return f"{self._num_envs} x {self._environment!r}"

    def _start_collector(self) -> StepCollector | AheadCollector:
        """Begin episodes, or continue those of a checkpoint; then no number is drawn that others would miss."""
        if self._workers is not None:
            self._collector = self._made_ahead(self._workers)
            return self._collector
        with contextlib.nullcontext() if self._held is None else kept_generators():
            self._collector = self._made_collector()
            if self._held is not None:
                env, current = self._collector.env, self._held["current"]
                write_environment(self._environment, env, self._held["environment"])
                if current is not None:
                    entries = {tuple(name.split("/")): value for name, value in current.items()}
                    self._collector.current = TensorDict(entries, env.batch_size, device=env.device)
                self._held = None
        return self._collector

    @property
    def _random_steps(self) -> int:
        """Steps of this process before the policy acts."""
        return max(0, self._local_warmup() - self._local_env_steps) if self._random_warmup else 0

    @property
    def _env_seed(self) -> int:
        """Depends on the step as well, so that a resumed run does not see its first episodes again."""
        return process_seed(torch.initial_seed(), self._data.rank, self._local_env_steps) % 2**31

    def _made_ahead(self, workers: CollectorWorkers) -> AheadCollector:
        module, number = self._data.module, workers.number
        sizes = self._num_envs // number, self._block_steps // self._num_envs, math.ceil(self._random_steps / number)
        seeds = [(self._env_seed + 104_729 * index) % 2**31 for index in range(number)]
        recipes = [Recipe(module.builder, self._environment, *sizes, _ENTRIES, seed) for seed in seeds]
        return AheadCollector(workers, recipes, module.state_dict(), module.device, lambda: self._batches)

    def _made_collector(self) -> StepCollector:
        module = self._data.module
        before = self._local_env_steps
        env = build_environment(
            self._environment,
            self._num_envs,
            self._parallel,
            env_step=lambda taken: self._total_env_steps(before + taken),
        )
        env.set_seed(self._env_seed)  # before its first reset: seeding starts new episodes
        return StepCollector(
            env,
            self._data.acting_policy(module.collection_policy()),
            self._block_steps // self._num_envs,
            self._random_steps,
            _ENTRIES,
            module.device,
        )
