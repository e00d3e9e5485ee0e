"""The space of a sweep: what may stand at each key of the configuration."""

import abc
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from flowmatch_rl.checks import UserError
from flowmatch_rl.experiments.plan import option, read_file

Point = Mapping[str, Any]
"""A value for each key of the space: a number, or the name of a choice."""


class Dimension(abc.ABC):
    """What may stand at one key."""

    @property
    @abc.abstractmethod
    def distribution(self) -> BaseDistribution:
        """What Optuna draws from."""

    @property
    @abc.abstractmethod
    def is_log(self) -> bool:
        """Whether it is searched, and drawn, on a logarithmic scale."""

    @abc.abstractmethod
    def ends(self) -> Sequence[Any]:
        """Values that are tried before the first trial: both ends of an interval, every choice."""

    @abc.abstractmethod
    def grid(self, points: int) -> Sequence[Any]:
        """Values of a grid.

        Args:
            points: Their number where the dimension itself does not say it.
        """

    @abc.abstractmethod
    def arguments(self, key: str, value: Any) -> list[str]:
        """Arguments of ``fit`` that set a value.

        Args:
            key: The key.
            value: The value.
        """

    @abc.abstractmethod
    def overlays(self, key: str, value: Any) -> list[dict[str, Any]]:
        """What these arguments state, as nested dictionaries.

        Args:
            key: The key.
            value: The value.
        """

    @abc.abstractmethod
    def definition(self) -> Any:
        """What it is, with the contents of files, for the record of the sweep."""


@dataclass(frozen=True)
class Interval(Dimension):
    """Numbers between two ends, which belong to it.

    Attributes:
        low: The lower end.
        high: The upper end.
        log: Whether the logarithm is drawn evenly.
        step: Distance of neighbours; None for any number, 1 for whole numbers.
        whole: Whether numbers are whole.
    """

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool

    @property
    def distribution(self) -> BaseDistribution:
        """Whole numbers or others."""
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)

    @property
    def is_log(self) -> bool:
        """As configured."""
        return self.log

    def ends(self) -> Sequence[Any]:
        """Both ends."""
        return [self.low, self.high]

    def grid(self, points: int) -> Sequence[Any]:
        """All numbers where they have a distance; else ``points`` of them, evenly spaced."""
        step = self.step or (1 if self.whole and not self.log else None)
        if step is not None:
            count = round((self.high - self.low) / step) + 1
            return [self.low + place * step for place in range(count)]
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        evenly = [low + (high - low) * place / (points - 1) for place in range(1, points - 1)]
        inner = [math.exp(value) if self.log else value for value in evenly]
        found = [self.low, *inner, self.high]
        return list(dict.fromkeys(round(value) for value in found)) if self.whole else found

    def arguments(self, key: str, value: Any) -> list[str]:
        """The option."""
        return [option(key, value)]

    def overlays(self, key: str, value: Any) -> list[dict[str, Any]]:
        """The number below its keys."""
        return [_nested(key, value)]

    def definition(self) -> Any:
        """Its fields."""
        return {
            "int" if self.whole else "float": [self.low, self.high],
            **({"log": True} if self.log else {}),
            **({} if self.step is None else {"step": self.step}),
        }


@dataclass(frozen=True)
class Choices(Dimension):
    """Values of any kind, each with a name.

    Attributes:
        values: Values by name.
    """

    values: Mapping[str, Any]

    @property
    def distribution(self) -> BaseDistribution:
        """Names."""
        return CategoricalDistribution(list(self.values))

    @property
    def is_log(self) -> bool:
        """False."""
        return False

    def ends(self) -> Sequence[Any]:
        """All names."""
        return list(self.values)

    def grid(self, points: int) -> Sequence[Any]:
        """All names."""
        return list(self.values)

    def arguments(self, key: str, value: Any) -> list[str]:
        """The option with the value of that name."""
        return [option(key, self.values[value])]

    def overlays(self, key: str, value: Any) -> list[dict[str, Any]]:
        """The value below its keys."""
        return [_nested(key, self.values[value])]

    def definition(self) -> Any:
        """The values."""
        return {"choices": dict(self.values)}


@dataclass(frozen=True)
class Overlays(Dimension):
    """Configuration overlays, each a list of files with a name.

    Attributes:
        files: Paths by name.
    """

    files: Mapping[str, Sequence[str]]

    @property
    def distribution(self) -> BaseDistribution:
        """Names."""
        return CategoricalDistribution(list(self.files))

    @property
    def is_log(self) -> bool:
        """False."""
        return False

    def ends(self) -> Sequence[Any]:
        """All names."""
        return list(self.files)

    def grid(self, points: int) -> Sequence[Any]:
        """All names."""
        return list(self.files)

    def arguments(self, key: str, value: Any) -> list[str]:
        """The files."""
        return [f"-c={path}" for path in self.files[value]]

    def overlays(self, key: str, value: Any) -> list[dict[str, Any]]:
        """The contents of the files."""
        return [read_file(f"space.{key}", path) for path in self.files[value]]

    def definition(self) -> Any:
        """The contents of the files."""
        return {"overlays": {name: self.overlays("", name) for name in self.files}}


def read_space(space: Mapping[Any, Any]) -> dict[str, Dimension]:
    """The dimensions of a space, files before classes, and classes before their arguments.

    Args:
        space: What the definition states: each key has ``float: [low, high]`` or ``int: [low, high]``, with ``log`` and
            ``step``, or ``choices``, or ``overlays``.

    Raises:
        UserError: If an entry does not fit.
    """
    if not space:
        raise UserError("space must name at least one key of the configuration, got none")
    for key in space:
        if not isinstance(key, str):
            raise UserError(f"space: a key must be a word, got {key!r}; put it in quotes")
    found = {key: _read(f"space.{key}", entry) for key, entry in space.items()}
    for key in found:
        twin = next((other for other in found if other != key and plain(other) == plain(key)), None)
        if twin is not None:
            raise UserError(f"space names one argument twice: {key} and {twin}")
    order = {key: (not isinstance(found[key], Overlays), plain(key).count(".")) for key in found}
    return {key: found[key] for key in sorted(found, key=lambda key: order[key])}


def plain(key: str) -> str:
    """A key without what it may leave out.

    Args:
        key: The key, such as ``model.init_args.temperature``.
    """
    return ".".join(part for part in key.lstrip("-").split(".") if part != "init_args")


def in_words(point: Point) -> str:
    """A point of the space, as a reader takes it in.

    Args:
        point: Its values.
    """
    return ", ".join(f"{plain(key)}={number(value)}" for key, value in point.items())


def number(value: Any) -> str:
    """A number with four digits, or a name.

    Args:
        value: The number or name.
    """
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_KINDS = ("float", "int", "choices", "overlays")


def _read(where: str, entry: Any) -> Dimension:
    kinds = [kind for kind in _KINDS if isinstance(entry, Mapping) and kind in entry]
    if len(kinds) != 1:
        raise UserError(f"{where} must have one of float, int, choices and overlays, got {entry!r}")
    kind = kinds[0]
    known = (kind, "log", "step") if kind in ("float", "int") else (kind,)
    for key in entry:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}, expected one of {', '.join(map(repr, known))}")
    if kind in ("float", "int"):
        return _read_interval(where, kind, entry)
    return _read_choices(where, entry[kind]) if kind == "choices" else _read_overlays(where, entry[kind])


def _read_interval(where: str, kind: str, entry: Mapping[str, Any]) -> Interval:
    ends, log, step, whole = entry[kind], entry.get("log", False), entry.get("step"), kind == "int"
    words = "whole numbers" if whole else "numbers"
    if not (isinstance(ends, list | tuple) and len(ends) == 2 and all(_fits(end, whole) for end in ends)):
        raise UserError(f"{where}.{kind} must be two {words}, such as [1, 8], got {ends!r}")
    low, high = ends if whole else map(float, ends)
    if not low < high:
        raise UserError(f"{where}.{kind} must ascend, got {ends!r}")
    if not isinstance(log, bool):
        raise UserError(f"{where}.log must be true or false, got {log!r}")
    if log and low <= 0:
        raise UserError(f"{where}.{kind} must be positive on a logarithmic scale, got {ends!r}")
    if step is not None:
        if log:
            raise UserError(f"{where} must not have step {step!r}: it is on a logarithmic scale")
        if not _fits(step, whole) or step <= 0:
            raise UserError(f"{where}.step must be a positive {'whole ' * whole}number, got {step!r}")
        steps = (high - low) / step
        if abs(steps - round(steps)) > 1e-6:
            raise UserError(f"{where}.step must divide {high - low:g}, the length of the interval, got {step!r}")
        step = step if whole else float(step)
    return Interval(low, high, log, step, whole)


def _fits(value: Any, whole: bool) -> bool:
    kind = int if whole else int | float
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _read_choices(where: str, stated: Any) -> Choices:
    if isinstance(stated, Mapping) and all(isinstance(name, str) for name in stated):
        values = dict(stated)
    elif isinstance(stated, list):
        names = [_name(value) for value in stated]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{where}.choices: two are called {twice[0]}; give them names, as in {{name: value, ...}}")
        values = dict(zip(names, stated, strict=True))
    else:
        raise UserError(f"{where}.choices must be a list, or values by name, got {stated!r}")
    return Choices(_several(f"{where}.choices", values))


def _read_overlays(where: str, stated: Any) -> Overlays:
    if not isinstance(stated, Mapping) or not all(isinstance(name, str) for name in stated):
        raise UserError(
            f"{where}.overlays must be files by name, such as {{none: [], fast: fast.yaml}}, got {stated!r}"
        )
    files = {name: [paths] if isinstance(paths, str) else paths for name, paths in stated.items()}
    for name, paths in files.items():
        if not (isinstance(paths, list) and all(isinstance(path, str) for path in paths)):
            raise UserError(f"{where}.overlays.{name} must be a file or a list of files, got {paths!r}")
        for path in paths:
            read_file(f"{where}.overlays.{name}", path)
    return Overlays(_several(f"{where}.overlays", files))


def _several(where: str, named: dict[str, Any]) -> dict[str, Any]:
    if len(named) < 2:
        raise UserError(f"{where} must be at least two, got {list(named)}")
    return named


def _name(value: Any) -> str:
    """What a value that has no name is called: an object by its class."""
    if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
        return value["class_path"].rpartition(".")[2]
    return value if isinstance(value, str) else json.dumps(value)


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.lstrip("-").split(".")):
        value = {part: value}
    return value
