"""The replay buffer of one process, which stores transitions of one or several steps."""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, RandomSampler, RoundRobinWriter

from flowmatch_rl.batches import LENGTH, TRANSITION
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
        device: Device of the transitions.
        restored: Transitions to begin with, oldest first, batch size (N,); None for none.
        state: State of the buffer that they come from; None to begin with an arrangement of their own.
    """

    def __init__(
        self,
        capacity: int,
        batch_size: int,
        n_steps: int,
        chunk: int,
        device: torch.device,
        restored: TensorDictBase | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        self._keys = TRANSITION if n_steps == 1 else (*TRANSITION, LENGTH)
        self._capacity, self._n_steps, self._chunk = capacity, n_steps, chunk
        self._batch_size = batch_size
        self._storage = LazyTensorStorage(capacity, device=device)
        self._writer, self._sampler = RoundRobinWriter(), RandomSampler()
        self._writer.register_storage(self._storage)
        self._held: dict[str | tuple[str, ...], Tensor] = {}  # views of what the storage holds
        self._multi_step = MultiStep(n_steps, chunk)
        self._written = 0
        if restored is not None:
            # A batch is made of places: where each transition lies counts.
            oldest = state["oldest"] if state is not None and len(restored) == capacity else 0
            rows: Any = restored.apply(lambda entry: entry.roll(oldest, 0))
            self._extend(rows)
            self._extend(rows[:oldest])
        if state is not None:
            self._multi_step.load_state_dict(state["multi_step"], device)

    def __len__(self) -> int:
        return len(self._storage)

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
        held = self._storage[:].select(*self._keys).cpu()
        return held.apply(lambda entry: entry.roll(-self.oldest, 0))

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
        return TensorDict(drawn, [len(index)], device=self._storage.device)

    def _extend(self, rows: TensorDictBase) -> None:
        if len(rows):
            self._writer.extend(rows)
            if self._written < self._capacity:
                held: TensorDictBase = self._storage[:]
                self._held = dict(held.items(include_nested=True, leaves_only=True))
        self._written += len(rows)
