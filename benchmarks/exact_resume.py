"""Runs that are killed at random moments and resumed, against the same runs left alone: how many end bitwise equal."""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from flowmatch_rl.checkpoints import read_checkpoint

FIT = [sys.executable, "-m", "flowmatch_rl", "fit", "-c", "conf/logger/none.yaml", "--ckpt_path", "last"]
QUICK = ["--video.enabled=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
ACTING = ["--data.eval_episodes=1", "--data.test_episodes=1", "--data.max_episode_steps=50"]
RUNS: dict[str, list[str]] = {
    "actor-critic": [
        "-c=conf/actor_critic/pendulum.yaml",
        *("--data.total_env_steps=500", "--data.warmup_env_steps=200", "--data.epoch_env_steps=50", *ACTING),
    ],
    "flow model": [
        "-c=conf/flow/two_moons.yaml",
        *("--data.num_updates=600", "--data.epoch_updates=75", "--data.eval_samples=200", "--figures.enabled=false"),
        *("--model.tests.likelihood_samples=0", "--model.tests.transport_samples=50"),
    ],
    "occupancy": [
        "-c=conf/occupancy/ring.yaml",
        *("--data.num_updates=200", "--data.epoch_updates=25", "--data.eval_states=2", "--data.test_states=2"),
        *("--occupancy_figures.enabled=false", "--model.tests.val_samples=16", "--model.tests.test_samples=16"),
    ],
}
"""Tasks of the package, of which the runs take some ten seconds."""


def run(kills: int = 10, seed: int = 0) -> dict[str, Any]:
    """Train each model once without a break and ``kills`` times with one; returns one row per model.

    A run is killed (SIGKILL) at a moment drawn uniformly from the time between the beginning of its training and its
    end, and the same command, ``--ckpt_path last``, then continues it. Equal are weights, states of the optimizer, data
    and generators in its last checkpoint, and its learning curve but for the times.
    """
    rows, moments = [], random.Random(seed)
    for model, options in RUNS.items():
        with tempfile.TemporaryDirectory() as home:
            options = [*options, *_data(model, Path(home)), *QUICK]
            whole = Path(home) / "whole"
            start, end = _trained(options, whole)
            equal = 0
            for number in range(kills):
                folder = Path(home) / str(number)
                while not _trained_until(options, folder, moments.uniform(start, end)):
                    shutil.rmtree(folder)  # it was faster than the first run, and had ended
                _trained(options, folder)
                equal += _same(_left(folder), _left(whole))
            rows.append({"model": model, "killed_in_training": kills, "bitwise_equal": equal})
    return {"title": "Runs killed at a random moment and resumed", "rows": rows}


def _data(model: str, home: Path) -> list[str]:
    """Options that name the data of a model, which are collected first."""
    if model != "occupancy":
        return []
    collect = [sys.executable, "-m", "flowmatch_rl", "collect", "-c", "conf/collect/ring.yaml"]
    sizes = ["--num_transitions=4000", "--progress=false", f"--output={home / 'data'}"]
    subprocess.run([*collect, *sizes], check=True, stdout=subprocess.DEVNULL)
    return [f"--data.path={home / 'data'}"]


def _started(options: list[str], folder: Path) -> subprocess.Popen:
    command = [*FIT, *options, f"--trainer.default_root_dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _trained(options: list[str], folder: Path) -> tuple[float, float]:
    """Seconds after which a run was about to train, and after which training had ended."""
    began, process, start, end = time.monotonic(), _started(options, folder), 0.0, 0.0
    last = folder / "checkpoints" / "last.ckpt"
    written = None
    while process.poll() is None:
        time.sleep(0.05)
        if not start and (folder / "config.yaml").exists():
            start = time.monotonic() - began
        if last.exists() and (changed := last.stat().st_mtime_ns) != written:
            written, end = changed, time.monotonic() - began
    if process.returncode:
        raise RuntimeError(f"the run in {folder} ended with status {process.returncode}")
    return start, end


def _trained_until(options: list[str], folder: Path, seconds: float) -> bool:
    """Kill a run after some seconds; whether it was still there."""
    process = _started(options, folder)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return process.returncode == -signal.SIGKILL


def _left(folder: Path) -> tuple[dict[str, Any], list[list[str]]]:
    """What a run leaves: its last checkpoint without wall times and counts of loops, and its curve without times."""
    state = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    table = [line.split(",") for line in (folder / "figures" / "learning_curve.csv").read_text().splitlines()]
    kept = [place for place, name in enumerate(table[0]) if name != "seconds"]
    metrics = state["resumption"]["metrics"]
    for name in [name for name in metrics if name.endswith("_per_s")]:
        del metrics[name]
    left_out = ("callbacks", "epoch", "loops")
    return {k: v for k, v in state.items() if k not in left_out}, [[row[place] for place in kept] for row in table]


def _same(one: Any, other: Any) -> bool:
    """Whether two nested states are equal, to the last digit; NaN equals NaN."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other
