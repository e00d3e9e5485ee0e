"""Units of states, and conditions of an occupancy's network."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.objectives import FirstState, discounts_between
from flowmatch_rl.schema import TableSchema

_HORIZON_FEATURES = 3


@dataclass(frozen=True)
class Horizon:
    """How far ahead an occupancy looks.

    Args:
        discount: Discount per environment step, in [0, 1); the highest one where ``min_discount`` is given.
        min_discount: Lowest discount of a model of many horizons, which are drawn uniformly in the logarithm of the
            horizon 1 / (1 - discount); None for a single discount.
        consistency: Fraction of each batch that bootstraps through a shorter horizon, in [0, 1].
        first_state: First state that the occupancy counts: the ``arrival`` state, or the ``current`` one.

    Raises:
        UserError: If a number is out of its range, or parts do not go together.
    """

    discount: float = 0.99
    min_discount: float | None = None
    consistency: float = 0.0
    first_state: FirstState = "arrival"

    def __post_init__(self) -> None:
        check_range("[0, 1)", discount=self.discount)
        check_range(f"[0, {self.discount}]", min_discount=self.min_discount)
        check_range("[0, 1]", consistency=self.consistency)
        if self.consistency > 0.0 and self.min_discount is None:
            raise UserError("consistency of horizons needs min_discount, got None")
        if self.consistency > 0.0 and self.first_state != "arrival":
            raise UserError(f"consistency of horizons needs first_state 'arrival', got {self.first_state!r}")

    @property
    def lowest(self) -> float:
        """Lowest discount."""
        return self.discount if self.min_discount is None else self.min_discount

    def draw(self, uniform: Tensor) -> Tensor:
        """Discounts of training samples, shape (B,), for uniform noise (B,)."""
        highest = torch.full_like(uniform, self.discount)
        return highest if self.min_discount is None else discounts_between(self.min_discount, highest, uniform)

    def spread(self, number: int) -> tuple[float, ...]:
        """The discount, or ``number`` of them from the lowest to the highest, even in the logarithm of the horizon."""
        if self.lowest == self.discount:
            return (self.discount,)
        between = self.draw(torch.linspace(0.0, 1.0, number, dtype=torch.float64)[1:-1])
        return (self.lowest, *between.tolist(), self.discount)

    def check(self, discount: Tensor | float, name: str = "") -> None:
        """Raise unless the model has these discounts.

        Args:
            discount: Discounts, a tensor or a number.
            name: Setting that asks for them, for the message.

        Raises:
            UserError: If it lacks one.
        """
        # Numbers and tensors of either precision are compared as the network sees them.
        low, high = torch.tensor([self.lowest, self.discount]).tolist()
        asked = torch.as_tensor(discount).float()
        bad = asked[~((asked >= low) & (asked <= high))]
        place = f"{name}: " if name else ""
        if len(bad) and self.min_discount is None:
            raise UserError(
                f"{place}this model has the discount {high:g}, got {float(bad[0]):g}; others need min_discount"
            )
        if len(bad):
            raise UserError(f"{place}this model has discounts from {low:g} to {high:g}, got {float(bad[0]):g}")


class OccupancyInputs(nn.Module):
    """Turns states, actions, embeddings and discounts into conditions, and states into standardised ones and back.

    Args:
        schema: Names and units of the S entries of the state.
        action_dim: Dimension A of the action.
        embedding_dim: Dimension Z of the embedding.
        horizon: Discounts.
        columns: Names of the D modelled entries; all if None.

    Raises:
        UserError: If there are no columns, one is given twice, or the state lacks one.
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
        horizon: Horizon,
        columns: list[str] | None = None,
    ) -> None:
        super().__init__()
        names = schema.columns if columns is None else columns
        if not names or len(set(names)) < len(names):
            raise UserError(f"columns must be different names, at least one, got {list(names)}")
        if unknown := [name for name in names if name not in schema.columns]:
            raise UserError(f"the state has no column {unknown[0]!r}; it has {', '.join(schema.columns)}")
        self.modelled = [schema.columns.index(name) for name in names]
        self.action_dim, self.embedding_dim, self.horizon = action_dim, embedding_dim, horizon
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
        horizon = 0 if self.horizon.min_discount is None else _HORIZON_FEATURES
        return self.schema.sample_dim + self.action_dim + self.embedding_dim + horizon

    @property
    def is_whole(self) -> bool:
        """Whether the model holds all entries of the state, in their order."""
        return self.modelled == list(range(self.schema.sample_dim))

    @property
    def sample_schema(self) -> TableSchema:
        """The modelled entries, given the whole state, the action and the embedding."""
        state, others = self.schema, self.action_dim + self.embedding_dim
        return TableSchema(
            columns=tuple(state.columns[i] for i in self.modelled),
            shift=tuple(state.shift[i] for i in self.modelled),
            scale=tuple(state.scale[i] for i in self.modelled),
            low=tuple(state.low[i] for i in self.modelled if state.low),
            high=tuple(state.high[i] for i in self.modelled if state.high),
            units=tuple(state.units[i] for i in self.modelled if state.units),
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

    def condition(
        self, observation: Tensor, action: Tensor, embedding: Tensor | None, discount: Tensor | float | None
    ) -> Tensor:
        """Conditions of the network; batch shapes broadcast.

        Args:
            observation: States in the units of the environment, shape (*batch, S).
            action: Actions in [-1, 1], shape (*batch, A).
            embedding: Members of the family of policies, shape (*batch, Z); None for a single policy.
            discount: Discounts of the model, shape (*batch) or a number; the highest if None.

        Returns:
            Condition, shape (*batch, C).

        Raises:
            UserError: If a dimension does not fit.
        """
        got = (observation.shape[-1], action.shape[-1], 0 if embedding is None else embedding.shape[-1])
        wanted = (self.schema.sample_dim, self.action_dim, self.embedding_dim)
        for name, have, want in zip(("state", "action", "embedding"), got, wanted, strict=True):
            if have != want:
                raise UserError(f"expected {name} of dimension {want}, got {have}")
        parts = [(observation - self.state_shift) / self.state_scale, action]
        parts += [embedding] if embedding is not None and self.embedding_dim else []
        if self.horizon.min_discount is not None:
            parts.append(self._horizon_features(discount, observation))
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*batch, -1) for part in parts], dim=-1)

    def _horizon_features(self, discount: Tensor | float | None, like: Tensor) -> Tensor:
        discount = self.horizon.discount if discount is None else discount
        asked = torch.as_tensor(discount, dtype=like.dtype, device=like.device)
        return torch.stack([asked, 1.0 - asked, -torch.log1p(-asked)], dim=-1)
