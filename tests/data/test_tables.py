"""Tables in files: every format gives the same table, and what cannot be read is refused in one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tensordict import TensorDict

from flowmatch_rl.data import TableFile, read_table
from tests.combinations import one_test

A = np.array([0.5, -1.25, 3.0])
B = np.array([[1, 2], [3, 4], [5, 6]])
KIND = np.array(["one", "two", "one"])

TABLE = pd.DataFrame({"a": A, "b[0]": B[:, 0], "b[1]": B[:, 1]})


def write_npy(folder: Path) -> Path:
    np.save(folder / "t.npy", TABLE.to_numpy())
    return folder / "t.npy"


def write_npz(folder: Path) -> Path:
    np.savez(folder / "t.npz", a=A, b=B)
    return folder / "t.npz"


def write_csv(folder: Path) -> Path:
    TABLE.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def write_parquet(folder: Path) -> Path:
    TABLE.to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


def write_memmap(folder: Path) -> Path:
    TensorDict({"a": torch.from_numpy(A), "b": torch.from_numpy(B)}, batch_size=[3]).memmap(folder / "t")
    return folder / "t"


WRITERS = [write_npy, write_npz, write_csv, write_parquet, write_memmap]
each_format = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_table(str(path))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@each_format
def test_every_format_gives_the_table_that_was_written(write: Callable[[Path], Path], tmp_path: Path) -> None:
    dataset = TableFile(str(write(tmp_path)))
    wanted = TABLE if write is not write_npy else TABLE.set_axis(["0", "1", "2"], axis=1)
    pd.testing.assert_frame_equal(dataset.load().reset_index(drop=True), wanted, check_dtype=False)
    assert dataset.label == "t"


@each_format
def test_a_damaged_file_is_refused_in_one_line(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    damaged = path / "meta.json" if path.is_dir() else path
    damaged.write_bytes(b'\x93NUMPY"\xff\n"a,b\n1,2,3,4\n')
    refused(path)


@each_format
def test_an_empty_file_is_refused_in_one_line(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    (path / "meta.json" if path.is_dir() else path).write_bytes(b"")
    refused(path)


def test_suffixes_may_be_upper_case(tmp_path: Path) -> None:
    write_csv(tmp_path).rename(tmp_path / "T.CSV")
    pd.testing.assert_frame_equal(read_table(str(tmp_path / "T.CSV")).reset_index(drop=True), TABLE)


def test_text_survives_npz_csv_and_parquet(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", a=A, kind=KIND)
    frame = pd.DataFrame({"a": A, "kind": KIND})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    for name in ("t.npz", "t.csv", "t.parquet"):
        assert read_table(str(tmp_path / name))["kind"].tolist() == KIND.tolist()


def test_rows_are_counted_from_zero_whatever_the_index_of_the_file(tmp_path: Path) -> None:
    TABLE.iloc[[2, 0]].to_parquet(tmp_path / "t.parquet")
    assert read_table(str(tmp_path / "t.parquet")).index.tolist() == [0, 1]


def test_nested_keys_are_joined_and_batch_dimensions_flattened(tmp_path: Path) -> None:
    values = torch.arange(24.0).reshape(2, 3, 4)
    held = TensorDict({"x": values, "in": {"y": values[..., 0].bfloat16()}}, batch_size=[2, 3])
    held.memmap(tmp_path / "t")
    frame = read_table(str(tmp_path / "t"))
    assert list(frame.columns) == ["x[0]", "x[1]", "x[2]", "x[3]", "in/y"]
    assert np.array_equal(frame.to_numpy()[:, :4], values.reshape(6, 4).numpy())
    assert np.array_equal(frame["in/y"], values[..., 0].flatten().numpy())


def test_a_missing_file_is_named_with_what_is_wanted(tmp_path: Path) -> None:
    path = str(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError) as caught:
        TableFile(path).load()
    assert path in str(caught.value)
    assert ".parquet" in str(caught.value)


def test_an_unknown_kind_of_file_is_named_with_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_text("a")
    assert ".parquet" in refused(tmp_path / "t.xlsx")


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)], ids=str)
def test_a_npy_file_must_hold_a_matrix(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros(shape))
    assert str(shape) in refused(tmp_path / "t.npy")


@pytest.mark.parametrize(
    "array", [np.array([[1, "a"]], dtype=object), np.zeros((2, 2), complex)], ids=["object", "complex"]
)
def test_arrays_of_other_things_than_numbers_and_text_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", array)
    np.savez(tmp_path / "t.npz", b=array)
    kind = str(array.dtype)
    assert kind in refused(tmp_path / "t.npy").lower()
    assert kind in refused(tmp_path / "t.npz").lower()


@one_test
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, ["no arrays"]),
        ({"a": A, "b": A[:2]}, ["'b' has 2 rows", "'a' has 3"]),
        ({"a": np.zeros((2, 3, 4))}, ["'a'", "(2, 3, 4)"]),
        ({"a": np.array(1.0)}, ["'a'", "()"]),
        ({"a[0]": A, "a": B}, ["two columns", "'a[0]'"]),
    ],
    ids=str,
)
def test_arrays_that_are_no_columns_of_one_table_are_named(arrays, words, tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    message = refused(tmp_path / "t.npz")
    assert all(word in message for word in words)


@one_test
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.5,1.5\n1,2\n3,4\n", ["first line", "0.5, 1.5"]),
        ("5,5\n1,2\n3,4\n", ["first line", "5, 5"]),
        (",a\n0,1\n1,2\n", ["no name for column 0"]),
        ("a,b\n1,2,3\n4,5,6\n", ["Length of header"]),
        ("a,b\n0,1,2\n1,4,5\n", ["Length of header"]),
        ("a,b\n1,2\n4,5,6\n", ["line 3"]),
    ],
)
def test_csv_files_whose_first_line_does_not_name_the_columns_are_refused(text, words, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    message = refused(tmp_path / "t.csv")
    assert all(word in message for word in words)


def test_csv_columns_may_be_numbered(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("0,1\n0.5,2\n")
    assert list(read_table(str(tmp_path / "t.csv")).columns) == ["0", "1"]


def test_folders_that_hold_no_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "meta.json" in refused(tmp_path / "empty")
    TensorDict({"a": torch.zeros(3)}, batch_size=[]).memmap(tmp_path / "scalar")
    assert "batch dimension" in refused(tmp_path / "scalar")
    TensorDict({"a": torch.zeros(3), "word": "text"}, batch_size=[3]).memmap(tmp_path / "text")
    assert "'word'" in refused(tmp_path / "text")


def test_objects_in_folders_are_not_unpickled(tmp_path: Path) -> None:
    TensorDict({"a": torch.zeros(3), "thing": Path}, batch_size=[3]).memmap(tmp_path / "t")
    assert "pickle" in refused(tmp_path / "t")
