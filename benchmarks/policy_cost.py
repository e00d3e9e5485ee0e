"""What an update of the lean preset costs against its sizes, and a decision of trained policies on one state.

The sizes are changed one at a time; updates are in float32 on a fixed batch, and the dimensions are those of real
tasks. Decisions are those of ``load_policy``, eager and compiled. All in CPU time of one thread.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import milliseconds
from benchmarks.training_speed import COMMON, CONF, WARMUP
from benchmarks.update_speed import update_of
from flowmatch_rl.cli import FlowMatchCLI
from flowmatch_rl.inference import load_policy

DOG = {"data.environment.init_args.domain": "dog", "data.environment.init_args.task": "run"}
PAPERS = {
    "class_path": "PosteriorMeanEstimator",
    "init_args": {
        "num_samples": 10,
        "proposal": "LikelihoodProposal",
        "control_variate": {"class_path": "RegressControlVariate", "init_args": {"limit": 2.0, "ridge": 0.0001}},
    },
}
"""The estimator of ``conf/comparison/paper_estimator.yaml``."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lean, cheetah-run: batch 256, width 256, 48 states, 8 samples, 4 particles, 1 step": ("cheetah_run", {}),
    "batch 1024, 256 states": ("cheetah_run", {"data.batch_size": 1024, "model.points.batch_size": 256}),
    "width 512": (
        "cheetah_run",
        {"model.policy.network.hidden_dim": 512, "model.critics.architecture.hidden_dim": 512},
    ),
    "128 states": ("cheetah_run", {"model.points.batch_size": 128}),
    "256 states": ("cheetah_run", {"model.points.batch_size": None}),
    "16 samples": ("cheetah_run", {"model.estimator.init_args.num_samples": 16}),
    "64 samples": ("cheetah_run", {"model.estimator.init_args.num_samples": 64}),
    "the paper's estimator, 10 samples": ("cheetah_run", {"model.estimator": PAPERS}),
    "1 particle": ("cheetah_run", {"model.acting.train_particles": 1}),
    "16 particles": ("cheetah_run", {"model.acting.train_particles": 16}),
    "10 steps": ("cheetah_run", {"model.policy.sampler.init_args.num_steps": 10}),
    "two residual blocks": ("cheetah_run", {"model.policy.network.num_blocks": 2}),
    "1 action dimension, cartpole-swingup": ("cartpole_swingup", {}),
    "17 action dimensions, Humanoid-v5": ("humanoid", {}),
    "38 action dimensions, dog-run": ("cheetah_run", DOG),
}
"""Task and options of each."""
DECIDING = {name: f"presets/{name}.yaml" for name in ("lean", "fast", "one_step")} | {"SAC": "methods/sac.yaml"}


def _update(task: str, options: dict[str, Any]) -> Callable[[], None]:
    config = [x for file in (f"{task}.yaml", "presets/lean.yaml") for x in ("-c", str(CONF / file))]
    given = [f"--{name}={'null' if value is None else value}" for name, value in options.items()]
    return update_of([*config, *given], "32-true", False, "cpu")[0]


def _policies(overlay: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """A decision of a policy that was trained for a few steps, and of the same compiled."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"-c={CONF / file}" for file in ("cheetah_run.yaml", overlay)]
        options = [f"--trainer.default_root_dir={folder}", f"--data.total_env_steps={WARMUP + 8}"]
        options += ["--data.eval_episodes=1", "--data.max_episode_steps=5"]
        cli = FlowMatchCLI([*files, *COMMON, *options], run=False)
        cli.trainer.fit(cli.model, cli.datamodule)
        path = Path(folder) / "checkpoints" / "last.ckpt"
        eager, compiled = load_policy(path), load_policy(path, compile=True)
    state = np.zeros(cli.model.observation_dim, np.float32)
    return lambda: eager(state), lambda: compiled(state)


def run(rounds: int = 5) -> dict[str, Any]:
    """Measure; returns one row per size and per policy."""
    torch.set_num_threads(1)
    updates = {name: _update(task, options) for name, (task, options) in VARIANTS.items()}
    taken = milliseconds(updates, rounds, 10, time.process_time)
    lean = next(iter(taken.values()))
    rows: list[dict[str, Any]] = [
        {"what": f"update: {name}", "ms": ms, "ratio": ms / lean} for name, ms in taken.items()
    ]
    decisions: dict[str, Callable[[], object]] = {}
    for name, overlay in DECIDING.items():
        decisions[f"{name}, eager"], decisions[f"{name}, compiled"] = _policies(overlay)
    taken = milliseconds(decisions, rounds, 100, time.process_time)
    least = taken["lean, compiled"]
    rows += [{"what": f"decision: {name}", "ms": ms, "ratio": ms / least} for name, ms in taken.items()]
    return {"title": "Cost of an update and of a decision by size", "threads": 1, "rows": rows}
