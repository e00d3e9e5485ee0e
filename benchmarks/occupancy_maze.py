"""Objectives of an occupancy on the loop of the maze, in the form of Tables 1 and 2 of arXiv:2503.09817.

Off-policy data: a million transitions of random forces. The network, the batch and the number of updates are far below
those of the paper (three blocks of 512, batch 1024, 3,000,000 updates), and the same for all objectives; the EMA
flow moves as much faster. An action is held for four steps of 0.02 s, so that a lap takes 41 decisions. The maze of the
paper is another one, of the same size, without such a repetition; its figures are for orientation only.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.occupancy_runs import OPTIMIZER, collected, trained
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.models import Horizon
from flowmatch_rl.nets import EmaSettings, FilmUNetArchitecture
from flowmatch_rl.objectives import TD2CFM, TD2DD, TDCFM, TDDD, CoupledTDCFM, MonteCarloCFM, OccupancyObjective
from flowmatch_rl.paths import AffinePath, CosineSchedule, VariancePreservingSchedule
from flowmatch_rl.samplers import DdimSampler
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import CirculationReward, MazeLoopPolicy, PointMassMaze

UPDATES = 8_000
NETWORK = FilmUNetArchitecture(
    block_dims=(128, 128), time_features=64, time_dims=(64, 32), condition_dims=(128, 128), activation="silu"
)
LINEAR, CURVED, DIFFUSION = AffinePath(), AffinePath(CosineSchedule()), AffinePath(VariancePreservingSchedule())
SOLVER, SAMPLER = Midpoint(num_steps=3), DdimSampler(num_steps=20)
METHODS: dict[str, tuple[OccupancyObjective, AffinePath]] = {
    "TD-CFM": (TDCFM(solver=SOLVER), LINEAR),
    "TD2-CFM": (TD2CFM(solver=SOLVER), LINEAR),
    "coupled TD-CFM": (CoupledTDCFM(solver=SOLVER), LINEAR),
    "TD-DD": (TDDD(sampler=SAMPLER), DIFFUSION),
    "TD2-DD": (TD2DD(sampler=SAMPLER), DIFFUSION),
    "Monte Carlo": (MonteCarloCFM(), LINEAR),
    "coupled TD-CFM, curved": (CoupledTDCFM(solver=SOLVER), CURVED),
    "TD2-CFM, curved": (TD2CFM(solver=SOLVER), CURVED),
}
PAPER = {
    "TD-DD": (None, 4717.87),
    "TD2-DD": (None, 4.27),
    "TD-CFM": (0.071, 677.48),
    "coupled TD-CFM": (0.025, 10.91),
    "TD2-CFM": (0.020, 1.75),
}
"""Earth mover's distance and squared error of the value on the loop, Table 11, three seeds; None if not given."""


def run(updates: int = UPDATES, names: tuple[str, ...] = tuple(METHODS)) -> dict[str, Any]:
    """Train and test every objective; one row each."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        starts = ProcessEnvironment(PointMassMaze(start_speed=0.4, action_repeat=4), max_steps=5)
        random = collected(Path(folder, "random"), starts, 1_000_000, None, num_envs=10_000, block_steps=5)
        rest = ProcessEnvironment(PointMassMaze(action_repeat=4), max_steps=1000)
        loops = collected(Path(folder, "loops"), rest, 1_000_000, MazeLoopPolicy(), num_envs=1000)
        for name in names:
            objective, path = METHODS[name]
            data = OfflineData(
                random if objective.bootstraps else loops,
                batch_size=256,
                num_updates=updates,
                epoch_updates=updates,
                environment=rest,
                test_states=64,
            )
            _, found = trained(
                data,
                seed=0,
                policy=MazeLoopPolicy(),
                objective=objective,
                path=path,
                t_min=0.002 if objective.prediction == "noise" else 0.0,
                network=NETWORK,
                horizon=Horizon(0.99),
                ema=EmaSettings(0.9),
                optimizer=OPTIMIZER,
                rewards={"loop": CirculationReward(scale=0.4)},
                tests=FutureTests(test_samples=512, value_samples=2048),
            )
            distance, error = PAPER.get(name, (None, None))
            rows.append(
                {
                    "objective": name,
                    "emd": found["test/wasserstein"],
                    "emd_floor": found["test/wasserstein_floor"],
                    "squared_emd": found["test/squared_wasserstein"],
                    "nll_per_dim": found["test/nll_per_dim"],
                    "value": found["test/value/loop"],
                    "real_value": found["test/value_real/loop"],
                    "value_error": found["test/value_error/loop"],
                    "paper_emd": distance,
                    "paper_value_error": error,
                }
            )
            print(rows[-1], flush=True)
    return {"title": "Occupancy of the maze's loop, discount 0.99", "updates": updates, "rows": rows}
