"""Classes that options and configuration files can name."""

import functools
import importlib
import inspect
from typing import Any

from flowmatch_rl.configuration import import_class

_ROOMS = (
    "callbacks",
    "couplings",
    "data",
    "envs",
    "estimators",
    "evaluation",
    "inference",
    "models",
    "modules",
    "nets",
    "objectives",
    "paths",
    "samplers",
    "solvers",
    "testbeds",
)


@functools.cache
def known_classes() -> dict[str, type]:
    """The package's classes by name.

    They are imported: the parser finds a class by its mere name among those that are.
    """
    rooms = [importlib.import_module(f"flowmatch_rl.{room}") for room in _ROOMS]
    exported = {name: getattr(room, name) for room in rooms for name in room.__all__}
    return {name: value for name, value in exported.items() if inspect.isclass(value)}


@functools.cache
def known_names() -> frozenset[str]:
    """Names of the package's classes and of their arguments, for hints."""
    names = {"class_path", "init_args", "model", "data", "trainer", *known_classes()}
    for kind in known_classes().values():
        names |= inspect.signature(kind).parameters.keys()
    return frozenset(names - {"args", "kwargs"})


def find_class(name: str) -> Any:
    """The class of an import path, or of the mere name of one of the package's; None if there is none.

    Args:
        name: The path or name.
    """
    return import_class(name) if "." in name else known_classes().get(name)
