"""Samples to draw from a trained model, without the table that it was trained on."""

from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from flowmatch_rl.batches import CONDITION
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.base import DataModule, batch_loader
from flowmatch_rl.data.inputs import DataInput
from flowmatch_rl.data.tables.columns import standardised_conditions
from flowmatch_rl.data.tables.reading import read_table
from flowmatch_rl.schema import TableSchema


class SampleRequests(DataModule):
    """What the ``predict`` command draws from a checkpoint alone.

    Args:
        schema: Columns and units of the model; taken from the checkpoint.
        predict_samples: Samples to draw, divided among the processes.
        predict_conditions: File with the condition and class columns to draw for, one sample per row, instead of
            ``predict_samples``; a conditional model needs one.
        predict_batch_size: Samples drawn at a time.

    Raises:
        UserError: If a number is below 1, or a conditional model has no conditions.
    """

    def __init__(
        self,
        schema: TableSchema,
        predict_samples: int = 10_000,
        predict_conditions: str | None = None,
        predict_batch_size: int = 10_000,
    ) -> None:
        check_range("[1, inf)", predict_samples=predict_samples, predict_batch_size=predict_batch_size)
        super().__init__(1)
        self.schema = schema
        self.predict_samples = predict_samples
        self.predict_batch_size = predict_batch_size
        self._condition = None
        if predict_conditions is not None:
            self._condition = conditions_in(predict_conditions, schema)
        elif schema.condition_dim:
            given = ", ".join([*schema.condition_columns, *schema.class_columns])
            raise UserError(f"the model is given {given}; name a file of them in predict_conditions")

    @property
    def label(self) -> str:
        """Short name, for run folders."""
        return "samples"

    @property
    def dimensions(self) -> dict[str, Any]:
        """What a model needs to know of the data: the ``schema``."""
        return {"schema": self.schema}

    @property
    def outline(self) -> dict[str, str]:
        """How many samples are drawn."""
        number = self.predict_samples if self._condition is None else len(self._condition)
        return {"prediction": f"{number:,} samples"}

    @property
    def inputs(self) -> list[DataInput]:
        """None: the model alone."""
        return []

    def predict_dataloader(self) -> DataLoader:
        """Batches of ``row``, the number of each sample to draw, and, for a conditional model, ``CONDITION`` (B, C)."""
        rows = self.own_rows(self.predict_samples if self._condition is None else len(self._condition))
        return request_loader(rows, self._condition, self.predict_batch_size)


def conditions_in(path: str, schema: TableSchema) -> Tensor:
    """Conditions in a file, one per sample, shape (B, C).

    Args:
        path: The file, which ``read_table`` reads.
        schema: Columns and units of the model.

    Raises:
        UserError: If the model has no conditions, or the file does not hold them.
    """
    condition = standardised_conditions(read_table(path), schema, f"the file {path!r}")
    if condition is None:
        raise UserError(f"predict_conditions is {path!r}, but the model has no conditions")
    return condition


def request_loader(rows: Tensor, condition: Tensor | None, batch_size: int) -> DataLoader:
    """Batches of the samples to draw.

    Args:
        rows: Their numbers, integers, shape (B,).
        condition: Conditions of all samples by their number, shape (N, C), or None.
        batch_size: Samples of a batch at most.
    """
    batches = [{"row": part} for part in rows.split(batch_size)]
    if condition is not None:
        for batch in batches:
            batch[CONDITION] = condition[batch["row"]]
    return batch_loader(len(batches), batches.__getitem__)
