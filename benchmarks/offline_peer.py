"""Flow Q-learning here and in its authors' JAX code, on one data set, of one size and for as many updates.

Needs a clone of github.com/seohongpark/fql in ``FQL_REPOSITORY`` and a Python with jax, flax, distrax, ml_collections
and ogbench in ``FQL_PYTHON``; nothing of either is part of this project. The data set is that of ``offline`` for the
point maze: transitions of ten steps, which are handed to the authors' code as rewards already summed and masks already
discounted. Critics have three layers of 256 units with layer norm, flows three of 128. Both evaluate 50 episodes of the
task. ``offline_speed`` compares their rates.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.comparisons import RUNS
from flowmatch_rl.batches import read_transition
from flowmatch_rl.data import TransitionStore
from flowmatch_rl.data.transitions.reader import TransitionReader

DATA, TASK, METHOD = "pointmaze_medium", "pointmaze-medium", "flow_q_learning_10"
ENVIRONMENT, UPDATES, ALPHA, DISCOUNT = "pointmaze-medium-singletask-task1-v0", 15_000, 10.0, 0.99
OUTPUT = Path("runs/offline_peer")
PEER = """
import json, os, sys, time
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
sys.path.insert(0, sys.argv[1])
import gymnasium, jax, numpy as np, ogbench
from agents.fql import FQLAgent, get_config
from utils.datasets import Dataset

data, updates, alpha, seed = sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
np.random.seed(seed)
rows = Dataset.create(**np.load(data))
config = get_config()
config.update(alpha=alpha, actor_hidden_dims=(128,) * 3, value_hidden_dims=(256,) * 3)

one, compiling = rows.sample(1), 20
agent = FQLAgent.create(seed, one["observations"], one["actions"], config)
for step in range(updates):
    if step == compiling:
        jax.block_until_ready(agent.network.params)
        began = time.process_time()
    agent, _ = agent.update(rows.sample(256))
jax.block_until_ready(agent.network.params)
rate = (updates - compiling) / (time.process_time() - began)
env, key, returns, solved = gymnasium.make(sys.argv[6]), jax.random.PRNGKey(seed), [], []
for episode in range(int(sys.argv[7])):
    state, _ = env.reset(seed=1000 + episode)
    total, success, done = 0.0, False, False
    while not done:
        key, own = jax.random.split(key)
        action = np.clip(np.array(agent.sample_actions(state.astype(np.float32), seed=own)), -1, 1)
        state, reward, terminated, truncated, info = env.step(action)
        total, success, done = total + reward, success or bool(info["success"]), terminated or truncated
    returns.append(total)
    solved.append(success)
print(json.dumps({"success": sum(solved) / 50, "return": sum(returns) / 50, "updates_per_s": rate}))
"""


def run(seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Train theirs, and read ours from the runs of ``offline``; returns one row per implementation and seed."""
    rows = []
    for seed in seeds:
        peer = train_peer(seed)
        rows += [_ours(seed), {"code": "authors' JAX", "seed": seed, **peer}]
    return {"title": "Flow Q-learning beside its authors' code, pointmaze-medium", "updates": UPDATES, "rows": rows}


def train_peer(seed: int) -> dict[str, float]:
    """Success and return of the authors' code; trains what is not there yet.

    Args:
        seed: Its seed.
    """
    result = OUTPUT / f"{seed}.json"
    if not result.exists():
        store = TransitionStore.open(f"data/{DATA}")
        found = run_peer(store, UPDATES, seed, n_steps=10, episodes=50)
        OUTPUT.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(found))
    found = json.loads(result.read_text())
    return {name: found[name] for name in ("success", "return")}


def run_peer(store: TransitionStore, updates: int, seed: int, n_steps: int, episodes: int) -> dict[str, float]:
    """Train the authors' code, and evaluate it on the point maze.

    Args:
        store: The data set, of which the last twentieth is left out.
        updates: Gradient steps.
        seed: Seed.
        n_steps: Steps of a transition.
        episodes: Episodes of the evaluation, 50 or 0.

    Returns:
        ``success``, ``return`` and ``updates_per_s``, of CPU time.
    """
    if missing := [name for name in ("FQL_REPOSITORY", "FQL_PYTHON") if name not in os.environ]:
        raise SystemExit(f"{' and '.join(missing)} must be set: a clone of the authors' code, and a Python with JAX")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        export(store, n_steps, path)
        numbers = [str(updates), str(ALPHA), str(seed), ENVIRONMENT, str(episodes)]
        command = [os.environ["FQL_PYTHON"], "-c", PEER, os.environ["FQL_REPOSITORY"], str(path), *numbers]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def export(store: TransitionStore, n_steps: int, path: Path) -> None:
    """Write the transitions that training draws from, in the form of the authors' code.

    Args:
        store: The data set.
        n_steps: Steps of a transition.
        path: The file.
    """
    reader = TransitionReader(store, n_steps, batch_size=1, seed=0, held_out=len(store) // 20)
    assert reader.sampler.rows is not None, "rows are held out"
    transition = read_transition(reader.read(reader.sampler.rows))
    steps = torch.arange(transition.rewards.shape[1])
    rewards = (transition.rewards * DISCOUNT**steps).sum(1)
    masks = (~transition.terminated).float() * DISCOUNT ** (transition.length - 1)
    arrays = {
        "observations": transition.observation,
        "actions": transition.action.clamp(-1.0 + 1e-5, 1.0 - 1e-5),
        "next_observations": transition.next_observation,
        "rewards": rewards,
        "masks": masks,
        "terminals": torch.zeros_like(masks),
    }
    np.savez(path, **{name: array.numpy() for name, array in arrays.items()})


def _ours(seed: int) -> dict[str, Any]:
    folder = RUNS / "offline" / TASK / METHOD / str(seed)
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    return {
        "code": "flowmatch_rl",
        "seed": seed,
        "success": metrics["test/success_rate"],
        "return": metrics["test/return_mean"],
    }
