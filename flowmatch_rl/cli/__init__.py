"""The command line; its parts are imported when they are first used."""

import importlib
from typing import Any

_HOMES = {"FlowMatchCLI": "command", "run": "command"}

__all__ = ["FlowMatchCLI", "run"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
