"""Gradient updates per second of the paper's recipe on HalfCheetah-v5, beside the floor of its matrix products.

The floor is the number of floating point operations in the matrix products of one update, counted while it runs, over
the rate of an 8192 x 256 x 256 product measured in the same run.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from tensordict import TensorDict
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import gemm, rates
from flowmatch_rl.cli import FlowMatchCLI
from flowmatch_rl.nets import chunks

PAPER = ["-c", "conf/actor_critic/halfcheetah.yaml", "-c", "conf/actor_critic/presets/paper.yaml"]
FAST = ["-c", "conf/actor_critic/halfcheetah.yaml", "-c", "conf/actor_critic/presets/fast.yaml"]


def update_of(config: list[str], precision: str, compile: bool, device: str) -> tuple[Callable[[], None], Any]:
    """One whole gradient update (forward, backward, clipping, Adam, target networks) on a fixed batch."""
    folder = tempfile.mkdtemp()  # one for each: a run has its folder for itself
    options = ["--trainer.logger=false", f"--trainer.default_root_dir={folder}", f"--trainer.precision={precision}"]
    cli = FlowMatchCLI([*config, *options, f"--model.init_args.compile={compile}"], run=False)
    module, trainer = cli.model.to(device), Trainer(logger=False, log_every_n_steps=10**9, accelerator="auto")
    module.trainer = trainer
    optimizer = module.configure_optimizers()
    size, (states, actions) = cli.datamodule.batch_size, (module.observation_dim, module.action_dim)
    batch = TensorDict(
        {
            "observation": torch.randn(size, states),
            "action": 2.0 * torch.rand(size, actions) - 1.0,
            ("next", "observation"): torch.randn(size, states),
            ("next", "reward"): torch.randn(size, 1),
            ("next", "terminated"): torch.zeros(size, 1, dtype=torch.bool),
        },
        batch_size=[size],
    ).to(device)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = module.training_step(batch, 0)
        loss.backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        module.on_train_batch_end(None, batch, 0)

    return update, module


def _without_chunks(update: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        rows, chunks.CPU_ROWS = chunks.CPU_ROWS, 10**9
        try:
            update()
        finally:
            chunks.CPU_ROWS = rows

    return run


def run(rounds: int = 5) -> dict[str, Any]:
    """Measure; returns one row per variant."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    variants = {
        "paper, float32": (PAPER, "32-true", False, torch.float32),
        "paper, float32, compiled": (PAPER, "32-true", True, torch.float32),
        "paper, bfloat16": (PAPER, "bf16-mixed", False, torch.bfloat16),
        "paper, bfloat16, compiled": (PAPER, "bf16-mixed", True, torch.bfloat16),
        "fast, float32": (FAST, "32-true", False, torch.float32),
        "fast, bfloat16": (FAST, "bf16-mixed", False, torch.bfloat16),
    }
    updates, flops = {}, {}
    for name, (config, precision, compile, _) in variants.items():
        updates[name], _ = update_of(config, precision, compile, device)
        eager = update_of(config, precision, False, device)[0] if compile else updates[name]
        with FlopCounterMode(display=False) as counter:
            eager()
        flops[name] = counter.get_total_flops()
    whole = "paper, float32, states not taken in pieces (as before)"
    updates[whole], flops[whole] = _without_chunks(updates["paper, float32"]), flops["paper, float32"]
    types = {name: dtype for name, (*_, dtype) in variants.items()} | {whole: torch.float32}
    products = {dtype: gemm(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    measured = rates(updates | {f"gemm {dtype}": call for dtype, (call, _) in products.items()}, rounds, warmup=2)
    gemm_rate = {dtype: measured[f"gemm {dtype}"] * count for dtype, (_, count) in products.items()}
    rows = [
        {
            "variant": name,
            "updates_per_s": measured[name],
            "gflop_per_update": flops[name] / 1e9,
            "gemm_gflop_per_s": gemm_rate[types[name]] / 1e9,
            "floor_updates_per_s": gemm_rate[types[name]] / flops[name],
            "share_of_floor": measured[name] * flops[name] / gemm_rate[types[name]],
        }
        for name in updates
    ]
    return {"title": "Updates per second, HalfCheetah-v5", "threads": torch.get_num_threads(), "rows": rows}
