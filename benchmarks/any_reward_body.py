"""A policy for any reward from one occupancy: a body of the DeepMind Control Suite, in its own simulator.

The body is the point mass, an action is held for ten steps of 0.02 s, and an episode of the Suite is 100 decisions. One
occupancy of the feedback policies that bring it to a point is learned from walks and random actions, without rewards
(discount .95). For each reward ``improve`` trains critics and a policy from it and the same data. Returns are
undiscounted sums over episodes in the simulator, means over 20 random starts; ``stated``, ``critic`` and ``followed``
are those of ``any_reward``. ``planning`` chooses among 16 policies every four decisions; ``best_member`` is the best
one of them in hindsight, for all starts, and ``best_at_each_start`` for each; ``reference`` is one that was written
for the reward by hand. Seconds are CPU time of one thread, without the occupancy, the one-step model and the future
states, which are made once for all rewards.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.occupancy_planning import CANDIDATES
from benchmarks.worlds import UPDATES, Act, World, measured, table_row
from flowmatch_rl.envs import DMControlEnvironment, build_environment
from flowmatch_rl.testbeds import (
    CirculationReward,
    GoalReward,
    PointGoalPolicy,
    QuadraticReward,
    SpeedReward,
    SumReward,
)
from flowmatch_rl.types import Reward

ENVIRONMENT = DMControlEnvironment("point_mass", "easy", action_repeat=10)
EPISODES, STEPS, SEEDS = 20, 100, (0, 1, 2)
POLICY = PointGoalPolicy(gain=40.0, damping=10.0, half_width=0.28)
MAX_SPEED = 0.1
"""Speed per axis that full force leads to, units per second."""
PLACE, MOTION = ("position_0", "position_1"), ("velocity_0", "velocity_1")
CORNER, CENTRE, LEFT, RIGHT, TOP = (0.2, 0.2), (0.0, 0.0), (-0.2, 0.0), (0.2, 0.0), (0.0, 0.25)
TURN, RADIUS, EDGE = 0.9, 0.2, 0.2
"""Radians by which the reference of running around looks ahead, its radius, and where that of speed turns."""


def goal(place: tuple[float, float], radius: float = 0.05, margin: float = 0.05) -> Reward:
    """1 near a place."""
    return GoalReward(PLACE, place, radius, margin)


REWARDS: dict[str, Reward] = {
    "run clockwise": CirculationReward(PLACE, MOTION, scale=MAX_SPEED),
    "be fast": SpeedReward(MOTION, scale=MAX_SPEED),
    "left or right goal": SumReward((goal(LEFT), goal(RIGHT))),
    "goal top right": goal(CORNER),
    "a small goal in the centre": goal(CENTRE, 0.015, 0.015),
    "run counter-clockwise": CirculationReward(PLACE, MOTION, clockwise=False, scale=MAX_SPEED),
    "at rest at the top": QuadraticReward(("position_1", *MOTION), (TOP[1], 0.0, 0.0), (4.0, 40.0, 40.0), 1.0),
}
PLANNED = tuple(REWARDS)[:3]


def follow(act: Act) -> Tensor:
    """Episodes in the simulator from the same random starts."""
    env = _simulators()
    env.set_seed(5)
    step = env.reset()
    states = [step["observation"]]
    for _ in range(STEPS):
        step = env.step_mdp(env.step(step.set("action", act(states[-1]))))
        states.append(step["observation"])
    return torch.stack(states)


@functools.cache
def _simulators() -> Any:
    return build_environment(ENVIRONMENT, EPISODES)


WORLD = World(
    "any_reward_body",
    "point_mass",
    "point_mass",
    (*PLACE, *MOTION),
    POLICY,
    POLICY.embeddings(torch.rand(CANDIDATES, 2, generator=torch.Generator().manual_seed(5))),
    follow,
)


def to_places(*places: tuple[float, float]) -> Act:
    """The policy that brings the body to the nearest of some places."""
    targets = torch.tensor(places)

    def act(states: Tensor) -> Tensor:
        nearest = targets[(states[:, None, :2] - targets).norm(dim=-1).argmin(1)]
        return POLICY.act(states, nearest / POLICY.half_width)

    return act


def around(sense: float) -> Act:
    """The policy that is led around a circle, clockwise for -1 and counter-clockwise for 1."""

    def act(states: Tensor) -> Tensor:
        angle = torch.atan2(states[:, 1], states[:, 0]) + sense * TURN
        target = RADIUS * torch.stack([angle.cos(), angle.sin()], -1)
        return POLICY.act(states, target / POLICY.half_width)

    return act


def to_and_fro(states: Tensor) -> Tensor:
    """Full force along each axis, reversed near the edges."""
    position, velocity = states.split(2, -1)
    return torch.where(position.abs() > EDGE, -position.sign(), torch.where(velocity < 0.0, -1.0, 1.0))


def at_the_top(states: Tensor) -> Tensor:
    """The policy that goes straight up."""
    target = torch.stack([states[:, 0], torch.full_like(states[:, 0], TOP[1])], -1)
    return POLICY.act(states, target / POLICY.half_width)


REFERENCES: dict[str, Act] = {
    "run clockwise": around(-1.0),
    "run counter-clockwise": around(1.0),
    "be fast": to_and_fro,
    "left or right goal": to_places(LEFT, RIGHT),
    "goal top right": to_places(CORNER),
    "a small goal in the centre": to_places(CENTRE),
    "at rest at the top": at_the_top,
}


@functools.cache
def _of_candidates() -> list[Tensor]:
    """Episodes of each candidate."""
    members = WORLD.candidates[:, None].expand(-1, EPISODES, -1)
    return [follow(lambda states, member=member: POLICY.act(states, member)) for member in members]


def scripted(name: str) -> dict[str, float]:
    """Returns for a reward of the candidates, in hindsight, and of the reference."""
    returns = torch.stack([WORLD.paid(states, REWARDS[name])[0] for states in _of_candidates()])
    reference = WORLD.paid(follow(REFERENCES[name]), REWARDS[name])[0]
    return {
        "best_member": float(returns.mean(1).max()),
        "best_at_each_start": float(returns.amax(0).mean()),
        "reference": float(reference.mean()),
    }


def run(seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """One row per reward: returns of all seeds, and how many seeds state them within the bound."""
    rows = []
    for name, found in measured(WORLD, REWARDS, seeds, plans=PLANNED).items():
        by_hand = WORLD.kept(0, name, "scripted", lambda n=name: scripted(n))
        row = table_row(name, found, 0 if name == "left or right goal" else None)
        first = {key: row.pop(key) for key in ("reward", "return", "planning")}
        rows.append(first | by_hand | row)
    return {
        "title": "A policy for any reward of a body of the DeepMind Control Suite",
        "seeds": len(seeds),
        "occupancy_updates": UPDATES,
        "rows": rows,
    }
