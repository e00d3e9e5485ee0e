"""Updates per second of the paper's recipe here and in its authors' JAX code, on one core and on two.

Needs a clone of github.com/azizanlab/ReverseFlowMatching in ``RFM_REPOSITORY``, and jax, flax and optax, in
``RFM_PACKAGES`` where they are not installed (``pip install --target``); nothing of either is part of this project.
Both train on random batches of the size of HalfCheetah-v5, with the settings of the authors' configuration, by the
clock, in turns of some seconds. A process runs on as many cores as it has threads.
"""

import os
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.interleaved import Loop, Progress, seconds_per_step
from benchmarks.update_speed import PAPER, update_of

STATES, ACTIONS, BATCH, SKIPPED = 17, 6, 256, 3
AUTHORS = "authors' JAX"


def run(turns: int = 12) -> dict[str, Any]:
    """Measure; returns one row per code and number of cores."""
    loops: dict[tuple[str, int], Loop] = {}
    for cores in (1, 2):
        loops[AUTHORS, cores] = authors, (cores,)
        loops["ours", cores] = ours, (cores, False)
        loops["ours, compiled", cores] = ours, (cores, True)
    taken = seconds_per_step(loops, SKIPPED, turns, by_the_clock=True)
    rows = [
        {
            "code": code,
            "cores": cores,
            "updates_per_s": 1.0 / seconds,
            "times_the_authors": taken[AUTHORS, cores] / seconds,
            "times_one_core": taken[code, 1] / seconds,
        }
        for (code, cores), seconds in taken.items()
    ]
    return {"title": "Updates per second of the paper's recipe beside its authors' code, float32", "rows": rows}


def ours(progress: Progress, cores: int, compile: bool) -> None:
    """Update for ever."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(cores)
    update, _ = update_of(PAPER, "32-true", compile, "cpu")
    while True:
        update()
        progress.step()


def authors(progress: Progress, cores: int) -> None:
    """Update for ever by the authors' code, whose threads are as many as the cores that it sees."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    sys.path[:0] = [os.environ["RFM_REPOSITORY"], *filter(None, [os.environ.get("RFM_PACKAGES")])]
    import jax  # pyright: ignore[reportMissingImports]  # not a requirement of the project
    from src.agent.rfm import RFM  # pyright: ignore[reportMissingImports]

    critics = {"state_dim": STATES, "action_dim": ACTIONS, "hidden_size": 256, "hidden_layers": 2, "num_q": 2}
    critics |= {"discount": 0.99, "tau": 0.005, "target_update_period": 1, "lr": 1e-3, "max_grad_norm": 10.0, "seed": 0}
    agent = RFM(
        sample_dim=ACTIONS,
        state_dim=STATES,
        critic_config=critics,
        actor_hidden_size=256,
        actor_hidden_layers=2,
        actor_emb_size=128,
        actor_lr=3e-4,
        actor_max_grad_norm=10.0,
        num_estimator_mc_samples=100,
        num_integration_steps=10,
        batch_size=BATCH,
        cv_weight=0.0,
        cv_weight_autotune=True,
        cv_ridge=1e-4,
        cv_clip=2.0,
        rfm_on_policy=True,
        init_temperature=0.02,
        final_temperature=0.02,
        temperature_steps=250_000,
        num_particles_training=32,
        num_particles_data=32,
        num_particles_eval=32,
        sampler_method="euler",
        t_min=0.01,
    )
    draw = np.random.default_rng(0)
    states, following = (draw.normal(size=(BATCH, STATES)).astype(np.float32) for _ in range(2))
    actions = draw.uniform(-1.0, 1.0, (BATCH, ACTIONS)).astype(np.float32)
    rewards, masks = draw.normal(size=BATCH).astype(np.float32), np.ones(BATCH, np.float32)
    while True:
        jax.block_until_ready(agent.update(states, actions, rewards, masks, following))
        progress.step()
