"""Policies as MLflow loads and serves them, and what it is told of them; nothing here imports MLflow."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import UserError
from flowmatch_rl.inference.policy import TrainedPolicy, load_policy
from flowmatch_rl.inference.slimming import write_slim

OBSERVATION, GOAL, ACTION = "observation", "goal", "action"
"""Names of what a served policy takes and returns."""


class ServedPolicy:
    """A trained policy with the interface of MLflow's ``pyfunc``.

    Args:
        policy: The policy.
    """

    def __init__(self, policy: TrainedPolicy) -> None:
        self.policy = policy

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Actions.

        Args:
            model_input: Observations, shape (B, S); or a mapping with ``observation``, and ``goal``, shape (B, G), for
                a family of policies.
            params: Nothing; MLflow passes it.

        Returns:
            Actions in the environment's unit, float32, shape (B, A).
        """
        given = model_input if isinstance(model_input, Mapping) else {OBSERVATION: model_input}
        return self.policy(given[OBSERVATION], given.get(GOAL))


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedPolicy:
    """Load a policy for MLflow, which finds this function by its name.

    Args:
        path: Path of the checkpoint.
        model_config: Arguments of ``load_policy`` by name, such as ``deterministic``.

    Raises:
        UserError: If there is no such argument.
    """
    given = model_config or {}
    if unknown := [name for name in given if name not in _options()]:
        raise UserError(f"model_config of a policy takes {', '.join(_options())}, got {unknown[0]!r}")
    return ServedPolicy(load_policy(path, **given))


def _options() -> dict[str, inspect.Parameter]:
    """Arguments of ``load_policy`` beside the checkpoint."""
    known = dict(inspect.signature(load_policy).parameters)
    del known["checkpoint"]
    return known


def pack_policy(checkpoint: Path, output: Path, observation: np.ndarray) -> dict[str, Any]:
    """Write the policy of a checkpoint as a small file, which is loaded for a trial, and describe it.

    Args:
        checkpoint: Path of a ``.ckpt`` file.
        output: File to write: weights, arguments, names and units, see ``slim_checkpoint``.
        observation: Observations for an example, shape (B, S).

    Returns:
        What MLflow is told, as JSON can hold it: ``loader``, the module that loads the file; ``inputs`` and
        ``outputs``, dimensions by name; ``example``; ``options``, arguments of ``load_policy`` and their defaults;
        ``metadata``, names, units and bounds.

    Raises:
        UserError: If it is not a checkpoint of a policy that ``load_policy`` knows.
    """
    write_slim(read_checkpoint(checkpoint, memory_map=True), output, str(checkpoint))
    policy = load_policy(output)
    example = {OBSERVATION: np.asarray(observation, np.float32)}
    if policy.module.goals is not None:
        mean = policy.module.goals.schema.restore(torch.zeros(len(observation), len(policy.goal_columns)))
        example[GOAL] = mean.float().numpy()
    ServedPolicy(policy).predict(example)
    return {
        "loader": __name__,
        "inputs": {name: rows.shape[-1] for name, rows in example.items()},
        "outputs": {ACTION: policy.action_dim},
        "example": {name: rows.tolist() for name, rows in example.items()},
        "options": {name: _listed(option.default) for name, option in _options().items()},
        "metadata": {
            "kind": "policy",
            "model": type(policy.module).__name__,
            "action_low": list(policy.action_bounds.low),
            "action_high": list(policy.action_bounds.high),
            **{name: _listed(value) for name, value in dataclasses.asdict(policy.interface).items()},
            "goal_columns": list(policy.goal_columns),
        },
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
