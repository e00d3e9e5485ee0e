"""From data to the environment: what the return does where a policy from data begins to act and to learn online.

The energy-weighted runs of ``offline`` on the point maze go on from their checkpoints for 5,000 environment steps, with
an evaluation of ten episodes every 1,000. ``fall`` is by how much the first return after the switch is below the one
before it, as a fraction of that, and ``lowest_fall`` the same of the lowest; negative where they are above.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.comparisons import RUNS

TASK, METHOD = "pointmaze-medium", "energy_weighted"
FILES = ("conf/offline/pointmaze_medium.yaml", f"conf/offline/methods/{METHOD}.yaml", "conf/offline/online.yaml")
OUTPUT = Path("runs/offline_online")


def run(seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Continue the runs that are not there yet; returns one row per seed."""
    comparison = yaml.safe_load(Path("conf/comparison/offline.yaml").read_text())
    options = {**comparison["options"], **comparison["tasks"][TASK].get("options", {})}
    return {
        "title": f"From data to the environment, {TASK}, {METHOD}",
        "rows": [_row(seed, options) for seed in seeds],
    }


def _row(seed: int, options: dict[str, Any]) -> dict[str, Any]:
    offline, output = RUNS / "offline" / TASK / METHOD / str(seed), OUTPUT / str(seed)
    if not (output / "result.json").exists():
        command = [sys.executable, "-m", "flowmatch_rl", "fit", *(f"-c={path}" for path in FILES)]
        command += [f"--{name}={value}" for name, value in options.items()]
        command += [f"--seed_everything={seed}", "--trainer.logger=false", f"--trainer.default_root_dir={output}"]
        subprocess.run([*command, f"--ckpt_path={offline / 'checkpoints' / 'last.ckpt'}"], check=True)
    curve = pd.read_csv(output / "figures" / "learning_curve.csv").dropna(subset="return_mean")
    before = curve[curve["gradient_steps"] <= options["data.num_updates"]]["return_mean"].iloc[-1]
    after = curve[curve["gradient_steps"] > options["data.num_updates"]]["return_mean"]
    return {
        "seed": seed,
        "before": float(before),
        "after": ", ".join(f"{value:.1f}" for value in after),
        "fall": float((before - after.iloc[0]) / abs(before)),
        "lowest_fall": float((before - after.min()) / abs(before)),
    }
