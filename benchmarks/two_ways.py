"""Tasks with two optimal ways from one start: which a policy keeps, and how it recovers when one is closed.

The comparison ``conf/comparison/two_ways.yaml`` is trained. Episodes that start between the ways tell which of them a
policy takes, by sampled actions and as it is evaluated. Then each run is resumed in a copy of its environment in which
a wall closes the way that its evaluations take more often from there, with the replay buffer of before.
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
EPISODES, MORE_STEPS = 256, 2_000
MIDDLE = 0.01
"""Half the side of the square of starts between the two ways, where an episode tells which it takes."""


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
    "two-goals": Ways(("x", "y"), 0.1, ((0.11, 0.11, 0.3, 0.3), (-0.3, -0.3, -0.11, -0.11))),
    "reaching-arm": Ways(("shoulder",), 1.0, ((-0.02, -0.3, 0.02, -0.1), (-0.02, 0.1, 0.02, 0.3))),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What episodes of a policy that start between the ways came to.

    Attributes:
        positive: Fraction that took the way of positive sign.
        negative: Fraction that took the other.
        mean_return: Their mean return.
    """

    positive: float
    negative: float
    mean_return: float

    @property
    def rarer(self) -> float:
        """Fraction that took the way that fewer took."""
        return min(self.positive, self.negative)


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
    closed = RUNS / f"{NAME}_closed" / folder.relative_to(RUNS / NAME)
    wall = ways.walls[0 if evaluated.positive >= evaluated.negative else 1]
    _resume(folder, closed, wall)
    places = (checkpoint, closed / "checkpoints" / "last.ckpt")
    at_once, in_the_end = (_outcome(ways, _environment(closed), load_policy(place)).mean_return for place in places)
    return {
        "return_from_the_middle": f"{evaluated.mean_return:.1f}",
        "rarer_way": f"{evaluated.rarer:.2f}",
        "return_sampled": f"{sampled.mean_return:.1f}",
        "rarer_way_sampled": f"{sampled.rarer:.2f}",
        "return_when_one_is_closed": f"{at_once:.1f}",
        f"after_{MORE_STEPS}_steps": f"{in_the_end:.1f}",
    }


@torch.no_grad()
def _outcome(ways: Ways, environment: ProcessEnvironment, policy: TrainedPolicy) -> Outcome:
    process: Any = dataclasses.replace(environment.process, start_half_width=MIDDLE)  # pyright: ignore[reportCallIssue]
    reward = environment.reward
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
