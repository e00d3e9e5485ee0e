"""Doors of packages: what a package exports is imported when it is first used."""

import ast
import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_exports(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Functions ``__getattr__`` and ``__dir__`` of a package, which import its exports one by one.

    The exports are what the ``__init__.py`` imports under ``if TYPE_CHECKING``, where type checkers and editors read
    them. An export must not have the name of a module of the package, which would take its place.

    Args:
        package: Name of the package, inside whose ``__init__.py`` this is called.

    Returns:
        Both functions.
    """
    module = sys.modules[package]
    assert module.__spec__ is not None
    source = module.__spec__.loader.get_source(package)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    homes = {
        alias.name: node.module
        for block in ast.parse(source).body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            home = importlib.import_module(str(homes[name]))
        except AttributeError as error:  # of a library that does not load; Python would say that the name is missing
            raise ImportError(f"{homes[name]} cannot be imported: {error}", name=homes[name]) from error
        value = getattr(home, name)
        setattr(module, name, value)
        return value

    return get, lambda: sorted({*vars(module), *homes})
