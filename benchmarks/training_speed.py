"""CPU milliseconds of an environment step of whole trainings, one gradient update each, by method; one thread.

Collection, replay, updates, logging and Lightning are counted, warm-up and evaluations are not. Each training is a
process of its own, whose CPU time counts: neighbours disturb it less than the clock. The rounds alternate, and the best
of each counts. All methods have batches of 256 and layers of 256 units, and all but the bfloat16 rows compute in
float32. The peer is SAC of stable-baselines3 (``benchmarks/requirements.txt``) on the same environment, with its own
defaults but for the length of its warm-up.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from dm_control import suite
from lightning.pytorch import Callback, LightningModule, Trainer

from flowmatch_rl.cli import FlowMatchCLI
from flowmatch_rl.devices import has_fast_bfloat16

CONF = Path("conf/actor_critic")
TASKS = {"cartpole_swingup": ("cartpole", "swingup"), "cheetah_run": ("cheetah", "run")}
METHODS: dict[str, tuple[str, int]] = {
    "SAC": ("methods/sac.yaml", 600),
    "lean": ("presets/lean.yaml", 600),
    "fast": ("presets/fast.yaml", 300),
    "one_step": ("presets/one_step.yaml", 300),
    "robust": ("presets/robust.yaml", 40),
    "paper": ("presets/paper.yaml", 24),
}
"""Overlays of the task, and environment steps that are timed."""
IN_BFLOAT16 = ("SAC", "lean", "fast")
PEER, WARMUP, SKIPPED = "SAC of stable-baselines3", 1000, 8
COMMON = [
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--video.enabled=false",
    f"--data.warmup_env_steps={WARMUP}",
    "--data.env_steps_per_collection=4",
    "--data.eval_episodes=1",
    "--data.max_episode_steps=5",
    "--data.checkpoint_replay=false",
]


class CpuTime(Callback):
    """CPU time from one batch of a training to its last."""

    def __init__(self, num_batches: int) -> None:
        self._last, self._number, self._started = num_batches, 0, 0.0
        self.per_batch = 0.0
        """Seconds."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start, after some batches."""
        if self._number == SKIPPED:
            self._started = time.process_time()
        self._number += 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop at the last batch, before the evaluation."""
        if self._number == self._last:
            self.per_batch = (time.process_time() - self._started) / (self._last - SKIPPED)


def ours(task: str, overlay: str, precision: str, steps: int) -> float:
    """CPU seconds of an environment step with its update."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "trainer.precision": precision,
            "trainer.default_root_dir": folder,
            "data.total_env_steps": WARMUP + steps,
            "data.epoch_env_steps": steps,
        }
        files = [f"-c={CONF / file}" for file in (f"{task}.yaml", overlay)]
        cli = FlowMatchCLI([*files, *COMMON, *(f"--{name}={value}" for name, value in options.items())], run=False)
        measured = CpuTime(steps)
        cli.trainer.callbacks.append(measured)  # pyright: ignore[reportAttributeAccessIssue]
        cli.trainer.fit(cli.model, cli.datamodule)
    return measured.per_batch


class Suite(gymnasium.Env):
    """A task of the Control Suite as the peer takes it: one vector of float32.

    Args:
        domain: Name of the body.
        task: Name of the task.
    """

    def __init__(self, domain: str, task: str) -> None:
        self._env = suite.load(domain, task)
        action, entries = self._env.action_spec(), self._env.observation_spec().values()
        size = sum(int(np.prod(entry.shape)) for entry in entries)
        self.action_space = gymnasium.spaces.Box(action.minimum, action.maximum, dtype=np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode."""
        return self._read(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Take a step; episodes end by their time limit alone."""
        step = self._env.step(action)
        return self._read(step), float(step.reward), False, step.last(), {}

    @staticmethod
    def _read(step: Any) -> np.ndarray:
        return np.concatenate([np.ravel(entry) for entry in step.observation.values()]).astype(np.float32)


def peer(task: str, steps: int) -> float:
    """CPU seconds of an environment step of stable-baselines3's SAC with its update."""
    from stable_baselines3 import SAC  # not a requirement of the project

    torch.set_num_threads(1)
    model = SAC("MlpPolicy", Suite(*TASKS[task]), learning_starts=WARMUP, device="cpu")
    model.learn(WARMUP + SKIPPED)
    start = time.process_time()
    model.learn(steps, reset_num_timesteps=False)
    return (time.process_time() - start) / steps


def in_a_process(function: Callable[..., float], *arguments: Any) -> float:
    """Result of a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def run(rounds: int = 3) -> dict[str, Any]:
    """Measure; returns one row per task and method."""
    jobs: dict[tuple[str, str, str], tuple[Callable[..., float], tuple[Any, ...]]] = {}
    for task in TASKS:
        jobs[task, PEER, "float32"] = peer, (task, METHODS["SAC"][1])
        for name, (overlay, steps) in METHODS.items():
            jobs[task, name, "float32"] = ours, (task, overlay, "32-true", steps)
            if name in IN_BFLOAT16 and has_fast_bfloat16("cpu"):
                jobs[task, name, "bfloat16"] = ours, (task, overlay, "bf16-mixed", steps)
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for job, (function, arguments) in jobs.items():
            best[job] = min(best[job], in_a_process(function, *arguments))
    rows = [
        {
            "task": task,
            "method": name,
            "precision": precision,
            "cpu_ms_per_step": 1e3 * seconds,
            "rate_of_SAC": best[task, "SAC", "float32"] / seconds,
            "rate_of_the_peer": best[task, PEER, "float32"] / seconds,
        }
        for (task, name, precision), seconds in best.items()
    ]
    return {"title": "CPU time of an environment step of training with one update", "threads": 1, "rows": rows}
