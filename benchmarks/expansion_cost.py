"""What an update of an occupancy costs on expanded transitions, as a ratio to one on plain transitions.

TD2-CFM on the loop of the maze with the small network and batch of ``occupancy_maze``, where expansions weigh most: an
update with the sizes of arXiv:2503.09817 takes a hundred times as long. Expansions are made for a pool; their time is
spread over the updates that the pool serves. CPU time of one thread; rounds of all variants alternate.
"""

import statistics
import time
from typing import Any

import torch

from benchmarks.occupancy_horizon import SEGMENTS
from benchmarks.occupancy_maze import LINEAR, NETWORK, SOLVER
from flowmatch_rl.batches import Segment
from flowmatch_rl.models import Horizon, StochasticDynamics
from flowmatch_rl.modules import Expansion, OccupancyModule, Segments
from flowmatch_rl.nets import EmaSettings, update_ema
from flowmatch_rl.objectives import TD2CFM
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import MazeLoopPolicy, PointMassMaze

BATCH = 256
VARIANTS: dict[str, Segments] = {name: SEGMENTS[name] for name in ("transitions", "n = 32", "n = 64", "n = 128")} | {
    "n = 16, two flows": Expansion(length=16, dynamics=StochasticDynamics(num_members=2), pool_batches=16)
}


class _Run:
    """Updates of a module on random transitions of the maze."""

    def __init__(self, segments: Segments) -> None:
        self._maze = PointMassMaze(start_speed=0.4, action_repeat=4)
        schema = TableSchema(self._maze.columns, (0.0,) * 4, (0.18, 0.18, 0.1, 0.1))
        self._module = OccupancyModule(
            schema,
            self._maze.action_dim,
            policy=MazeLoopPolicy(),
            objective=TD2CFM(solver=SOLVER),
            path=LINEAR,
            network=NETWORK,
            horizon=Horizon(0.99),
            segments=segments,
            ema=EmaSettings(0.9),
        )
        self._optimizer = self._module.configure_optimizers()
        if self._module.dynamics is not None:
            few = self.batches(4)
            self._module.dynamics.measure(few[0].observation, few[0].arrivals[:, 0])
            self._module.dynamics.trained.fill_(True)
        # Without a run nothing is trained first: the time of a step does not depend on the weights.
        self.maker = segments.start(self._module.dynamics, MazeLoopPolicy(), lambda size: iter(()), seed=0)

    def batches(self, number: int) -> list[Segment]:
        """Batches of transitions."""
        made = []
        for _ in range(number):
            state, action = self._maze.start(torch.randn(BATCH, 4)), 2.0 * torch.rand(BATCH, 2) - 1.0
            arrival, terminal = self._maze.step(state, action, torch.randn(BATCH, 4))
            length, embedding = torch.ones(BATCH, dtype=torch.long), torch.empty(BATCH, 0)
            made.append(Segment(state, action, arrival[:, None], terminal[:, None], length, None, embedding, None))
        return made

    def update(self, batch: Segment) -> None:
        """One gradient update on segments."""
        self._optimizer.zero_grad(set_to_none=True)
        direct, bootstrap = self._module.loss(batch)
        (direct + bootstrap).mean().backward()
        self._optimizer.step()
        update_ema(self._module.flow_ema, self._module.flow, self._module.ema.decay)


def _seconds(run: _Run, settings: Segments, updates: int = 20) -> float:
    """Seconds of an update: those of the updates, and the part of an expansion that falls on each."""
    number = settings.reuse * (1 + settings.pool_batches) if isinstance(settings, Expansion) else updates
    batches = run.batches(number)
    began = time.thread_time()
    taken = [run.maker.take(batch) for batch in batches]
    expanded = (time.thread_time() - began) / number
    began = time.thread_time()
    for batch in taken[-updates:]:
        run.update(batch)
    return expanded + (time.thread_time() - began) / updates


def run(rounds: int = 3) -> dict[str, Any]:
    """Measure; one row per variant."""
    runs = {name: _Run(segments) for name, segments in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, segments in VARIANTS.items():
            seconds[name].append(_seconds(runs[name], segments))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {"segments": name, "ms_per_update": 1e3 * median[name], "ratio": median[name] / median["transitions"]}
        for name in VARIANTS
    ]
    return {"title": "Cost of an update on expanded transitions", "threads": torch.get_num_threads(), "rows": rows}
