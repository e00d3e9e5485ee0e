"""Sample quality of flows in the plane after equal updates: the module, TorchCFM and flow_matching.

Same network, batch, number of updates, learning rate and sampler (25 midpoint steps); distances between 5,000 samples
and as many fresh points of the distribution, in standardised units. The module's own are its EMA flow and its decaying
learning rate, on by default; the packages leave both to the user's loop. Needs the extra ``benchmarks``.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.flow_speed import PACKAGES, Loop, trained
from flowmatch_rl.data import DensityTable
from flowmatch_rl.metrics import energy_distance, sliced_wasserstein_distance
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import Checkerboard, PlanarDensity, TwoMoons

NUMBER = 5_000


def distances(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    """Energy distance and sliced Wasserstein distance."""
    directions = torch.randn(200, truth.shape[1], generator=torch.Generator().manual_seed(0))
    return float(energy_distance(samples, truth)), float(sliced_wasserstein_distance(samples, truth, directions))


def run(seeds: int = 5, updates: int = 800, batch_size: int = 256) -> dict[str, Any]:
    """Train every contestant on every distribution with every seed; returns means and standard errors."""
    rows = []
    for dataset in (DensityTable(TwoMoons()), DensityTable(Checkerboard())):
        found: dict[str, list[tuple[float, float]]] = {"floor (two samples of the law)": []}
        for seed in range(seeds):
            module, data, _ = trained(dataset, batch_size, updates, seed=seed)
            truth, other = (_fresh(dataset.density, data.schema, 1000 + 2 * seed + i) for i in range(2))
            found["floor (two samples of the law)"].append(distances(other, truth))
            noise = torch.randn(NUMBER, 2, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                samples = Midpoint(25).integrate(module.flow_ema.field().velocity, noise, 0.0, 1.0)
                found.setdefault("module", []).append(distances(samples, truth))
                table = data.schema.standardise(torch.tensor(dataset.load()[["x", "y"]].to_numpy())).float()
            for name in ("TorchCFM", "flow_matching"):
                loop = Loop(PACKAGES[name], table, batch_size, seed)
                loop.run(updates)
                with torch.no_grad():
                    samples = Midpoint(25).integrate(loop.network, noise, 0.0, 1.0)
                found.setdefault(name, []).append(distances(samples, truth))
        rows += [_row(dataset.label, name, values) for name, values in found.items()]
    return {"title": f"A flow in the plane: sample quality after {updates} updates of batch {batch_size}", "rows": rows}


def _fresh(density: PlanarDensity, schema: Any, seed: int) -> Tensor:
    points, _ = density.sample(NUMBER, torch.Generator().manual_seed(seed))
    return schema.standardise(points).float()


def _row(law: str, name: str, values: list[tuple[float, float]]) -> dict[str, Any]:
    both = torch.tensor(values)
    mean, error = both.mean(0).tolist(), (both.std(0) / len(both) ** 0.5).tolist()
    return {
        "law": law,
        "loop": name,
        "energy_distance": mean[0],
        "standard_error_of_it": error[0],
        "sliced_wasserstein": mean[1],
        "standard_error": error[1],
    }
