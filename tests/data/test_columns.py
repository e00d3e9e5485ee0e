"""Columns of tables: which are modelled, what counts as a number or a class, and refusals that name the place."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from flowmatch_rl.batches import CONDITION
from flowmatch_rl.data import SampleData, TableFile
from tests.combinations import one_test
from tests.data.toy_table import CONDITIONAL, ROWS, VALUES, build, only, rows_of, split_rows, take


def changed(**columns) -> dict:
    return VALUES | columns


def put(name: str, row: int, value: object) -> dict:
    """The table with one value replaced."""
    column = list(VALUES[name])
    column[row] = value
    return changed(**{name: column})


def refused(*arguments, **options) -> str:
    with pytest.raises(ValueError) as caught:
        build(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_by_default_columns_are_those_of_numbers_without_conditions_and_classes() -> None:
    assert build().schema.columns == ("a", "b", "speed", "size")
    assert build(classes=["size"], conditions=["b"]).schema.columns == ("a", "speed")
    assert "price" in build(changed(price=[Decimal(i) for i in range(ROWS)])).schema.columns
    assert "day" not in build(changed(day=pd.date_range("2020-01-01", periods=ROWS))).schema.columns
    assert build(changed(zip=[str(i) for i in range(ROWS)])).schema.columns == ("a", "b", "speed", "size")


def test_order_of_named_columns_is_kept() -> None:
    assert build(columns=["b", "a"]).schema.columns == ("b", "a")


@pytest.mark.parametrize(
    ("column", "classes"),
    [
        ([1.0, 2.0] * 25, ("1", "2")),
        ([1, 2] * 25, ("1", "2")),
        (np.array([1.0, 2.5] * 25, np.float32), ("1", "2.5")),
        (["10", "9"] * 25, ("10", "9")),
        ([False, True] * 25, ("False", "True")),
        (pd.Categorical(["u", "v"] * 25), ("u", "v")),
    ],
    ids=lambda value: str(value[:2]),
)
def test_classes_are_compared_as_text(column, classes: tuple[str, ...]) -> None:
    data = build(changed(group=column), columns=["a"], classes=["group"])
    assert data.schema.classes == (classes,)
    indicator = only(data.val_dataloader())[CONDITION].argmax(1)
    assert indicator.tolist() == [row % 2 for row in rows_of(only(data.val_dataloader()), data)]


@one_test
@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (put("b", 17, np.nan), {}, ["column 'b'", "lacks values in 1 row of 50", "(row 17)", "'drop'", "'fill'"]),
        (put("b", 17, -np.inf), {}, ["column 'b'", "not finite", "row 17"]),
        (changed(b=[0.5] * 9 + [np.nan] * 3 + [0.0] * 38), {}, ["'b'", "3 rows of 50", "first is row 9"]),
        (put("speed", 3, np.inf), {"columns": ["a"], "conditions": ["speed"]}, ["'speed'", "not finite", "row 3"]),
        (put("kind", 3, None), {"classes": ["kind"]}, ["'kind'", "lacks values", "row 3"]),
        (changed(b=[0.1] * ROWS), {}, ["'b'", "0.1", "40 training rows", "no scale"]),
        (changed(b=[0.1] * ROWS), {"columns": ["a"], "conditions": ["b"]}, ["'b'", "0.1", "no scale"]),
        (put("b", 5, "oops"), {}, ["'b'", "'oops'", "row 5", "`classes`"]),
        (put("b", 5, "oops"), {"columns": ["b"]}, ["'b'", "'oops'", "row 5", "`classes`"]),
        (VALUES, {"columns": ["a", "kind"]}, ["'kind'", "'ant'", "row 0", "`classes`"]),
        (VALUES, {"conditions": ["kind"]}, ["'kind'", "'ant'", "row 0", "`classes`"]),
        ({"a": [], "b": []}, {}, ["no rows"]),
        ({"a": [1.0, 2.0, 4.0]}, {}, ["too few rows", "3 make 3 for training, 0 for validation and 0 for tests"]),
        ({"kind": VALUES["kind"]}, {}, ["no column to model"]),
        (VALUES, {"columns": []}, ["no column to model"]),
        (VALUES, {"columns": ["a", "sped"]}, ["no column 'sped'", "a, b, speed, kind, size", "mean 'speed'"]),
        (VALUES, {"conditions": ["Speed"]}, ["no column 'Speed'", "mean 'speed'"]),
        (VALUES, {"classes": ["kinds"]}, ["no column 'kinds'", "mean 'kind'"]),
        (VALUES, {"columns": ["a", "b", "a"]}, ["'a'", "2 times"]),
        (VALUES, {"columns": ["a"], "conditions": ["a"]}, ["'a'", "2 times"]),
        (VALUES, {"conditions": ["size"], "classes": ["size"]}, ["'size'", "2 times"]),
        (VALUES, {"batch_size": 41}, ["batch_size 41", "40 training rows"]),
        (VALUES, {"val_fraction": 0.0}, ["val_fraction", "0.0"]),
        (VALUES, {"test_fraction": 1.0}, ["test_fraction", "1.0"]),
        (VALUES, {"val_fraction": float("nan")}, ["val_fraction", "nan"]),
        (VALUES, {"val_fraction": 0.6, "test_fraction": 0.4}, ["0.6", "0.4", "less than 1"]),
        (VALUES, {"eval_samples": 1}, ["eval_samples", "2", "1"]),
        (VALUES, CONDITIONAL | {"eval_samples": 3}, ["eval_samples", "4", "3"]),
        (VALUES, {"test_fraction": 0.02}, ["too few rows", "1 for tests", "2, 2 and 2"]),
        (VALUES, CONDITIONAL | {"val_fraction": 0.06}, ["too few rows", "3 for validation", "2, 4 and 4"]),
        (VALUES | {"b": VALUES["b"] * 1e200}, {}, ["'b'", "no standard deviation"]),
        (VALUES | {"b": VALUES["b"] * 1e-200}, {}, ["'b'", "no standard deviation"]),
        *(
            (VALUES, {name: 0}, [name, "0"])
            for name in (
                "batch_size",
                "num_updates",
                "epoch_updates",
                "eval_samples",
                "predict_samples",
                "predict_batch_size",
            )
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_names_it(values, options, words) -> None:
    message = refused(values, **options)
    assert all(word in message for word in words)


def write_conditions(folder: Path, **columns) -> str:
    values = {"size": [2, 1, 2], "speed": [4.0, 5.0, 6.0], "kind": ["cow", "ant", "ant"], "other": ["x", "y", "z"]}
    frame = pd.DataFrame({k: v for k, v in (values | columns).items() if v is not None})
    frame.to_csv(folder / "conditions.csv", index=False)
    return str(folder / "conditions.csv")


def test_prediction_from_a_file_has_one_sample_per_row(tmp_path: Path) -> None:
    data = build(**CONDITIONAL, predict_conditions=write_conditions(tmp_path))
    (batch,) = data.predict_dataloader()
    assert batch["row"].tolist() == [0, 1, 2]
    speed = (torch.tensor([4.0, 5.0, 6.0]) - data.schema.condition_shift[0]) / data.schema.condition_scale[0]
    torch.testing.assert_close(batch[CONDITION][:, 0], speed)
    wanted = [[0, 0, 1, 0, 1], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert batch[CONDITION][:, 1:].tolist() == wanted


@one_test
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"speed": None}, ["no column 'speed'"]),
        ({"kind": None}, ["no column 'kind'"]),
        ({"kind": ["ant", "bee", "fly"]}, ["'kind'", "'fly'", "line 4", "ant, bee, cow"]),
        ({"speed": [1.0, np.nan, 2.0]}, ["'speed'", "missing", "line 3"]),
        ({"speed": [1.0, 3.0, "fast"]}, ["'speed'", "'fast'", "line 4"]),
        ({name: [] for name in ("speed", "kind", "size", "other")}, ["no rows"]),
    ],
    ids=str,
)
def test_prediction_from_a_file_that_does_not_fit_is_refused(columns, words, tmp_path: Path) -> None:
    path = write_conditions(tmp_path, **columns)
    with pytest.raises(ValueError) as caught:
        build(**CONDITIONAL, predict_conditions=path).predict_dataloader()
    assert all(word in str(caught.value) for word in [path, *words])


def test_conditions_to_predict_for_are_refused_by_a_model_without(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no conditions"):
        build(predict_conditions=write_conditions(tmp_path)).predict_dataloader()


def test_a_table_in_a_file_that_does_not_exist_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SampleData(TableFile(str(tmp_path / "none.csv")))


GAPS = changed(
    b=[None if row in (3, 20) else np.cos(row) for row in range(ROWS)],
    kind=[None if row == 7 else VALUES["kind"][row] for row in range(ROWS)],
    unused=[None] * 30 + list(range(20)),
)
NAMED = {"columns": ["a", "b"], "classes": ["kind"]}


def test_rows_that_lack_a_value_of_a_used_column_are_left_out_on_request() -> None:
    data = build(GAPS, **NAMED, missing="drop")
    assert set().union(*split_rows(data)) == set(range(ROWS)) - {3, 7, 20}
    assert data.schema.classes == (("ant", "bee", "cow"),)
    assert data.description.endswith(
        "; leaves out speed (not named in columns), size (not named in columns), unused (not named in columns), "
        "3 rows of 50 with missing values (the first is row 3)"
    )


def test_missing_values_are_filled_on_request_by_the_median_of_the_training_rows() -> None:
    data = build(GAPS, **NAMED, missing="fill")
    training = split_rows(data)[0] - {3, 20}
    median = np.median([np.cos(row) for row in training])
    batches = [*take(data, 10), only(data.val_dataloader()), only(data.test_dataloader())]
    found = {}
    for batch in batches:
        own = data.schema.restore(batch["sample"])
        kinds = data.schema.restore_condition(batch[CONDITION])["kind"]
        found |= {row: (own[i, 1].item(), kinds[i]) for i, row in enumerate(rows_of(batch, data))}
    assert found[3][0] == pytest.approx(median, abs=1e-6)
    assert found[20][0] == pytest.approx(median, abs=1e-6)
    assert found[7][1] == "missing"
    assert data.schema.classes == (("ant", "bee", "cow", "missing"),)
    assert f"missing values are filled: 2 of b by {median:.4g}, 1 of kind by missing" in data.description


def test_missing_values_of_every_kind_are_refused_or_handled() -> None:
    assert "row 3" in refused(GAPS, **NAMED)
    assert "'kind'" in refused(GAPS, columns=["a"], classes=["kind"])
    assert "every row" in refused(changed(b=[None] * ROWS), columns=["b"], missing="drop")
    assert "missing must be one of refuse, drop, fill, got 'keep'" in refused(missing="keep")
    assert "holds a value that is not finite" in refused(put("b", 4, np.inf), missing="drop")


def test_description_says_what_is_learned_and_what_is_left_out_and_why() -> None:
    values = changed(day=pd.date_range("2020-01-01", periods=ROWS), note=[None] * ROWS)
    assert build(values).description == (
        "learns a, b, speed, size of the table 'toy' (40 train, 5 val, 5 test rows); "
        "leaves out kind (text such as 'ant'), day (datetime64[us]), note (no values)"
    )
    assert build(columns=["a"], conditions=["b"], classes=["kind"]).description == (
        "learns a given b, kind of the table 'toy' (40 train, 5 val, 5 test rows); "
        "leaves out speed (not named in columns), size (not named in columns)"
    )


def test_description_repeats_the_remarks_of_the_file(tmp_path: Path) -> None:
    rows = "".join(f'"{1000 + row:,}",{row}.5,NA\n' for row in range(30))
    (tmp_path / "t.csv").write_text("x,y,k\nm,kg,\n" + rows)
    data = SampleData(TableFile(str(tmp_path / "t.csv")), batch_size=8)
    assert data.schema.columns == ("x", "y")
    assert data.description == (
        "learns x, y of the table 't' (24 train, 3 val, 3 test rows); leaves out k (text such as 'NA'); "
        "line 2 (m, kg, ) is taken for units; thousands separators in x"
    )


def test_columns_of_matrices_may_be_named_by_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(40, 3)))
    data = SampleData(TableFile(str(tmp_path / "t.npy")), columns=[2, "0"], conditions=[1], batch_size=8)
    assert (data.schema.columns, data.schema.condition_columns) == (("2", "0"), ("1",))


def test_integers_are_named_and_must_be_whole() -> None:
    data = build(columns=["a", "b", "size"], conditions=["speed"], integers=["size"])
    assert data.schema.integers == ("size",)
    assert "'b' of the table 'toy' is named in integers, but holds 0.540302 in row 1" in refused(integers=["b"])
    assert "integers names 'speed', which is not learned" in refused(columns=["a"], integers=["speed"])
