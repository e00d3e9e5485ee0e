"""Arguments of a command before the parser reads them: files and options, the later on top of the earlier."""

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule

from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.names import find_class
from flowmatch_rl.configuration import drop_replaced, read_overlay, read_yaml

_FILE_OPTIONS = ("-c", "--config")
_WORD = re.compile(r"[\w.+-]+")
_DEEP_ENTRY = re.compile(r"(tasks|methods)\..+\.options\..+")


@dataclass(frozen=True)
class _Source:
    """A file or an option.

    Attributes:
        words: The arguments that give it.
        option: Name of the option, None for a file.
        overlay: What it states, as nested dictionaries; None if nothing.
    """

    words: tuple[str, ...]
    option: str | None
    overlay: Any

    def restate(self, overlay: Any) -> list[str]:
        """Arguments that give what is left of it."""
        if overlay == self.overlay:
            return list(self.words)
        if self.option is None:
            # A slash would make the parser take the text for an address.
            return ["--config=" + json.dumps(overlay).replace("/", "\\/")]
        for key in self.option.split("."):
            overlay = overlay.get(key) if isinstance(overlay, dict) else None
        return [f"--{self.option}={json.dumps(overlay)}"] if isinstance(overlay, dict) and overlay else []


def compose(arguments: Sequence[str]) -> tuple[list[str], list[Any]]:
    """Arguments in which no object gets arguments that were meant for another class.

    Files and options count in their order. Where one of them changes the class of an object, the earlier ones lose
    what they state about it, except for models of one family: see ``shared_arguments``.

    Args:
        arguments: Arguments after the command.

    Returns:
        Arguments for the parser, and what they state, as nested dictionaries.

    Raises:
        UserError: If a configuration file is not there, is not YAML, or has a key twice.
    """
    sources = list(_sources(arguments))
    overlays = drop_replaced([source.overlay for source in sources], find_class, shared_arguments)
    words = [word for source, overlay in zip(sources, overlays, strict=True) for word in source.restate(overlay)]
    return words, overlays


def take_entries(arguments: Sequence[str], *names: str) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Take the entries of options of runs out of the arguments, such as ``--options.data.batch_size=7``.

    Their names have dots of their own, which the parser would read as levels.

    Args:
        arguments: Arguments after the command.
        names: Options that hold options of runs by name.

    Returns:
        The other arguments, and the entries by option.

    Raises:
        UserError: If a value is not YAML, or an entry is one of a single task or method.
    """
    rest: list[str] = []
    entries: dict[str, dict[str, Any]] = {name: {} for name in names}
    for source in _sources(arguments):
        head, _, key = (source.option or "").partition(".")
        if _DEEP_ENTRY.fullmatch(source.option or ""):
            raise UserError(f"--{source.option}: options of one task or method are given in the comparison's file")
        if head in entries and key:
            value = source.words[-1] if len(source.words) == 2 else source.words[-1].partition("=")[2]
            entries[head][key] = read_yaml(value, f"--{source.option}")
        else:
            rest += source.words
    return rest, entries


def shared_arguments(old: Any, new: Any) -> set[str]:
    """Arguments that two models of one family share, by name and type; none for anything else.

    A family is what inherits from one model: a task's discount outlives the choice of a method. Recipes, such as
    sources, give the same name to different things.

    Args:
        old: The old class.
        new: The new class.
    """
    if not (inspect.isclass(old) and inspect.isclass(new)):
        return set()
    models = [base for base in old.__mro__ if issubclass(base, LightningModule) and base is not LightningModule]
    if not any(issubclass(new, base) for base in models):
        return set()
    first, second = (inspect.signature(kind).parameters for kind in (old, new))
    return {name for name in first.keys() & second.keys() if first[name].annotation == second[name].annotation}


def _sources(arguments: Sequence[str]) -> Iterator[_Source]:
    """Files, options and whatever else there is, in their order."""
    rest = list(arguments)
    while rest:
        first = rest.pop(0)
        name, equals, value = first.partition("=")
        if first.startswith("-c") and not equals and len(first) > 2:
            name, value = "-c", first[2:]
        elif name.startswith("-") and not equals and rest and not rest[0].startswith(("--", "-c")):
            value = rest.pop(0)
            yield _source((first, value), name, value)
            continue
        yield _source((first,), name, value)


def _source(words: tuple[str, ...], name: str, value: str) -> _Source:
    if name in _FILE_OPTIONS:
        return _Source(words, None, read_yaml(value, name) if value.startswith("{") else read_overlay(value))
    if not name.startswith("--") or not value:
        return _Source(words, None, None)
    # Words as YAML reads them: false and 3 replace an object as well, but name no class.
    overlay: Any = read_yaml(value, name) if _WORD.fullmatch(value) or value.startswith(("{", "[")) else value
    option = name.removeprefix("--")
    for key in reversed(option.split(".")):
        overlay = {key: overlay}
    return _Source(words, option, overlay)
