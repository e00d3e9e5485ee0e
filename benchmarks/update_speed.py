"""Gradient updates per second of the paper's recipe on HalfCheetah-v5, beside the floor of its matrix products.

The floor is the number of floating point operations in the matrix products of one update, counted while it runs, over
the rate of an 8192 x 256 x 256 product measured in the same run.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import gemm, rates
from flowmatch_rl.cli import FlowMatchCLI
from flowmatch_rl.devices import has_fast_bfloat16
from flowmatch_rl.modules.trial_update import trial_update
from flowmatch_rl.nets import chunks

PAPER = ["-c", "conf/actor_critic/halfcheetah.yaml", "-c", "conf/actor_critic/presets/paper.yaml"]
FAST = ["-c", "conf/actor_critic/halfcheetah.yaml", "-c", "conf/actor_critic/presets/fast.yaml"]


def update_of(config: list[str], precision: str, compile: bool, device: str) -> tuple[Callable[[], None], Any]:
    """One whole gradient update (forward, backward, clipping, Adam, target networks) on a fixed batch."""
    folder = tempfile.mkdtemp()  # one for each: a run has its folder for itself
    options = ["--trainer.logger=false", f"--trainer.default_root_dir={folder}", f"--trainer.precision={precision}"]
    cli = FlowMatchCLI([*config, *options, f"--model.init_args.compile={compile}"], run=False)
    size, dtype = cli.datamodule.batch_size, torch.bfloat16 if precision == "bf16-mixed" else None
    return trial_update(cli.model, size, device, dtype), cli.model


def _without_chunks(update: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        rows, chunks.CPU_ROWS = chunks.CPU_ROWS, 10**9
        try:
            update()
        finally:
            chunks.CPU_ROWS = rows

    return run


def _with_threads(threads: int, call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            call()
        finally:
            torch.set_num_threads(before)

    return run


def run(rounds: int = 5) -> dict[str, Any]:
    """Measure; returns one row per variant and number of threads."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipes = {"paper": (PAPER, False), "paper, compiled": (PAPER, True), "fast": (FAST, False)}
    precisions = {"float32": ("32-true", torch.float32)}
    if has_fast_bfloat16("auto"):
        precisions["bfloat16"] = ("bf16-mixed", torch.bfloat16)
    numbers = (1, 2) if device == "cpu" and (os.cpu_count() or 1) > 1 else (1,)
    calls, flops, types = {}, {}, {}
    for recipe, (config, compile) in recipes.items():
        for precision, (option, dtype) in precisions.items():
            update = update_of(config, option, compile, device)[0]
            eager = update_of(config, option, False, device)[0] if compile else update
            with FlopCounterMode(display=False) as counter:
                _with_threads(1, eager)()  # it counts what this thread computes
            variants = {f"{recipe}, {precision}": update}
            if (recipe, precision) == ("paper", "float32"):
                variants["paper, float32, states not taken in pieces (as before)"] = _without_chunks(update)
            for variant, call in variants.items():
                for threads in numbers:
                    calls[variant, threads] = _with_threads(threads, call)
                    flops[variant, threads], types[variant, threads] = counter.get_total_flops(), dtype
    products = {dtype: gemm(dtype, device) for _, dtype in precisions.values()}
    gemms = {(dtype, n): _with_threads(n, call) for dtype, (call, _) in products.items() for n in numbers}
    measured = rates({f"{name}": call for name, call in (calls | gemms).items()}, rounds, warmup=2)
    rows = []
    for (variant, threads), operations in flops.items():
        dtype, updates = types[variant, threads], measured[str((variant, threads))]
        rate = measured[str((dtype, threads))] * products[dtype][1]
        rows.append(
            {
                "variant": variant,
                "threads": threads,
                "updates_per_s": updates,
                "gflop_per_update": operations / 1e9,
                "gemm_gflop_per_s": rate / 1e9,
                "floor_updates_per_s": rate / operations,
                "share_of_floor": updates * operations / rate,
                "times_one_thread": updates / measured[str((variant, 1))],
            }
        )
    return {"title": "Updates per second, HalfCheetah-v5", "rows": rows}
