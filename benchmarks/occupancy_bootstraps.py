"""Cheaper bootstraps of TD2-CFM: solvers with fewer evaluations, and an average-velocity copy that takes one.

The loop of the maze at discount .99 with data and network of ``occupancy_maze``. A solver's error moves the points of
the regression, not its targets. The copy is a second network ``u(x_0, t, condition)`` that carries noise to flow time t
at once, ``x_t = x_0 + t u``. It learns from ``d x_t / dt = v(x_t, t)``, on a quarter of each batch and with the EMA
flow's velocities that the objective evaluates anyway. ``update_ms`` is the CPU time of an update, the least over rounds
that alternate. ``points`` is the mean distance of the bootstrapped points from the exact ones on a linear-Gaussian
process whose field is known, in standard deviations of the state.
"""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.occupancy_horizon import SEGMENTS
from benchmarks.occupancy_maze import LINEAR, NETWORK, SOLVER
from benchmarks.occupancy_runs import OPTIMIZER, collected, trained
from flowmatch_rl.batches import Segment
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.models import Horizon
from flowmatch_rl.modules import OccupancyModule
from flowmatch_rl.nets import EmaSettings, update_ema
from flowmatch_rl.objectives import TD2CFM, Backup, BackupNoise
from flowmatch_rl.paths import Field
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import Euler, Midpoint
from flowmatch_rl.testbeds import (
    CirculationReward,
    LinearGaussianProcess,
    LinearPolicy,
    MazeLoopPolicy,
    PointMassMaze,
)

BATCH = 256


@dataclass(frozen=True)
class AverageVelocityBootstrap(TD2CFM):
    """``TD2CFM`` whose points are those of an average-velocity copy.

    Args:
        network: The copy, called as ``network(x_0, t, condition)``.
        fraction: Fraction of each batch that it learns from, in (0, 1].
    """

    network: nn.Module = field(default_factory=nn.Identity, compare=False)
    fraction: float = 0.25

    def loss(
        self,
        field: Field,
        field_ema: Field,
        backup: Backup,
        noise: BackupNoise,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> tuple[Tensor, Tensor]:
        """The terms of ``TD2CFM``, with the loss of the copy in the second."""
        x_0, t, condition = noise.start, noise.t_bootstrap, backup.next_condition
        with torch.no_grad():
            x_t = x_0 + t[:, None] * self.network(x_0, t, condition)
            velocity = field_ema.at(condition).predict(x_t, t, None)
        known = _KnownBootstrap(points=x_t, targets=velocity)
        direct, bootstrap = known.loss(field, field_ema, backup, noise, interval)
        some = slice(0, max(1, round(self.fraction * len(t))))
        given, one = (t[some],), (torch.ones_like(t[some]),)
        carried: Any = torch.func.jvp(lambda time: self.network(x_0[some], time, condition[some]), given, one)
        average, slope = carried
        target = velocity[some] - t[some, None] * slope.detach()
        return direct, bootstrap + (average - target).square().sum(-1).mean()


@dataclass(frozen=True)
class _KnownBootstrap(TD2CFM):
    points: Tensor = field(default_factory=lambda: torch.zeros(0), compare=False)
    targets: Tensor = field(default_factory=lambda: torch.zeros(0), compare=False)

    def bootstrap(self, field: Field, noise: BackupNoise, interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
        return self.points, self.targets


class ModuleWithCopy(OccupancyModule):
    """An occupancy whose bootstrap is made by an average-velocity copy of its flow."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        inputs = self.model.inputs
        self.copy = options["network"].build(inputs.sample_dim, inputs.condition_dim)
        self.copy.begin_at_zero()
        self.objective = AverageVelocityBootstrap(network=self.copy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the flow and on its copy."""
        return self.optimizer.build([*self.flow.parameters(), *self.copy.parameters()])


VARIANTS: dict[str, tuple[TD2CFM, type[OccupancyModule]]] = {
    "midpoint 3": (TD2CFM(solver=SOLVER), OccupancyModule),
    "midpoint 2": (TD2CFM(solver=Midpoint(2)), OccupancyModule),
    "midpoint 1": (TD2CFM(solver=Midpoint(1)), OccupancyModule),
    "Euler 3": (TD2CFM(solver=Euler(3)), OccupancyModule),
    "Euler 2": (TD2CFM(solver=Euler(2)), OccupancyModule),
    "Euler 1": (TD2CFM(solver=Euler(1)), OccupancyModule),
    "average-velocity copy": (TD2CFM(), ModuleWithCopy),
}


def run(
    variants: tuple[str, ...] = ("midpoint 3", "midpoint 1", "Euler 1", "average-velocity copy"),
    segments: tuple[str, ...] = ("n = 128",),
    updates: int = 1_000,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> dict[str, Any]:
    """Train and test every variant with every seed; one row each."""
    rows, costs, errors = [], update_seconds(), points_errors()
    with tempfile.TemporaryDirectory() as folder:
        for kind in segments:
            for name in variants:
                for seed in seeds:
                    measured = {"update_ms": 1e3 * costs[name], "points": errors.get(name, "")}
                    rows.append(_row(Path(folder), kind, name, updates, seed) | measured)
                    print(rows[-1], flush=True)
    return {
        "title": "Bootstraps of TD2-CFM by solvers of fewer evaluations, the maze's loop, discount .99",
        "rows": rows,
    }


def update_seconds(rounds: int = 25) -> dict[str, float]:
    """CPU seconds of an update by variant, without expansion."""
    maze = PointMassMaze(start_speed=0.4, action_repeat=4)
    schema = TableSchema(maze.columns, (0.0,) * 4, (0.18, 0.18, 0.1, 0.1))
    modules = {
        name: kind(schema, maze.action_dim, **_options(objective)) for name, (objective, kind) in VARIANTS.items()
    }
    optimizers = {name: module.configure_optimizers() for name, module in modules.items()}
    state, action = maze.start(torch.randn(BATCH, 4)), 2.0 * torch.rand(BATCH, 2) - 1.0
    arrival, terminal = maze.step(state, action, torch.randn(BATCH, 4))
    length, member = torch.ones(BATCH, dtype=torch.long), torch.empty(BATCH, 0)
    batch = Segment(state, action, arrival[:, None], terminal[:, None], length, None, member, None)
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(rounds):
        for name, module in modules.items():
            began = time.thread_time()
            direct, bootstrap = module.loss(batch)
            optimizers[name].zero_grad()
            (direct + bootstrap).mean().backward()
            optimizers[name].step()
            update_ema(module.flow_ema, module.flow, module.ema.decay)
            seconds[name].append(time.thread_time() - began)
    return {name: min(values) for name, values in seconds.items()}


def points_errors(number: int = 3_000) -> dict[str, float]:
    """Mean distance of bootstrapped points from the exact ones by solver, in standard deviations of the state."""
    process = LinearGaussianProcess([[0.9]], [[0.5 / 1.1]], [-0.12 / 1.1], [[0.4 / 1.1]])
    velocity = process.exact_velocity(LinearPolicy([[-0.33]], [0.84]), 0.99, LINEAR)
    generator = torch.Generator().manual_seed(0)
    state, x_0 = torch.randn(2, number, 1, generator=generator)
    action, t = 2.0 * torch.rand(number, 1, generator=generator) - 1.0, torch.rand(number, generator=generator)
    condition = torch.cat([state, action], 1)
    exact = Midpoint(48).integrate(velocity, x_0, 0.0, t, condition)
    solvers = {name: objective.solver for name, (objective, kind) in VARIANTS.items() if kind is OccupancyModule}
    return {
        name: float((solver.integrate(velocity, x_0, 0.0, t, condition) - exact).abs().mean())
        for name, solver in solvers.items()
    }


def _options(objective: TD2CFM) -> dict[str, Any]:
    return {
        "policy": MazeLoopPolicy(),
        "objective": objective,
        "path": LINEAR,
        "network": NETWORK,
        "horizon": Horizon(0.99),
        "ema": EmaSettings(0.9),
        "optimizer": OPTIMIZER,
    }


def _row(folder: Path, segments: str, name: str, updates: int, seed: int) -> dict[str, Any]:
    starts = ProcessEnvironment(PointMassMaze(start_speed=0.4, action_repeat=4), max_steps=5)
    random = collected(folder / "random", starts, 1_000_000, None, num_envs=10_000, block_steps=5)
    rest = ProcessEnvironment(PointMassMaze(action_repeat=4), max_steps=1000)
    data = OfflineData(random, BATCH, num_updates=updates, epoch_updates=updates, environment=rest, test_states=64)
    objective, kind = VARIANTS[name]
    _, found = trained(
        data,
        seed=seed,
        kind=kind,
        segments=SEGMENTS[segments],
        rewards={"loop": CirculationReward(scale=0.4)},
        tests=FutureTests(test_samples=512, value_samples=2048, likelihood_samples=0, num_actions=0),
        **_options(objective),
    )
    return {
        "bootstrap": name,
        "segments": segments,
        "seed": seed,
        "seconds": found["seconds"],
        "emd": found["test/wasserstein"],
        "value_error": found["test/value_error/loop"],
    }
