"""Tables in text files as people have them: every one is read as it is meant, or refused with what to say."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flowmatch_rl.data import TableFile, read_table
from flowmatch_rl.data.tables.text import REMARKS
from tests.combinations import one_test

X, Y = [1.5, -2.0, 1234.25], [7, 8, 9]


def read(folder: Path, text: str | bytes, name: str = "t.csv", **options: Any) -> pd.DataFrame:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return TableFile(str(folder / name), **options).load()


@one_test
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("x,y\n1.5,7\n-2,8\n1234.25,9\n", [2, 3, 4]),
        ("x;y\n1.5;7\n-2;8\n1234.25;9\n", [2, 3, 4]),
        ("x\ty\n1.5\t7\n-2\t8\n1234.25\t9\n", [2, 3, 4]),
        ("x|y\r\n1.5|7\r\n-2|8\r\n1234.25|9\r\n", [2, 3, 4]),
        ("x y\n1.5  7\n-2   8\n1234.25 9\n", [2, 3, 4]),
        ("# x y\n1.5 7\n-2 8\n1234.25 9\n", [2, 3, 4]),  # as numpy.savetxt writes it
        ("sep=;\nx;y\n1.5;7\n-2;8\n1234.25;9\n", [3, 4, 5]),  # as Excel does
        ("x;y\n1,5;7\n-2;8\n1.234,25;9\n", [2, 3, 4]),
        ("x;y\n1,5;7\n\u22122;8\n1 234,25;9\n", [2, 3, 4]),
        ('x,y\n1.5,7\n-2,8\n"1,234.25",9\n', [2, 3, 4]),
        ("x,y\n1.5,7\n-2,8\n1'234.25,9\n", [2, 3, 4]),
        ("x;y\n1,5 %;7\n-2%;8\n1.234,25%;9\n", [2, 3, 4]),
        ("# exported by a logger\nx,y\n1.5,7\n# a break\n\n-2,8\n1234.25,9\n", [3, 6, 7]),
        ("x,y\nm/s,counts\n1.5,7\n-2,8\n1234.25,9\n", [3, 4, 5]),
        ("x,y\n[m/s],\nspeed,number\n1.5,7\n-2,8\n1234.25,9\n", [4, 5, 6]),
        ("x;y;\n1.5;7;\n-2;8;\n1234.25;9;\n", [2, 3, 4]),
        ("\ufeffx, y\n1.5, 7\n-2, 8\n1234.25, 9\n", [2, 3, 4]),
    ],
)
def test_numbers_are_read_as_they_are_meant(text, lines, tmp_path: Path) -> None:
    frame = read(tmp_path, text)
    assert list(frame.columns) == ["x", "y"]
    assert frame["x"].tolist() == X
    assert frame["y"].tolist() == Y
    assert frame.index.name == "line"
    assert frame.index.tolist() == lines


@one_test
@pytest.mark.parametrize(
    ("text", "remark"),
    [
        ("x,y\nm/s,counts\n1.5,7\n2,8\n", "line 2 (m/s, counts) is taken for units"),
        ("x,y\n1.5,7\n# a break\n2,8\n", "1 comment line is left out"),
        ('x,y\n"1,000",7.5\n"2,000",8\n', "thousands separators in x"),
        ("x;y\n0,5;7\n1,5;8\n", "decimal commas in x"),
        ("x;y\n5%;7%\n1%;8%\n", "numbers in percent in x, y"),
    ],
)
def test_what_may_surprise_is_remarked_on(text, remark, tmp_path: Path) -> None:
    assert read(tmp_path, text).attrs[REMARKS] == (remark,)


@one_test
@pytest.mark.parametrize(
    ("text", "options", "values"),
    [
        ("x;y\n1,234;a\n5,678;b\n", {"decimal": ","}, [1.234, 5.678]),
        ("x;y\n1,234;a\n5,678;b\n", {"decimal": "."}, [1234.0, 5678.0]),
        ("x;y\n0,745;a\n5,678;b\n", {}, [0.745, 5.678]),  # no number of thousands begins with 0
        ("x;z\n1,234;0.5\n5,678;1.5\n", {}, [1234.0, 5678.0]),  # the other column has a decimal point
        ("x;z\n1.234;0,5\n5.678;1,5\n", {}, [1234.0, 5678.0]),  # or a comma
        ("x,y\n1.234,2\n5.678,3\n", {}, [1.234, 5.678]),
        ("x,y\n1;1,2\n", {"separator": ","}, ["1;1"]),
        ("x\\y\n1\\1\n", {"separator": "\\"}, [1]),
        ("x\ty z\n1\t1\n", {"separator": "\\t"}, [1]),
    ],
)
def test_signs_may_be_named_and_are_found_from_the_whole_file(text, options, values, tmp_path: Path) -> None:
    assert read(tmp_path, text, **options).iloc[:, 0].tolist() == values


@one_test
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x;y\n1,234;a\n5,678;b\n", ["'x'", "'1,234'", "two ways", "decimal"]),
        ('x,y\n1.5,"2,5"\n2.5,"3,5"\n', ["'y'", "decimal comma", "'x'", "decimal point"]),
        ("x,x\n1,2\n", ["two columns named 'x'", "0, 1"]),
        ("x,y,x\n1,2,3\n", ["two columns named 'x'", "0, 2"]),
        ("x,,y\n1,2,3\n", ["no name for column 1"]),
        ("x,,y,\n1,2,3,4\n", ["columns without a name", "1, 3"]),
        (b"x,y\n1,\xe9\n", ["UTF-8"]),
        ("x,y\n1,2\n".encode("utf-16"), ["UTF-8"]),
        ("# nothing but this\n\n", ["no names"]),
        ("x,y\n# a comment\n1,2\n3,4,5\n", ["line 4"]),
    ],
)
def test_what_has_two_meanings_or_none_is_refused(text, words, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in [str(tmp_path / "t.csv"), *words]), message


def test_words_for_missing_values_are_words_among_text(tmp_path: Path) -> None:
    frame = read(tmp_path, "x,k\n1,NA\nNA,None\n?,EU\n4,\n")
    np.testing.assert_array_equal(frame["x"], [1.0, np.nan, np.nan, 4.0])
    assert frame["k"].isna().tolist() == [False, False, False, True]
    assert frame["k"].tolist()[:3] == ["NA", "None", "EU"]
    assert read(tmp_path, "k\nNA\nNone\n")["k"].tolist() == ["NA", "None"]


def test_rows_are_numbered_by_the_line_at_which_they_begin(tmp_path: Path) -> None:
    frame = read(tmp_path, 'x,note\n1,"two\nlines"\n\n2,"one"\n# a comment\n3,"a\n\nb"\n4,c\n')
    assert frame["x"].tolist() == [1, 2, 3, 4]
    assert frame.index.tolist() == [2, 5, 7, 10]
    frame = read(tmp_path, '"x\n(m)",note\n# a comment\n1,a\n2,"a ""quoted"" word"\n')
    assert list(frame.columns) == ["x\n(m)", "note"]
    assert frame.iloc[:, 0].tolist() == [1, 2]
    assert frame.index.tolist() == [4, 5]


def test_a_first_row_of_words_is_units_only_over_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, "name,kind\nm,kg\na,b\nc,d\n")["name"].tolist() == ["m", "a", "c"]
    assert read(tmp_path, "x,kind\nNA,kg\n1,b\n2,d\n")["kind"].tolist() == ["kg", "b", "d"]


def test_names_may_stand_behind_a_comment_sign(tmp_path: Path) -> None:
    frame = read(tmp_path, "#id,kind\n1,a\n2,b\n")
    assert {name: frame[name].tolist() for name in frame} == {"id": [1, 2], "kind": ["a", "b"]}


@pytest.mark.parametrize("name", ["t.tsv", "t.txt", "t.csv.gz", "T.CSV.GZ"])
def test_text_files_may_have_other_names_and_be_compressed(name: str, tmp_path: Path) -> None:
    text = b"x\ty\n1\t2\n# a comment\n3\t4\n"
    frame = read(tmp_path, gzip.compress(text) if name.lower().endswith("gz") else text, name)
    assert frame["y"].tolist() == [2, 4]
    assert TableFile(str(tmp_path / name)).label.lower() == "t"


@one_test
@pytest.mark.parametrize(
    ("options", "words"), [({"separator": ",,"}, ["one character", "',,'"]), ({"decimal": ";"}, ["decimal", "';'"])]
)
def test_other_signs_are_refused(options, words) -> None:
    with pytest.raises(ValueError) as caught:
        TableFile("t.csv", **options)
    assert all(word in str(caught.value) for word in words)


def test_numbers_are_those_that_pandas_reads(tmp_path: Path) -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 3)) * 1e5, columns=list("abc"))
    frame.to_csv(tmp_path / "plain.csv", index=False)
    text = frame.map(lambda value: f"{value:_.12f}".replace(".", ",").replace("_", "."))
    text.to_csv(tmp_path / "comma.csv", index=False, sep=";")
    for name in ("plain.csv", "comma.csv"):
        np.testing.assert_allclose(read_table(str(tmp_path / name)).to_numpy(), frame.to_numpy(), rtol=1e-15)
