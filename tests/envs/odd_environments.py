"""Environments that are odd in one way each: ``tests.envs.odd_environments:Integers-v0`` and so on."""

import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

PREFIX = "tests.envs.odd_environments:"


class Base(gymnasium.Env):
    """A point pushed along a line for 20 steps.

    Args:
        odd_from: Step over the whole life from which a method that is odd only later is odd.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - as Gymnasium declares it
    observation_space: spaces.Space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space: spaces.Space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, odd_from: int = 0, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.odd_from = odd_from
        self.x, self.t, self.life = np.zeros(2), 0, 0

    @property
    def is_odd(self) -> bool:
        return self.life >= self.odd_from

    def observe(self) -> Any:
        return self.x.copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.normal(size=2), 0
        return self.observe(), {}

    def reward(self) -> Any:
        return -float((self.x**2).sum())

    def step(self, action: Any) -> Any:
        self.x = self.x + 0.1 * np.array([self.x[1], float(np.asarray(action).reshape(-1)[0])])
        self.t += 1
        self.life += 1
        return self.observe(), self.reward(), False, self.t >= 20, {}

    def render(self) -> Any:
        return np.zeros((32, 32, 3), np.uint8)


class Integers(Base):
    observation_space = spaces.Box(-100, 100, (2,), np.int64)

    def observe(self) -> Any:
        return np.arange(self.t, self.t + 2)


class HalfPrecision(Base):
    observation_space = spaces.Box(-100, 100, (2,), np.float16)

    def observe(self) -> Any:
        return np.array([self.t, 0.5], np.float16)


class Bytes(Base):
    observation_space = spaces.Box(0, 255, (2,), np.uint8)

    def observe(self) -> Any:
        return np.array([self.t, 255], np.uint8)


class Choice(Base):
    observation_space = spaces.Discrete(21, start=5)

    def observe(self) -> Any:
        return np.int64(self.t + 5)


class Choices(Base):
    observation_space = spaces.MultiDiscrete([2, 21], start=[0, -1])

    def observe(self) -> Any:
        return np.array([self.t % 2, self.t - 1])


class Switches(Base):
    observation_space = spaces.MultiBinary(3)

    def observe(self) -> Any:
        return np.array([self.t >> place & 1 for place in range(3)], np.int8)


class Number(Base):
    observation_space = spaces.Box(-np.inf, np.inf, (), np.float64)

    def observe(self) -> Any:
        return float(self.t)


class Nested(Base):
    observation_space = spaces.Dict(
        robot=spaces.Dict(q=spaces.Box(-9, 9, (2,), np.float64), dq=spaces.Box(-9, 9, (1,), np.float64)),
        parts=spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (1,), np.float32)]),
        goal=spaces.Box(-1, 1, (1,), np.float64),
    )

    def observe(self) -> Any:
        robot = {"q": np.array([4.0, 5.0]), "dq": np.array([3.0])}
        return {"robot": robot, "parts": (1, np.array([-0.5], np.float32)), "goal": np.ones(1)}


class Reserved(Base):
    """Entries named like TorchRL's own."""

    observation_space = spaces.Dict(
        {name: spaces.Box(-99, 99, (1,), np.float64) for name in ("done", "reward", "next", "action", "state")}
    )

    def observe(self) -> Any:
        return {"done": np.ones(1), "reward": np.ones(1) * 2, "next": [3.0], "action": [4.0], "state": [5.0]}


class PartlyEmpty(Base):
    observation_space = spaces.Dict(nothing=spaces.Box(-1, 1, (0,)), x=spaces.Box(-np.inf, np.inf, (2,), np.float64))

    def observe(self) -> Any:
        return {"nothing": np.zeros(0), "x": self.x.copy()}


class SameArray(Base):
    """Returns the same array each time, and writes into it."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def observe(self) -> Any:
        self.same = getattr(self, "same", np.zeros(1, np.float32))
        self.same[:] = self.t
        return self.same


class OtherPrecision(Base):
    """Declares single precision and returns double."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class FixedEntry(Base):
    """One motor is disabled: its low is its high."""

    action_space = spaces.Box(np.array([-2.0, 0.5], np.float32), np.array([2.0, 0.5], np.float32))

    def step(self, action: Any) -> Any:
        self.last_action = np.array(action)
        return super().step(action)


class WithoutConstructor(gymnasium.Env):
    observation_space = Base.observation_space
    action_space = Base.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.full(2, 0.1 * self.t), -1.0, False, self.t >= 20, {}


class RewardArray(Base):
    def reward(self) -> Any:
        return np.array([2.5])


class EmptyObservations(Base):
    observation_space = spaces.Box(-1, 1, (0,), np.float64)

    def observe(self) -> Any:
        return np.zeros(0)


class TextObservations(Base):
    observation_space = spaces.Text(9)

    def observe(self) -> Any:
        return "far"


class MissingReward(Base):
    def reward(self) -> Any:
        return None if self.is_odd else 0.0


class TextReward(Base):
    def reward(self) -> Any:
        return "1.0" if self.is_odd else 0.0


class VectorReward(Base):
    def reward(self) -> Any:
        return np.array([1.0, 2.0]) if self.is_odd else 0.0


class WrongShape(Base):
    def observe(self) -> Any:
        return np.zeros(3) if self.is_odd else np.zeros(2)


class WrongType(Base):
    def observe(self) -> Any:
        return {"x": np.zeros(2)} if self.is_odd else np.zeros(2)


class MissingEntry(Base):
    observation_space = spaces.Dict(x=spaces.Box(-9, 9, (1,)), y=spaces.Box(-9, 9, (1,)))

    def observe(self) -> Any:
        return {"x": np.zeros(1, np.float32)} if self.is_odd else {name: np.zeros(1, np.float32) for name in "xy"}


class UnknownChoice(Base):
    observation_space = spaces.Discrete(3)

    def observe(self) -> Any:
        return 7 if self.is_odd else 1


class OldStep(Base):
    """Returns four values, as in Gym before 0.26."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class OldReset(Base):
    def reset(self, **options: Any) -> Any:
        return super().reset(**options)[0]


class NoSeed(Base):
    def reset(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return np.zeros(2), {}


class MissingEnd(Base):
    def step(self, action: Any) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, None, truncated, info


class BreaksWhenMade(Base):
    def __init__(self, render_mode: str | None = None) -> None:
        raise OSError("no robot at 10.0.0.7")


class Breaks(Base):
    def step(self, action: Any) -> Any:
        if self.is_odd:
            raise ZeroDivisionError("the robot fell\nover")
        return super().step(action)


class Quits(Base):
    def step(self, action: Any) -> Any:
        if self.is_odd:
            raise SystemExit(3)
        return super().step(action)


class Hangs(Base):
    """Sleeps in the step.

    Args:
        odd_from: See ``Base``.
        path: File to make when it does.
    """

    def __init__(self, odd_from: int = 0, path: str | None = None, render_mode: str | None = None) -> None:
        super().__init__(odd_from, render_mode)
        self.path = path

    def step(self, action: Any) -> Any:
        if self.is_odd:
            if self.path is not None:
                Path(self.path).touch()
            time.sleep(60.0)
        return super().step(action)


class BreaksWhenRendered(Base):
    def render(self) -> Any:
        raise OSError("no display")


class MixedActions(Base):
    action_space = spaces.Dict(a=spaces.Box(-1, 1, (1,)), b=spaces.Discrete(2))


class IntegerActions(Base):
    action_space = spaces.Box(0, 5, (2,), np.int64)


for _odd in (*Base.__subclasses__(), WithoutConstructor):
    gymnasium.register(f"{_odd.__name__}-v0", entry_point=_odd)
