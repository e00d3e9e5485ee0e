"""Occupancies of data of two policies that it does not name: what trains the encoder, and which estimator.

The data of ``conf/collect/maze_two.yaml``: two policies go to opposite rooms of the maze, a third of their actions is
random. All variants count the current state, as InFOM does. ``led`` is the fraction of states and actions, both random,
from which the mean future state lies further towards the room of the second policy under a latent of that policy than
under one of the first, both inferred elsewhere in the maze: .5 by chance.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.occupancy_runs import OPTIMIZER, collected, trained
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.models import Horizon, Intentions, Occupancy
from flowmatch_rl.nets import EmaSettings, GaussianArchitecture, VelocityArchitecture
from flowmatch_rl.objectives import TD2CFM, BiasedChordCFM, OccupancyObjective, Term
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import MazeReachPolicy, PointMassMaze, PolicyMixture

ENCODER = GaussianArchitecture(hidden_dim=128, num_layers=2, activation="gelu")
UPDATES, DISCOUNT = 1_500, 0.9
MAZE = PointMassMaze(start_speed=0.4, action_repeat=4)
POLICIES = PolicyMixture([MazeReachPolicy("top_left"), MazeReachPolicy("bottom_right")])
RIGHT, BIASED = TD2CFM(solver=Midpoint(3)), BiasedChordCFM(solver=Midpoint(3))
VARIANTS: dict[str, tuple[OccupancyObjective, Term | None]] = {
    "told which policy, TD2CFM": (RIGHT, None),
    "intentions, TD2CFM": (RIGHT, "bootstrap"),
    "intentions, BiasedChordCFM": (BIASED, "bootstrap"),
    "intentions by the direct term, TD2CFM": (RIGHT, "direct"),
    "intentions by the direct term, BiasedChordCFM (published)": (BIASED, "direct"),
}


def led_fraction(model: Occupancy, number: int = 200, num_samples: int = 100) -> float:
    """How often a latent leads the futures of a random state and action where the policy behind it goes."""
    generator = torch.Generator().manual_seed(5)
    state, elsewhere = (MAZE.start(torch.randn(number, MAZE.noise_dim, generator=generator)) for _ in range(2))
    action = 2.0 * torch.rand(number, 2, generator=generator) - 1.0
    noise = model.draw_noise(number, num_samples, generator=generator)
    ahead = []
    for policy in range(2):
        latents = torch.full((number, 1), float(policy))
        if model.encoder is not None:
            latents = model.infer_members(elsewhere, POLICIES.act(elsewhere, latents), generator)
        with torch.no_grad():
            futures = model.sample(noise, state[:, None], action[:, None], latents[:, None])
        ahead.append((futures[..., 0] - futures[..., 1]).mean(1))
    return float((ahead[1] > ahead[0]).float().mean())


def run(seeds: tuple[int, ...] = (0, 1, 2), names: tuple[str, ...] = tuple(VARIANTS)) -> dict[str, Any]:
    """Train every variant with every seed; one row each."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = ProcessEnvironment(MAZE, max_steps=100)
        path = collected(Path(folder, "data"), environment, 100_000, POLICIES, num_envs=250, random_fraction=0.33)
        for name in names:
            for seed in seeds:
                objective, term = VARIANTS[name]
                data = OfflineData(path, 256, UPDATES, UPDATES, test_states=64, eval_steps=99)
                module, found = trained(
                    data,
                    seed,
                    intentions=None if term is None else Intentions(4, 0.03, term, ENCODER),
                    objective=objective,
                    network=VelocityArchitecture(hidden_dim=128, num_blocks=2, time_features=32),
                    horizon=Horizon(DISCOUNT, first_state="current"),
                    ema=EmaSettings(0.95),
                    optimizer=OPTIMIZER,
                    sampler=OdeSampler(Midpoint(10)),
                    tests=FutureTests(test_samples=256, value_samples=256, likelihood_samples=0, action_samples=64),
                )
                kept = ("wasserstein", "wasserstein_floor", "action_information")
                row = {"variant": name, "seed": seed, "led": led_fraction(module.model), "seconds": found["seconds"]}
                rows.append(row | {key: found[f"test/{key}"] for key in kept})
                print(rows[-1], flush=True)
    title = "Occupancies of two policies that the data do not name"
    return {"title": title, "updates": UPDATES, "discount": DISCOUNT, "rows": rows}
