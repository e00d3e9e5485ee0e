"""Configuration files: read, and laid over each other."""

from pathlib import Path
from typing import Any

import pytest

from flowmatch_rl.checks import UserError
from flowmatch_rl.configuration import drop_replaced, lay_over, read_overlay, read_yaml, same_class
from tests.combinations import one_test

SOURCE = {"model": {"init_args": {"source": {"class_path": "Gaussian", "init_args": {"scale": 2.0}}, "width": 3}}}


def source(value: Any) -> dict[str, Any]:
    return {"model": {"init_args": {"source": value}}}


@pytest.mark.parametrize(
    ("later", "left"),
    [
        (source({"class_path": "Mixture"}), {"class_path": "Mixture"}),
        (source("Mixture"), {"class_path": "Mixture"}),
        ({"model": {"source": "Mixture"}}, {"class_path": "Mixture"}),
        ({"model": {"source": {"class_path": "Mixture", "scale": 1.0}}}, {"class_path": "Mixture"}),
        (source({"class_path": "Gaussian"}), {"class_path": "Gaussian", "init_args": {"scale": 2.0}}),
        (source("some.where.Gaussian"), {"class_path": "Gaussian", "init_args": {"scale": 2.0}}),
        (source({"init_args": {"scale": 1.0}}), {"class_path": "Gaussian", "init_args": {"scale": 2.0}}),
        ({"model": {"class_path": "Other"}}, {"class_path": "Gaussian", "init_args": {"scale": 2.0}}),
    ],
    ids=["class", "word", "option", "nested option", "same", "same by its path", "argument", "unknown before"],
)
def test_arguments_of_a_replaced_class_are_dropped_and_no_others(later: dict, left: dict) -> None:
    first, second = drop_replaced([SOURCE, later])
    assert second == later
    assert first["model"]["init_args"] == {"source": left, "width": 3}
    assert SOURCE["model"]["init_args"]["source"]["init_args"] == {"scale": 2.0}


def test_a_class_may_share_arguments_with_the_one_that_it_replaces() -> None:
    base = {"model": {"class_path": "A", "init_args": {"kept": {"class_path": "B", "init_args": {"x": 1}}, "lost": 2}}}
    (first, _) = drop_replaced([base, {"model": {"class_path": "C"}}], shared=lambda before, after: {"kept"})
    assert first == {"model": {"class_path": "C", "init_args": {"kept": base["model"]["init_args"]["kept"]}}}


def test_arguments_of_a_default_are_dropped_too_but_not_where_the_default_is_named() -> None:
    base = {"path": {"class_path": "flowmatch_rl.paths.AffinePath"}}
    given = {"path": {"schedule": {"sigma_min": 0.5}}}
    assert drop_replaced([base, given, {"path": {"schedule": "CosineSchedule"}}])[1] == {"path": {"schedule": {}}}
    assert drop_replaced([base, given, {"path": {"schedule": "LinearSchedule"}}])[1] == given


def test_classes_that_come_back_have_forgotten_their_arguments() -> None:
    overlays = drop_replaced([SOURCE, source("Mixture"), source({"class_path": "Gaussian"})])
    assert [o["model"]["init_args"]["source"] for o in overlays[:2]] == [{"class_path": "Gaussian"}, "Gaussian"]


def test_words_in_a_dictionary_are_left_alone() -> None:
    environment = {"class_path": "flowmatch_rl.envs.GymnasiumEnvironment", "init_args": {"name": "Robot-v0"}}
    overlays = [{"environment": environment}, {"environment": {"options": {"file": "a.xml", "gear": 2}}}]
    assert drop_replaced(overlays) == overlays


def test_words_that_name_no_class_are_left_alone() -> None:
    overlays = [{"data": {"path": "a.csv", "mode": "x"}}, {"data": {"path": "b.csv", "mode": "y"}}]
    assert drop_replaced(overlays) == overlays


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Euler", "flowmatch_rl.solvers.Euler", True),
        ("flowmatch_rl.solvers.Euler", "flowmatch_rl.solvers.fixed_step.Euler", True),
        ("flowmatch_rl.solvers.Euler", "flowmatch_rl.solvers.Heun", False),
        ("Euler", "Heun", False),
        ("flowmatch_rl.paths.Field", "flowmatch_rl.nets.chunks.Tensor", False),
    ],
)
def test_names_of_one_class_are_known_as_such(first: str, second: str, same: bool) -> None:
    assert same_class(first, second) is same


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: {c: 1, d: [{e: 1, e: 2}]}", ["here", "line 2", "'e' is given twice"]),
        ("a: [1", ["here", "not YAML", "line 2, column 1"]),
        ("a: b: c", ["here", "not YAML"]),
    ],
)
def test_text_that_is_not_yaml_is_refused_with_its_place(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read_yaml(text, "here")
    assert all(word in str(caught.value) for word in words), caught.value


def test_numbers_are_read_as_the_parser_reads_them() -> None:
    assert read_yaml("{a: 1e-3, b: 3, c: 2020-01-01}", "here") == {"a": 1e-3, "b": 3, "c": "2020-01-01"}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"- a", ["must hold sections"]), (b"\xff\xfe", ["utf-8"]), (None, ["there is no file", "from"])],
    ids=["list", "binary", "missing"],
)
def test_file_without_configuration_is_refused_by_name(content: bytes | None, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_overlay(path)
    assert all(word in str(caught.value) for word in [str(path), *words]), caught.value
    path.write_text("")
    assert read_overlay(path) == {}


@one_test
@pytest.mark.parametrize(
    ("below", "above", "whole"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}),
        (
            {"a": {"class_path": "A", "init_args": {"x": 1}}},
            {"a": {"y": 2}},
            {"a": {"class_path": "A", "init_args": {"x": 1, "y": 2}}},
        ),
        ({"a": "A"}, {"a": {"y": 2}}, {"a": {"class_path": "A", "init_args": {"y": 2}}}),
        ({"a": {"x": 1}}, {"a": {"init_args": {"y": 2}}}, {"a": {"init_args": {"x": 1, "y": 2}}}),
        ({"a": {"x": 1}}, {"a": "B"}, {"a": "B"}),
        ({"a": [1]}, {"a": [2]}, {"a": [2]}),
    ],
)
def test_an_overlay_on_top_of_another_is_one_overlay(below: dict, above: dict, whole: dict) -> None:
    assert lay_over(below, above) == whole
