"""A table held in memory, and the data module made of it."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flowmatch_rl.batches import SAMPLE
from flowmatch_rl.data import Dataset, SampleData
from flowmatch_rl.schema import TableSchema
from tests.processes import ALONE

ROWS = 50


@dataclass(frozen=True)
class ToyTable(Dataset):
    """A table held in memory."""

    values: dict = field(default_factory=dict)

    @property
    def label(self) -> str:
        return "toy"

    def load(self) -> pd.DataFrame:
        return pd.DataFrame(self.values)


VALUES = {
    "a": np.arange(ROWS) * 3.0 + 1e6,
    "b": np.cos(np.arange(ROWS)),
    "speed": np.sin(np.arange(ROWS)) + 5.0,
    "kind": [["ant", "bee", "cow"][i % 3] for i in range(ROWS)],
    "size": np.arange(ROWS) % 2 + 1.0,
}
CONDITIONAL = {"columns": ["a", "b"], "conditions": ["speed"], "classes": ["kind", "size"]}


def plain_module(schema: TableSchema) -> SimpleNamespace:
    """A module that trains on the samples of the table."""
    return SimpleNamespace(schema=schema, training_samples=lambda samples: samples)


def build(values: dict = VALUES, world_size: int = 1, rank: int = 0, module: object = None, **options) -> SampleData:
    torch.manual_seed(0)
    data = SampleData(ToyTable(values), **({"batch_size": 8} | options))
    module = plain_module(data.schema) if module is None else module
    data.trainer = SimpleNamespace(
        strategy=ALONE, world_size=world_size, global_rank=rank, lightning_module=module, received_sigterm=False
    )
    return data


def take(data: SampleData, number: int) -> list[dict[str, Tensor]]:
    batches = []
    while len(batches) < number:
        batches += list(data.train_dataloader())
    return batches[:number]


def rows_of(batch: dict[str, Tensor], data: SampleData) -> list[int]:
    """Rows of the table that samples come from, told by column ``a``."""
    a = batch[SAMPLE][:, 0].double() * data.schema.scale[0] + data.schema.shift[0]
    return ((a - 1e6) / 3.0).round().int().tolist()


def split_rows(data: SampleData) -> list[set[int]]:
    """Rows of the training, validation and test splits."""
    batches = (take(data, 10), data.val_dataloader(), data.test_dataloader())
    return [{row for batch in split for row in rows_of(batch, data)} for split in batches]


def only(loader: DataLoader) -> dict[str, Tensor]:
    """The one batch of a loader."""
    (batch,) = loader
    return batch
