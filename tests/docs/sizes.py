"""Tiny sizes for any command, by what its options are called."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from tests.cli.support import call

NETWORKS = {"hidden_dim": 16, "num_blocks": 1, "num_layers": 1, "time_features": 16}
"""The largest sizes of networks; those of a checkpoint stay as they are."""

# fmt: off
LIMITS: dict[str, int] = NETWORKS | {
    # training
    "num_updates": 6, "epoch_updates": 3, "occupancy_updates": 3, "batch_size": 16, "n_steps": 5,
    "total_env_steps": 120, "warmup_env_steps": 112, "epoch_env_steps": 40, "env_steps": 16,
    "num_pairs": 100, "num_references": 64, "pool_batches": 2, "reuse": 2, "length": 8, "devices": 2,
    # draws
    "train_particles": 2, "collect_particles": 2, "eval_particles": 2, "num_particles": 2, "num_samples": 8,
    "num_steps": 2, "action_samples": 4, "replay_actions": 2, "replay_capacity": 64,
    # evaluations
    "eval_episodes": 1, "test_episodes": 1, "max_episode_steps": 5, "eval_samples": 60, "eval_copies": 8,
    "eval_states": 2, "test_states": 3, "eval_steps": 300, "val_samples": 4, "test_samples": 6,
    "value_samples": 8, "num_actions": 2, "predict_samples": 5, "likelihood_samples": 4, "transport_samples": 20,
    # collections and studies
    "num_transitions": 400, "num_envs": 8, "block_steps": 50, "trajectory_steps": 50, "num_repeats": 4, "num_points": 5,
}
# fmt: on
"""The largest number that an option may have, by its name."""

SWITCHES = {"enabled": False, "enable_progress_bar": False, "accelerator": "cpu", "progress": False}
"""Other options of tiny commands, by name: they draw and show nothing that takes long."""

KEPT = {
    *("environment", "bandit", "bandits", "density", "task", "callbacks", "logger", "rewards"),
    "segments.num_steps",
    "dataset.num_samples",
    "trainer.max_steps",
    "trainer.num_nodes",
}
"""Parts whose numbers mean something else, by their names, with the name of what holds them where one is needed."""


def configuration(words: Sequence[str]) -> dict[str, Any]:
    """The whole configuration of a command, defaults included."""
    outcome = call([*words, "--print_config"])
    assert outcome.code == 0, outcome.err
    return yaml.safe_load(outcome.out)


def options(values: Iterable[tuple[str, Any]]) -> list[str]:
    """Values of options as words of a command."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values]


def limited(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Names and values of the options of a configuration whose numbers are to be smaller."""
    names = [name for name in path if name != "init_args"]
    if not path or not {names[-1], ".".join(names[-2:])} & KEPT:
        if isinstance(node, dict):
            for name, value in node.items():
                yield from limited(value, (*path, name))
        elif path[-1] in SWITCHES:
            yield ".".join(path), SWITCHES[path[-1]]
        elif path[-1] in LIMITS and (node is None or (str(node).isdigit() and int(node) > LIMITS[path[-1]])):
            yield ".".join(path), LIMITS[path[-1]]
