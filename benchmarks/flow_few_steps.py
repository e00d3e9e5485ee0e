"""Samples of two moons in one step, a few, and fifty: plain flow, optimal transport, rectified flow and mean flow.

Energy distance between 15,000 samples and as many fresh points of the data, in standardised units, means over seeds.
Each model has the network and batch of ``conf/flow/two_moons.yaml``, but lower time frequencies for mean flow. The
second stage of a rectified flow trains for as many updates once more.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from benchmarks.flow_speed import quiet_trainer
from flowmatch_rl.couplings import ExactCoupling
from flowmatch_rl.data import SampleData
from flowmatch_rl.metrics import energy_distance
from flowmatch_rl.modules import FlowMatchingModel, FlowOptimizer, Reflow
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.objectives import MeanFlow
from flowmatch_rl.samplers import AverageVelocitySampler, OdeSampler, Sampler
from flowmatch_rl.solvers import Euler
from flowmatch_rl.testbeds import TwoMoons

NUMBER = 15_000
ARCHITECTURE = VelocityArchitecture(
    hidden_dim=256, num_blocks=3, activation="silu", max_frequency=10.0, balanced_inputs=True
)
SMOOTH = replace(ARCHITECTURE, max_frequency=3.0)
STEPS = (1, 2, 4, 50)

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "optimal transport": {"coupling": ExactCoupling()},
    "mean flow": {"objective": MeanFlow(), "network": SMOOTH},
    "mean flow, optimal transport": {"objective": MeanFlow(), "network": SMOOTH, "coupling": ExactCoupling()},
}


def fit(seed: int, updates: int, **options: Any) -> tuple[FlowMatchingModel, SampleData, Trainer]:
    """Train one model."""
    torch.manual_seed(seed)
    data = SampleData(batch_size=512, num_updates=updates, epoch_updates=updates)
    model = FlowMatchingModel(data.schema, **{"network": ARCHITECTURE, **options})
    trainer = quiet_trainer(updates)
    trainer.fit(model, datamodule=data)
    return model, data, trainer


def distances(model: FlowMatchingModel, data: SampleData, seed: int) -> list[float]:
    """Energy distance by number of steps."""
    points, _ = TwoMoons().sample(NUMBER, torch.Generator().manual_seed(1000 + seed))
    truth = data.schema.standardise(points).float()
    noise = torch.randn(NUMBER, 2, generator=torch.Generator().manual_seed(seed))

    def sampler(steps: int) -> Sampler:
        if model.objective.uses_duration and steps < max(STEPS):
            return AverageVelocitySampler(steps)
        return OdeSampler(Euler(steps))

    return [float(energy_distance(model.model.sample(noise, sampler=sampler(steps)), truth)) for steps in STEPS]


def run(seeds: int = 2, updates: int = 3000) -> dict[str, Any]:
    """Train every variant with every seed."""
    found: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        for name, options in VARIANTS.items():
            model, data, trainer = fit(seed, updates, **options)
            found.setdefault(name, []).append(distances(model, data, seed))
            if name == "plain":
                with tempfile.TemporaryDirectory() as folder:
                    teacher = Path(folder) / "teacher.ckpt"
                    trainer.save_checkpoint(teacher)
                    student, data, _ = fit(seed, updates, optimizer=FlowOptimizer(3e-4), reflow=Reflow(str(teacher)))
                found.setdefault("reflow of plain", []).append(distances(student, data, seed))
            print(seed, name, found[name][-1], flush=True)
    rows = []
    for name, values in found.items():
        means = torch.tensor(values).mean(0).tolist()
        rows.append({"model": name} | {f"{n}_steps": mean for n, mean in zip(STEPS, means, strict=True)})
    plain = next(row for row in rows if row["model"] == "plain")[f"{max(STEPS)}_steps"]
    for row in rows:
        row["one_step_of_plain_50"] = row["1_steps"] / plain
    return {"title": f"Two moons in few steps: energy distance after {updates} updates, {seeds} seeds", "rows": rows}
