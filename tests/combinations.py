"""Fewer tests of many cases: one of these decorators stands above stacked ``parametrize`` marks.

``each_pair`` and ``each_value`` choose among the combinations of several families. ``one_test`` goes through all cases
of a table, such as arguments that are refused, in one test.
"""

import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., None])
Case: TypeAlias = tuple[list[Any], str]
"""Values of arguments, and what they are called."""


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
    """As many combinations as the largest family has members; the others start again when they end.

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


def one_test(test: Callable[..., None]) -> Callable[..., None]:
    """Put above stacked ``parametrize`` marks: one test of all combinations, a subtest each.

    The test may take fixtures; each case has a ``tmp_path`` of its own.
    """
    names, families, others = _unstacked(test)
    cases = [_joined(chosen) for chosen in itertools.product(*families)]
    fixtures = [name for name in inspect.signature(test).parameters if name not in names]

    def run(subtests: pytest.Subtests, **given: Any) -> None:
        assert cases
        for place, (values, words) in enumerate(cases):
            own = {}
            if "tmp_path" in given:
                own["tmp_path"] = given["tmp_path"] / str(place)
                own["tmp_path"].mkdir()
            with subtests.test(words):
                test(**dict(zip(names, values, strict=True)), **(given | own))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    wanted = dict.fromkeys(["subtests", *fixtures])
    run.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in wanted])  # pyright: ignore
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.pytestmark = others  # pyright: ignore[reportFunctionMemberAccess]
    return run


def _thinned(test: Test, choose: Callable[..., list[tuple[Any, ...]]]) -> Test:
    names, families, others = _unstacked(test)
    cases = [_joined(chosen) for chosen in choose(*families)]
    test.pytestmark = others  # pyright: ignore[reportFunctionMemberAccess]
    return pytest.mark.parametrize(names, [pytest.param(*values, id=words) for values, words in cases])(test)


def _unstacked(test: Callable[..., None]) -> tuple[list[str], list[list[Case]], list[pytest.Mark]]:
    """Names of the arguments that ``parametrize`` marks give, the cases of each of them, and the other marks."""
    marks: list[pytest.Mark] = test.pytestmark  # pyright: ignore[reportFunctionMemberAccess]
    names: list[str] = []
    families = []
    for mark in (mark for mark in marks if mark.name == "parametrize"):
        given, values = mark.args
        own = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
        names += own
        families.append([_case(own, value, place, **mark.kwargs) for place, value in enumerate(values)])
    return names, families, [mark for mark in marks if mark.name != "parametrize"]


def _joined(chosen: Iterable[Case]) -> Case:
    values, words = zip(*chosen, strict=True)
    return [value for part in values for value in part], "-".join(words)


def _case(names: list[str], value: Any, place: int, ids: Any = None) -> Case:
    """Values of one case of a mark, and what it is called."""
    values = [value] if len(names) == 1 else list(value)
    if ids is not None and not callable(ids):
        return values, str(list(ids)[place])
    said = [(ids or _plain)(value) for value in values]
    return values, "-".join(
        f"{name}{place}" if word is None else str(word) for name, word in zip(names, said, strict=True)
    )


def _plain(value: Any) -> str | None:
    """Text of a number or word; None of anything else."""
    return str(value) if isinstance(value, bool | int | float | str | type(None)) else getattr(value, "__name__", None)
