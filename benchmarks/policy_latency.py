"""Time of one action of a policy: in PyTorch, and as an exported program, batch 1 and one thread.

The policies have the sizes of their configurations on cheetah-run and weights that are not trained, which do not matter
to the time. They take turns of a hundred actions. Other work on the processor shows in times by the clock, not in CPU
time, which is about that of a free core.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from lightning.pytorch import Trainer

from benchmarks.training_speed import COMMON, CONF
from flowmatch_rl.cli import FlowMatchCLI
from flowmatch_rl.inference import export_checkpoint, load_policy

POLICIES = {name: f"presets/{name}.yaml" for name in ("lean", "fast")} | {"SAC": "methods/sac.yaml"}
TURN = 100


def _checkpoint(overlay: str, folder: Path) -> Path:
    """A checkpoint of a policy that is not trained."""
    files = [f"-c={CONF / file}" for file in ("cheetah_run.yaml", overlay)]
    cli = FlowMatchCLI([*files, *COMMON, f"--trainer.default_root_dir={folder}"], run=False)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=0)
    trainer.strategy.connect(cli.model)
    trainer.save_checkpoint(folder / "policy.ckpt", weights_only=True)
    return folder / "policy.ckpt"


def _ways(overlay: str) -> tuple[str, dict[str, Callable[[], object]]]:
    """How a policy acts in words, and a decision of it in each way."""
    with tempfile.TemporaryDirectory() as name:
        path = _checkpoint(overlay, Path(name))
        policy = load_policy(path, deterministic=True)
        programs = [export_checkpoint(path, Path(name) / f"policy.{kind}", batch_size=1) for kind in ("pt2", "onnx")]
        program = torch.export.load(programs[0].path).module()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(programs[1].path, options, providers=["CPUExecutionProvider"])
    assert policy.noise is not None
    state = np.ones(policy.observation_dim, np.float32)
    given = {"observation": state[None], "noise": policy.noise[None]}
    tensors = {name: torch.as_tensor(value) for name, value in given.items()}

    def of_pytorch() -> None:
        with torch.inference_mode():
            program(**tensors)

    ways = {
        "load_policy": lambda: policy(state),
        "torch.export": of_pytorch,
        "ONNX Runtime": lambda: session.run(None, given),
    }
    return programs[1].metadata["summary"].removeprefix("acts by "), ways


def run(turns: int = 10) -> dict[str, Any]:
    """Measure; returns one row per policy and way."""
    torch.set_num_threads(1)
    policies = {name: _ways(overlay) for name, overlay in POLICIES.items()}
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {
        (name, way): [] for name in policies for way in policies[name][1]
    }
    for turn in range(turns + 1):  # the first warms up
        for (name, way), times in taken.items():
            act = policies[name][1][way]
            for _ in range(TURN):
                start = time.thread_time(), time.perf_counter()
                act()
                end = time.thread_time(), time.perf_counter()
                times.append((1e3 * (end[0] - start[0]), 1e3 * (end[1] - start[1])))
            if turn == 0:
                times.clear()
    rows = []
    for (name, way), times in taken.items():
        (median, late), (clock, late_clock) = np.percentile(times, (50, 99), axis=0).T.tolist()
        eager = float(np.median(taken[name, "load_policy"], axis=0)[0])
        rows.append(
            {
                "policy": f"{name}: {policies[name][0]}",
                "runs by": way,
                "median cpu ms": median,
                "99 % cpu ms": late,
                "median ms by the clock": clock,
                "99 % ms by the clock": late_clock,
                "rate": eager / median,
            }
        )
    return {"title": "Time of an action, batch 1", "threads": 1, "rows": rows}
