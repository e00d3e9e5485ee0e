"""CPU milliseconds of an environment step of whole trainings, one gradient update each, by method; one thread.

Collection, replay, updates, logging and Lightning are counted, warm-up and evaluations are not. Each training is a
process of its own, whose CPU time counts; they take turns, and the median over the turns is reported. All methods have
batches of 256 and layers of 256 units. The peer is SAC of stable-baselines3 (``benchmarks/requirements.txt``) on the
same environment, with its own defaults but for the length of its warm-up.
"""

import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from dm_control import suite
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from benchmarks.interleaved import Loop, Progress, seconds_per_step
from flowmatch_rl.cli import FlowMatchCLI
from flowmatch_rl.devices import has_fast_bfloat16

CONF = Path("conf/actor_critic")
TASKS = {"cartpole_swingup": ("cartpole", "swingup"), "cheetah_run": ("cheetah", "run")}
METHODS = {
    "SAC": "methods/sac.yaml",
    "lean": "presets/lean.yaml",
    "fast": "presets/fast.yaml",
    "one_step": "presets/one_step.yaml",
}
"""Overlays of the task."""
OTHERWISE = ("SAC", "lean", "fast")
"""Methods that are also compiled, and in bfloat16 where the processor has instructions for it."""
PEER, WARMUP, CAPACITY, FOR_EVER, SKIPPED = "SAC of stable-baselines3", 1000, 50_000, 10_000_000, 40
COMMON = [
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--video.enabled=false",
    f"--data.warmup_env_steps={WARMUP}",
    f"--data.total_env_steps={FOR_EVER}",
    f"--data.epoch_env_steps={FOR_EVER}",
    f"--data.buffer_capacity={CAPACITY}",
    "--data.env_steps_per_collection=4",
    "--data.checkpoint_replay=false",
]


class Steps(Callback):
    """Reports every update of a training.

    Args:
        progress: Where to.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Report that one more has its gradient."""
        self._progress.step()


def ours(
    progress: Progress, task: str, overlay: str, precision: str, compile: bool, more: tuple[str, ...] = ()
) -> None:
    """Train for ever, with more options of the command line."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "trainer.precision": precision,
            "trainer.default_root_dir": folder,
            "model.init_args.compile": compile,
        }
        files = [f"-c={CONF / file}" for file in (f"{task}.yaml", overlay)]
        set_options = [f"--{name}={value}" for name, value in options.items()]
        cli = FlowMatchCLI([*files, *COMMON, *set_options, *more], run=False)
        cli.trainer.callbacks.append(Steps(progress))  # pyright: ignore[reportAttributeAccessIssue]
        cli.trainer.fit(cli.model, cli.datamodule)


class Suite(gymnasium.Env):
    """A task of the Control Suite as the peer takes it: one vector of float32.

    Args:
        domain: Name of the body.
        task: Name of the task.
        seed: Seed of the initial states, or None.
    """

    def __init__(self, domain: str, task: str, seed: int | None = None) -> None:
        self._env = suite.load(domain, task, {"random": seed})
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


def peer(progress: Progress, task: str) -> None:
    """Train SAC of stable-baselines3 for ever."""
    from stable_baselines3 import SAC  # not a requirement of the project
    from stable_baselines3.common.callbacks import ConvertCallback

    torch.set_num_threads(1)
    model = SAC("MlpPolicy", Suite(*TASKS[task]), learning_starts=WARMUP, device="cpu", buffer_size=CAPACITY)
    model.learn(WARMUP)

    def report(*_: Any) -> bool:
        progress.step()
        return True

    model.learn(FOR_EVER, reset_num_timesteps=False, callback=ConvertCallback(report))


def run(turns: int = 25) -> dict[str, Any]:
    """Measure; returns one row per task and method."""
    rows = []
    for task in TASKS:
        loops: dict[tuple[str, str, bool], Loop] = {(PEER, "float32", False): (peer, (task,))}
        for name, overlay in METHODS.items():
            loops[name, "float32", False] = ours, (task, overlay, "32-true", False)
            if name in OTHERWISE:
                loops[name, "float32", True] = ours, (task, overlay, "32-true", True)
            if name in OTHERWISE and has_fast_bfloat16("cpu"):
                loops[name, "bfloat16", False] = ours, (task, overlay, "bf16-mixed", False)
                loops[name, "bfloat16", True] = ours, (task, overlay, "bf16-mixed", True)
        taken = seconds_per_step(loops, SKIPPED, turns)
        rows += [
            {
                "task": task,
                "method": name + (", compiled" if compile else ""),
                "precision": precision,
                "cpu_ms_per_step": 1e3 * seconds,
                "rate_of_SAC": taken["SAC", "float32", False] / seconds,
                "rate_of_the_peer": taken[PEER, "float32", False] / seconds,
            }
            for (name, precision, compile), seconds in taken.items()
        ]
    return {"title": "CPU time of an environment step of training with one update", "threads": 1, "rows": rows}
