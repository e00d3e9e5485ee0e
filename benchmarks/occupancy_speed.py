"""Gradient updates per second of an occupancy model, beside the floor of its matrix products.

TD2-CFM with the single-policy sizes of arXiv:2503.09817, Table 5: batch 1024, three blocks of 512, ten midpoint steps;
state, action and maze policy of the point-mass maze. The floor is the number of floating point operations in the matrix
products of one update, counted while it runs, over the rate of an 8192 x 256 x 256 product measured in the same run.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import gemm, rates
from flowmatch_rl.batches import Segment
from flowmatch_rl.modules import OccupancyModule
from flowmatch_rl.nets import Architecture, FilmUNetArchitecture, VelocityArchitecture, update_ema
from flowmatch_rl.objectives import TD2CFM, TDCFM, OccupancyObjective
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import MazeLoopPolicy, PointMassMaze

BATCH = 1024
VARIANTS: dict[str, tuple[OccupancyObjective, Architecture]] = {
    "TD2-CFM, FiLM U-Net 3 x 512": (TD2CFM(), FilmUNetArchitecture()),
    "TD-CFM, FiLM U-Net 3 x 512": (TDCFM(), FilmUNetArchitecture()),
    "TD2-CFM, plain 4 x 512": (TD2CFM(), VelocityArchitecture(512, 3, "silu", max_frequency=10.0)),
}


def update_of(objective: OccupancyObjective, network: Architecture, device: str) -> Callable[[], None]:
    """One whole gradient update (policy, bootstrap, forward, backward, AdamW, EMA flow) on a fixed batch."""
    maze = PointMassMaze()
    schema = TableSchema(maze.columns, (0.0,) * 4, (0.18, 0.18, 0.1, 0.1))
    module = OccupancyModule(schema, maze.action_dim, policy=MazeLoopPolicy(), objective=objective, network=network).to(
        device
    )
    optimizer = module.configure_optimizers()
    state = maze.start(torch.randn(BATCH, 4))
    action = 2.0 * torch.rand(BATCH, 2) - 1.0
    arrival, _ = maze.step(state, action, torch.randn(BATCH, 4))
    segment = Segment(
        observation=state.to(device),
        action=action.to(device),
        arrivals=arrival[:, None].to(device),
        terminated=torch.zeros(BATCH, 1, dtype=torch.bool, device=device),
        length=torch.ones(BATCH, dtype=torch.long, device=device),
        next_action=None,
        embedding=torch.empty(BATCH, 0, device=device),
        future=None,
    )

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        direct, bootstrap = module.loss(segment)
        (direct + bootstrap).mean().backward()
        optimizer.step()
        update_ema(module.flow_ema, module.flow, module.ema.decay)

    return update


def run(rounds: int = 4) -> dict[str, Any]:
    """Measure; returns one row per variant."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    updates = {name: update_of(*parts, device) for name, parts in VARIANTS.items()}
    flops = {}
    for name, update in updates.items():
        with FlopCounterMode(display=False) as counter:
            update()
        flops[name] = counter.get_total_flops()
    multiply, count = gemm(torch.float32, device)
    measured = rates({**updates, "gemm": multiply}, rounds)
    gemm_rate = measured["gemm"] * count
    rows = [
        {
            "variant": name,
            "updates_per_s": measured[name],
            "gflop_per_update": flops[name] / 1e9,
            "gemm_gflop_per_s": gemm_rate / 1e9,
            "floor_updates_per_s": gemm_rate / flops[name],
            "share_of_floor": measured[name] * flops[name] / gemm_rate,
        }
        for name in updates
    ]
    return {"title": "Updates per second of an occupancy", "threads": torch.get_num_threads(), "rows": rows}
