"""Samples of a table, in batches: the training data of a generative model, its evaluation data and its conditions."""

import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flowmatch_rl.batches import CONDITION, EXACT_LOG_PROB, SAMPLE, SOURCE, Samples
from flowmatch_rl.checks import UserError, check_range, check_word, first_names
from flowmatch_rl.data.base import DataModule, batch_loader
from flowmatch_rl.data.inputs import DataInput, recipe_input, table_input
from flowmatch_rl.data.requests import conditions_in, request_loader
from flowmatch_rl.data.tables.columns import (
    describe_table,
    numeric_columns,
    read_numbers,
    require_columns,
    standardised_conditions,
    standardised_samples,
)
from flowmatch_rl.data.tables.datasets import Dataset, DensityTable
from flowmatch_rl.data.tables.gaps import Missing, drop_gaps, fill_gaps
from flowmatch_rl.data.tables.reading import TableFile
from flowmatch_rl.data.tables.shuffled import ShuffledRows
from flowmatch_rl.data.tables.text import REMARKS
from flowmatch_rl.ranks import states_of_ranks
from flowmatch_rl.schema import TableSchema


class SampleLearner(Protocol):
    """A module that is trained on samples of a table."""

    @property
    def schema(self) -> TableSchema:
        """Columns that it models, and the units it was trained in."""
        ...

    def training_samples(self, samples: Samples) -> Samples:
        """Samples to train on, given the standardised training split on the CPU; it may return them unchanged."""
        ...


class SampleData(DataModule):
    """Splits a table of samples and yields standardised batches of it.

    Training passes through the training rows again and again, each time in another order; every process has an order of
    its own. The units are those of the module once there is one: after loading a checkpoint, those it was trained in.
    Batches are dictionaries of tensors with the keys of ``flowmatch_rl.batches``; evaluation batches hold the exact
    log-density of their samples where the dataset has one.

    Args:
        dataset: The table.
        columns: Columns to model; by default all that hold numbers and are named neither in ``conditions`` nor in
            ``classes``.
        conditions: Columns of numbers to condition on.
        classes: Columns of classes, text or numbers, to condition on.
        integers: Columns of numbers that samples hold as integers: they are rounded.
        missing: What to do with rows that lack a value of these columns: ``refuse``; ``drop`` leaves them out; ``fill``
            gives them the median of the training rows, or a class called ``missing``.
        batch_size: Samples per batch and process.
        num_updates: Gradient steps of the whole run.
        epoch_updates: Gradient steps between two evaluations; the updates are divided evenly into epochs of at most
            about this length.
        val_fraction: Fraction of the rows kept for validation.
        test_fraction: Fraction of the rows kept for tests.
        split_seed: Seed of the split.
        standardise: Whether to give each column mean 0 and standard deviation 1 over the training rows.
        eval_samples: Rows of an evaluation, at most, divided among the processes; each needs 2, with conditions 4.
        predict_samples: Samples that the ``predict`` command draws, divided among the processes.
        predict_conditions: File with the condition and class columns to draw for, one sample per row, instead of
            ``predict_samples``; by default a conditional model draws for rows of the test split, chosen at random.
        predict_batch_size: Samples drawn at a time.

    Raises:
        MissingFileError: If the table is a file that does not exist.
        UserError: If the table, a column or a number does not fit.
    """

    def __init__(
        self,
        dataset: Dataset = DensityTable(),
        columns: list[str | int] | None = None,
        conditions: list[str | int] | None = None,
        classes: list[str | int] | None = None,
        integers: list[str | int] | None = None,
        missing: Missing = "refuse",
        batch_size: int = 256,
        num_updates: int = 20_000,
        epoch_updates: int = 2_000,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        standardise: bool = True,
        eval_samples: int = 5_000,
        predict_samples: int = 10_000,
        predict_conditions: str | None = None,
        predict_batch_size: int = 10_000,
    ) -> None:
        check_range(
            "[1, inf)",
            batch_size=batch_size,
            num_updates=num_updates,
            epoch_updates=epoch_updates,
            predict_samples=predict_samples,
            predict_batch_size=predict_batch_size,
        )
        check_word(("refuse", "drop", "fill"), missing=missing)
        super().__init__(math.ceil(num_updates / epoch_updates))
        self.dataset = dataset
        self.batch_size = batch_size
        self.num_updates = num_updates
        self.eval_samples = eval_samples
        self.predict_samples = predict_samples
        self.predict_conditions = predict_conditions
        self.predict_batch_size = predict_batch_size
        self.split_seed = split_seed
        self._table = f"the table {dataset.label!r}"
        self._frame = dataset.load()
        remarks = [*self._frame.attrs.get(REMARKS, ())]
        learned, given, named = self._choose_columns(columns, _names(conditions), _names(classes))
        self._frame, self._dropped = drop_gaps(self._frame, [*learned, *given, *named], missing, self._table)
        # Two samples make a distance; conditional models compare one half of them with the other.
        self._least = 4 if conditions or classes else 2
        check_range(f"[{self._least}, inf)", eval_samples=eval_samples)
        self._rows = _split(len(self._frame), val_fraction, test_fraction, self._least, split_seed, self._table)
        if batch_size > len(self._rows["train"]):
            raise UserError(f"batch_size {batch_size} is more than the {len(self._rows['train'])} training rows")
        self._frame, filled = fill_gaps(self._frame, [*learned, *given], named, self._rows["train"])
        self.schema: TableSchema = describe_table(
            self._frame, learned, given, named, _names(integers), self._rows["train"], standardise, self._table
        )
        self._remarks = [*filled, *remarks]
        self._batches: ShuffledRows | None = None
        self._place: dict[str, int] = {}  # in the sequence of batches, of the run that is resumed

    @property
    def label(self) -> str:
        """Short name of the dataset, for titles and run names."""
        return self.dataset.label

    @property
    def dimensions(self) -> dict[str, Any]:
        """What a model needs to know of the data: the ``schema``."""
        return {"schema": self.schema}

    @property
    def outline(self) -> dict[str, str]:
        """The updates of the run; ``description`` says what is learned."""
        return {"training": f"{self.num_updates:,} updates of batch {self.batch_size:,}"}

    @property
    def inputs(self) -> list[DataInput]:
        """The table: its file, or the recipe that it is drawn by."""
        schema, rows = self.schema, len(self._frame)
        columns = (*schema.columns, *schema.condition_columns)
        if isinstance(self.dataset, TableFile):
            return [table_input(self.label, Path(self.dataset.path), columns, rows)]
        return [recipe_input(self.label, self.dataset, columns, rows=rows)]

    @property
    def description(self) -> str:
        """What is learned from which rows, and what is left out and why, in one line."""
        schema = self.schema
        given = [*schema.condition_columns, *schema.class_columns]
        what = first_names(schema.columns) + (f" given {first_names(given)}" if given else "")
        rows = ", ".join(f"{len(rows):,} {split}" for split, rows in self._rows.items())
        columns = [f"{name} ({reason})" for name, reason in self._left_out.items()]
        left_out = ", ".join([*([first_names(columns)] if columns else []), *self._dropped])
        parts = [f"learns {what} of {self._table} ({rows} rows)", f"leaves out {left_out}" if left_out else ""]
        return "; ".join([*filter(None, parts), *self._remarks])

    @property
    def has_exact_density(self) -> bool:
        """Whether evaluation batches hold the exact log-density of their samples."""
        schema = self._schema_in_use
        return (
            isinstance(self.dataset, DensityTable)
            and sorted(schema.columns) == sorted(self.dataset.density.columns)
            and schema.condition_dim == 0
        )

    @property
    def _schema_in_use(self) -> TableSchema:
        module = self._module
        return self.schema if module is None else module.schema

    @property
    def _module(self) -> SampleLearner | None:
        module: Any = self.trainer.lightning_module if self.trainer else None
        return module

    def train_dataloader(self) -> DataLoader:
        """Batches of ``SAMPLE`` (B, D) and, where there are, ``CONDITION`` (B, C) and ``SOURCE`` (B, D)."""
        if self._batches is None:
            self._batches = self._start_batches()
        batches = self._batches
        return self.training_loader(self.num_updates, lambda _: batches.take())

    def val_dataloader(self) -> DataLoader:
        """One batch of the validation rows, with ``EXACT_LOG_PROB`` (B,) where the density is known."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        """One batch of the test rows, with ``EXACT_LOG_PROB`` (B,) where the density is known."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Batches of ``row``, the number of each sample to draw, and, for a conditional model, ``CONDITION`` (B, C)."""
        condition = self._prediction_condition()
        rows = self.own_rows(self.predict_samples if condition is None else len(condition))
        return request_loader(rows, condition, self.predict_batch_size)

    def teardown(self, stage: str) -> None:
        """Drop the training rows, which are in the units of the module; keep the place in the sequence."""
        self._place = self.state_dict()
        self._batches = None

    def state_dict(self) -> dict[str, Any]:
        """Place in the sequence of training batches, the same for every process."""
        return self._place if self._batches is None else self._batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a place in the sequence of training batches."""
        self._place = states_of_ranks(state_dict)[0]

    def _choose_columns(
        self, given: list[str | int] | None, conditions: list[str], classes: list[str]
    ) -> tuple[list[str], list[str], list[str]]:
        """The sample, condition and class columns, each of which there is and none of which is named twice."""
        columns = _names(given)
        named = [*columns, *conditions, *classes]
        require_columns(self._frame, named, self._table)
        for name in named:
            if named.count(name) > 1:
                raise UserError(
                    f"column {name!r} is named {named.count(name)} times in columns, conditions and classes"
                )
        rest = self._frame.drop(columns=named)
        self._left_out = dict.fromkeys(rest.columns, "not named in columns")
        if given is None:
            columns, self._left_out = numeric_columns(rest, self._table)
        if not columns:
            raise UserError(f"{self._table} has no column to model; name at least one column of numbers in `columns`")
        return columns, conditions, classes

    def _start_batches(self) -> ShuffledRows:
        """The sequence of training batches, at the place where an earlier run left it."""
        frame, schema = self._frame.iloc[self._rows["train"]], self._schema_in_use
        samples = Samples(
            standardised_samples(frame, schema, self._table), standardised_conditions(frame, schema, self._table)
        )
        if self._module is not None:
            samples = _checked(self._module.training_samples(samples), samples, self.batch_size)
        table = {SAMPLE: samples.sample, CONDITION: samples.condition, SOURCE: samples.source}
        table = {key: rows.cpu() for key, rows in table.items() if rows is not None}
        place = {"seed": self.common_seed, "num_rows": len(samples.sample)} | self._place
        if place.pop("num_rows") != len(samples.sample):
            raise UserError(
                f"{self._table} has {len(samples.sample)} training rows, but the run to resume has "
                f"{self._place['num_rows']}; resume with the same table and split"
            )
        return ShuffledRows(table, self.batch_size, self.rank, **place)

    def _evaluation_loader(self, split: str) -> DataLoader:
        """One batch of this process's part of the rows that a split is evaluated on."""
        rows = self._rows[split][: self.eval_samples]
        rows = rows[self.own_rows(len(rows), self._least).numpy()]
        frame, schema = self._frame.iloc[rows], self._schema_in_use
        batch = {SAMPLE: standardised_samples(frame, schema, self._table)}
        condition = standardised_conditions(frame, schema, self._table)
        if condition is not None:
            batch[CONDITION] = condition
        if self.has_exact_density and isinstance(self.dataset, DensityTable):
            density = self.dataset.density
            points = torch.from_numpy(read_numbers(frame, density.columns, self._table))
            batch[EXACT_LOG_PROB] = density.log_prob(points).float()
        return batch_loader(1, lambda _: batch)

    def _prediction_condition(self) -> Tensor | None:
        """Conditions to draw samples for, one per sample, shape (B, C), or None if there are none."""
        schema = self._schema_in_use
        if self.predict_conditions is not None:
            return conditions_in(self.predict_conditions, schema)
        condition = standardised_conditions(self._frame.iloc[self._rows["test"]], schema, self._table)
        if condition is None:
            return None
        generator = torch.Generator().manual_seed(self.split_seed)
        return condition[torch.randint(len(condition), (self.predict_samples,), generator=generator)]


def _names(given: list[str | int] | None) -> list[str]:
    """Names of columns; those of matrices are numbers."""
    return [str(name) for name in given or []]


def _split(
    number: int, val_fraction: float, test_fraction: float, least: int, seed: int, table: str
) -> dict[str, np.ndarray]:
    """Rows of the training, validation and test splits, in random order."""
    check_range("(0, 1)", val_fraction=val_fraction, test_fraction=test_fraction)
    if val_fraction + test_fraction >= 1.0:
        raise UserError(f"val_fraction {val_fraction} and test_fraction {test_fraction} must sum to less than 1")
    num_val, num_test = round(number * val_fraction), round(number * test_fraction)
    num_train = number - num_val - num_test
    if num_train < 2 or num_val < least or num_test < least:
        raise UserError(
            f"{table} has too few rows: {number} make {num_train} for training, {num_val} for validation and "
            f"{num_test} for tests; at least 2, {least} and {least} are needed"
        )
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed)).numpy()
    return dict(zip(("train", "val", "test"), np.split(order, [num_train, num_train + num_val]), strict=True))


def _checked(samples: Samples, replaced: Samples, batch_size: int) -> Samples:
    """The samples that a module trains on instead of the table's, if they fit."""
    number = len(samples.sample)
    if number < batch_size:
        raise UserError(f"batch_size {batch_size} is more than the {number} samples that training_samples returned")
    for name, like in (("sample", replaced.sample), ("condition", replaced.condition), ("source", replaced.sample)):
        rows: Tensor | None = getattr(samples, name)
        wanted = None if like is None else (number, *like.shape[1:])
        if (None if rows is None else tuple(rows.shape)) != wanted and not (name == "source" and rows is None):
            got = "none" if rows is None else f"shape {tuple(rows.shape)}"
            raise UserError(f"training_samples returned a {name} of {got}, wanted {wanted or 'none'}")
    return samples
