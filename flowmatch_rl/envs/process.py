"""Environments of testbed processes: a batch of copies is one tensor, and a step of all of them one call."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.testbeds import PlanarProcess, Process
from flowmatch_rl.types import Reward

_PIXELS = 240
_POINT_PIXELS = 4
"""Radius of the point in pictures."""
_BACKGROUND, _WALL, _POINT = (255, 255, 255), (90, 90, 90), (200, 60, 30)


class ProcessEnv(EnvBase):
    """Copies of a process that are stepped together.

    Copy 0 of a batch starts, under a given seed, where a single environment of that seed does.

    Args:
        process: The process.
        reward: Reward for the state arrived at, or None for 0.
        max_steps: Steps after which an episode is truncated.
        num_envs: Number of copies, or None for a single environment without a batch dimension.
    """

    def __init__(self, process: Process, reward: Reward | None, max_steps: int, num_envs: int | None) -> None:
        batch = torch.Size(() if num_envs is None else (num_envs,))
        super().__init__(batch_size=batch, device="cpu")
        self.process = process
        self.reward = reward
        self.max_steps = max_steps
        self.state = torch.zeros(*batch, len(process.columns))
        self._steps = torch.zeros(batch, dtype=torch.long)
        self._generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        self.observation_spec = Composite(observation=Unbounded(self.state.shape), shape=batch)
        self.action_spec = Bounded(-1.0, 1.0, shape=torch.Size([*batch, process.action_dim]))
        column = torch.Size([*batch, 1])
        self.reward_spec = Unbounded(column)
        flags = {name: Binary(n=1, shape=column, dtype=torch.bool) for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(flags, shape=batch)

    def _reset(self, tensordict: TensorDictBase | None = None, **options: Any) -> TensorDictBase:
        # Uniform numbers are drawn one after the other, normal ones in blocks that depend on how many are wanted.
        shape = (*self.batch_size, self.process.noise_dim)
        uniform = torch.rand(shape, dtype=torch.float64, generator=self._generator).clamp_min(2.0**-54)
        start = self.process.start(torch.special.ndtri(uniform).to(self.state.dtype))
        mask = None if tensordict is None else tensordict.get("_reset", None)
        chosen = torch.ones(*self.batch_size, 1, dtype=torch.bool) if mask is None else mask
        self.state = torch.where(chosen, start, self.state)
        self._steps = self._steps.masked_fill(chosen.squeeze(-1), 0)
        # Flags of copies that are not reset are taken over from the caller's.
        return TensorDict({"observation": self.state}, batch_size=self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        shape = (*self.batch_size, self.process.noise_dim)
        noise = torch.randn(shape, generator=self._generator)
        self.state, terminated = self.process.step(self.state, tensordict["action"], noise)
        self._steps = self._steps + 1
        truncated = self._steps >= self.max_steps
        return TensorDict(
            {
                "observation": self.state,
                "reward": self._reward().unsqueeze(-1),
                "terminated": terminated.unsqueeze(-1),
                "truncated": truncated.unsqueeze(-1),
                "done": (terminated | truncated).unsqueeze(-1),
            },
            batch_size=self.batch_size,
        )

    def read_state(self) -> dict[str, Any]:
        """States, steps and generator."""
        return {"state": self.state.clone(), "steps": self._steps.clone(), "generator": self._generator.get_state()}

    def write_state(self, state: dict[str, Any]) -> None:
        """Continue from what ``read_state`` returned."""
        self.state, self._steps = state["state"].clone(), state["steps"].clone()
        self._generator.set_state(state["generator"])

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self._generator.manual_seed(seed)

    def _reward(self) -> Tensor:
        if self.reward is None:
            return torch.zeros(self.batch_size)
        return self.reward.evaluate(self.state, self.process.columns)


@dataclass(frozen=True)
class ProcessEnvironment(Environment):
    """A process as an environment. Observations are the process's states in single precision.

    Args:
        process: The process.
        reward: Reward for the state arrived at, by its columns; None for a reward of 0.
        max_steps: Steps after which an episode is truncated, at least 1.

    Raises:
        UserError: If ``max_steps`` is less than 1, or the reward needs a column that the process lacks.
    """

    names_columns: ClassVar[bool] = True

    process: Process
    reward: Reward | None = None
    max_steps: int = 1_000

    def __post_init__(self) -> None:
        check_range("[1, inf)", max_steps=self.max_steps)
        if self.reward is not None:
            self.reward.evaluate(torch.zeros(1, len(self.process.columns)), self.process.columns)

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return self.process.label

    def make(self, render: bool) -> EnvBase:
        """Make the bare TorchRL environment; only processes in the plane can be rendered."""
        if render:
            self._plane()
        return ProcessEnv(self.process, self.reward, self.max_steps, None)

    def make_copies(self, num_envs: int, parallel: bool) -> EnvBase:
        """One environment whose batch is the copies; ``parallel`` is of no use, and ignored."""
        return ProcessEnv(self.process, self.reward, self.max_steps, num_envs)

    def read_state(self, env: EnvBase) -> dict[str, Any]:
        """States, steps and generator."""
        return _bare(env).read_state()

    def write_state(self, env: EnvBase, state: dict[str, Any]) -> None:
        """Continue from a state."""
        _bare(env).write_state(state)

    def column_names(self, env: EnvBase) -> tuple[str, ...]:
        """Names of the entries of the state."""
        return self.process.columns

    def frame(self, env: EnvBase) -> np.ndarray:
        """The plane from above: walls and the point, RGB, shape (240, 240, 3), bytes."""
        plane, bare = self._plane(), _bare(env)
        axis = (np.arange(_PIXELS) + 0.5) / _PIXELS * 2.0 - 1.0
        x, y = plane.half_width * axis[None, :], -plane.half_width * axis[:, None]
        picture = np.empty((_PIXELS, _PIXELS, 3), dtype=np.uint8)
        picture[:] = _BACKGROUND
        for x_low, y_low, x_high, y_high in plane.walls().tolist():
            picture[(x >= x_low) & (x <= x_high) & (y >= y_low) & (y <= y_high)] = _WALL
        at_x, at_y = bare.state[:2].tolist()
        radius = _POINT_PIXELS * 2.0 * plane.half_width / _PIXELS
        picture[(x - at_x) ** 2 + (y - at_y) ** 2 <= radius**2] = _POINT
        return picture

    def frames_per_second(self, env: EnvBase) -> float:
        """50, for processes have no time of their own."""
        return 50.0

    def _plane(self) -> PlanarProcess:
        plane = planar_process(self)
        if plane is None:
            raise UserError(f"only processes in the plane can be drawn, and {self.label} is none")
        return plane


def planar_process(environment: Environment | None) -> PlanarProcess | None:
    """The process in the plane that an environment is made of; None if it is made of none."""
    process = environment.process if isinstance(environment, ProcessEnvironment) else None
    return process if isinstance(process, PlanarProcess) else None


def _bare(env: EnvBase) -> ProcessEnv:
    if not isinstance(env, ProcessEnv):
        raise ValueError(f"expected an environment made of a process, got {type(env).__name__}")
    return env
