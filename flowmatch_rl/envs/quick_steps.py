"""The transforms of continuous control, applied to a step in one go."""

import torch
from tensordict import TensorDictBase
from torchrl.envs import CatTensors, Compose, DoubleToFloat, RewardSum, StepCounter

from flowmatch_rl.batches import ACTION
from flowmatch_rl.envs.finite import FiniteNumbers
from flowmatch_rl.envs.unit_actions import UnitActions


class QuickSteps(Compose):
    """These six transforms, one after the other, whose steps are made by one function.

    Specifications and resets are theirs. A step of a small simulator takes less time than TorchRL's transforms of it,
    each of which looks up its keys, its parent and what it has to do.

    Args:
        to_float: Observations and rewards in single precision.
        units: Actions in [-1, 1].
        joined: Observations as one vector.
        rewards: Return of the episode so far, under ``episode_reward``.
        steps: Steps of the episode so far, under ``step_count``; no limit of its own.
        finite: Check of the numbers.
    """

    def __init__(
        self,
        to_float: DoubleToFloat,
        units: UnitActions,
        joined: CatTensors,
        rewards: RewardSum,
        steps: StepCounter,
        finite: FiniteNumbers,
    ) -> None:
        super().__init__(to_float, units, joined, rewards, steps, finite)  # pyright: ignore[reportCallIssue]
        self._parts = units, finite
        self._in_keys, (self._out_key,) = tuple(joined.in_keys), joined.out_keys

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        units, finite = self._parts
        tensordict = finite._inv_call(tensordict)
        # Bounds of an environment in double precision make such actions: `to_float` has nothing to do.
        return tensordict.set(ACTION, units._inv_apply_transform(tensordict.get(ACTION)))

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        entries = [_in_float(next_tensordict.pop(key)) for key in self._in_keys]
        reward = _in_float(next_tensordict.get("reward"))
        next_tensordict.set(self._out_key, torch.cat(entries, dim=-1))
        next_tensordict.set("reward", reward)
        next_tensordict.set("episode_reward", tensordict.get("episode_reward") + reward)
        next_tensordict.set("step_count", tensordict.get("step_count") + 1)
        return self._parts[1]._step(tensordict, next_tensordict)


def _in_float(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype == torch.float64 else values
