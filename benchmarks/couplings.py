"""Milliseconds to pair a batch of noise and data by optimal transport: ours and TorchCFM's. Needs the peers."""

from collections.abc import Callable
from typing import Any

import torch
from torchcfm.optimal_transport import OTPlanSampler

from benchmarks.timing import rates
from flowmatch_rl.couplings import Coupling, ExactCoupling, SinkhornCoupling


def run(rounds: int = 20) -> dict[str, Any]:
    """Time every pairing on standard normal noise and data in the plane."""
    rows = []
    for batch_size in (256, 1024):
        torch.manual_seed(0)
        x_0, x_1 = torch.randn(batch_size, 2), torch.randn(batch_size, 2) + 1.0
        uniform = torch.rand(batch_size)

        def ours(coupling: Coupling, *args: torch.Tensor) -> Callable[[], object]:
            return lambda: args[0][coupling.pair(*args)]

        sampler = OTPlanSampler(method="exact")
        functions = {
            "ExactCoupling": ours(ExactCoupling(), x_0, x_1, uniform),
            "SinkhornCoupling": ours(SinkhornCoupling(), x_0, x_1, uniform),
            "TorchCFM, exact": lambda x=x_0, y=x_1, sampler=sampler: sampler.sample_plan(x, y),
        }
        best = rates(functions, rounds)
        rows += [
            {"batch": batch_size, "pairing": name, "ms": 1e3 / rate, "of_TorchCFM": best["TorchCFM, exact"] / rate}
            for name, rate in best.items()
        ]
    return {"title": "Pairing a batch by optimal transport", "rows": rows}
