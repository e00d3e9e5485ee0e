"""A forward-backward representation: policies and action values of all rewards of the state."""

import torch
from torch import Tensor, nn

from flowmatch_rl.nets import ForwardBackwardArchitecture, ForwardBackwardNetworks
from flowmatch_rl.objectives import ValueReduction, on_sphere, reduced_members, reward_embedding
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.shapes import check_shape


class ForwardBackwardModel(nn.Module):
    """Policies of all embeddings z, with the action values of any reward under each of them.

    It keeps a sample of the states arrived in in the data, on which rewards are evaluated.

    Args:
        schema: Names and units of the S entries of the state.
        action_dim: Dimension A of the action.
        architecture: Shape of the networks.
        reduction: How the members of F are reduced to one value.
        num_references: States of the data that are kept.
    """

    shift: Tensor
    scale: Tensor
    references: Tensor
    """States arrived in in the data, in their units, shape (K, S); zeros before a training begins."""

    def __init__(
        self,
        schema: TableSchema,
        action_dim: int,
        architecture: ForwardBackwardArchitecture,
        reduction: ValueReduction,
        num_references: int,
    ) -> None:
        super().__init__()
        self.columns, self.action_dim = schema.columns, action_dim
        self.reduction: ValueReduction = reduction
        self.networks: ForwardBackwardNetworks = architecture.build(schema.sample_dim, action_dim)
        self.register_buffer("shift", torch.tensor(schema.shift))
        self.register_buffer("scale", torch.tensor(schema.scale))
        self.register_buffer("references", torch.zeros(num_references, schema.sample_dim))

    @property
    def embedding_dim(self) -> int:
        """Dimension d of the embeddings."""
        return self.networks.embedding_dim

    def standardise(self, state: Tensor) -> Tensor:
        """Standardised states, same shape.

        Args:
            state: States in their units, shape (*batch, S).
        """
        return (state - self.shift) / self.scale

    @torch.no_grad()
    def embedding(self, reward: Tensor, states: Tensor | None = None) -> Tensor:
        """Embedding of a reward, ``E[r(s') B(s')]`` over states of the data, shape (d,).

        Its policy is that of ``on_sphere`` of it; its length is the scale of the reward.

        Args:
            reward: Rewards of the states, shape (N,).
            states: States of the data, in their units, shape (N, S); those that the model keeps if None.

        Raises:
            ValueError: If the shapes do not fit.
        """
        states = self.references if states is None else states
        return reward_embedding(reward, self.networks.represent_arrival(self.standardise(states)))

    @torch.no_grad()
    def act(self, state: Tensor, embedding: Tensor) -> Tensor:
        """Actions in [-1, 1] of the policy of an embedding, shape (*batch, A).

        Args:
            state: States in their units, shape (*batch, S).
            embedding: Embedding of any length, shape (d,).
        """
        rows = self.standardise(state).reshape(-1, state.shape[-1])
        action = self.networks.act(rows, on_sphere(embedding).expand(len(rows), -1))
        return action.reshape(*state.shape[:-1], -1)

    @torch.no_grad()
    def value(self, state: Tensor, action: Tensor, embedding: Tensor, reward: Tensor | None = None) -> Tensor:
        """Action values of a reward under the policy of an embedding, shape (*batch).

        Args:
            state: States in their units, shape (*batch, S).
            action: Actions in [-1, 1], shape (*batch, A).
            embedding: Embedding of the policy, shape (d,).
            reward: Embedding of the reward, not brought onto the sphere, shape (d,); that of the policy if None.
        """
        reward = embedding if reward is None else reward
        check_shape("action", action, (*state.shape[:-1], self.action_dim))
        rows, actions = self.standardise(state).reshape(-1, state.shape[-1]), action.reshape(-1, self.action_dim)
        forward = self.networks.represent(rows, actions, on_sphere(embedding).expand(len(rows), -1))
        return reduced_members(forward @ reward, self.reduction).reshape(state.shape[:-1])
