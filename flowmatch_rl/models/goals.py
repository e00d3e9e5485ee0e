"""Goals of a family of policies: their units, and a table of them to draw members from."""

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import UserError
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.shapes import check_shape


class GoalTable(nn.Module):
    """Turns goals into embeddings, which are goals in standard deviations of the data, and draws some of the data.

    Args:
        schema: Names and units of the G entries of a goal.
        size: Goals in the table.
    """

    shift: Tensor
    scale: Tensor
    table: Tensor

    def __init__(self, schema: TableSchema, size: int = 4_096) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(size, schema.sample_dim))
        self.use(schema)

    def use(self, schema: TableSchema) -> None:
        """Take the units of a schema with the same columns."""
        self.schema = schema
        self.register_buffer("shift", self.table.new_tensor(schema.shift), persistent=False)
        self.register_buffer("scale", self.table.new_tensor(schema.scale), persistent=False)

    @property
    def dim(self) -> int:
        """Dimension G of a goal."""
        return self.schema.sample_dim

    def fill(self, goals: Tensor) -> None:
        """Fill the table.

        Args:
            goals: Goals in the units of the environment, shape (size, G).

        Raises:
            ValueError: If they are not as many as the table holds.
        """
        check_shape("goals", goals, tuple(self.table.shape))
        self.table.copy_(self.embedding(goals.to(self.table)))

    def embedding(self, goal: Tensor) -> Tensor:
        """Embeddings, shape (*batch, G), of goals in the units of the environment, shape (*batch, G)."""
        return (goal - self.shift) / self.scale

    def draw(self, uniform: Tensor) -> Tensor:
        """Embeddings of goals of the table, shape (B, G).

        Args:
            uniform: Uniform noise in [0, 1), shape (B, G), of which the first column is used.
        """
        rows = (uniform[:, 0].double() * len(self.table)).long()
        return self.table[rows].to(uniform.dtype)

    def beside(self, observation: Tensor, embedding: Tensor) -> Tensor:
        """What the policy acts on: observations with embeddings beside them.

        Args:
            observation: Shape (*batch, S).
            embedding: Shape (*batch, G).

        Returns:
            Shape (*batch, S + G).

        Raises:
            UserError: If the embeddings are of another dimension.
        """
        if embedding.shape[-1] != self.dim:
            raise UserError(
                f"expected goals of {self.dim} entries ({', '.join(self.schema.columns)}), got {embedding.shape[-1]}"
            )
        return torch.cat([observation, embedding.to(observation)], dim=-1)
