"""Actions, observations and rewards that are not finite, named where they first appear."""

import math
from collections.abc import Callable

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import Transform

from flowmatch_rl.batches import ACTION, OBSERVATION
from flowmatch_rl.checks import RunError

_STEPS = "step_count"


class FiniteNumbers(Transform):
    """Ends a run at the first action, observation or reward that is not finite; goes after all other transforms.

    An action is checked before the environment sees it, so that the environment isn't blamed for what it makes of it.

    Args:
        label: Name of the environment.
        env_step: Number of the environment step that a message names, given how many steps all copies have taken; None
            to name the step of the episode alone.
    """

    def __init__(self, label: str, env_step: Callable[[int], int] | None = None) -> None:
        super().__init__()
        self._label, self._env_step, self._taken = label, env_step, 0

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get(ACTION)
        if not _finite(action):
            row, value = _first(action)
            observation = tensordict.get(OBSERVATION)
            largest = float(observation.reshape(-1, observation.shape[-1])[row].abs().max())
            raise RunError(
                f"the policy's action is not finite ({value}) {self._place(tensordict, row, 1)} of {self._label}; the "
                f"largest number that it observed is {largest:.3g}"
            )
        return tensordict

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        for name, key in (("an observation", OBSERVATION), ("a reward", "reward")):
            self._check(name, next_tensordict.get(key), next_tensordict)
        self._taken += next_tensordict.numel()
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        observation = tensordict_reset.get(OBSERVATION)
        if not _finite(observation):
            _, value = _first(observation)
            raise RunError(f"{self._label} returned an observation that is not finite ({value}) on a reset")
        return tensordict_reset

    def _check(self, name: str, values: Tensor, steps: TensorDictBase) -> None:
        if not _finite(values):
            row, value = _first(values)
            raise RunError(f"{self._label} returned {name} that is not finite ({value}) {self._place(steps, row, 0)}")

    def _place(self, steps: TensorDictBase, row: int, ahead: int) -> str:
        """Words about a step of one copy, whose count lies ``ahead`` steps behind."""
        of_episode = f"step {int(steps.get(_STEPS).reshape(-1)[row]) + ahead} of an episode"
        if self._env_step is None:
            return f"in {of_episode}"
        return f"at environment step {self._env_step(self._taken + row + 1)} ({of_episode})"


def _finite(values: Tensor) -> bool:
    # A sum is finite only if all are; it may overflow where they are.
    return math.isfinite(values.sum().item()) or bool(values.isfinite().all())


def _first(values: Tensor) -> tuple[int, float]:
    """Row of the first number that is not finite, and that number; rows are all but the last dimension."""
    flat = values.reshape(-1, values.shape[-1])
    row, column = (~flat.isfinite()).nonzero()[0].tolist()
    return row, float(flat[row, column])
