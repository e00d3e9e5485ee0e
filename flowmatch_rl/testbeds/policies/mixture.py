"""Several policies, one of which acts throughout a trajectory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.types import Policy


@dataclass(frozen=True)
class PolicyMixture(Policy):
    """Several policies as a family, whose embedding is the number of the one that acts (Z = 1).

    Data of them are a model of data of several users, each of whom is equally likely.

    Args:
        policies: Single policies, at least one.

    Raises:
        UserError: If there is none, or one is a family itself.
    """

    policies: list[Policy]

    def __post_init__(self) -> None:
        families = [type(policy).__name__ for policy in self.policies if policy.embedding_dim]
        if not self.policies or families:
            raise UserError(f"policies must be single policies, at least one, got {families or 'none'}")

    @property
    def embedding_dim(self) -> int:
        """The number of the policy."""
        return 1

    def embeddings(self, uniform: Tensor) -> Tensor:
        """Numbers of policies, from 0, each equally likely, shape (B, 1)."""
        return (len(self.policies) * uniform).floor()

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Actions, shape (*batch, A), for observations (*batch, S) and numbers of policies (*batch, 1)."""
        if embedding is None:
            raise ValueError("expected numbers of policies of shape (*batch, 1), got no embedding")
        self.check_embedding(embedding)
        actions = torch.stack([policy.act(observation, None, generator) for policy in self.policies], -2)
        chosen = embedding.round().long().clamp(0, len(self.policies) - 1)
        return actions.take_along_dim(chosen[..., None], -2).squeeze(-2)
