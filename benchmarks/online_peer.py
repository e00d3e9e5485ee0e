"""SAC of stable-baselines3 on two tasks of ``conf/comparison/lean_and_sac.yaml``, one thread each.

Its own defaults, but for the warm-up and the ratio of updates to steps, which are those of the comparison: 100,000
steps of the environment and two updates for every four. After every 10,000 steps the mean action is evaluated in 5
episodes, at the end in 20. Each run leaves ``benchmarks/online/peers/<task>/<seed>.json``; those that are there are not
made again.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.online import RECORDS
from benchmarks.training_speed import PEER, Suite
from flowmatch_rl.callbacks.run_record import commit
from flowmatch_rl.files import write_text

STEPS, INTERVAL, SEEDS = 100_000, 10_000, (0, 1, 2)
TASKS = {"cartpole-swingup": ("cartpole", "swingup", 5_000), "finger-spin": ("finger", "spin", 10_000)}
"""Domain, task and random steps."""
FOLDER = RECORDS / "peers"


def run() -> dict[str, Any]:
    """Train what is missing; returns one row per task, with the returns of each seed."""
    for seed in SEEDS:
        for task in TASKS:
            if not (place := _place(task, seed)).exists():
                write_text(place, json.dumps(train(task, seed), indent=2) + "\n")
    return {"title": "Online learning: SAC of stable-baselines3", "rows": [_row(task) for task in TASKS]}


def train(task: str, seed: int, steps: int = STEPS) -> dict[str, Any]:
    """Train once.

    Args:
        task: One of ``TASKS``.
        seed: Seed of networks, noise and environments.
        steps: Environment steps.

    Returns:
        Return at the end, and of each evaluation the steps, return and seconds of training.
    """
    from stable_baselines3 import SAC  # not a requirement of the project

    torch.set_num_threads(1)
    domain, name, warmup = TASKS[task]
    model = SAC(
        "MlpPolicy",
        Suite(domain, name, seed),
        learning_starts=warmup,
        train_freq=4,
        gradient_steps=2,
        seed=seed,
        device="cpu",
    )
    curve, seconds = [], 0.0
    for step in range(INTERVAL, steps + 1, INTERVAL):
        began = time.perf_counter()
        model.learn(INTERVAL, reset_num_timesteps=False)
        seconds += time.perf_counter() - began
        returns = _returns(model, Suite(domain, name, 1000 + seed), 5)
        curve.append({"env_steps": step, "return": round(float(returns.mean()), 1), "seconds": round(seconds, 1)})
    returns = _returns(model, Suite(domain, name, 2000 + seed), 20)
    return {"return": round(float(returns.mean()), 1), "std": round(float(returns.std()), 1), "curve": curve} | {
        "commit": commit()
    }


def _returns(model: Any, environment: Suite, episodes: int) -> np.ndarray:
    """Returns of episodes with the mean of the policy."""
    returns = np.zeros(episodes)
    for episode in range(episodes):
        observation, ended = environment.reset()[0], False
        while not ended:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, _, ended, _ = environment.step(action)
            returns[episode] += reward
    return returns


def _row(task: str) -> dict[str, Any]:
    runs = [json.loads(_place(task, seed).read_text()) for seed in SEEDS]
    areas = [np.mean([point["return"] for point in run["curve"]]) for run in runs]
    return {
        "task": task,
        "method": PEER,
        "env_steps": STEPS,
        "final_return": ", ".join(f"{run['return']:.0f}" for run in runs),
        "mean_of_evaluations": ", ".join(f"{area:.0f}" for area in areas),
    }


def _place(task: str, seed: int) -> Path:
    return FOLDER / task / f"{seed}.json"
