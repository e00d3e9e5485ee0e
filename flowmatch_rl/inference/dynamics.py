"""A trained one-step model for use outside training."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.inference.kinds import read_kind
from flowmatch_rl.models import Dynamics
from flowmatch_rl.modules.dynamics import DynamicsModule
from flowmatch_rl.modules.loading import build_module
from flowmatch_rl.schema import ActionBounds


class ModelledStep(NamedTuple):
    """A step of a one-step model from each of a batch of states."""

    arrival: np.ndarray
    """States arrived in, shape (*batch, S)."""
    spread: np.ndarray
    """Disagreement of the members, in units of the change of one step, shape (*batch)."""
    terminal: np.ndarray
    """Probability that the state arrived in is terminal, shape (*batch)."""


class TrainedDynamics:
    """Steps as NumPy arrays, in the units of the environment.

    Args:
        dynamics: The trained model.
        columns: Names of the S entries of the state.
        action_bounds: Bounds of the action in the environment's unit; [-1, 1] if None.
        seed: Seed of the noise.
    """

    def __init__(
        self, dynamics: Dynamics, columns: tuple[str, ...], action_bounds: ActionBounds | None = None, seed: int = 0
    ) -> None:
        self.dynamics, self.columns = dynamics.eval(), columns
        self._bounds = action_bounds or ActionBounds.unit(dynamics.action_dim)
        self._generator = torch.Generator().manual_seed(seed)

    def step(self, observation: np.ndarray, action: np.ndarray) -> ModelledStep:
        """Take a step from each state; a model of a random environment draws it.

        Args:
            observation: States, shape (*batch, S).
            action: Actions in the environment's unit, shape (*batch, A).

        Raises:
            UserError: If a shape does not fit.
        """
        state, moved = self._tensor(observation), self._tensor(action)
        wanted = (*state.shape[:-1], self.dynamics.action_dim)
        if state.ndim < 1 or state.shape[-1] != len(self.columns):
            raise UserError(f"expected state of shape (..., {len(self.columns)}), got {tuple(state.shape)}")
        if moved.shape != wanted:
            raise UserError(f"expected action of shape {wanted}, got {tuple(moved.shape)}")
        unit = self._bounds.standardise(moved).float()
        rows, actions = (part.reshape(-1, part.shape[-1]) for part in (state, unit))
        step = self.dynamics.step(rows, actions, self._generator)
        batch = state.shape[:-1]
        arrival, spread, terminal = step.arrival.reshape(state.shape), step.spread.reshape(batch), step.terminal
        return ModelledStep(*(part.cpu().numpy() for part in (arrival, spread, terminal.reshape(batch))))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(array), dtype=torch.float32, device=self.dynamics.change_scale.device)


def load_dynamics(checkpoint: str | Path, device: str = "cpu", allow: Collection[str] = ()) -> TrainedDynamics:
    """Load the one-step model of a checkpoint.

    Args:
        checkpoint: Path of a ``.ckpt`` file.
        device: Where to run it.
        allow: Packages whose classes it may name, beside this one and those that were imported.

    Returns:
        The model.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is not a checkpoint of a one-step model, or names a class of another package.
    """
    content = read_kind("a one-step model", checkpoint, allow)
    module = build_module(DynamicsModule, content, checkpoint).to(device)
    return TrainedDynamics(module.dynamics, module.state_schema.columns, module.hparams["action_bounds"])
