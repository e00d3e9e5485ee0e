"""Toy environments whose every number is known, registered with Gymnasium."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

ACTION_LOW, ACTION_HIGH = np.array([-3.0, 0.0], np.float32), np.array([1.0, 10.0], np.float32)


class Counting(gymnasium.Env):
    """Observes (steps of this episode, a number drawn at reset); rewards step k with k.

    Args:
        length: Steps of an episode; drawn from 2..7 at each reset if None.
        truncate: Whether it ends by truncation, not by termination.
        bad_reward_at: Step over the whole life from which rewards are not finite.
        bad_observation_at: The same for observations.
        bad_value: The value that is not finite.
        solved_from: Step of an episode from which ``is_success`` of the ``info`` is true; without one it is not there.
    """

    action_space = spaces.Box(ACTION_LOW, ACTION_HIGH)

    def __init__(
        self,
        length: int | None = 5,
        truncate: bool = True,
        bad_reward_at: int | None = None,
        bad_observation_at: int | None = None,
        bad_value: float = float("nan"),
        solved_from: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.fixed_length, self.truncate = length, truncate
        self.bad_reward_at, self.bad_observation_at, self.bad_value = bad_reward_at, bad_observation_at, bad_value
        self.solved_from = solved_from
        self.life = 0
        self.actions: list[np.ndarray] = []

    def _observe(self) -> np.ndarray:
        bad = self.bad_observation_at is not None and self.life >= self.bad_observation_at
        return np.array([self.bad_value if bad else float(self.steps), self.mark])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.steps, self.mark = 0, self.np_random.normal()
        self.length = self.fixed_length or int(self.np_random.integers(2, 8))
        return self._observe(), {}

    def step(self, action: np.ndarray):
        self.actions.append(np.array(action))
        self.steps += 1
        self.life += 1
        bad = self.bad_reward_at is not None and self.life >= self.bad_reward_at
        ended = self.steps >= self.length
        reward = self.bad_value if bad else float(self.steps)
        info = {} if self.solved_from is None else {"is_success": self.steps >= self.solved_from}
        return self._observe(), reward, ended and not self.truncate, ended and self.truncate, info


class Named(Counting):
    """Observes a dictionary whose keys, in the order of their names, hold 1, 2, 3, 4, 5; one is ``observation``."""

    parts: ClassVar = {"zeta": [5.0], "observation": [3.0, 4.0], "alpha": [1.0, 2.0]}

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(
            {name: spaces.Box(-np.inf, np.inf, (len(value),), np.float64) for name, value in self.parts.items()}
        )

    def _observe(self) -> Any:
        return {name: np.array(value) for name, value in self.parts.items()}


class Unfit(Counting):
    """An environment of another kind: ``discrete`` or ``unbounded`` actions, ``pixels`` or a ``matrix`` observed."""

    def __init__(self, kind: str, render_mode: str | None = None) -> None:
        super().__init__()
        if kind == "discrete":
            self.action_space = spaces.Discrete(3)
        elif kind == "unbounded":
            self.action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        elif kind == "pixels":
            self.observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
        elif kind == "matrix":
            self.observation_space = spaces.Box(-1.0, 1.0, (4, 4), np.float32)


POLICY_ACTION = 0.25


class ConstantPolicy(TensorDictModuleBase):
    """Acts by (0.25, 0.25) in every state."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["observation"], ["action"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("action", torch.full((*tensordict.batch_size, 2), POLICY_ACTION))


for _toy in (Counting, Named, Unfit):
    gymnasium.register(f"Toy{_toy.__name__}-v0", _toy, disable_env_checker=True, order_enforce=False)
