"""Thinned combinations hold what they promise."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations, product
from pathlib import Path

import pytest

from tests.combinations import each_pair, in_turn, one_test, pairwise


@pytest.mark.parametrize("sizes", [(1,), (4,), (1, 1), (2, 2), (3, 5), (2, 1, 2), (9, 4, 5), (4, 9, 3, 5, 2)], ids=str)
def test_few_combinations_hold_every_pair_and_fewer_every_value(sizes: tuple[int, ...]) -> None:
    families = [[f"{family}{member}" for member in range(size)] for family, size in enumerate(sizes)]
    pairs = {pair for a, b in combinations(families, 2) for pair in product(a, b)}
    chosen = pairwise(*families)
    assert {pair for chosen_one in chosen for pair in combinations(chosen_one, 2)} == pairs
    assert all(set(column) == set(family) for column, family in zip(zip(*chosen, strict=True), families, strict=True))
    largest = sorted(sizes, reverse=True)
    assert len(chosen) == len(set(chosen)) <= 1.5 * largest[0] * (largest[1] if len(sizes) > 1 else 1)
    assert pairwise(*families) == chosen
    fewer = in_turn(*families)
    assert len(fewer) == largest[0]
    assert all(set(column) == set(family) for column, family in zip(zip(*fewer, strict=True), families, strict=True))


def test_thinned_tests_keep_other_marks_and_name_their_cases() -> None:
    @each_pair
    @pytest.mark.slow
    @pytest.mark.parametrize(("x", "y"), [(1, 2.5), (3, None)])
    @pytest.mark.parametrize("z", ["a", len], ids=["word", "function"])
    @pytest.mark.parametrize("path", [(1,), (2,)], ids=repr)
    def test(x: object, y: object, z: object, path: object) -> None:
        raise AssertionError("a test inside a test is not run")

    slow, mark = sorted(test.pytestmark, key=lambda mark: mark.name, reverse=True)  # pyright: ignore
    names, cases = mark.args
    assert slow.name == "slow"
    assert names == ["path", "z", "x", "y"]
    assert {case.id for case in cases} >= {"(1,)-word-1-2.5"}
    assert all(len(case.values) == 4 for case in cases)
    assert {(case.values[1], case.values[2]) for case in cases} == set(product(["a", len], [1, 3]))


class Recorder:
    """Stands in for the fixture ``subtests``: names of the cases that failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    @contextmanager
    def test(self, name: str) -> Iterator[None]:
        try:
            yield
        except AssertionError:
            self.failed.append(name)


def test_one_test_goes_through_all_combinations_and_names_those_that_fail(tmp_path: Path) -> None:
    seen, recorder = [], Recorder()

    @one_test
    @pytest.mark.slow
    @pytest.mark.parametrize(("x", "y"), [(1, 2), (3, 4)])
    @pytest.mark.parametrize("z", "ab")
    def test(x: int, tmp_path: Path, y: int, z: str) -> None:
        seen.append((x, y, z))
        assert not list(tmp_path.iterdir())
        (tmp_path / "file").touch()
        assert (x, z) != (3, "a")

    assert [mark.name for mark in test.pytestmark] == ["slow"]  # pyright: ignore
    assert list(inspect.signature(test).parameters) == ["subtests", "tmp_path"]
    test(subtests=recorder, tmp_path=tmp_path)
    assert set(seen) == {(1, 2, "a"), (3, 4, "a"), (1, 2, "b"), (3, 4, "b")}
    assert recorder.failed == ["a-3-4"]


@one_test
@pytest.mark.parametrize("number", [1, 2])
def test_pytest_runs_it_with_its_fixtures(number: int, tmp_path: Path) -> None:
    assert tmp_path.is_dir()
    assert number < 3
