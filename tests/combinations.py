"""Fewer cases for tests of several families: ``each_pair`` or ``each_value`` stands above their stacked marks."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., None])


def pairwise(*families: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few combinations, one member of each family, in which any two members of different families meet.

    Greedy and deterministic: each combination begins with a pair that has not met, and takes of every other family the
    member that meets most of the others for the first time.

    Args:
        families: Families, none of them empty.
    """
    sizes = [len(family) for family in families]
    places = [[(family, member) for member in range(size)] for family, size in enumerate(sizes)]
    if len(places) == 1:
        return [(member,) for member in families[0]]
    apart = dict.fromkeys(pair for a, b in itertools.combinations(places, 2) for pair in itertools.product(a, b))
    found = []
    while apart:
        chosen = list(next(iter(apart)))
        others = {family for family in range(len(sizes))} - {family for family, _ in chosen}
        for family in sorted(others, key=lambda family: -sizes[family]):
            turn = (
                len(found) % sizes[family]
            )  # of equals the one that follows, so that members occur about equally often
            candidates = places[family][turn:] + places[family][:turn]
            chosen.append(max(candidates, key=lambda place: sum(pair in apart for pair in _pairs([*chosen, place]))))
        for pair in _pairs(chosen):
            apart.pop(pair, None)
        found.append(tuple(families[family][member] for family, member in sorted(chosen)))
    return found


def in_turn(*families: Sequence[Any]) -> list[tuple[Any, ...]]:
    """As many combinations as the largest family has members; the others begin anew when they end.

    Args:
        families: Families, none of them empty.
    """
    return [tuple(family[row % len(family)] for family in families) for row in range(max(map(len, families)))]


def each_pair(test: Test) -> Test:
    """Put above stacked ``parametrize`` marks: any two values of different marks meet, in place of all combinations."""
    return _thinned(test, pairwise)


def each_value(test: Test) -> Test:
    """Put above stacked ``parametrize`` marks: each value occurs, in place of all combinations."""
    return _thinned(test, in_turn)


def _pairs(places: list[tuple[int, int]]) -> Iterable[tuple[tuple[int, int], tuple[int, int]]]:
    return itertools.combinations(sorted(places), 2)


def _thinned(test: Test, choose: Callable[..., list[tuple[Any, ...]]]) -> Test:
    marks: list[pytest.Mark] = test.pytestmark  # pyright: ignore[reportFunctionMemberAccess]
    stacked = [mark for mark in marks if mark.name == "parametrize"]
    names: list[str] = []
    families: list[list[tuple[list[Any], str]]] = []
    for mark in stacked:
        given, values = mark.args
        own = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
        names += own
        families.append([_case(own, value, place, **mark.kwargs) for place, value in enumerate(values)])
    cases = [
        pytest.param(*(value for values, _ in chosen for value in values), id="-".join(name for _, name in chosen))
        for chosen in choose(*families)
    ]
    test.pytestmark = [mark for mark in marks if mark not in stacked]  # pyright: ignore[reportFunctionMemberAccess]
    return pytest.mark.parametrize(names, cases)(test)


def _case(names: list[str], value: Any, place: int, ids: Any = None) -> tuple[list[Any], str]:
    """Values of one case of a mark, and what it is called."""
    values = [value] if len(names) == 1 else list(value)
    if isinstance(ids, Sequence):
        return values, ids[place]
    said = [(ids or _plain)(value) for value in values]
    return values, "-".join(
        f"{name}{place}" if word is None else str(word) for name, word in zip(names, said, strict=True)
    )


def _plain(value: Any) -> str | None:
    """Text of a number or word; None of anything else."""
    return str(value) if isinstance(value, bool | int | float | str | type(None)) else getattr(value, "__name__", None)
