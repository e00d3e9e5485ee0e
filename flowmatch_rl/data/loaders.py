"""Loaders of whole batches."""

from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset


def batch_loader(batches: IterableDataset) -> DataLoader:
    """A loader that hands on the batches of a dataset as they are, and leaves the global noise alone.

    Args:
        batches: Yields whole batches, dictionaries or TensorDicts.
    """
    # The default collate function cannot take a TensorDict apart.
    # Without a generator of its own each iterator would draw from the global one, and evaluation disturb training.
    return DataLoader(batches, batch_size=None, collate_fn=_identity, num_workers=0, generator=torch.Generator())


def _identity(batch: Any) -> Any:
    return batch
