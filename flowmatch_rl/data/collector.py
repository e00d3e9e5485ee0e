"""A collector of TorchRL that steps an environment with little more than what a step is made of."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector
from torchrl.envs import EnvBase

Key = str | tuple[str, str]


class StepCollector(BaseCollector):
    """Yields blocks of consecutive steps of a policy for ever, or of random actions at first.

    The blocks hold what those of ``torchrl.collectors.Collector`` do, under the same random numbers to the last digit,
    but only the entries that are wanted. They are copied once, when a block is complete. The policy reads and writes
    the environment's device, wherever its weights are.

    Args:
        env: Environment of batch size (E,), or () for a single one. It is closed by ``shutdown``.
        policy: Reads entries of a step, writes ``action``.
        block_steps: Steps of each environment in a block.
        random_steps: Steps of all environments before the policy acts, rounded up to blocks.
        keys: Entries of the blocks.
        device: Device of the blocks.
    """

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        block_steps: int,
        random_steps: int,
        keys: Sequence[Key],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.env, self.policy = env, policy
        self.block_steps, self.random_steps = block_steps, random_steps
        self.keys, self.device = tuple(keys), device
        self.current: TensorDictBase | None = None
        """Where the environments are between two blocks, as the next step begins; None before the first."""

    def iterator(self) -> Iterator[TensorDictBase]:
        """Yield blocks of batch size (E, T), or (T,) for a single environment."""
        while True:
            yield self.block()

    @torch.no_grad()
    def block(self) -> TensorDictBase:
        """The next block, of batch size (E, T), or (T,) for a single environment."""
        current = self.env.reset() if self.current is None else self.current
        act = self.env.rand_action if self.random_steps > 0 else self.policy
        steps: list[TensorDictBase] = []
        for _ in range(self.block_steps):
            step, current = self.env.step_and_maybe_reset(act(current))
            steps.append(step)
        self.current = current
        self.random_steps = max(0, self.random_steps - self.block_steps * self.env.batch_size.numel())
        return self._joined(steps)

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Seed the environments, which begin new episodes, and return the next seed."""
        self.current = None
        return self.env.set_seed(seed, static_seed)  # pyright: ignore[reportReturnType]

    def state_dict(self) -> OrderedDict[str, Any]:
        """Where the environments are, as far as they say so, and the random steps that remain."""
        current = None if self.current is None else self.current.clone()
        return OrderedDict(random_steps=self.random_steps, current=current)

    def load_state_dict(self, state_dict: OrderedDict[str, Any]) -> None:
        """Continue from a state; the environments themselves must be there."""
        current = state_dict["current"]
        self.random_steps, self.current = state_dict["random_steps"], None if current is None else current.clone()

    def shutdown(self, timeout: float | None = None, close_env: bool = True, raise_on_error: bool = True) -> None:
        """Close the environments."""
        if close_env:
            self.env.close(raise_if_closed=False)

    def _joined(self, steps: list[TensorDictBase]) -> TensorDictBase:
        time = len(self.env.batch_size)
        entries = {key: torch.stack([step.get(key) for step in steps], dim=time) for key in self.keys}
        return TensorDict(entries, [*self.env.batch_size, len(steps)]).to(self.device)
