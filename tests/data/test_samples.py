"""Batches of samples: splits, units, order of batches, conditions, exact densities, and refusals."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import CONDITION, EXACT_LOG_PROB, SAMPLE, SOURCE, Samples
from flowmatch_rl.data import DensityTable, SampleData
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import PlanarDensity
from tests.combinations import one_test
from tests.data.toy_table import (
    CONDITIONAL,
    ROWS,
    VALUES,
    build,
    only,
    plain_module,
    rows_of,
    split_rows,
    take,
)
from tests.settings import DENSITIES


def test_splits_are_disjoint_cover_the_table_and_depend_on_their_seed_alone() -> None:
    first, again, other = (
        split_rows(build(split_seed=seed, val_fraction=0.2, test_fraction=0.1)) for seed in (0, 0, 1)
    )
    assert [len(rows) for rows in first] == [35, 10, 5]
    assert set.union(*first) == set(range(ROWS))
    assert first == again
    assert first != other


def test_units_are_mean_and_population_deviation_of_the_training_rows_in_double_precision() -> None:
    data = build(**CONDITIONAL)
    rows = sorted(split_rows(data)[0])
    schema = data.schema
    assert schema.columns == ("a", "b")
    assert schema.condition_columns == ("speed",)
    for name, shift, scale in (
        ("a", schema.shift[0], schema.scale[0]),
        ("b", schema.shift[1], schema.scale[1]),
        ("speed", schema.condition_shift[0], schema.condition_scale[0]),
    ):
        assert shift == pytest.approx(VALUES[name][rows].mean(), rel=1e-14)
        assert scale == pytest.approx(VALUES[name][rows].std(), rel=1e-12)
    assert schema.class_columns == ("kind", "size")
    assert schema.classes == (("ant", "bee", "cow"), ("1", "2"))
    assert data.dimensions == {"schema": schema}
    assert data.label == "toy"


def test_a_pass_of_standardised_batches_has_mean_zero_and_deviation_one() -> None:
    batches = take(build(batch_size=10, columns=["a", "b"]), 4)
    sample = torch.cat([batch[SAMPLE] for batch in batches]).double()
    assert sample.shape == (40, 2)
    torch.testing.assert_close(sample.mean(0), torch.zeros(2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(sample.std(0, correction=0), torch.ones(2).double(), atol=1e-6, rtol=0)


def test_without_standardisation_samples_keep_their_units() -> None:
    data = build(VALUES | {"b": [7.0] * ROWS}, standardise=False, conditions=["b"], columns=["a"])
    assert data.schema.shift == data.schema.condition_shift == (0.0,)
    assert data.schema.scale == data.schema.condition_scale == (1.0,)
    batch = only(data.val_dataloader())
    assert (batch[SAMPLE] >= 1e6).all()
    assert (batch[CONDITION] == 7.0).all()


def test_conditions_are_standardised_numbers_and_an_indicator_per_class() -> None:
    data = build(**CONDITIONAL)
    for batch in (*take(data, 5), only(data.val_dataloader()), only(data.test_dataloader())):
        rows = np.array(rows_of(batch, data))
        assert batch[CONDITION].shape == (len(rows), 6)
        assert batch[CONDITION].dtype == batch[SAMPLE].dtype == torch.float32
        speed = (VALUES["speed"][rows] - data.schema.condition_shift[0]) / data.schema.condition_scale[0]
        kinds = np.eye(3)[rows % 3]
        sizes = np.eye(2)[rows % 2]
        wanted = torch.from_numpy(np.column_stack([speed, kinds, sizes])).float()
        torch.testing.assert_close(batch[CONDITION], wanted)
        b = (VALUES["b"][rows] - data.schema.shift[1]) / data.schema.scale[1]
        torch.testing.assert_close(batch[SAMPLE][:, 1], torch.from_numpy(b).float())


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_densities_give_x_and_y_and_their_exact_log_density(density: PlanarDensity) -> None:
    data = SampleData(DensityTable(density, num_samples=300), batch_size=8)
    assert data.schema.columns == ("x", "y")
    assert data.has_exact_density
    for batch in (only(data.val_dataloader()), only(data.test_dataloader())):
        assert set(batch) == {SAMPLE, EXACT_LOG_PROB}
        assert batch[SAMPLE].shape == (30, 2)
        assert batch[EXACT_LOG_PROB].dtype == torch.float32
        raw = batch[SAMPLE].double() * torch.tensor(data.schema.scale) + torch.tensor(data.schema.shift)
        torch.testing.assert_close(batch[EXACT_LOG_PROB].double(), density.log_prob(raw), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({"columns": ["y", "x"]}, True),
        ({"columns": ["x"]}, False),
        ({"classes": ["part"]}, False),
        ({"columns": ["x"], "conditions": ["y"]}, False),
    ],
    ids=str,
)
def test_density_is_exact_for_all_coordinates_and_no_conditions(options, exact) -> None:
    data = SampleData(DensityTable(num_samples=200), batch_size=8, **options)
    assert data.has_exact_density == exact
    assert (EXACT_LOG_PROB in only(data.val_dataloader())) == exact


def test_tables_have_no_exact_density() -> None:
    data = build()
    assert not data.has_exact_density
    assert EXACT_LOG_PROB not in only(data.val_dataloader())


@pytest.mark.parametrize(("updates", "epoch", "epochs"), [(100, 50, 2), (101, 50, 3), (7, 500, 1)])
def test_epochs_divide_the_updates(updates: int, epoch: int, epochs: int) -> None:
    data = build(num_updates=updates, epoch_updates=epoch)
    loader = data.train_dataloader()
    assert data.num_epochs == epochs
    assert len(loader) == len(list(loader)) == pytest.approx(updates / epochs, abs=0.5)


def test_opening_loaders_leaves_the_training_noise_alone() -> None:
    data = build(**CONDITIONAL)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


OTHER_UNITS = TableSchema(
    ("b", "a"), (1.0, 2.0), (3.0, 4.0), ("speed",), (5.0,), (6.0,), ("kind",), (("ant", "bee", "cow", "dog"),)
)


def test_units_are_those_of_the_module_once_there_is_one() -> None:
    data = build(**CONDITIONAL, module=plain_module(OTHER_UNITS))
    rows = np.array(split_order(data))
    batch = only(data.val_dataloader())
    wanted = np.column_stack([(VALUES["b"][rows] - 1.0) / 3.0, (VALUES["a"][rows] - 2.0) / 4.0])
    torch.testing.assert_close(batch[SAMPLE], torch.from_numpy(wanted).float())
    condition = np.column_stack([(VALUES["speed"][rows] - 5.0) / 6.0, np.eye(4)[rows % 3]])
    torch.testing.assert_close(batch[CONDITION], torch.from_numpy(condition).float())
    assert take(data, 1)[0][CONDITION].shape == (8, 5)
    assert next(iter(data.predict_dataloader()))[CONDITION].shape[1] == 5


def split_order(data: SampleData) -> list[int]:
    """Validation rows in their order, read without the module."""
    alone = build(**CONDITIONAL)
    return rows_of(only(alone.val_dataloader()), alone)


def test_exact_density_follows_the_columns_of_the_module() -> None:
    data = SampleData(DensityTable(num_samples=200), batch_size=8)
    schema = replace(data.schema, columns=("x",), shift=(0.0,), scale=(1.0,))
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, lightning_module=plain_module(schema))
    assert not data.has_exact_density
    assert set(only(data.val_dataloader())) == {SAMPLE}


@one_test
@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"condition_columns": ("sped",)}, ["no column 'sped'", "'speed'"]),
        ({"class_columns": ("sort",)}, ["no column 'sort'"]),
        ({"classes": (("ant", "cow"),)}, ["'kind'", "'bee'", "ant, cow"]),
    ],
    ids=str,
)
def test_a_table_that_does_not_fit_the_module_is_refused(loader: str, change: dict, words: list[str]) -> None:
    data = build(**CONDITIONAL, module=plain_module(replace(OTHER_UNITS, **change)))
    with pytest.raises(ValueError) as caught:
        getattr(data, loader)()
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_a_table_without_a_column_of_the_module_is_refused(loader: str) -> None:
    data = build(module=plain_module(replace(OTHER_UNITS, columns=("b", "c"))))
    with pytest.raises(ValueError, match="no column 'c'"):
        getattr(data, loader)()


class Resampling:
    """A module that replaces the training samples."""

    def __init__(self, schema: TableSchema, replacement: Samples) -> None:
        self.schema = schema
        self.replacement = replacement
        self.given: list[Samples] = []

    def training_samples(self, samples: Samples) -> Samples:
        self.given.append(samples)
        return self.replacement


def with_replacement(*tensors: Tensor | None) -> SampleData:
    data = build(**CONDITIONAL, num_updates=4, epoch_updates=2)
    data.trainer.lightning_module = Resampling(data.schema, Samples(*tensors))
    return data


def test_a_module_may_replace_the_training_samples_once() -> None:
    row = torch.arange(12.0)
    data = with_replacement(row[:, None].expand(12, 2), row[:, None].expand(12, 6), -row[:, None].expand(12, 2))
    batches = take(data, 6)
    (given,) = data.trainer.lightning_module.given
    assert given.sample.shape == (40, 2)
    assert given.condition is not None
    assert given.condition.shape == (40, 6)
    assert given.source is None
    torch.testing.assert_close(given.sample.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    for batch in batches:
        assert set(batch) == {SAMPLE, CONDITION, SOURCE}
        assert torch.equal(batch[SAMPLE], -batch[SOURCE])
        assert torch.equal(batch[SAMPLE][:, 0], batch[CONDITION][:, 3])
    assert torch.cat([batch[SAMPLE][:, 0] for batch in batches[:3]]).sort().values.tolist() == sorted([*range(12)] * 2)


@one_test
@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ((torch.zeros(7, 2), torch.zeros(7, 6), None), ["batch_size 8", "7"]),
        ((torch.zeros(9, 3), torch.zeros(9, 6), None), ["sample", "(9, 3)", "(9, 2)"]),
        ((torch.zeros(9, 2), None, None), ["condition", "none", "(9, 6)"]),
        ((torch.zeros(9, 2), torch.zeros(10, 6), None), ["condition", "(10, 6)", "(9, 6)"]),
        ((torch.zeros(9, 2), torch.zeros(9, 6), torch.zeros(8, 2)), ["source", "(8, 2)", "(9, 2)"]),
    ],
)
def test_replaced_samples_that_do_not_fit_are_refused(tensors: tuple, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        with_replacement(*tensors).train_dataloader()
    assert all(word in str(caught.value) for word in words)


def test_processes_have_one_place_in_the_sequence_though_their_noise_differs() -> None:
    places, batches = [], []
    for rank in (0, 1):
        data = build(columns=["a"], world_size=2, rank=rank)
        data.setup("fit")
        torch.manual_seed(rank)  # as a module does when training starts
        batches.append(take(data, 3))
        places.append(data.state_dict())
    assert places[0] == places[1]
    resumed = build(columns=["a"], world_size=2, rank=1)
    resumed.load_state_dict({**places[0], "passes": 0, "row": 0})
    assert all(torch.equal(a[SAMPLE], b[SAMPLE]) for a, b in zip(take(resumed, 3), batches[1], strict=True))
    assert not torch.equal(batches[0][0][SAMPLE], batches[1][0][SAMPLE])


def test_evaluation_repeats_itself_and_is_cut_and_shared_among_processes() -> None:
    whole = build(val_fraction=0.4)
    rows = rows_of(only(whole.val_dataloader()), whole)
    assert len(rows) == 20
    assert rows == rows_of(only(whole.val_dataloader()), whole)
    cut = build(val_fraction=0.4, eval_samples=7)
    assert rows_of(only(cut.val_dataloader()), cut) == rows[:7]
    shares = [build(val_fraction=0.4, eval_samples=7, world_size=2, rank=rank) for rank in (0, 1)]
    assert [rows_of(only(share.val_dataloader()), share) for share in shares] == [rows[:7:2], rows[1:7:2]]


@pytest.mark.parametrize(("options", "world_size", "least"), [({}, 6, 2), ({}, 3, 2), (CONDITIONAL, 2, 4)])
def test_more_processes_than_rows_suffice_for_are_refused(options: dict, world_size: int, least: int) -> None:
    data = build(**options, world_size=world_size, rank=world_size - 1)
    words = f"5 rows cannot be divided among {world_size} processes, which need {least} each"
    with pytest.raises(ValueError, match=words):
        data.val_dataloader()


@pytest.mark.parametrize(("name", "conditions"), [("a", []), ("b", ["b"])])
def test_numbers_too_large_for_single_precision_are_refused_by_name(name: str, conditions: list[str]) -> None:
    values = VALUES | {name: np.where(np.arange(ROWS) == 7, 1e39, VALUES["b"])}
    data = build(values, columns=["a"], conditions=conditions, standardise=False)
    loaders = (data.train_dataloader, data.val_dataloader, data.test_dataloader)
    with pytest.raises(ValueError, match=rf"'{name}' of the table 'toy' holds 1e\+39 in row 7"):
        [loader() for loader in loaders]


@pytest.mark.parametrize("world_size", [1, 3])
def test_prediction_numbers_its_samples_and_processes_share_them(world_size: int) -> None:
    data = [build(world_size=world_size, rank=r, predict_samples=23, predict_batch_size=4) for r in range(world_size)]
    batches = [batch for one in data for batch in one.predict_dataloader()]
    assert all(set(batch) == {"row"} and 1 <= len(batch["row"]) <= 4 for batch in batches)
    assert torch.cat([batch["row"] for batch in batches]).sort().values.tolist() == list(range(23))


def test_conditional_prediction_draws_conditions_of_the_test_rows() -> None:
    data = build(**CONDITIONAL, test_fraction=0.2, predict_samples=300, predict_batch_size=70)
    known = {tuple(row) for row in only(data.test_dataloader())[CONDITION].tolist()}
    drawn = torch.cat([batch[CONDITION] for batch in data.predict_dataloader()])
    assert drawn.shape == (300, 6)
    assert {tuple(row) for row in drawn.tolist()} == known
    assert torch.equal(drawn, torch.cat([batch[CONDITION] for batch in data.predict_dataloader()]))
    shares = [build(**CONDITIONAL, test_fraction=0.2, predict_samples=300, world_size=2, rank=rank) for rank in (0, 1)]
    for rank, share in enumerate(shares):
        (batch,) = share.predict_dataloader()
        assert torch.equal(batch[CONDITION], drawn[rank::2])
