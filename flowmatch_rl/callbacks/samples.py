"""Writes the samples of the ``predict`` command."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from flowmatch_rl.batches import CONDITION, SAMPLE
from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.files import atomic_path
from flowmatch_rl.schema import TableSchema


class SampleWriter(BasePredictionWriter):
    """Writes samples in the units of the data, one row each, followed by the columns they are conditioned on.

    A ``.csv`` or ``.parquet`` file is a table with named columns, an ``.npz`` file one array per column; an ``.npy``
    file holds the samples alone, shape (N, D), their columns in the order of the data. Columns of integers are written
    as integers. Of several processes each writes a file of its own, with its rank in the name.

    Args:
        path: File to write; ``samples.csv`` in the run's folder if None.
        overwrite: Whether a file that exists is replaced.

    Raises:
        UserError: If the path ends in anything else.
    """

    def __init__(self, path: str | None = None, overwrite: bool = False) -> None:
        super().__init__(write_interval="epoch")
        if path is not None and Path(path).suffix not in _WRITERS:
            raise UserError(f"path must end in {', '.join(_WRITERS)}, got {path!r}")
        self.path = path
        self.overwrite = overwrite

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to replace a file, or one that cannot be written, before any work is done."""
        target = self._target(trainer)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {target}: {error}") from error

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Mapping[str, Tensor]],
        batch_indices: Sequence[object],
    ) -> None:
        """Write the file of this process."""
        sample = torch.cat([prediction[SAMPLE].cpu() for prediction in predictions]).numpy()
        module: Any = pl_module
        schema: TableSchema = module.schema
        table: dict[str, Any] = dict(zip(schema.columns, sample.T, strict=True))
        if CONDITION in predictions[0]:
            condition = torch.cat([prediction[CONDITION].cpu() for prediction in predictions])
            table |= {name: np.asarray(values) for name, values in schema.restore_condition(condition).items()}
        table |= {name: table[name].astype(np.int64) for name in schema.integers if np.isfinite(table[name]).all()}
        target = self._target(trainer)
        with atomic_path(target) as partial:
            _WRITERS[target.suffix](partial, table, sample)
        print(f"{len(sample)} samples in {target}")

    def _target(self, trainer: Trainer) -> Path:
        path = Path(trainer.default_root_dir) / "samples.csv" if self.path is None else Path(self.path)
        if trainer.world_size > 1:
            path = path.with_name(f"{path.stem}_{trainer.global_rank}{path.suffix}")
        if path.exists() and not self.overwrite:
            raise RunError(f"{path} exists; choose another path, or set overwrite to replace it")
        return path


def _write_csv(path: Path, table: Mapping[str, np.ndarray], sample: np.ndarray) -> None:
    pd.DataFrame(table).to_csv(path, index=False)


def _write_parquet(path: Path, table: Mapping[str, np.ndarray], sample: np.ndarray) -> None:
    pd.DataFrame(table).to_parquet(path, index=False)


def _write_npz(path: Path, table: Mapping[str, np.ndarray], sample: np.ndarray) -> None:
    # numpy.savez takes the names as keywords, and so has no place for a column called "file".
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in table.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)


def _write_npy(path: Path, table: Mapping[str, np.ndarray], sample: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, sample)


_WRITERS: dict[str, Callable[[Path, Mapping[str, np.ndarray], np.ndarray], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".npy": _write_npy,
}
