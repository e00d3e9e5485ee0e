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

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.occupancy_planning import CANDIDATES, DISCOUNT, EPISODES, MAZE, POLICY, REPLAN_STEPS, SAMPLES, STEPS
from flowmatch_rl.cli import run as command
from flowmatch_rl.data import TransitionStore
from flowmatch_rl.evaluation.expected_return import modelled_return
from flowmatch_rl.experiments.improvement import Draws, improve, kept_futures
from flowmatch_rl.files import write_json
from flowmatch_rl.inference import load_dynamics, load_occupancy
from flowmatch_rl.inference.policy import TrainedPolicy
from flowmatch_rl.models import Dynamics, Occupancy
from flowmatch_rl.planning import improve as choose
from flowmatch_rl.testbeds import (
    BoxReward,
    CirculationReward,
    GoalReward,
    LinearReward,
    QuadraticReward,
    SpeedReward,
    SumReward,
)
from flowmatch_rl.types import Reward

UPDATES = 4_000
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


def follow(act: Callable[[Tensor], Tensor], reward: Reward) -> tuple[Tensor, Tensor, Tensor]:
    """Returns and discounted returns of episodes, shape (B,), and their last states (B, 4)."""
    state = MAZE.start(torch.randn(EPISODES, 4, generator=torch.Generator().manual_seed(5)))
    total, discounted = torch.zeros(2, len(state))
    for step in range(STEPS):
        state, _ = MAZE.step(state, act(state), torch.zeros(len(state), 4))
        paid = reward.evaluate(state, MAZE.columns)
        total, discounted = total + paid, discounted + DISCOUNT**step * paid
    return total, discounted, state


@torch.no_grad()
def planned(model: Occupancy, reward: Reward) -> tuple[Tensor, float]:
    """Returns of planning, and seconds per decision of one state."""
    generator = torch.Generator().manual_seed(5)
    MAZE.start(torch.randn(EPISODES, 4, generator=generator))
    candidates = POLICY.embeddings(torch.rand(CANDIDATES, 2, generator=generator))
    member, count, spent = torch.empty(0), 0, 0.0

    def plan(states: Tensor) -> Tensor:
        noise = torch.randn(SAMPLES, 4, generator=generator)
        return candidates[
            choose(
                model.futures,
                POLICY.act,
                states,
                candidates,
                noise,
                lambda x: reward.evaluate(x, MAZE.columns),
                DISCOUNT,
            ).index
        ]

    def act(states: Tensor) -> Tensor:
        nonlocal member, count
        if count % REPLAN_STEPS == 0:
            member = plan(states)
        count += 1
        return POLICY.act(states, member)

    returns, _, state = follow(act, reward)
    for _ in range(10):
        began = time.perf_counter()
        plan(state[:1])
        spent += time.perf_counter() - began
    return returns, spent / 10


def evaluated(policy: TrainedPolicy, reward: Reward, model: Dynamics) -> dict[str, Any]:
    """What a policy returns, and what was stated of it."""
    module: Any = policy.module
    actor, generator = module.actor("eval"), torch.Generator().manual_seed(0)
    starts = MAZE.start(torch.randn(EPISODES, 4, generator=torch.Generator().manual_seed(5)))
    critic = module.critics.values(starts, actor(starts, generator)[:, None])[:, 0]
    stated = modelled_return(
        model,
        lambda states: actor(states, generator),
        starts,
        lambda states: reward.evaluate(states, MAZE.columns),
        DISCOUNT,
    ).returns
    returns, followed, last = follow(lambda states: actor(states, generator), reward)
    error = float((stated - followed).std()) / EPISODES**0.5
    gap = abs(float(stated.mean() - followed.mean()))
    left = float((last[:, 0] < 0.0).float().mean()), float((last[:, 1] < 0.0).float().mean())
    return {
        "return": float(returns.mean()),
        "return_error": float(returns.std()) / EPISODES**0.5,
        "stated": float(stated.mean()),
        "critic": float(critic.mean()),
        "followed": float(followed.mean()),
        "value_holds": gap <= 3.0 * error + 0.05 * abs(float(followed.mean())),
        "sides": left,
    }


def seconds_per_decision(policy: TrainedPolicy, decisions: int = 200) -> tuple[float, float]:
    """Seconds that the policy takes to act in one state, as it is loaded, and compiled."""
    state, spent = MAZE.start(torch.zeros(1, 4)).numpy(), []
    for each in (policy, TrainedPolicy(policy.module, compile=True)):
        each(state)
        began = time.perf_counter()
        for _ in range(decisions):
            each(state)
        spent.append((time.perf_counter() - began) / decisions)
    return spent[0], spent[1]


def collect() -> None:
    """Make the data set if it is not there."""
    if not Path("data/maze").exists():
        _call(["collect", "-c=conf/collect/maze.yaml", "--output=data/maze"])


def occupancy(seed: int) -> Path:
    """The checkpoint of an occupancy, trained if it is not there."""
    folder = Path("runs") / "any_reward" / f"occupancy_{seed}"
    if not (folder / "result.json").exists():
        collect()
        given = ["-c=conf/occupancy/maze_goals.yaml", f"--data.num_updates={UPDATES}", f"--seed_everything={seed}"]
        _call(["fit", *given, f"--trainer.default_root_dir={folder}", "--trainer.logger=false"])
    return folder / "checkpoints" / "last.ckpt"


def one_step_model() -> Dynamics:
    """A one-step model of the data, trained if it is not there."""
    folder = Path("runs") / "any_reward" / "dynamics"
    if not (folder / "result.json").exists():
        _call(["fit", "-c=conf/dynamics/maze.yaml", f"--trainer.default_root_dir={folder}", "--trainer.logger=false"])
    return load_dynamics(folder / "checkpoints" / "last.ckpt").dynamics


def _call(words: Sequence[str]) -> None:
    if code := command(list(words)):
        raise SystemExit(code)


def kept(seed: int, name: str, folder: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured of a reward with a seed, measured if it is not there."""
    path = Path("runs") / "any_reward" / folder / str(seed) / f"{name.replace(' ', '_').replace(',', '')}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measure())
    found: dict[str, Any] = json.loads(path.read_text())
    print(seed, name, found, flush=True)
    return found


def improved(seed: int, reward: Reward) -> dict[str, Any]:
    """What a policy made by ``improve`` is worth, and its cost."""
    checkpoint, step = occupancy(seed), one_step_model()
    kept_futures(checkpoint, load_occupancy(checkpoint).model, TransitionStore.open("data/maze"), Draws())
    began = time.process_time()
    policy = improve(checkpoint, reward, "data/maze", seed=seed)
    return {"seconds": time.process_time() - began} | evaluated(policy, reward, step)


def planning(seed: int, reward: Reward) -> dict[str, Any]:
    """What planning returns, and what a decision costs; beside it what one of a policy does, however it was trained."""
    returns, seconds = planned(load_occupancy(occupancy(seed)).model, reward)
    plain, compiled = seconds_per_decision(improve(occupancy(seed), reward, "data/maze", num_updates=2))
    times = {"plan_ms": seconds, "ms_per_action": plain, "ms_compiled": compiled}
    return {"planning": float(returns.mean())} | {name: 1000.0 * each for name, each in times.items()}


def run(seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """One row per reward: mean over seeds of returns, and how many seeds state them within the bound."""
    rows = []
    for name, reward in REWARDS.items():
        found = [kept(seed, name, "improve", lambda s=seed, r=reward: improved(s, r)) for seed in seeds]
        if name in PLANNED:
            found[0] |= kept(seeds[0], name, "planning", lambda r=reward: planning(seeds[0], r))
        rows.append(_row(name, found))
    return {
        "title": "A policy for any reward from one occupancy",
        "seeds": len(seeds),
        "occupancy_updates": UPDATES,
        "rows": rows,
    }


def _row(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def of(key: str, form: str = "{:.4g}") -> str:
        return ", ".join(form.format(row[key]) for row in rows if key in row) or "-"

    axis = 0 if name == "left or right gap" else 1
    rarer = [min(row["sides"][axis], 1.0 - row["sides"][axis]) for row in rows]
    return {
        "reward": name,
        "return": of("return"),
        "planning": of("planning"),
        "stated": of("stated"),
        "critic": of("critic"),
        "followed": of("followed"),
        "within_bound": f"{sum(row['value_holds'] for row in rows)} of {len(rows)}",
        "rarer_optimum": ", ".join(f"{each:.0%}" for each in rarer) if name in TWO_OPTIMA else "-",
        "seconds": of("seconds", "{:.0f}"),
        "ms_per_action": of("ms_per_action", "{:.2f}"),
        "ms_compiled": of("ms_compiled", "{:.2f}"),
        "plan_ms": of("plan_ms", "{:.2f}"),
    }
