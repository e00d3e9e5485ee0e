"""Finite decision processes whose futures are known, in place of a learned model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracles import F64, uniform


@dataclass(frozen=True)
class Chain:
    """A finite decision process and a family of deterministic policies on it.

    Attributes:
        transition: Probability of the next state by state and action, shape (S, A, S).
        members: Action of each member at each state, shape (W, S).
    """

    transition: Tensor
    members: Tensor

    @property
    def num_states(self) -> int:
        return len(self.transition)

    @property
    def starts(self) -> Tensor:
        """Every state, as a law on states."""
        return torch.eye(self.num_states, dtype=F64)

    @property
    def embeddings(self) -> Tensor:
        """Every member, shape (W, 1)."""
        return torch.arange(len(self.members), dtype=F64)[:, None]

    def followed(self, table: Tensor) -> Tensor:
        """Transition matrix of a policy, given by its action at each state."""
        return self.transition[torch.arange(self.num_states), table]

    def occupancy(self, table: Tensor, discount: float | Tensor) -> Tensor:
        """Law of the discounted future states by state and first action, a policy followed from there, (S, A, S)."""
        eye = torch.eye(self.num_states, dtype=F64)
        return (1.0 - discount) * self.transition @ torch.linalg.inv(eye - discount * self.followed(table))

    def value(self, table: Tensor, reward: Tensor, discount: float | Tensor) -> Tensor:
        """Value of a policy at each state, by its Bellman equation, shape (S,)."""
        step = self.followed(table)
        return torch.linalg.solve(torch.eye(self.num_states, dtype=F64) - discount * step, step @ reward)

    def action_value(self, table: Tensor, reward: Tensor, discount: float | Tensor) -> Tensor:
        """Value of a first action, a policy followed from there, shape (S, A)."""
        return self.transition @ (reward + discount * self.value(table, reward, discount))

    def act(self, state: Tensor, embedding: Tensor) -> Tensor:
        """Actions of a member at every state: of laws on states, what it would do at each of them."""
        return self.members[embedding[..., 0].long()].to(state.dtype).expand(state.shape)

    def futures(
        self, noise: Tensor, state: Tensor, action: Tensor, embedding: Tensor, discount: float | Tensor
    ) -> Tensor:
        """Exact law of the futures of laws on states; rewards linear in the law are then exact with a single draw."""
        table = torch.stack([self.occupancy(member, discount) for member in self.members])[embedding[..., 0].long()]
        chosen = table.take_along_dim(action.long()[..., None, None], -2)[..., 0, :]  # (*batch, S, S)
        return (state[..., None, :] @ chosen).expand(noise.shape)

    def act_at(self, state: Tensor, embedding: Tensor) -> Tensor:
        """Actions of a member at states given by their number, shape (*batch, 1)."""
        return self.members[embedding.long(), state.long()].to(state.dtype)

    def sampled(
        self, noise: Tensor, state: Tensor, action: Tensor, embedding: Tensor, discount: float | Tensor
    ) -> Tensor:
        """Draws of the futures of states given by their number, by inverting their law at uniform noise."""
        table = torch.stack([self.occupancy(member, discount) for member in self.members])
        law = table[embedding[..., 0].long(), state[..., 0].long(), action[..., 0].long()]  # (*batch, S)
        below = law.cumsum(-1)[..., None, :-1] <= noise  # (*batch, K, S - 1)
        return below.sum(-1, keepdim=True).to(noise.dtype)


def random_chain(num_states: int = 6, num_actions: int = 3, num_members: int = 4, seed: int = 0) -> Chain:
    """A chain whose every move is possible, some of them rare."""
    weights = uniform(num_states, num_actions, num_states, seed=seed) ** 4
    members = (uniform(num_members, num_states, seed=seed + 1) * num_actions).long()
    return Chain(weights / weights.sum(-1, keepdim=True), members)


def line_chain(num_states: int = 5) -> Chain:
    """A line with walls, and three members: one walks left, one right, one left from even places and right from odd."""
    place = torch.arange(num_states)
    left, right = (place - 1).clamp_min(0), (place + 1).clamp_max(num_states - 1)
    transition = torch.zeros(num_states, 2, num_states, dtype=F64)
    transition[place, 0, left], transition[place, 1, right] = 1.0, 1.0
    return Chain(transition, torch.stack([torch.zeros_like(place), torch.ones_like(place), place % 2]))


def midpoints(count: int) -> Tensor:
    """Midpoints of equal parts of [0, 1], shape (count,)."""
    return (torch.arange(count, dtype=F64) + 0.5) / count
