"""A trained occupancy for use outside training."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.inference.kinds import read_kind
from flowmatch_rl.models import Occupancy
from flowmatch_rl.modules.loading import build_module
from flowmatch_rl.modules.occupancy import OccupancyModule
from flowmatch_rl.planning import improve
from flowmatch_rl.schema import ActionBounds
from flowmatch_rl.types import Reward

RewardFunction = Reward | Callable[[np.ndarray], np.ndarray]
"""A reward, or a function from states (*batch, D), their entries in the order of ``columns``, to rewards (*batch)."""


@dataclass(frozen=True)
class Value:
    """Values with their standard errors, both of shape (*batch), in units of the return."""

    value: np.ndarray
    standard_error: np.ndarray


@dataclass(frozen=True)
class PlannedAction:
    """What a planner chose.

    Attributes:
        action: Action in the environment's unit, shape (*batch, A).
        index: Which of the W candidates acts, shape (*batch).
        values: Values of all candidates, shape (*batch, W).
    """

    action: np.ndarray
    index: np.ndarray
    values: np.ndarray


class TrainedOccupancy:
    """Future states, densities, values and plans as NumPy arrays, in the units of the environment.

    Args:
        model: The trained model.
        action_bounds: Bounds of the action in the environment's unit; [-1, 1] if None.
        seed: Seed of the noise.

    Attributes:
        action_bounds: Those bounds.
    """

    def __init__(self, model: Occupancy, action_bounds: ActionBounds | None = None, seed: int = 0) -> None:
        self.model = model.eval()
        self._generator = torch.Generator().manual_seed(seed)
        self.action_bounds = action_bounds or ActionBounds.unit(model.inputs.action_dim)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the D modelled entries of the state."""
        return self.model.schema.columns

    def sample(
        self,
        number: int,
        observation: np.ndarray,
        action: np.ndarray | None = None,
        embedding: np.ndarray | None = None,
        discount: float | None = None,
        endless: bool = False,
    ) -> np.ndarray:
        """Draw future states.

        Args:
            number: How many per state, K.
            observation: States, shape (*batch, S).
            action: Actions, shape (*batch, A); those of the modelled policy if None.
            embedding: Members of the family of policies, shape (*batch, Z); None for a single policy.
            discount: Discount, for a model of many horizons; the highest if None. Above the highest b the model's
                future states are chained, ``(1 - b) / (1 - discount)`` for each one on average.
            endless: Whether the environment has no terminal states, which a model of a single horizon must be told
                for a discount above its own.

        Returns:
            Future states, shape (*batch, K, D).

        Raises:
            UserError: If a shape does not fit, no action is given and the model knows no policy, or the model can't
                be chained; see ``Occupancy.sample_beyond``.
        """
        return _array(self._futures(number, *self._source(observation, action, embedding), discount, endless))

    def draw_members(self, number: int) -> np.ndarray:
        """Draw members of the family of policies, or latents of a model with intentions from their prior.

        Args:
            number: How many.

        Returns:
            Embeddings, shape (number, Z).

        Raises:
            UserError: If embeddings are known from data alone.
        """
        return _array(self.model.draw_members(number, self._generator))

    def infer_members(self, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Infer the latents behind actions, by a model with intentions; each call draws new ones.

        Args:
            observation: States, shape (*batch, S).
            action: Actions taken there, shape (*batch, A).

        Returns:
            Latents, shape (*batch, Z).

        Raises:
            UserError: If a shape does not fit, or the model has no intentions.
        """
        state = self._entries("state", observation, self.model.inputs.schema.sample_dim)
        given = self._entries("action", action, self.model.inputs.action_dim, state.shape[:-1])
        return _array(self.model.infer_members(state, self.action_bounds.standardise(given).float(), self._generator))

    def log_prob(
        self,
        state: np.ndarray,
        observation: np.ndarray,
        action: np.ndarray | None = None,
        embedding: np.ndarray | None = None,
        discount: float | None = None,
    ) -> np.ndarray:
        """Log-density of future states, one per source state.

        Args:
            state: Future states, shape (B, D).
            observation: Source states, shape (B, S).
            action: As in ``sample``.
            embedding: As in ``sample``.
            discount: As in ``sample``.

        Returns:
            Log-density in nats, shape (B,).

        Raises:
            UserError: As ``sample``.
        """
        source = self._source(observation, action, embedding)
        return _array(self.model.log_prob(self._tensor(state), *source, discount, self._generator))

    def value(
        self,
        reward: RewardFunction,
        observation: np.ndarray,
        action: np.ndarray | None = None,
        embedding: np.ndarray | None = None,
        discount: float | None = None,
        number: int = 2_048,
        endless: bool = False,
    ) -> Value:
        """Discounted sum of the rewards of the states that the policy arrives at.

        Args:
            reward: Any reward of the modelled entries of the state.
            observation: States, shape (*batch, S).
            action: First actions, for action values; the policy's own if None, for state values.
            embedding: As in ``sample``.
            discount: As in ``sample``.
            number: Future states per source state, at least 2.
            endless: As in ``sample``.

        Returns:
            Values and their standard errors, shape (*batch).

        Raises:
            UserError: As ``sample``, and if the reward looks at an entry that is not modelled.
        """
        state, act, member = self._source(observation, action, embedding)
        futures = self._futures(number, state, act, member, discount, endless)
        estimate = self.model.value(futures, self._reward(reward), state, discount)
        return Value(_array(estimate.value), _array(estimate.standard_error))

    @torch.no_grad()
    def plan(
        self,
        reward: RewardFunction,
        observation: np.ndarray,
        candidates: np.ndarray,
        number: int = 128,
        discount: float | None = None,
        max_rows: int | None = None,
    ) -> PlannedAction:
        """Act by the member of a family of policies that is worth most here: generalised policy improvement.

        All candidates see the same noise, so that their order depends less on it.

        Args:
            reward: Any reward of the modelled entries of the state.
            observation: States, shape (*batch, S).
            candidates: Members of the family, shape (W, Z).
            number: Future states per state and candidate.
            discount: As in ``sample``.
            max_rows: Most future states made at a time; all if None.

        Returns:
            Actions, the members that take them, and the values of all members.

        Raises:
            UserError: If a shape does not fit, the model knows no policy, or it counts the current state.
        """
        model, policy = self.model, self.model.policy
        if policy is None:
            raise UserError("planning needs a model of a family of policies; this one was learned from actions in data")
        if model.horizon.first_state == "current":
            raise UserError("planning needs first_state 'arrival', this model has 'current'")
        states = self._entries("state", observation, model.inputs.schema.sample_dim)
        members = self._entries("candidates", candidates, model.inputs.embedding_dim)
        plan = improve(
            model.futures,
            policy.act,
            states.reshape(-1, states.shape[-1]),
            members,
            model.draw_noise(number, generator=self._generator),
            self._reward(reward),
            model.horizon.discount if discount is None else discount,
            max_rows,
        )
        batch = states.shape[:-1]
        action = self.action_bounds.restore(plan.action).float()
        index, values = plan.index.reshape(batch), plan.values.reshape(*batch, -1)
        return PlannedAction(_array(action.reshape(*batch, -1)), _array(index), _array(values))

    @torch.no_grad()
    def _futures(
        self, number: int, state: Tensor, action: Tensor, member: Tensor, discount: float | None, endless: bool
    ) -> Tensor:
        batch = state.shape[:-1]
        if discount is not None and discount > self.model.horizon.discount:
            rows = [part[..., None, :].expand(*batch, number, -1) for part in (state, action, member)]
            return self.model.sample_beyond(discount, *rows, endless=endless, generator=self._generator)
        states, actions, members = (part.reshape(batch.numel(), 1, part.shape[-1]) for part in (state, action, member))
        noise = self.model.draw_noise(len(states), number, generator=self._generator)
        return self.model.sample(noise, states, actions, members, discount).reshape(*batch, number, -1)

    @torch.no_grad()
    def _source(
        self, observation: np.ndarray, action: np.ndarray | None, embedding: np.ndarray | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """State, action in [-1, 1] and embedding as tensors."""
        inputs = self.model.inputs
        state = self._entries("state", observation, inputs.schema.sample_dim)
        batch, member = state.shape[:-1], state.new_empty(*state.shape[:-1], 0)
        if embedding is not None:
            member = self._entries("embedding", embedding, inputs.embedding_dim, batch)
        if action is None:
            return state, self.model.act(state, member), member
        given = self._entries("action", action, inputs.action_dim, batch)
        return state, self.action_bounds.standardise(given).float(), member

    def _entries(self, name: str, array: np.ndarray, dimension: int, batch: tuple[int, ...] | None = None) -> Tensor:
        """An array as a tensor, its last dimension checked, and those before it where ``batch`` is given."""
        got = self._tensor(array)
        wanted = (*(got.shape[:-1] if batch is None else batch), dimension)
        if got.ndim < 1 or got.shape != wanted:
            shown = "..., " if batch is None else "".join(f"{size}, " for size in batch)
            raise UserError(f"expected {name} of shape ({shown}{dimension}), got {tuple(got.shape)}")
        return got

    def _reward(self, reward: RewardFunction) -> Callable[[Tensor], Tensor]:
        columns = self.columns
        if isinstance(reward, Reward):
            return lambda states: reward.evaluate(states, columns)
        return lambda states: self._tensor(np.asarray(reward(_array(states))))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.model.device)


def load_occupancy(checkpoint: str | Path, device: str = "cpu", allow: Collection[str] = ()) -> TrainedOccupancy:
    """Load the occupancy of a checkpoint.

    Args:
        checkpoint: Path of a ``.ckpt`` file, or ``zoo:NAME`` for a trained model of the package.
        device: Where to run it.
        allow: Packages whose classes it may name, beside this one and those that were imported.

    Returns:
        The occupancy.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is not a checkpoint of an occupancy, or names a class of another package.
    """
    content = read_kind("an occupancy", checkpoint, allow)
    module = build_module(OccupancyModule, content, checkpoint).to(device)
    return TrainedOccupancy(module.model, module.hparams["action_bounds"])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
