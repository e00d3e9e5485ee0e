"""A policy for any reward from one occupancy: twenty rewards on the maze.

One occupancy of the policies that go to a point is learned from random forces, without rewards (discount .95, an action
is held for four steps). For each reward ``improve`` trains critics and a policy from it and the same data. Returns are
undiscounted sums over episodes of 120 decisions, means over 100 episodes from random starts at rest, those of
``occupancy_planning``, which chooses among 16 policies every four decisions and is measured beside for four rewards
with one seed. ``stated`` is the discounted return from the starts of the policy in a one-step model of the same data,
``critic`` what the critics state, ``followed`` that of the episodes. Seconds are CPU time of one thread, without the
occupancy (about three minutes), the one-step model (one) and the future states (half a minute), which are made once
for all rewards. Rewards of two optima have two equally good places; the share of episodes that end at the rarer one is
shown. What was measured is kept under ``runs/any_reward``, where an interrupted benchmark finds it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.occupancy_planning import CANDIDATES, EPISODES, MAZE, POLICY, STEPS
from benchmarks.worlds import UPDATES, Act, World, improved, measured, table_row
from flowmatch_rl.testbeds import (
    BoxReward,
    CirculationReward,
    GoalReward,
    LinearReward,
    QuadraticReward,
    RandomPolicy,
    SpeedReward,
    SumReward,
)
from flowmatch_rl.types import Reward

SEEDS = (0, 1, 2)
XY = ("x", "y")
CORNERS = {"top left": (-0.15, 0.15), "top right": (0.15, 0.15), "bottom right": (0.15, -0.15)}
LEFT, RIGHT = (-0.24, 0.0), (0.24, 0.0)


def goal(place: tuple[float, float], radius: float = 0.05, margin: float = 0.05) -> Reward:
    """1 near a place."""
    return GoalReward(XY, place, radius, margin)


PLANNED: dict[str, Reward] = {
    "run clockwise": CirculationReward(scale=0.4),
    "run counter-clockwise": CirculationReward(scale=0.4, clockwise=False),
    "be fast": SpeedReward(scale=0.4),
    "right of the wall": BoxReward(low=(0.2, -0.05), high=(0.3, 0.05)),
}
TWO_OPTIMA: dict[str, Reward] = {
    "left or right gap": SumReward((goal(LEFT), goal(RIGHT))),
    "upper or lower gap": SumReward((goal((0.0, 0.24)), goal((0.0, -0.24)))),
}
AXES = {"left or right gap": 0, "upper or lower gap": 1}
"""Axis along which the two optima lie on both sides of the centre."""
REWARDS: dict[str, Reward] = (
    PLANNED
    | TWO_OPTIMA
    | {f"goal {name}": goal(place) for name, place in CORNERS.items()}
    | {
        "to the right": LinearReward(("x",), (1.0,)),
        "down": LinearReward(("y",), (-1.0,)),
        "along the diagonal": LinearReward(XY, (1.0, 1.0)),
        "near the centre": QuadraticReward(XY, (0.0, 0.0), (4.0, 4.0), 1.0),
        "near the left wall": QuadraticReward(("x",), (-0.28,), (4.0,), 1.0),
        "at rest at the top": QuadraticReward(("y", "vx", "vy"), (0.25, 0.0, 0.0), (4.0, 4.0, 4.0), 1.0),
        "move right": LinearReward(("vx",), (2.5,)),
        "fast in the upper half": SumReward((SpeedReward(scale=0.4), BoxReward((None, 0.02), (None, None)))),
        "slow": SumReward((SpeedReward(scale=0.4),), (-1.0,)),
        "a small goal": goal((-0.25, -0.25), 0.02, 0.01),
        "a goal, rather the near one": SumReward((goal((-0.15, -0.15)), goal((0.15, 0.15))), (1.0, 0.6)),
    }
)


def follow(act: Act) -> Tensor:
    """Episodes from random starts at rest: the states, shape (1 + T, B, 4)."""
    states = [MAZE.start(torch.randn(EPISODES, 4, generator=torch.Generator().manual_seed(5)))]
    for _ in range(STEPS):
        states.append(MAZE.step(states[-1], act(states[-1]), torch.zeros(EPISODES, 4))[0])
    return torch.stack(states)


def _candidates() -> Tensor:
    """Those of ``occupancy_planning``, which draws them after the starts."""
    generator = torch.Generator().manual_seed(5)
    MAZE.start(torch.randn(EPISODES, 4, generator=generator))
    return POLICY.embeddings(torch.rand(CANDIDATES, 2, generator=generator))


WORLD = World("any_reward", "maze", "maze_goals", MAZE.columns, POLICY, _candidates(), follow)


TRIED = ("be fast", "right of the wall", "goal bottom right", "move right", "slow", "a small goal")
"""Rewards that random actions are tried for beside those of the members."""


def with_random_actions(name: str, seed: int) -> str:
    """Return where every other action that is tried is random."""
    if name not in TRIED:
        return "-"
    found = WORLD.kept(seed, name, "random", lambda: improved(WORLD, seed, REWARDS[name], RandomPolicy(2)))
    return f"{found['return']:.4g}"


def run(seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """One row per reward: returns of all seeds, and how many seeds state them within the bound."""
    found = measured(WORLD, REWARDS, seeds, plans=PLANNED)
    rows = [table_row(name, each, AXES.get(name)) for name, each in found.items()]
    return {
        "title": "A policy for any reward from one occupancy",
        "seeds": len(seeds),
        "occupancy_updates": UPDATES,
        "rows": [row | {"with_random_actions": with_random_actions(row["reward"], seeds[0])} for row in rows],
    }
