"""Configuration files: read, laid over each other, and what is wrong with one in a line."""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from flowmatch_rl.checks import UserError

DIMENSIONS = ("observation_dim", "action_dim", "action_bounds", "embedding_dim", "schema", "goal_schema", "bandit")
"""Arguments of models that data may give."""

Place = tuple[str, ...]
"""Keys that lead to a value, without ``init_args``."""

_TRANSPARENT = ("init_args", "dict_kwargs")

_NOISE = re.compile(
    r"^(Subtypes|Errors|Given value|Does not validate|Expected a path but|Expected a <class 'NoneType'>|Got value"
    r"|Problem with)"
)


def read_yaml(text: str, name: str) -> Any:
    """The content of a YAML text, each of whose mappings has different keys.

    YAML's own readers let the last of equal keys win without a word.

    Args:
        text: The text.
        name: Name of the file or option, for errors.

    Raises:
        UserError: If the text is not YAML, or a key is given twice.
    """
    try:
        _check_keys(yaml.compose(text, Loader=yaml.CSafeLoader))
        return get_loader("yaml")(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" near line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{name}: not YAML{place}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not YAML: {' '.join(str(error).split())}") from error


def read_overlay(path: str | Path) -> dict[str, Any]:
    """The content of a configuration file, empty if the file is.

    Args:
        path: Path of the file.

    Raises:
        UserError: If there is no such file, or it does not hold sections.
    """
    try:
        content = read_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = f"there is no file {path} (from {Path.cwd()})" if not Path(path).is_file() else f"{path}: {error}"
        raise UserError(reason) from error
    if not isinstance(content, dict | None):
        raise UserError(f"{path} must hold sections, such as model, got {content!r}")
    return content or {}


def import_class(path: str) -> Any:
    """What an import path names; None if there is no such thing.

    Args:
        path: A module and a name, with a dot between.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def same_class(first: str, second: str) -> bool:
    """Whether two names, paths or mere last parts of paths, mean the same class.

    Args:
        first: A name.
        second: Another name.
    """
    if first.rpartition(".")[2] != second.rpartition(".")[2]:
        return False
    if "." not in first or "." not in second or first == second:
        return True
    return import_class(first) is import_class(second)


def drop_replaced(
    overlays: Sequence[Any],
    find: Callable[[str], Any] = import_class,
    shared: Callable[[Any, Any], set[str]] = lambda before, after: set(),
) -> list[Any]:
    """Overlays without the arguments of classes that later overlays replace by another class.

    An object whose class changes starts from the defaults of its new class. Otherwise ``class_path: MixtureSource``
    would silently get the ``scale`` of the Gaussian source it replaces.

    Args:
        overlays: Contents of configuration files, or options as nested dictionaries, the last one on top.
        find: Class of a name; None if there is none.
        shared: Names of the arguments that an object keeps, by its old and its new class.

    Returns:
        The overlays, copied where they differ.
    """
    result: list[Any] = []
    for overlay in overlays:
        for place, name, stated in sorted(classes_of(overlay), key=lambda found: len(found[0])):
            known = _class_at(result, place, find)
            has_arguments = any(isinstance(_node(earlier, place), dict) for earlier in result)
            if known and (stated or has_arguments) and not same_class(known, name):
                kept = shared(find(known), find(name))
                result = [_replace(earlier, place, name, kept) for earlier in result]
        result.append(overlay)
    return result


def lay_over(below: Any, above: Any) -> Any:
    """Two overlays as one, of which the second is on top.

    Args:
        below: Content of a configuration file, or a part of it, without arguments of classes that the other replaces:
            see ``drop_replaced``.
        above: The other.
    """
    if isinstance(below, str) and isinstance(above, dict):
        below = {"class_path": below}  # a word that arguments are given to is the name of a class
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if any(key in side for side in (below, above) for key in ("class_path", *_TRANSPARENT)):
        below, above = _with_arguments(below), _with_arguments(above)
    shared = {key: lay_over(below[key], value) if key in below else value for key, value in above.items()}
    return {**below, **shared}


def _with_arguments(node: dict[str, Any]) -> dict[str, Any]:
    """An object whose arguments are ``init_args``, which a file may leave out."""
    own = {key: value for key, value in node.items() if key in ("class_path", *_TRANSPARENT)}
    loose = {key: value for key, value in node.items() if key not in own}
    return own | {"init_args": {**own.get("init_args", {}), **loose}} if loose else own


def classes_of(node: Any, place: Place = ()) -> Iterator[tuple[Place, str, bool]]:
    """Classes that an overlay may name: places, names, and whether it is sure, since a word may be any other value.

    Args:
        node: The overlay, or a part of it.
        place: Place of the part.
    """
    if isinstance(node, str) and place:
        yield place, node, False
    if not isinstance(node, dict):
        return
    if isinstance(node.get("class_path"), str):
        yield place, node["class_path"], True
    for key, value in node.items():
        if key != "class_path":
            yield from classes_of(value, place if key in _TRANSPARENT else (*place, str(key)))


def _class_at(overlays: Sequence[Any], place: Place, find: Callable[[str], Any]) -> str | None:
    """Name of the class of an object: the last that an overlay names, or that of the default of what it belongs to."""
    named = [name for overlay in overlays for where, name, _ in classes_of(overlay) if where == place]
    if named or not place:
        return named[-1] if named else None
    owner = _class_at(overlays, place[:-1], find)
    kind = find(owner) if owner else None
    default = _default(kind, place[-1]) if inspect.isclass(kind) else None
    if default is None or type(default).__module__ == "builtins":  # a dictionary or a number is no object of a class
        return None
    return f"{type(default).__module__}.{type(default).__qualname__}"


def _default(kind: type, argument: str) -> Any:
    """Default of a constructor's argument; None if it has none."""
    parameter = inspect.signature(kind).parameters.get(argument)
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return None
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if field.name == argument and field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    return parameter.default


def _node(node: Any, place: Place) -> Any:
    """What an overlay has at a place; None if nothing."""
    if not place or not isinstance(node, dict):
        return None if place else node
    return _node(node[place[0]], place[1:]) if place[0] in node else _node(node.get("init_args"), place)


def _replace(node: Any, place: Place, name: str, kept: set[str]) -> Any:
    """An overlay whose object at a place is of another class, and has no arguments but some."""
    if not isinstance(node, dict):
        return node if place else name
    if place:
        key, rest = place[0], place[1:]
        inner = {k: _replace(v, place, name, kept) for k, v in node.items() if k == "init_args"}
        return {k: _replace(v, rest, name, kept) if k == key else inner.get(k, v) for k, v in node.items()}
    arguments = node.get("init_args", {k: v for k, v in node.items() if k not in ("class_path", "dict_kwargs")})
    left = {k: v for k, v in arguments.items() if k in kept}
    if "class_path" in node:
        return {"class_path": name} | ({"init_args": left} if left else {})
    return {"init_args": left} if "init_args" in node else left


def _check_keys(node: yaml.Node | None) -> None:
    """Raise if a mapping has a key twice."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is given twice", node.start_mark)
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in child if isinstance(child, tuple) else (child,):
            _check_keys(part)


def shorten(message: str) -> str:
    """Reduce a message of the parser to one line: where, and what is wrong.

    Args:
        message: What jsonargparse says, often several lines with every alternative it tried.
    """
    message = re.sub(r"^Call to compute_fn of link .*\) failed: ", "", message, flags=re.DOTALL)
    message = re.sub(
        r"^Error\(s\) in loading state_dict for (\w+):\s*", r"the checkpoint does not fit this \1: ", message
    )
    keys = re.findall(r'Parser key "([^"]+)"', message)
    text = re.sub(r'Parser key "[^"]+":', "", message)
    text = re.sub(r"Expected a dot import path string: (\S+)", r"unknown class '\1'", text)
    text = re.sub(r"Expected a <class '([\w.]+)'>\. Got value: (.+)", r"expected \1, got '\2'", text)
    text = re.sub(
        r"Expected a <class 'list'>$(.*?)^\s*Given value: ([^\n]+)",
        r"expected a list, such as [\2]\1",
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    text = re.sub(
        r"Expected a <class '(bool|float|int|str)'>$(.*?)^\s*Given value: ([^\n]+)",
        r"expected \1, got '\3'\2",
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    text = re.sub(r"Expected a typing\.Literal\[(.+?)\]\. Got value: (.+)", r"got '\2', expected one of \1", text)
    text = re.sub(r"Option '([^']+)' is not accepted", r"unknown key '\1'", text)
    text = re.sub(
        r"(?:Subcommand '\w+' does not accept option|Key) '([^']+)'(?: is not expected)?", r"unknown key '\1'", text
    )
    text = re.sub(r"^\s*unrecognized arguments: (.+)$", r"unknown option \1", text, flags=re.MULTILINE)
    places = re.findall(r"line (\d+), column (\d+)", text)
    if "Problems parsing config" in text and places:
        problem = re.sub(r"\s*\n\s*(in \"[^\n]*)?", "; ", text.partition(": ")[2]).strip("; ")
        text = f"not YAML near line {places[-1][0]}, column {places[-1][1]}: {problem}"
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    kept = [line for line in lines if line and not _NOISE.match(line)]
    reason = kept[0] if kept else " ".join(lines)
    return f"{'.'.join(keys)}: {reason}" if keys and keys[-1] not in reason else reason


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of a configuration by name, dots between levels; sections that hold nothing have none.

    Args:
        tree: Values by name, some of them such trees.
        prefix: What stands before each name.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
