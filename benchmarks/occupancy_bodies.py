"""Occupancies of trained policies from their replay buffers, at discount .99: plain and expanded transitions.

For each body an actor-critic is trained, its replay buffer converted, and the occupancy of its last policy learned.
Values are compared with roll-outs in the environment from 64 initial states, and from 64 states that the policy leads
to within 500 steps. Seconds are CPU time of one thread, the one-step model included.

All is kept in ``runs/bodies``, row by row: the benchmark resumes after an interruption, and takes a policy whose
checkpoint lies there in place of one of its own. Delete the folder to begin again.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.occupancy_maze import LINEAR, NETWORK, SOLVER
from benchmarks.occupancy_runs import OPTIMIZER, fitted
from flowmatch_rl.batches import ACTION, NEXT_OBSERVATION, OBSERVATION, TERMINATED, Rollouts, Segment, read_rollouts
from flowmatch_rl.data import CheckpointReplay, OfflineData, convert_layout
from flowmatch_rl.data.transitions.rollouts import follow_policy
from flowmatch_rl.envs import DMControlEnvironment, Environment, GymnasiumEnvironment
from flowmatch_rl.evaluation import FutureTests, rollout_errors
from flowmatch_rl.files import write_json
from flowmatch_rl.inference import CheckpointPolicy
from flowmatch_rl.models import DeterministicDynamics, Horizon
from flowmatch_rl.modules import Expansion, ObservedSteps, OccupancyModule, Segments
from flowmatch_rl.nets import DynamicsArchitecture, EmaSettings
from flowmatch_rl.objectives import TD2CFM, expand
from flowmatch_rl.testbeds import LinearReward, QuadraticReward
from flowmatch_rl.types import Policy, Reward

FOLDER = Path("runs/bodies")
STATES, STEPS, LEADS = 64, 500, {"initial": 0, "on the way": 500}
TESTS = FutureTests(test_samples=256, value_samples=1024, likelihood_samples=0, num_actions=0)


@dataclass(frozen=True)
class Body:
    """A body, its policy and what is learned of it.

    Attributes:
        training: Options of the command that trains the policy.
        environment: Environment of the replay buffer and of the roll-outs.
        rewards: Rewards by name.
        variants: Segments and number of updates by name.
        columns: Names of the columns; those of the environment if None.
        seeds: Seeds of the occupancies.
    """

    training: tuple[str, ...]
    environment: Environment
    rewards: dict[str, Reward]
    variants: dict[str, tuple[Segments, int]]
    columns: list[str] | None = None
    seeds: tuple[int, ...] = field(default=(0, 1, 2))


SAC = ("-c", "conf/actor_critic/methods/sac.yaml")
"""Its evaluations act by the mode of the policy: in a deterministic environment one roll-out is the exact value."""

FREQUENCIES = DeterministicDynamics(DynamicsArchitecture(num_frequencies=4))
EXPANDED = Expansion(length=128, dynamics=FREQUENCIES, pool_batches=32, reuse=32)
"""As of ``conf/occupancy/maze_loop.yaml``, sines and cosines included."""

BODIES = {
    "pendulum": Body(
        training=("-c", "conf/actor_critic/pendulum.yaml", *SAC),
        environment=GymnasiumEnvironment("Pendulum-v1", {"max_episode_steps": 2 * STEPS}),
        rewards={"rest": QuadraticReward(("cosine", "sine", "velocity"), (1.0, 0.0, 0.0), (1.0, 1.0, 0.1))},
        variants={"plain": (ObservedSteps(), 2_000), "n = 128": (EXPANDED, 1_000)},
        columns=["cosine", "sine", "velocity"],
    ),
    "walker-walk": Body(
        training=(
            "-c",
            "conf/actor_critic/walker_walk.yaml",
            *SAC,
            "--data.init_args.total_env_steps=40000",
            "--data.init_args.warmup_env_steps=5000",
            "--data.init_args.epoch_env_steps=5000",
            "--data.init_args.updates_per_env_step=0.5",
            "--data.init_args.env_steps_per_collection=4",
        ),
        environment=DMControlEnvironment("walker", "walk"),
        rewards={
            "forward": LinearReward(("velocity_1",), (1.0,)),
            "tall": LinearReward(("height_0",), (1.0,)),
        },
        variants={
            "plain": (ObservedSteps(), 2_500),
            "n = 128": (EXPANDED, 1_000),
            "n = 128, no frequencies": (replace(EXPANDED, dynamics=DeterministicDynamics()), 1_000),
            "n = 128, no frequencies, gate .25": (
                replace(EXPANDED, dynamics=DeterministicDynamics(), gate=0.25),
                1_000,
            ),
        },
        seeds=(0,),
    ),
}


def run(names: tuple[str, ...] = tuple(BODIES)) -> dict[str, Any]:
    """Train and test every variant with every seed; a row for each reward and each set of source states."""
    rows: list[dict[str, Any]] = []
    for name in names:
        rows += _rows(name)
    return {"title": "Occupancies of trained policies at discount 0.99, from their replay buffers", "rows": rows}


def _rows(name: str) -> list[dict[str, Any]]:
    """Rows of a body; those that are there already are kept."""
    body, folder = BODIES[name], FOLDER / name
    checkpoint, data = _prepared(body, folder)
    policy, store = CheckpointPolicy(str(checkpoint)), folder / "rows.json"
    sources = {where: _rollouts(body, policy, folder, where, lead) for where, lead in LEADS.items()}
    rows: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    for seed in body.seeds:
        for variant in body.variants:
            if not any((row["variant"], row["seed"]) == (variant, seed) for row in rows):
                labels = {"body": name, "variant": variant, "seed": seed}
                rows += _measured(body, policy, str(data), sources, labels)
                write_json(store, rows)
    return rows


def _prepared(body: Body, folder: Path) -> tuple[Path, Path]:
    """The checkpoint of the policy and the data set of its replay buffer, made where they are not there."""
    checkpoint, data = folder / "policy" / "checkpoints" / "last.ckpt", folder / "data"
    if not checkpoint.exists():
        options = (
            "-c",
            "conf/logger/none.yaml",
            "--video.enabled=false",
            f"--trainer.default_root_dir={folder / 'policy'}",
        )
        subprocess.run([sys.executable, "-m", "flowmatch_rl", "fit", *body.training, *options], check=True)
    if not data.exists():
        convert_layout(
            CheckpointReplay(str(checkpoint), environment=body.environment, columns=body.columns),
            str(data),
            progress=False,
        )
    return checkpoint, data


def _rollouts(body: Body, policy: Policy, folder: Path, where: str, lead: int) -> Rollouts:
    """Source states with the trajectories of the policy, the same for all variants and seeds."""
    file = folder / f"{where.replace(' ', '_')}.npz"
    if not file.exists():
        found = follow_policy(body.environment, policy, STATES, 1, STEPS, seed=0, lead=lead)
        arrays: dict[str, Any] = {name: part.numpy() for name, part in found.items()}
        np.savez(file, **arrays)
    with np.load(file) as held:
        return read_rollouts({name: torch.from_numpy(held[name]) for name in held.files})


def _measured(
    body: Body, policy: Policy, path: str, sources: dict[str, Rollouts], labels: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of a model."""
    segments, updates = body.variants[labels["variant"]]
    data = OfflineData(path, batch_size=256, num_updates=updates, epoch_updates=updates)
    module, logged = fitted(
        data,
        seed=labels["seed"],
        policy=policy,
        objective=TD2CFM(solver=SOLVER),
        path=LINEAR,
        network=NETWORK,
        horizon=Horizon(0.99),
        segments=segments,
        ema=EmaSettings(0.9),
        optimizer=OPTIMIZER,
    )
    rows = []
    for where, rollouts in sources.items():
        found = TESTS.test(module.model, rollouts, body.rewards, torch.Generator().manual_seed(1))
        found = {key: float(value) for key, value in found.items()}
        errors = {} if module.dynamics is None else rollout_errors(module.dynamics, policy, rollouts).metrics()
        for reward in body.rewards:
            rows.append(
                labels
                | {
                    "updates": updates,
                    "seconds": logged["seconds"],
                    "sources": where,
                    "reward": reward,
                    "real_value": found[f"value_real/{reward}"],
                    "mean_error": found[f"value/{reward}"] - found[f"value_real/{reward}"],
                    "root_mean_square_error": found[f"value_error/{reward}"] ** 0.5,
                    "correlation": found[f"value_correlation/{reward}"],
                    "emd": found["wasserstein"],
                    "emd_floor": found["wasserstein_floor"],
                    "length": logged.get("train/expansion_length"),
                    "full": logged.get("train/full_expansions"),
                }
                | {
                    f"error_after_{steps}": float(errors[key]) if (key := f"dynamics_error/{steps}") in errors else None
                    for steps in (1, 4, 16, 64)
                }
                | _full_fractions(module, policy, data)
            )
            print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def _full_fractions(module: OccupancyModule, policy: Policy, data: OfflineData) -> dict[str, float | None]:
    """Fractions of expansions that the gate leaves whole: from the oldest and from the latest fifth of the buffer."""
    segments, fifth = module.segments, len(data.store) // 5
    if not isinstance(segments, Expansion) or module.dynamics is None:
        return {"full_oldest": None, "full_latest": None}
    found: dict[str, float | None] = {}
    for name, first in {"full_oldest": 0, "full_latest": 4 * fifth}.items():
        rows, generator = first + torch.arange(0, fifth, max(fifth // 512, 1)), torch.Generator().manual_seed(0)
        length = torch.full((len(rows),), segments.length)
        made = expand(
            _transitions(data, rows),
            lambda state, _, generator=generator: policy.act(state, None, generator),
            module.dynamics.step,
            length,
            segments.gate,
            torch.rand(len(rows), segments.length - 1),
        )
        found[name] = float((made.length == length).float().mean())
    return found


def _transitions(data: OfflineData, rows: torch.Tensor) -> Segment:
    """Rows of a data set as segments of one step."""
    keys = (OBSERVATION, ACTION, NEXT_OBSERVATION, TERMINATED)
    observation, action, arrival, terminated = (torch.as_tensor(data.store.transitions.get(key)[rows]) for key in keys)
    return Segment(
        observation=observation,
        action=action,
        arrivals=arrival[:, None],
        terminated=terminated,
        length=torch.ones(len(rows), dtype=torch.long),
        next_action=None,
        embedding=torch.empty(len(rows), 0),
        future=None,
    )
