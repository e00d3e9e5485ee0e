"""An environment that can be filmed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torchrl.envs import EnvBase

from flowmatch_rl.envs.environments import Environment


@dataclass(frozen=True)
class RenderedEnvironment:
    """A single built environment together with its camera.

    Args:
        environment: Recipe the environment was built from, with ``render=True``.
        env: The environment, with its transforms.
    """

    environment: Environment
    env: EnvBase

    @property
    def frames_per_second(self) -> float:
        """Environment steps per second of simulated time."""
        return self.environment.frames_per_second(self._bare)

    def frame(self) -> np.ndarray:
        """Picture of the current state, RGB, shape (height, width, 3), bytes."""
        return self.environment.frame(self._bare)

    @property
    def _bare(self) -> EnvBase:
        env: Any = self.env
        return env.base_env
