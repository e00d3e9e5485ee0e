"""The job of ``make train`` under several seeds, each as a process of its own: wall time and returns."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = "conf/actor_critic/pendulum.yaml"
FIT = [sys.executable, "-m", "flowmatch_rl", "fit", "-c", CONFIG, "-c", "conf/logger/none.yaml"]
TEST = """
import json, sys, torch
from flowmatch_rl.data import GymnasiumEnvironment, build_environment, roll_out_episodes
from flowmatch_rl.evaluation import Episodes
from flowmatch_rl.inference.policy import load_policy_module
module = load_policy_module(sys.argv[1]).eval()
result = {}
for number, seed in ((20, 1_000_000), (500, 1)):
    env = build_environment(GymnasiumEnvironment("Pendulum-v1"), number)
    steps = roll_out_episodes(env, module.evaluation_policy(), seed, 1000)
    returns = Episodes(steps["next", "reward"].squeeze(-1), steps["action"], steps["mask"]).returns
    result |= {f"return_mean_{number}": float(returns.mean()), f"return_std_{number}": float(returns.std(correction=0))}
print(json.dumps(result))
"""


def run(seeds: int = 3) -> dict[str, Any]:
    """Train and evaluate; returns one row per seed.

    Each has the seconds of the training, and the returns of the best and of the last checkpoint over the 20 episodes
    that the run is tested on and over 500 others.
    """
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            options = [f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}", "--video.enabled=false"]
            start = time.perf_counter()
            subprocess.run([*FIT, *options], check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            row: dict[str, Any] = {"seed": seed, "seconds": seconds}
            for name in ("best", "last"):
                command = [sys.executable, "-c", TEST, str(Path(folder) / "checkpoints" / f"{name}.ckpt")]
                test = subprocess.run(command, check=True, capture_output=True, text=True)
                row |= {f"{name}_{key}": value for key, value in json.loads(test.stdout.splitlines()[-1]).items()}
            rows.append(row)
    return {"title": "Pendulum-v1 by the configuration of make train", "rows": rows}
