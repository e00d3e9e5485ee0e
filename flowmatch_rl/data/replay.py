"""The replay buffer of one process, which stores transitions of one or several steps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import ListStorage, RandomSampler, RoundRobinWriter, Storage

from flowmatch_rl.batches import LENGTH, REWARD, TRANSITION
from flowmatch_rl.data.replay_storage import MemoryStorage, ReplayStorage
from flowmatch_rl.envs.multi_step import MultiStep


class Replay:
    """Transitions of several environments, the oldest dropped where the buffer is full.

    With ``n_steps`` above 1 a transition takes that many steps, fewer at the end of an episode. The last
    ``n_steps - 1`` steps of each environment wait for those that follow. A transition of a chunk of actions is never
    shorter: those that an episode ends within are left out.

    It is made of the parts of TorchRL's replay buffer: storage, writer and sampler. Rows are gathered here, since the
    bookkeeping of the buffer itself takes half a millisecond, a noticeable part of an update of small networks.

    Args:
        capacity: Transitions kept.
        batch_size: Transitions per batch.
        n_steps: Steps of a transition, at least 1.
        chunk: Actions of a transition, 1 or ``n_steps``.
        device: Device of the batches.
        storage: Where the transitions lie.
        folder: Folder of the run for them.
        restored: Transitions to begin with; None for none.
        state: State of the buffer that they come from; None to begin with an arrangement of their own.

    Attributes:
        added: Transitions that were added, also those that were dropped since and those to begin with.
    """

    def __init__(
        self,
        capacity: int,
        batch_size: int,
        n_steps: int,
        chunk: int,
        device: torch.device,
        storage: ReplayStorage = MemoryStorage(),
        folder: Path = Path(),
        restored: "Restored | None" = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._keys = TRANSITION if n_steps == 1 else (*TRANSITION, LENGTH)
        self._capacity, self._n_steps, self._chunk = capacity, n_steps, chunk
        self._batch_size = batch_size
        self._device, self._place, self._folder = device, storage, folder
        self._storage: Storage = ListStorage(0)  # until there are transitions
        self._writer, self._sampler = RoundRobinWriter(), RandomSampler()
        self._held: dict[Any, Tensor] = {}  # views of what the storage holds
        self._multi_step = MultiStep(n_steps, chunk)
        self._written = self.added = 0
        if restored is not None:
            # A batch is made of places: where each transition lies counts. The last rows are written twice, the second
            # time so that the next one follows them.
            number = len(restored)
            oldest = state["oldest"] if state is not None and number == capacity else 0
            for first, stop in ((number - oldest, number), (0, number - oldest), (number - oldest, number)):
                for rows in restored.read(first, stop):
                    self._extend(rows)
            self.added = number
        if state is not None:
            self._multi_step.load_state_dict(state["multi_step"], device)

    def __len__(self) -> int:
        return min(self._written, self._capacity)

    @property
    def oldest(self) -> int:
        """Place of the oldest transition, where the next one is written once the buffer is full."""
        return self._written % self._capacity if len(self) == self._capacity else 0

    def state_dict(self) -> dict[str, Any]:
        """What counts beside the transitions: the place of the oldest, and the steps that wait."""
        return {"oldest": self.oldest, "multi_step": self._multi_step.state_dict()}

    @property
    def transitions(self) -> TensorDictBase:
        """The stored transitions, oldest first and on the CPU, batch size (N,)."""
        return self.read(0, len(self))

    def read(self, first: int, stop: int) -> TensorDictBase:
        """Stored transitions by their age, 0 for the oldest, on the CPU, batch size (stop - first,).

        Args:
            first: Age of the first one.
            stop: Age after the last one.
        """
        places = (torch.arange(first, stop) + self.oldest) % max(1, len(self))
        rows = {key: self._held[key].index_select(0, places.to(self._held[key].device)).cpu() for key in self._keys}
        return TensorDict(rows, [stop - first])

    def begin_episodes(self) -> None:
        """Forget the steps that wait: the environments begin new episodes."""
        self._multi_step = MultiStep(self._n_steps, self._chunk)

    def add(self, steps: TensorDictBase) -> None:
        """Store consecutive steps.

        Args:
            steps: TensorDict of batch size (E, T), see ``MultiStep.fold``.
        """
        single = self._n_steps == 1
        self._extend(steps.reshape(-1).select(*TRANSITION) if single else self._multi_step.fold(steps))

    def sample(self) -> TensorDictBase:
        """A batch drawn with replacement."""
        index: Tensor = self._sampler.sample(self._storage, self._batch_size)[0]
        drawn = {key: rows.index_select(0, index) for key, rows in self._held.items()}
        return TensorDict(drawn, [len(index)], device=self._held[REWARD].device).to(self._device)

    def _extend(self, rows: TensorDictBase) -> None:
        if len(rows) == 0:
            return
        if self._written == 0:
            self._storage = self._place.begin(self._capacity, rows, self._device, self._folder)
            self._writer.register_storage(self._storage)
        self._writer.extend(rows)
        if self._written < self._capacity:
            held: TensorDictBase = self._storage[:]
            leaves: Any = held.items(include_nested=True, leaves_only=True)
            self._held = {key: rows.as_subclass(Tensor) for key, rows in leaves}  # a mapped tensor is of another class
        self._written += len(rows)
        self.added += len(rows)


class Restored(Protocol):
    """Transitions of a checkpoint, oldest first."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, first: int, stop: int) -> Iterator[TensorDictBase]:
        """Those of some ages, 0 for the oldest, in parts."""
        ...


class RestoredRows:
    """Transitions of a checkpoint that holds them itself.

    Args:
        rows: They, oldest first, batch size (N,).
    """

    def __init__(self, rows: TensorDictBase) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, first: int, stop: int) -> Iterator[TensorDictBase]:
        """Those of some ages, at once."""
        yield self._rows[first:stop]
