"""Environment steps per second of whole trainings on HalfCheetah-v5, one gradient update each, by method.

Collection, updates and logging are counted, warm-up and evaluations are not: the time between two evaluations, from the
runs' own records. Each training is a process; the rounds alternate and the best counts.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONF = Path("conf/actor_critic")
METHODS: dict[str, tuple[list[str], int]] = {
    "SAC": (["methods/sac.yaml"], 1000),
    "fast": (["presets/fast.yaml"], 400),
    "robust": (["presets/robust.yaml"], 40),
    "paper": (["presets/paper.yaml"], 24),
}
"""Layers over the task, and environment steps that are timed."""
COMMON = [
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--video.enabled=false",
    "--data.warmup_env_steps=1000",
    "--data.env_steps_per_collection=4",
    "--data.eval_episodes=1",
    "--data.test_episodes=1",
    "--data.max_episode_steps=5",
    "--data.checkpoint_replay=false",
]


def steps_per_second(layers: list[str], steps: int) -> float:
    """Rate between the first and the second evaluation of a short training."""
    with tempfile.TemporaryDirectory() as folder:
        files = [CONF / "halfcheetah.yaml", *(CONF / layer for layer in layers)]
        command = [sys.executable, "-m", "flowmatch_rl", "fit", *(f"-c={path}" for path in files), *COMMON]
        options = {"data.total_env_steps": 1000 + 2 * steps, "data.epoch_env_steps": steps}
        options["trainer.default_root_dir"] = folder
        command += [f"--{name}={value}" for name, value in options.items()]
        subprocess.run(command, check=True, capture_output=True)
        with (Path(folder) / "figures" / "learning_curve.csv").open() as file:
            first, second = list(csv.DictReader(file))[:2]
    seconds = float(second["seconds"]) - float(first["seconds"])
    return (float(second["env_steps"]) - float(first["env_steps"])) / seconds


def run(rounds: int = 2) -> dict[str, Any]:
    """Measure; returns one row per method."""
    best = dict.fromkeys(METHODS, 0.0)
    for _ in range(rounds):
        for name, (layers, steps) in METHODS.items():
            best[name] = max(best[name], steps_per_second(layers, steps))
    rows = [
        {"method": name, "env_steps_per_s": rate, "of_SAC": rate / best["SAC"], "of_paper": rate / best["paper"]}
        for name, rate in best.items()
    ]
    return {"title": "Environment steps per second of training, HalfCheetah-v5", "rows": rows}
