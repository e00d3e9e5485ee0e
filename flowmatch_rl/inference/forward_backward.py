"""A trained forward-backward representation for use outside training."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.inference.kinds import read_kind
from flowmatch_rl.inference.occupancy import RewardFunction
from flowmatch_rl.models import ForwardBackwardModel
from flowmatch_rl.modules.forward_backward import ForwardBackward
from flowmatch_rl.modules.loading import build_module
from flowmatch_rl.schema import ActionBounds
from flowmatch_rl.types import Reward


class EmbeddedPolicy:
    """The policy of one reward, as a function of NumPy states. Use ``TrainedForwardBackward.policy`` to get one.

    Args:
        model: The trained model.
        embedding: Embedding of the policy, shape (d,).
        reward: Embedding of the reward that values are of, shape (d,).
        action_bounds: Bounds of the action in the environment's unit.

    Attributes:
        embedding: The embedding of the policy, shape (d,).
    """

    def __init__(
        self, model: ForwardBackwardModel, embedding: Tensor, reward: Tensor, action_bounds: ActionBounds
    ) -> None:
        self._model, self._embedding, self._reward, self._bounds = model, embedding, reward, action_bounds
        self.embedding: np.ndarray = embedding.cpu().numpy()

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Act.

        Args:
            observation: States, shape (*batch, S).

        Returns:
            Actions in the environment's unit, float32, shape (*batch, A).

        Raises:
            UserError: If the last dimension is not S, or an entry is not finite.
        """
        action = self._model.act(self._states(observation), self._embedding)
        return self._bounds.restore(action).float().cpu().numpy()

    def value(self, observation: np.ndarray, action: np.ndarray | None = None) -> np.ndarray:
        """Discounted sum of the rewards of the states that the policy arrives at, by the model.

        Args:
            observation: States, shape (*batch, S).
            action: First actions in the environment's unit, shape (*batch, A); the policy's own if None.

        Returns:
            Values in units of the return, shape (*batch).

        Raises:
            UserError: If a shape does not fit, or an entry is not finite.
        """
        states = self._states(observation)
        if action is None:
            unit = self._model.act(states, self._embedding)
        else:
            given, wanted = np.asarray(action), (*states.shape[:-1], self._model.action_dim)
            if given.shape != wanted:
                raise UserError(f"expected actions of shape {wanted}, got {given.shape}")
            unit = self._bounds.standardise(torch.as_tensor(given, device=states.device)).float()
        return self._model.value(states, unit, self._embedding, self._reward).cpu().numpy()

    def _states(self, observation: np.ndarray) -> Tensor:
        return finite_states(self._model, observation)


class TrainedForwardBackward:
    """Policies and values for any reward of the state, as functions of NumPy arrays in the units of the environment.

    Args:
        model: The trained model.
        action_bounds: Bounds of the action in the environment's unit; [-1, 1] if None.
    """

    def __init__(self, model: ForwardBackwardModel, action_bounds: ActionBounds | None = None) -> None:
        self.model = model.eval()
        self._bounds = action_bounds or ActionBounds.unit(model.action_dim)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the S entries of the state."""
        return self.model.columns

    def policy(self, reward: RewardFunction, states: np.ndarray | None = None, centred: bool = True) -> EmbeddedPolicy:
        """The policy of a reward, whose values at states of the data it is inferred from.

        Args:
            reward: Any reward of the state that a step arrives in.
            states: States of the data to evaluate it on, shape (N, S); those that the checkpoint holds if None. More of
                them help where few have a reward.
            centred: Whether the mean reward of the states is subtracted before the policy is inferred. Where episodes
                do not end by themselves a constant reward changes no policy, but errors of a short training weigh less
                without it. Values are of the reward as it is.

        Raises:
            UserError: If a shape does not fit, the reward needs an entry that the state lacks, or it is 0 or not
                finite in the states.
        """
        given = self.model.references if states is None else finite_states(self.model, states)
        if isinstance(reward, Reward):
            rewards = reward.evaluate(given, self.columns)
        else:
            rewards = torch.as_tensor(np.asarray(reward(given.cpu().numpy())), dtype=torch.float32)
        if rewards.shape != given.shape[:-1] or given.ndim != 2:
            raise UserError(f"expected states (N, S) and rewards (N,), got {given.shape} and {tuple(rewards.shape)}")
        if not bool(rewards.isfinite().all()):
            raise UserError(f"the reward {reward} is not finite in all of the {len(given)} states")
        if not bool(rewards.any()):
            raise UserError(
                f"the reward {reward} is 0 in all of the {len(given)} states of the data that it was evaluated on; "
                "give states among which some have a reward"
            )
        rewards = rewards.to(given)
        own = self.model.embedding(rewards, given)
        embedding = self.model.embedding(rewards - rewards.mean(), given) if centred else own
        return EmbeddedPolicy(self.model, embedding, own, self._bounds)

    def value(self, reward: RewardFunction, observation: np.ndarray, action: np.ndarray | None = None) -> np.ndarray:
        """Values of a reward under its own policy; see ``EmbeddedPolicy.value``.

        Args:
            reward: As in ``policy``.
            observation: States, shape (*batch, S).
            action: First actions in the environment's unit, shape (*batch, A); the policy's own if None.
        """
        return self.policy(reward).value(observation, action)


def finite_states(model: ForwardBackwardModel, observation: np.ndarray) -> Tensor:
    """States as a tensor on the device of a model.

    Args:
        model: The model.
        observation: States, shape (*batch, S).

    Raises:
        UserError: If the last dimension is not S, or an entry is not finite.
    """
    array = np.asarray(observation)
    if array.ndim < 1 or array.shape[-1] != len(model.columns):
        raise UserError(f"expected states of shape (..., {len(model.columns)}), got {array.shape}")
    states = torch.as_tensor(array, dtype=torch.float32, device=model.references.device)
    if not bool(states.isfinite().all()):
        raise UserError("expected states of finite numbers, got NaN or infinity")
    return states


def load_forward_backward(
    checkpoint: str | Path, device: str = "cpu", allow: Collection[str] = ()
) -> TrainedForwardBackward:
    """Load the forward-backward representation of a checkpoint.

    Args:
        checkpoint: Path of a ``.ckpt`` file.
        device: Where to run it.
        allow: Packages whose classes it may name, beside this one and those that were imported.

    Returns:
        The representation, which gives a policy for any reward.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is not a checkpoint of a forward-backward representation, or names a class of another package.
    """
    content = read_kind("a forward-backward representation", checkpoint, allow)
    module = build_module(ForwardBackward, content, checkpoint).to(device)
    return TrainedForwardBackward(module.model, module.hparams["action_bounds"])
