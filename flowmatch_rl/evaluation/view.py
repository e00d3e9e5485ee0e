"""How vectors of any dimension are shown in the plane, what they are coloured by, and which of many are shown."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.schema import TableSchema

_MAX_GROUPS = 8


@dataclass(frozen=True)
class View:
    """An affine map of standardised points to one or two coordinates.

    Attributes:
        matrix: Linear part, shape (D, 1) or (D, 2).
        offset: Constant part, shape (1,) or (2,).
        labels: Names of the coordinates.
    """

    matrix: np.ndarray
    offset: np.ndarray
    labels: tuple[str, ...]

    def show(self, points: Tensor) -> np.ndarray:
        """Coordinates, shape (*batch, 1) or (*batch, 2), of standardised points (*batch, D)."""
        return points.double().numpy() @ self.matrix + self.offset


def view_of(schema: TableSchema, data: Tensor) -> View:
    """One or two columns in their own units; of more columns the first two principal components of the data.

    Args:
        schema: Columns and units.
        data: Standardised data, shape (M, D).
    """
    if schema.sample_dim <= 2:
        return View(np.diag(schema.scale), np.array(schema.shift), schema.labels)
    centre = data.double().mean(0)
    _, spread, directions = torch.linalg.svd(data.double() - centre, full_matrices=False)
    share = spread.square() / spread.square().sum().clamp(min=1e-12)
    axes = directions[:2]
    # A principal component has no sign of its own; its largest entry is made positive.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    if len(axes) < 2:  # one row of data
        axes = torch.eye(schema.sample_dim, dtype=torch.float64)[:2]
    labels = tuple(f"PC {i + 1} ({100.0 * float(part):.0f} % of variance)" for i, part in enumerate(share[:2]))
    return View(axes.T.numpy(), -(axes @ centre).numpy(), (*labels, "", "")[:2])


@dataclass(frozen=True)
class Groups:
    """What rows are coloured by: classes, or a number.

    Attributes:
        name: Column.
        values: Number of each row, shape (M,): index into ``levels`` where there are any.
        levels: Names of the classes, empty for a number. The rarest of many are one, ``others``.
    """

    name: str
    values: np.ndarray
    levels: tuple[str, ...] = ()

    def head(self, number: int) -> "Groups":
        """The groups of the first rows."""
        return Groups(self.name, self.values[:number], self.levels)


def group_rows(schema: TableSchema, condition: Tensor) -> Groups:
    """The first class column of conditions, shape (M, C), or else the first column of numbers."""
    columns = schema.restore_condition(condition)
    if not schema.class_columns:
        name = schema.condition_columns[0]
        return Groups(name, np.array(columns[name], dtype=float))
    name = schema.class_columns[0]
    names, index, counts = np.unique(np.array(columns[name]), return_inverse=True, return_counts=True)
    if len(names) <= _MAX_GROUPS:
        return Groups(name, index, tuple(str(level) for level in names))
    common = np.sort(np.argsort(-counts, kind="stable")[: _MAX_GROUPS - 1])
    place = np.full(len(names), len(common))
    place[common] = np.arange(len(common))
    return Groups(name, place[index], (*(str(level) for level in names[common]), "others"))


def describe_condition(schema: TableSchema, condition: Tensor) -> str:
    """The first of some conditions, shape (M, C), such as ``age = 3.2, kind = red``; at most three columns."""
    columns = schema.restore_condition(condition[:1])
    shown = [
        f"{name} = {value[0] if isinstance(value[0], str) else f'{value[0]:.3g}'}" for name, value in columns.items()
    ]
    return ", ".join(shown[:3] + ["..."] * (len(shown) > 3))


def limits(*clouds: np.ndarray, outermost: float = 0.005) -> np.ndarray:
    """Limits that hold all but the outermost points of each cloud, with a margin.

    Args:
        *clouds: Coordinates, shape (N, K); what is not finite is left out.
        outermost: Fraction of the points left out on either side.

    Returns:
        Lower and upper limits, shape (2, K).
    """
    bounds = []
    for cloud in clouds:
        finite = cloud[np.isfinite(cloud).all(1)]
        if len(finite):
            bounds.append(np.quantile(finite, [outermost, 1.0 - outermost], axis=0))
    if not bounds:
        return np.array([[-1.0], [1.0]]).repeat(clouds[0].shape[1], axis=1)
    low, high = np.min([b[0] for b in bounds], axis=0), np.max([b[1] for b in bounds], axis=0)
    margin = np.where(high > low, 0.1 * (high - low), np.maximum(1e-3, 0.1 * np.abs(low)))
    return np.stack([low - margin, high + margin])


def limits_along_path(coordinates: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Limits for a cloud at each flow time: the same for all unless it shrinks or grows too much to see.

    Args:
        coordinates: Coordinates at each time, shape (F, N, K).
        last: Limits that the last one must show, shape (2, K).

    Returns:
        Limits, shape (F, 2, K).
    """
    each = np.stack([limits(cloud) for cloud in coordinates])
    each[-1] = [np.minimum(each[-1, 0], last[0]), np.maximum(each[-1, 1], last[1])]
    spans = each[:, 1] - each[:, 0]
    if spans.max() <= 3.0 * spans[-1].max():
        each[:] = [each[:, 0].min(0), each[:, 1].max(0)]
        return each
    # All of the shape of the last, so that a panel keeps its own.
    halves = 0.5 * spans[-1] * (spans / spans[-1]).max(1, keepdims=True)
    return np.stack([each.mean(1) - halves, each.mean(1) + halves], axis=1)


def differing_states(observation: Tensor, number: int) -> list[int]:
    """Steps of an episode whose states differ most from one another, the first step among them.

    Each next one is the state farthest from those chosen, in units of the standard deviation of every entry.

    Args:
        observation: States of an episode, shape (T, S).
        number: How many, at least 1; fewer if the episode is shorter.

    Returns:
        Steps in ascending order.
    """
    states = observation / observation.std(0, correction=0).clamp(min=1e-6)
    steps = [0]
    distance = torch.full((len(states),), torch.inf, device=states.device)
    for _ in range(min(number, len(states)) - 1):
        distance = torch.minimum(distance, (states - states[steps[-1]]).norm(dim=1))
        distance[steps] = -1.0  # of states that are all alike none is taken twice
        steps.append(int(distance.argmax()))
    return sorted(steps)
