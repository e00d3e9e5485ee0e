"""A reward learned from labelled states."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.checks import MissingFileError, UserError
from flowmatch_rl.shapes import even_rows
from flowmatch_rl.types import Reward

LABEL = "reward"
"""Name of the column that holds the labels."""

_MOST_ROWS, _ROWS_AT_A_TIME = 2_000, 16_384
_WIDTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Widths of the kernel that are tried, in standard deviations of the states, per root of their dimension."""
_RIDGES = (1e-6, 1e-4, 1e-2, 1e-1)
"""Ridges that are tried, relative to the kernel of a state with itself."""


@dataclass(frozen=True)
class LabelledReward(Reward):
    """A regression on states that were labelled with rewards: kernel ridge regression with a Gaussian kernel.

    Width and ridge are those of the smallest leave-one-out error. Far from all labelled states it is their mean.

    Args:
        path: CSV file with a header: columns of the state, in its units, and a column ``reward``. It is read when the
            reward is first needed.

    Raises:
        MissingFileError: If there is no such file.
    """

    path: str

    def __post_init__(self) -> None:
        if not Path(self.path).is_file():
            raise MissingFileError(f"there is no file of labelled states {self.path!r}")

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """The columns of the file, but for the labels."""
        return self._fit.columns

    @property
    def explained(self) -> float:
        """Fraction of the labels' variance that the regression explains for states left out of it, at most 1."""
        return self._fit.explained

    @property
    def num_labels(self) -> int:
        """Labelled states that are used; of more than 2,000 every n-th."""
        return len(self._fit.states)

    def of_columns(self, values: Tensor) -> Tensor:
        """Reward, shape (*batch), of values of shape (*batch, R)."""
        fit = self._fit
        rows = values.reshape(-1, values.shape[-1]).double().cpu()
        parts = [fit.reward(part) for part in rows.split(_ROWS_AT_A_TIME)]
        return torch.cat(parts).reshape(values.shape[:-1]).to(values)

    @property
    def _fit(self) -> "_Fit":
        return _fitted(self.path, Path(self.path).stat().st_mtime_ns)


@dataclass(frozen=True, eq=False)
class _Fit:
    columns: tuple[str, ...]
    shift: Tensor
    scale: Tensor
    states: Tensor
    weights: Tensor
    mean: Tensor
    width: float
    explained: float

    def reward(self, rows: Tensor) -> Tensor:
        return self.mean + _kernel((rows - self.shift) / self.scale, self.states, self.width) @ self.weights


@functools.lru_cache(maxsize=8)
def _fitted(path: str, modified_ns: int) -> _Fit:
    columns, states, labels = _read(path)
    shift, scale = states.mean(0), states.std(0)
    scale = torch.where(scale > 0.0, scale, 1.0)
    states = (states - shift) / scale
    mean = labels.mean()
    target = labels - mean
    best: tuple[float, float, Tensor] | None = None
    for width in (each * states.shape[1] ** 0.5 for each in _WIDTHS):
        values, vectors = torch.linalg.eigh(_kernel(states, states, width))
        inside = vectors.T @ target
        for ridge in _RIDGES:
            inverse = 1.0 / (values.clamp_min(0.0) + ridge)
            weights = vectors @ (inverse * inside)
            # The leave-one-out residual of a linear smoother, in closed form.
            residual = weights / (vectors.square() @ inverse)
            error = float(residual.square().mean())
            if best is None or error < best[0]:
                best = error, width, weights
    assert best is not None
    explained = 1.0 - best[0] / float(target.square().mean())
    return _Fit(columns, shift, scale, states, best[2], mean, best[1], explained)


def _read(path: str) -> tuple[tuple[str, ...], Tensor, Tensor]:
    try:
        with Path(path).open(encoding="utf-8-sig") as file:  # spreadsheets write a mark at the beginning
            names = [name.strip().strip('"') for name in file.readline().split(",")]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be text in UTF-8: {error}") from error
    if LABEL not in names or len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"{path} must have columns of states and a column {LABEL!r}, got {', '.join(names)}")
    try:
        table = torch.from_numpy(np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2))
    except ValueError as error:
        raise UserError(f"{path} must hold numbers: {error}") from error
    if len(table) < 2 or table.shape[1] != len(names) or not bool(table.isfinite().all()):
        raise UserError(f"{path} must hold at least 2 rows of {len(names)} finite numbers, got {tuple(table.shape)}")
    place = names.index(LABEL)
    columns = tuple(name for name in names if name != LABEL)
    table = table[even_rows(len(table), _MOST_ROWS)]
    labels = table[:, place]
    if bool((labels == labels[0]).all()):
        raise UserError(f"{path} labels all states with {float(labels[0]):g}: there is nothing to learn")
    return columns, table[:, [i for i in range(len(names)) if i != place]], labels


def _kernel(rows: Tensor, states: Tensor, width: float) -> Tensor:
    return torch.exp(-0.5 * torch.cdist(rows, states).square() / width**2)
