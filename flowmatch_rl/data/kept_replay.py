"""The replay buffer of one process from one run to the next: what checkpoints hold of it, and what they restore."""

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from flowmatch_rl.batches import REWARD
from flowmatch_rl.checks import UserError
from flowmatch_rl.data.collection_settings import CollectionSettings
from flowmatch_rl.data.episodes import EpisodeData
from flowmatch_rl.data.replay import Replay, Restored, RestoredRows
from flowmatch_rl.data.replay_log import FILES, Named, ReplayLog, folders_beside

_ROWS = "replay"


class KeptReplay:
    """A replay buffer that is made when it is first used, and the transitions of a checkpoint until then.

    Args:
        data: The data module, which knows the run's folder and the device.
        settings: Sizes of the buffer, and where it lies.

    Attributes:
        buffer: The buffer; None until ``make``.
    """

    def __init__(self, data: EpisodeData, settings: CollectionSettings) -> None:
        self._data, self._settings = data, settings
        self._restored: Restored | None = None  # transitions of a checkpoint, until the buffer is made
        self._log: ReplayLog | None = None
        self.buffer: Replay | None = None

    @property
    def rows(self) -> TensorDictBase | None:
        """The transitions, oldest first and on the CPU, batch size (N,); None before the first."""
        if self.buffer is not None and len(self.buffer):
            return self.buffer.transitions
        restored = self._restored
        return None if restored is None else torch.cat(list(restored.read(0, len(restored))))  # pyright: ignore

    def make(self, state: dict[str, Any] | None) -> Replay:
        """The buffer, with the transitions of the checkpoint if there is one.

        Args:
            state: What ``Replay.state_dict`` said of them; None where it is not known.
        """
        settings, folder = self._settings, self._folder if self._settings.storage.is_logged else Path()
        self.buffer = Replay(
            settings.buffer_capacity,
            settings.batch_size,
            settings.n_steps,
            self._data.action_chunk,
            self._data.module.device,
            settings.storage,
            folder,
            self._restored,
            state,
        )
        self._restored = None
        return self.buffer

    def state_dict(self) -> dict[str, Any]:
        """The transitions, or the names of their files once those are written that none holds; empty before the first.

        They are oldest first, so that a resumed run overwrites in the same order.
        """
        is_unread = self.buffer is None and isinstance(self._restored, RestoredRows)
        if not self._settings.storage.is_logged or is_unread:
            held = self.rows
            return {} if held is None else {_ROWS: dict(held.flatten_keys("/").items())}
        if self.buffer is not None and len(self.buffer):
            log = self._ready_log()
            log.save(self.buffer)
            log.prune(self._data.checkpoint_folders, self._folders_of_no_process())
        return {FILES: self._log.held.state_dict()} if self._log is not None and len(self._log.held) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the transitions of a checkpoint in place of those collected so far.

        Args:
            state_dict: State of the collection of this process.

        Raises:
            UserError: If transitions have another number of steps or actions.
        """
        self.buffer = self._log = None
        self._restored = restored = self._held_by(state_dict)
        if restored is None:
            return
        steps = next(restored.read(0, 1))[REWARD].shape[1]
        if steps != self._settings.n_steps:
            own = self._settings.n_steps
            raise UserError(f"the checkpoint's replay buffer has n_steps {steps}, this run {own}")
        chunk = state_dict.get("action_chunk", 1)
        if chunk != self._data.action_chunk:
            own = self._data.action_chunk
            raise UserError(f"the checkpoint's replay buffer has action_chunk {chunk}, this run {own}")

    def _held_by(self, state: dict[str, Any]) -> Restored | None:
        """The transitions of a checkpoint, in this process's own files where the buffer is logged."""
        if FILES in state and not self._settings.checkpoint_replay:
            return None
        if FILES in state:
            named = Named.of(state[FILES])
            beside = folders_beside(self._data.checkpoint_path, named)
            if not self._settings.storage.is_logged:
                return named.found(beside)
            log = self._ready_log()
            log.adopt(named.found([log.held.folder, *beside]))
            return log.held
        if _ROWS not in state:
            return None
        rows = {tuple(key.split("/")): entry for key, entry in state[_ROWS].items()}
        return RestoredRows(TensorDict(rows, [len(next(iter(rows.values())))]))

    def _ready_log(self) -> ReplayLog:
        if self._log is None:
            self._log = ReplayLog(self._folder / f"rank_{self._data.rank}")
        return self._log

    def _folders_of_no_process(self) -> list[Path]:
        """Folders of processes of an earlier run in more of them, which the first process looks after."""
        known = {self._folder / f"rank_{rank}" for rank in range(self._data.world_size)}
        return [path for path in self._folder.glob("rank_*") if path not in known] if self._data.rank == 0 else []

    @property
    def _folder(self) -> Path:
        return self._data.run_folder / "replay"
