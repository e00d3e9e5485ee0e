"""Units of states, and what an occupancy network is told."""

import torch
from torch import Tensor, nn

from flowmatch_rl.schema import TableSchema
from flowmatch_rl.shapes import check_shape

_HORIZON_FEATURES = 3


class OccupancyInputs(nn.Module):
    """Turns states, actions, embeddings and discounts into conditions, and states into standardised ones and back.

    Args:
        schema: Names and units of the S entries of the state.
        action_dim: Dimension A of the action.
        embedding_dim: Dimension Z of the embedding.
        discount: The model's discount, or its highest one.
        min_discount: Lowest discount of a model of many horizons; None for a single one.
        columns: Names of the D modelled entries; all if None.

    Raises:
        ValueError: If there are no columns, one is given twice, or the state lacks one.
    """

    state_shift: Tensor
    state_scale: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        schema: TableSchema,
        action_dim: int,
        embedding_dim: int,
        discount: float,
        min_discount: float | None,
        columns: list[str] | None,
    ) -> None:
        super().__init__()
        names = schema.columns if columns is None else columns
        if not names or len(set(names)) < len(names):
            raise ValueError(f"columns must be different names, at least one, got {list(names)}")
        if unknown := [name for name in names if name not in schema.columns]:
            raise ValueError(f"the state has no column {unknown[0]!r}; it has {', '.join(schema.columns)}")
        self.modelled = [schema.columns.index(name) for name in names]
        self.action_dim, self.embedding_dim = action_dim, embedding_dim
        self.discount, self.min_discount = discount, min_discount
        self.use(schema)

    def use(self, schema: TableSchema) -> None:
        """Take the units of a schema with the same columns."""
        self.schema = schema
        self.register_buffer("state_shift", torch.tensor(schema.shift), persistent=False)
        self.register_buffer("state_scale", torch.tensor(schema.scale), persistent=False)
        self.register_buffer("shift", self.state_shift[self.modelled], persistent=False)
        self.register_buffer("scale", self.state_scale[self.modelled], persistent=False)

    @property
    def sample_dim(self) -> int:
        """Number D of modelled entries of the state."""
        return len(self.modelled)

    @property
    def condition_dim(self) -> int:
        """Dimension C of a condition."""
        horizon = 0 if self.min_discount is None else _HORIZON_FEATURES
        return self.schema.sample_dim + self.action_dim + self.embedding_dim + horizon

    @property
    def sample_schema(self) -> TableSchema:
        """The modelled entries, given the whole state, the action and the embedding."""
        state, others = self.schema, self.action_dim + self.embedding_dim
        return TableSchema(
            columns=tuple(state.columns[i] for i in self.modelled),
            shift=tuple(state.shift[i] for i in self.modelled),
            scale=tuple(state.scale[i] for i in self.modelled),
            condition_columns=(
                *(f"source_{name}" for name in state.columns),
                *(f"action_{i}" for i in range(self.action_dim)),
                *(f"embedding_{i}" for i in range(self.embedding_dim)),
            ),
            condition_shift=(*state.shift, *[0.0] * others),
            condition_scale=(*state.scale, *[1.0] * others),
        )

    def standardise(self, state: Tensor) -> Tensor:
        """Standardised modelled entries, shape (*batch, D), of whole states (*batch, S)."""
        return (state[..., self.modelled] - self.shift) / self.scale

    def restore(self, sample: Tensor) -> Tensor:
        """Modelled entries in the units of the environment, shape (*batch, D), of standardised ones."""
        return sample * self.scale + self.shift

    def check(self, entries: Tensor, discount: Tensor | float | None) -> None:
        """Raise unless the model knows entries and a discount of this kind.

        Args:
            entries: Modelled entries or noise of their dimension, shape (*batch, D).
            discount: Discount, a tensor or a number; the highest if None.

        Raises:
            ValueError: If the dimension does not fit, or the model has another discount.
        """
        check_shape("modelled entries", entries, (*entries.shape[:-1], self.sample_dim))
        if discount is None:
            return
        # Numbers and tensors of either precision are compared as the network sees them.
        lowest = self.discount if self.min_discount is None else self.min_discount
        low, high = torch.tensor([lowest, self.discount]).tolist()
        known = torch.as_tensor(discount).float()
        bad = known[~((known >= low) & (known <= high))]
        if len(bad) and self.min_discount is None:
            raise ValueError(f"this model has the discount {high:g}, got {float(bad[0]):g}; others need min_discount")
        if len(bad):
            raise ValueError(f"this model has discounts from {low:g} to {high:g}, got {float(bad[0]):g}")

    def condition(
        self, observation: Tensor, action: Tensor, embedding: Tensor | None, discount: Tensor | float | None
    ) -> Tensor:
        """What the network is told; batch shapes broadcast.

        Args:
            observation: States in the units of the environment, shape (*batch, S).
            action: Actions in [-1, 1], shape (*batch, A).
            embedding: Members of the family of policies, shape (*batch, Z); None for a single policy.
            discount: Discount of the model, see ``check``, shape (*batch) or a number; the highest if None.

        Returns:
            Condition, shape (*batch, C).

        Raises:
            ValueError: If a dimension does not fit.
        """
        got = (observation.shape[-1], action.shape[-1], 0 if embedding is None else embedding.shape[-1])
        wanted = (self.schema.sample_dim, self.action_dim, self.embedding_dim)
        for name, have, want in zip(("state", "action", "embedding"), got, wanted, strict=True):
            if have != want:
                raise ValueError(f"expected {name} of dimension {want}, got {have}")
        parts = [(observation - self.state_shift) / self.state_scale, action]
        parts += [embedding] if embedding is not None and self.embedding_dim else []
        if self.min_discount is not None:
            parts.append(self._horizon_features(discount, observation))
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*batch, -1) for part in parts], dim=-1)

    def _horizon_features(self, discount: Tensor | float | None, like: Tensor) -> Tensor:
        known = torch.as_tensor(self.discount if discount is None else discount, dtype=like.dtype, device=like.device)
        return torch.stack([known, 1.0 - known, -torch.log1p(-known)], dim=-1)
