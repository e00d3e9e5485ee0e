"""Occupancies of a random process: plain transitions against transitions expanded in a learned flow of one step.

The linear-Gaussian process of ``occupancy_linear_gaussian``, whose occupancy is known. Seconds are CPU time of the
training of one thread, the one-step model included.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.occupancy_linear_gaussian import NETWORK, POLICY, PROCESS, SOLVER, distances
from benchmarks.occupancy_runs import OPTIMIZER, collected, trained
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.models import DeterministicDynamics, Horizon, StochasticDynamics
from flowmatch_rl.modules import Expansion, ObservedSteps, Segments
from flowmatch_rl.nets import EmaSettings, VelocityArchitecture
from flowmatch_rl.objectives import TD2CFM

DISCOUNTS, UPDATES = (0.9, 0.98), 1_500
FLOWS = StochasticDynamics(
    network=VelocityArchitecture(64, 1, "silu", time_features=64, max_frequency=10.0, balanced_inputs=True)
)
SEGMENTS: dict[str, Segments] = {
    "transitions": ObservedSteps(),
    "n = 16, flows": Expansion(length=16, dynamics=FLOWS, num_updates=2_000, learning_rate=2e-3),
    "n = 16, means": Expansion(length=16, dynamics=DeterministicDynamics(), num_updates=2_000),
}


def run(seeds: tuple[int, ...] = (0, 1, 2), names: tuple[str, ...] = tuple(SEGMENTS)) -> dict[str, Any]:
    """Train every variant with every seed; one row each."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = ProcessEnvironment(PROCESS, max_steps=50)
        path = collected(Path(folder, "data"), environment, 200_000, None, num_envs=400, block_steps=50)
        for discount in DISCOUNTS:
            for name in names:
                for seed in seeds:
                    data = OfflineData(path, batch_size=256, num_updates=UPDATES, epoch_updates=UPDATES, test_states=2)
                    module, found = trained(
                        data,
                        seed,
                        policy=POLICY,
                        objective=TD2CFM(solver=SOLVER),
                        network=NETWORK,
                        horizon=Horizon(discount),
                        segments=SEGMENTS[name],
                        ema=EmaSettings(0.95),
                        optimizer=OPTIMIZER,
                        tests=FutureTests(value_samples=2, test_samples=2, likelihood_samples=0, num_actions=0),
                    )
                    distance, floor, mean_error = distances(module)
                    rows.append(
                        {
                            "discount": discount,
                            "variant": name,
                            "seed": seed,
                            "seconds": found["seconds"],
                            "wasserstein": distance,
                            "floor": floor,
                            "error_of_mean": mean_error,
                        }
                    )
                    print(rows[-1], flush=True)
    title = "Occupancies of a linear-Gaussian process, expanded in a flow of one step"
    return {"title": title, "updates": UPDATES, "rows": rows}
