"""Occupancies at long horizons: plain transitions against transitions expanded in a learned one-step model.

The loop of the maze at discount .99, data and network of ``occupancy_maze``. Seconds are CPU time of the training of
one thread, the one-step model included.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.occupancy_maze import LINEAR, NETWORK, SOLVER
from benchmarks.occupancy_runs import OPTIMIZER, collected, trained
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.models import Horizon
from flowmatch_rl.modules import Expansion, ObservedSteps, Segments
from flowmatch_rl.nets import DynamicsArchitecture, EmaSettings
from flowmatch_rl.objectives import TD2CFM
from flowmatch_rl.testbeds import CirculationReward, MazeLoopPolicy, PointMassMaze

CONTACTS = DynamicsArchitecture(num_frequencies=4)
VARIANTS: dict[str, tuple[Segments, int]] = {
    "transitions": (ObservedSteps(), 1_000),
    "n = 32": (Expansion(length=32, architecture=CONTACTS), 1_000),
    "n = 64": (Expansion(length=64, architecture=CONTACTS), 1_000),
}
"""Expansion and number of updates by name."""


def run(names: tuple[str, ...] = tuple(VARIANTS), seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Train and test every variant with every seed; one row each."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        starts = ProcessEnvironment(PointMassMaze(start_speed=0.4, action_repeat=4), max_steps=5)
        path = collected(Path(folder, "random"), starts, 1_000_000, None, num_envs=10_000, block_steps=5)
        rest = ProcessEnvironment(PointMassMaze(action_repeat=4), max_steps=1000)
        for name in names:
            segments, updates = VARIANTS[name]
            for seed in seeds:
                data = OfflineData(
                    path, 256, num_updates=updates, epoch_updates=updates, environment=rest, test_states=64
                )
                _, found = trained(
                    data,
                    seed=seed,
                    policy=MazeLoopPolicy(),
                    objective=TD2CFM(solver=SOLVER),
                    path=LINEAR,
                    network=NETWORK,
                    horizon=Horizon(0.99),
                    segments=segments,
                    ema=EmaSettings(0.9),
                    optimizer=OPTIMIZER,
                    rewards={"loop": CirculationReward(scale=0.4)},
                    tests=FutureTests(test_samples=512, value_samples=2048),
                )
                rows.append(
                    {
                        "variant": name,
                        "updates": updates,
                        "seed": seed,
                        "seconds": found["seconds"],
                        "emd": found["test/wasserstein"],
                        "emd_floor": found["test/wasserstein_floor"],
                        "value": found["test/value/loop"],
                        "real_value": found["test/value_real/loop"],
                        "value_error": found["test/value_error/loop"],
                        "error_after_16": found.get("test/dynamics_error/16"),
                    }
                )
                print(rows[-1], flush=True)
    return {"title": "Occupancy of the maze's loop at discount 0.99, expanded transitions", "rows": rows}
