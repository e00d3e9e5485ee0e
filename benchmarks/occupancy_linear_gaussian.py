"""Objectives of an occupancy on a linear-Gaussian process whose discounted future is known exactly.

One dimension, actions of the data unrelated to the policy, discount 0.9. Distances are Wasserstein-1 between 4000
samples of the model and 4000 exact ones, a mean over 16 states; the floor is that between two exact samples.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.occupancy_runs import OPTIMIZER, collected, trained
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.metrics import wasserstein_distance
from flowmatch_rl.models import Horizon
from flowmatch_rl.modules import OccupancyModule
from flowmatch_rl.nets import EmaSettings, FilmUNetArchitecture
from flowmatch_rl.objectives import TD2CFM, TDCFM, CoupledTDCFM, OccupancyObjective
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import LinearGaussianProcess, LinearPolicy

PROCESS = LinearGaussianProcess(transition=[[0.8]], control=[[0.3]], noise_factor=[[0.1]])
POLICY = LinearPolicy(gain=[[-0.5]], bias=[0.4])
DISCOUNT, UPDATES, SEEDS = 0.9, 3_000, (0, 1, 2)
SOLVER = Midpoint(num_steps=3)
NETWORK = FilmUNetArchitecture(
    block_dims=(64, 64), time_features=64, time_dims=(64, 32), condition_dims=(64,), activation="silu"
)
METHODS: dict[str, OccupancyObjective] = {
    "TD-CFM": TDCFM(solver=SOLVER),
    "coupled TD-CFM": CoupledTDCFM(solver=SOLVER),
    "TD2-CFM": TD2CFM(solver=SOLVER),
}


def distances(module: OccupancyModule, number: int = 4_000, num_states: int = 16) -> tuple[float, float, float]:
    """Distance to the exact distribution, that between two exact samples, and the error of the mean."""
    discount = module.model.horizon.discount
    generator = torch.Generator().manual_seed(9)
    state = torch.randn(num_states, 1, generator=generator) * PROCESS.start_scale
    action = POLICY.act(state)
    found, floor, means = [], [], []
    for s, a in zip(state, action, strict=True):
        mixture = PROCESS.occupancy(s.double().expand(number, 1), a.double().expand(number, 1), POLICY, discount)
        exact = [
            mixture.draw(
                torch.rand(number, generator=generator, dtype=torch.float64),
                torch.randn(number, 1, generator=generator, dtype=torch.float64),
            )
            for _ in range(2)
        ]
        noise = torch.randn(1, number, 1, generator=generator)
        made = module.model.sample(noise, s[None, None], a[None, None], s.new_empty(1, 1, 0))[0].double()
        # In one dimension sorting solves the transport problem.
        found.append(float((made.sort(0).values - exact[0].sort(0).values).abs().mean()))
        floor.append(float((exact[1].sort(0).values - exact[0].sort(0).values).abs().mean()))
        means.append(float((made.mean() - mixture.mean[0]).abs()))
    check = float(wasserstein_distance(made[:200], exact[0][:200]))
    sorted_check = float((made[:200].sort(0).values - exact[0][:200].sort(0).values).abs().mean())
    if abs(check - sorted_check) > 1e-6:
        raise RuntimeError(f"sorting gives {sorted_check}, optimal transport {check}")
    return sum(found) / num_states, sum(floor) / num_states, sum(means) / num_states


def run(updates: int = UPDATES, seeds: tuple[int, ...] = SEEDS) -> dict[str, Any]:
    """Train every objective with every seed; one row each."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = ProcessEnvironment(PROCESS, max_steps=50)
        path = collected(Path(folder, "data"), environment, 200_000, None, num_envs=400, block_steps=50)
        for seed in seeds:
            for name, objective in METHODS.items():
                data = OfflineData(path, batch_size=256, num_updates=updates, epoch_updates=updates, test_states=2)
                module, _ = trained(
                    data,
                    seed,
                    policy=POLICY,
                    objective=objective,
                    network=NETWORK,
                    horizon=Horizon(DISCOUNT),
                    ema=EmaSettings(0.95),
                    optimizer=OPTIMIZER,
                    tests=FutureTests(value_samples=2, test_samples=2, likelihood_samples=0, num_actions=0),
                )
                distance, floor, mean_error = distances(module)
                rows.append(
                    {
                        "seed": seed,
                        "objective": name,
                        "wasserstein": distance,
                        "floor": floor,
                        "error_of_mean": mean_error,
                    }
                )
                print(rows[-1], flush=True)
    means = {name: sum(row["wasserstein"] for row in rows if row["objective"] == name) / len(seeds) for name in METHODS}
    return {
        "title": "Occupancy of a linear-Gaussian process, discount 0.9",
        "updates": updates,
        "td2_over_td": means["TD2-CFM"] / means["TD-CFM"],
        "coupled_over_td": means["coupled TD-CFM"] / means["TD-CFM"],
        "rows": rows,
    }
