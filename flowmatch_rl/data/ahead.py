"""Collection by workers beside the training, one block ahead of it."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from flowmatch_rl.checkpoints import unpack_state
from flowmatch_rl.checks import RunError
from flowmatch_rl.data.workers import CollectorWorkers, Recipe, Worker
from flowmatch_rl.envs.states import UnknownStateError

STATE_S = 5.0
"""Seconds that a checkpoint waits for the workers to end their block and say where they are."""


class AheadCollector:
    """Blocks of steps that workers collect while the caller does something else.

    Args:
        settings: Which workers, and how long they may take.
        recipes: What each of them collects.
        weights: Weights of the module that trains, by name.
        device: Device of the blocks.
        updates: Returns the updates of the weights so far.
        state: What ``state_dict`` returned, to continue from; None for new episodes.

    Attributes:
        restarts: Workers that were replaced.
        ages: Updates between the beginning of each of the latest blocks and its arrival.
    """

    def __init__(
        self,
        settings: CollectorWorkers,
        recipes: Sequence[Recipe],
        weights: Mapping[str, Tensor],
        device: torch.device,
        updates: Callable[[], int],
        state: dict[str, Any] | None = None,
    ) -> None:
        self._settings, self._weights, self._device, self._updates = settings, weights, device, updates
        self._shared = {name: weight.detach().cpu().clone().share_memory_() for name, weight in weights.items()}
        self._ordered_at: int | None = None  # updates when the next block was begun
        if state is not None:
            recipes = [recipe.continued(held) for recipe, held in zip(recipes, state["workers"], strict=True)]
        self._workers = [settings.begin(recipe, self._shared) for recipe in recipes]
        if state is not None:
            self._ordered_at = updates() - state["age"]
            for worker, block in zip(self._workers, state["blocks"], strict=True):
                worker.arrived = _rows({tuple(name.split("/")): rows for name, rows in block.items()})
        self.restarts = 0
        self.ages: deque[int] = deque(maxlen=1_000)

    def block(self) -> TensorDictBase:
        """The next block, of batch size (E, T); the one after it is begun.

        Raises:
            RunError: If an environment fails, or more workers die or hang than may be replaced.
        """
        began = self._order() if self._ordered_at is None else self._ordered_at
        parts = [self._received(index) for index in range(len(self._workers))]
        self.ages.append(self._updates() - began)
        self._ordered_at = self._order()
        joined: Any = torch.cat(parts)  # pyright: ignore[reportCallIssue, reportArgumentType]
        return joined.to(self._device)

    def state_dict(self) -> dict[str, Any]:
        """The states of the workers after the block in the making, for which it waits, that block, and its age.

        Raises:
            UnknownStateError: If a worker has not returned its block in time, or cannot say where it is.
        """
        end_by = time.monotonic() + STATE_S
        states, blocks = [], []
        for worker in self._workers:
            if worker.arrived is None and worker.has_answer(max(0.0, end_by - time.monotonic())):
                worker.arrived = self._answer(worker)
            if not isinstance(worker.arrived, TensorDictBase):
                raise UnknownStateError(f"a worker beside it did not end its block within {STATE_S:g} s, or failed")
            state = worker.state(max(0.0, end_by - time.monotonic()))
            if not isinstance(state, bytes):
                raise UnknownStateError(f"the state of a worker beside it cannot be kept, {state}")
            states.append(unpack_state(state))
            blocks.append(dict(worker.arrived.flatten_keys("/").items()))
        assert self._ordered_at is not None
        return {"workers": states, "blocks": blocks, "age": self._updates() - self._ordered_at}

    def shutdown(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.ask_to_end()
        for worker in self._workers:
            worker.end()

    @torch.no_grad()
    def _order(self) -> int:
        """Have all workers begin a block with the weights of now, after the updates that are returned.

        None of them is acting: all have returned their last block.
        """
        for name, shared in self._shared.items():
            shared.copy_(self._weights[name])
        for worker in self._workers:
            worker.order()
        return self._updates()

    def _received(self, index: int) -> TensorDictBase:
        """Block of a worker, which is replaced until it returns one."""
        while True:
            worker = self._workers[index]
            answer = self._answer(worker) if worker.arrived is None else worker.arrived
            worker.arrived = None
            if isinstance(answer, Exception):
                raise answer
            if not isinstance(answer, str):
                return answer
            self._replace(index, answer)

    def _answer(self, worker: Worker) -> TensorDictBase | Exception | str:
        """What a worker answers to the last order: the rows of its block, batch size (E, T), or else."""
        answer = worker.answer(self._settings.timeout_s)
        if not isinstance(answer, dict):
            return answer
        worker.blocks += 1
        sizes = worker.recipe.num_envs, worker.recipe.block_steps
        return _rows({key: torch.from_numpy(array).reshape(*sizes, -1) for key, array in answer.items()})

    def _replace(self, index: int, reason: str) -> None:
        worker, most = self._workers[index], self._settings.max_restarts
        worker.kill()
        label = worker.recipe.environment.label
        if self.restarts == most:
            raise RunError(f"a worker that collects in {label} {reason}, after {most} were replaced, the most allowed")
        self.restarts += 1
        print(f"a worker that collects in {label} {reason}; replaced, {self.restarts} of at most {most}: new episodes")
        self._workers[index] = fresh = self._settings.begin(
            worker.recipe.after(worker.blocks, self.restarts), self._shared
        )
        fresh.order()


def _rows(entries: Mapping[Any, Tensor]) -> TensorDictBase:
    """Steps of environments, batch size (E, T), of entries by their keys, each of shape (E, T, ...)."""
    return TensorDict(dict(entries), next(iter(entries.values())).shape[:2])
