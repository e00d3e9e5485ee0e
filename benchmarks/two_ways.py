"""Tasks with two optimal ways from one start: which a policy keeps, and how soon it recovers when one is closed.

The comparison ``conf/comparison/two_ways.yaml`` is trained. Episodes from its start tell which ways a policy takes, by
sampled actions and as it is evaluated. Then each run is resumed in a copy of its environment in which a wall closes the
way that its evaluations take more often, with the replay buffer of before.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from benchmarks.comparisons import KEPT, RUNS, train
from benchmarks.online import RECORDS
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.experiments.runs import Run, read_study
from flowmatch_rl.inference import TrainedPolicy, load_policy
from flowmatch_rl.testbeds.processes.point_mass import Box

NAME = "two_ways"
EPISODES, MORE_STEPS = 256, 3_000
RECOVERED = 0.9
"""Fraction of the return before a way was closed from which on a policy counts as recovered."""


@dataclasses.dataclass(frozen=True)
class Ways:
    """The two ways of a task.

    Attributes:
        columns: Columns whose mean in the last state tells the way by its sign.
        least: Absolute value of that mean below which an episode has taken none.
        walls: Walls that close the way of positive sign, and the other.
    """

    columns: tuple[str, ...]
    least: float
    walls: tuple[Box, Box]


WAYS = {
    "two-goals": Ways(("x", "y"), 0.1, ((0.06, 0.06, 0.3, 0.3), (-0.3, -0.3, -0.06, -0.06))),
    "reaching-arm": Ways(("shoulder",), 1.0, ((-0.02, -0.3, 0.02, -0.1), (-0.02, 0.1, 0.02, 0.3))),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What episodes of a policy came to.

    Attributes:
        positive: Fraction that took the way of positive sign.
        negative: Fraction that took the other.
        mean_return: Their mean return.
    """

    positive: float
    negative: float
    mean_return: float


def run() -> dict[str, Any]:
    """Train what is missing; returns one row per task and method, with a figure for each seed."""
    train(NAME, RECORDS)
    study = read_study([RUNS / NAME])
    rows = [_row(task, method, study.of(task, method)) for task in study.tasks for method in study.methods]
    return {"title": "Two optimal ways from one start", "rows": rows}


def _row(task: str, method: str, runs: Sequence[Run]) -> dict[str, Any]:
    measured = [_measured(WAYS[task], run.folder) for run in runs]
    return {
        "task": task,
        "method": method,
        **{name: ", ".join(each[name] for each in measured) for name in measured[0]},
    }


def _measured(ways: Ways, folder: Path) -> dict[str, str]:
    environment = _environment(folder)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    sampled, evaluated = (_outcome(ways, environment, load_policy(checkpoint, samples=each)) for each in (True, False))
    closed = folder.parents[2] / f"{NAME}_closed" / folder.relative_to(folder.parents[1])
    wall = ways.walls[0 if evaluated.positive >= evaluated.negative else 1]
    _resume(folder, closed, wall)
    at_once = _outcome(ways, _environment(closed), load_policy(checkpoint)).mean_return
    steps, returns = _curve(closed)
    recovered = [step for step, value in zip(steps, returns, strict=True) if value >= RECOVERED * evaluated.mean_return]
    return {
        "return": f"{evaluated.mean_return:.1f}",
        "sampled_return": f"{sampled.mean_return:.1f}",
        "rarer_way": f"{min(sampled.positive, sampled.negative):.2f}",
        "return_at_once_when_closed": f"{at_once:.1f}",
        "steps_to_recover": str(int(recovered[0])) if recovered else "-",
        "return_in_the_end": f"{returns[-1]:.1f}",
    }


@torch.no_grad()
def _outcome(ways: Ways, environment: ProcessEnvironment, policy: TrainedPolicy) -> Outcome:
    process, reward = environment.process, environment.reward
    if reward is None:
        raise ValueError("expected an environment with a reward, got none")
    noise = torch.randn(EPISODES, process.noise_dim, generator=torch.Generator().manual_seed(1))
    state, total = process.start(noise), torch.zeros(EPISODES)
    for _ in range(environment.max_steps):
        state, _ = process.step(state, torch.from_numpy(policy(state.numpy())), noise)
        total += reward.evaluate(state, process.columns)
    place = state[:, [process.columns.index(name) for name in ways.columns]].mean(-1)
    return Outcome(
        float((place > ways.least).float().mean()), float((place < -ways.least).float().mean()), float(total.mean())
    )


def _resume(folder: Path, closed: Path, wall: Box) -> None:
    """Resume a run where a wall closes a way, and keep the record."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    data = config["data"]["init_args"]
    walls = [*data["environment"]["init_args"]["process"]["init_args"]["walls_at"], list(wall)]
    options = {
        "data.environment.init_args.process.init_args.walls_at": walls,
        "data.total_env_steps": data["total_env_steps"] + MORE_STEPS,
        "trainer.default_root_dir": closed,
        "ckpt_path": folder / "checkpoints" / "last.ckpt",
    }
    if (closed / "result.json").exists():
        return
    command = [sys.executable, "-m", "flowmatch_rl", "fit", f"-c={folder / 'config.yaml'}"]
    subprocess.run([*command, *(f"--{name}={value}" for name, value in options.items())], check=True)
    for kept in KEPT:
        target = RECORDS / closed.relative_to(RUNS) / kept
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((closed / kept).read_bytes())


def _environment(folder: Path) -> ProcessEnvironment:
    """The environment of a run, from its configuration."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    parser = ArgumentParser()
    parser.add_argument("--environment", type=ProcessEnvironment)
    given = parser.parse_object({"environment": config["data"]["init_args"]["environment"]})
    return parser.instantiate_classes(given)["environment"]


def _curve(folder: Path) -> tuple[list[float], list[float]]:
    """Environment steps since the way was closed, and returns, of evaluations after it."""
    (run,) = read_study([folder]).runs
    if run.curve is None:
        raise ValueError(f"expected a learning curve in {folder}, got none")
    steps = run.curve.steps - (run.curve.steps[-1] - MORE_STEPS)
    return steps[steps > 0].tolist(), run.curve.returns[steps > 0].tolist()
