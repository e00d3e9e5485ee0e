"""Which classes and functions a file may name: to import a module is to run it.

What users write themselves, in Python, in options and in configuration files that they pass, may name anything. What
a checkpoint or the folder of a run names is limited to

- this package's dataclasses and networks, networks of ``torch.nn`` and optimizers of ``torch.optim``;
- dataclasses and networks that derive from this package's, and functions of the user's own modules, where their module
  has been imported already;
- whatever comes from packages that the user has allowed.
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import operator
import site
import sys
import sysconfig
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from flowmatch_rl.checks import UserError

_PACKAGE = "flowmatch_rl"
_TRUSTED = (_PACKAGE, "torch.nn", "torch.optim")
_PLAIN = (str, int, float, bool, complex, bytes, types.NoneType)

_allowed: set[str] = set()
_named_functions: dict[str, Callable[..., Any]] = {}
_reading: ContextVar[bool] = ContextVar("reading", default=False)


class UntrustedNameError(UserError):
    """A file names a class or function that it may not name."""


def allow_imports(packages: Collection[str]) -> None:
    """Let files name what comes from some packages, for the rest of the process.

    Args:
        packages: Packages or modules that the user trusts, with dots between levels.

    Raises:
        UserError: If one is not such a name.
    """
    for package in [packages] if isinstance(packages, str) else packages:
        if not all(part.isidentifier() for part in package.split(".")):
            raise UserError(f"allow_imports must name packages, such as my_package, got {package!r}")
        _allowed.add(package)


@contextlib.contextmanager
def reading_file() -> Iterator[None]:
    """Objects made in this ``with`` block are described by a file: they import nothing that it may not name."""
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


@contextlib.contextmanager
def in_file(path: str | Path | None) -> Iterator[None]:
    """Name the file in errors about what it says.

    Args:
        path: The file.

    Raises:
        UserError: In place of one that does not name it, and of its kind.
    """
    try:
        yield
    except UntrustedNameError as error:
        raise UntrustedNameError(f"{path}: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def find_function(name: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names.

    A name that the user has not given may only be that of a function of the user's own modules, imported before, or of
    an allowed package.

    Args:
        name: The name.

    Raises:
        UserError: If it is not of this form, or there is no such function.
        UntrustedNameError: If its module may not be imported.
    """
    if name in _named_functions:
        return _named_functions[name]
    module, attribute = _split_function(name)
    if not _is_under(module, _allowed):
        loaded = sys.modules.get(module)
        found = getattr(loaded, attribute, None)
        if loaded is None or not _is_own(loaded) or not _is_own(sys.modules.get(getattr(found, "__module__", ""))):
            raise UntrustedNameError(_refusal("function", name, module))
    return _import_function(module, attribute)


def name_function(name: str) -> None:
    """Import a function that the user has named; do nothing where a file names it.

    Args:
        name: The function as ``package.module:function``.

    Raises:
        UserError: If it is not of this form, or cannot be imported.
    """
    module, attribute = _split_function(name)
    if not _reading.get():
        _named_functions[name] = _import_function(module, attribute)


def name_functions(configuration: Any) -> None:
    """Import the functions that a user's configuration names, each as the argument ``function`` of an object.

    Args:
        configuration: Nested mappings and lists.

    Raises:
        UserError: If one cannot be imported.
    """
    if isinstance(configuration, Mapping):
        arguments = configuration.get("init_args")
        name = arguments.get("function") if isinstance(arguments, Mapping) and "class_path" in configuration else None
        if isinstance(name, str) and ":" in name:
            name_function(name)
    for value in configuration.values() if isinstance(configuration, Mapping) else configuration:
        if isinstance(value, Mapping | list):
            name_functions(value)


def find_class(path: str) -> type:
    """The class that a file names, if it may.

    Args:
        path: Its import path.

    Raises:
        UntrustedNameError: If it may not name it.
        UserError: If there is no such class.
    """
    module, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")) or not module:
        raise UserError(f"expected the import path of a class, got {path!r}")
    if _is_under(module, (*_TRUSTED, *_allowed)):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise UserError(f"the class {path!r} cannot be imported: {error}") from error
        if not inspect.isclass(found):
            raise UserError(f"there is no class {path!r}")
    else:
        found = getattr(sys.modules.get(module), name, None)
    if not (inspect.isclass(found) and (_is_under(found.__module__, _allowed) or _is_recipe(found))):
        raise UntrustedNameError(_refusal("class", path, module))
    return found


def check_object(kind: Any, described: Any) -> None:
    """Raise unless all that the description of an object names may be named by a file; nothing else is imported.

    Args:
        kind: Type that the object is to be of.
        described: What a file says: a mapping of ``class_path``, ``init_args`` and ``dict_kwargs``, the arguments of a
            dataclass, or a value.

    Raises:
        UntrustedNameError: If a class may not be named.
        UserError: If a class does not exist, or a word or mapping stands where only a class may stand.
    """
    if isinstance(described, Mapping):
        _check_mapping(kind, described)
    elif isinstance(described, str):
        _check_word(kind, described)
    elif isinstance(described, list | tuple | set):
        inner = _elements(kind)
        for value in described:
            check_object(inner, value)


def _check_mapping(kind: Any, described: Mapping[Any, Any]) -> None:
    if "class_path" in described:
        if not isinstance(described["class_path"], str) or described.keys() - {
            "class_path",
            "init_args",
            "dict_kwargs",
        }:
            raise UserError(f"expected class_path and init_args of an object, got {described}")
        arguments = [described.get(part) or {} for part in ("init_args", "dict_kwargs")]
        hints = _hints(find_class(described["class_path"]))
    elif described.keys() & {"init_args", "dict_kwargs"}:
        raise UserError(f"expected the class_path of an object, got {described}")
    else:
        kinds = [part for part in _alternatives(kind) if inspect.isclass(part) and not _is_plain(part)]
        hints, arguments = None, [described]
        if len(kinds) == 1 and dataclasses.is_dataclass(kinds[0]):
            hints = _hints(kinds[0])
    for given in arguments:
        if not isinstance(given, Mapping):
            raise UserError(f"expected arguments by name, got {given!r}")
        for name, value in given.items():
            check_object(_elements(kind) if hints is None else hints.get(name, inspect.Parameter.empty), value)


def _check_word(kind: Any, word: str) -> None:
    """Raise if the parser would take a word for an object, or for a file that describes one."""
    if all(map(_is_plain, _alternatives(kind))):
        return
    if kind is Any:
        with contextlib.suppress(yaml.YAMLError):
            if isinstance(yaml.safe_load(word), dict | list):
                raise UserError(f"expected a word, got the mapping or list {word!r}")
        return
    is_module = types.ModuleType in _alternatives(kind)
    if is_module or not word.isidentifier() or Path(word).exists():
        raise UserError(f"expected an object with its class_path, got {word!r}")


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _is_plain(kind: Any) -> bool:
    """Whether values of a type are numbers, words, paths, or collections of such."""
    origin = typing.get_origin(kind)
    if origin is None:
        return inspect.isclass(kind) and (kind in _PLAIN or issubclass(kind, Path | Enum))
    arguments = [argument for argument in typing.get_args(kind) if argument is not Ellipsis]
    is_collection = inspect.isclass(origin) and issubclass(origin, Collection)
    return origin is Literal or (is_collection and all(map(_is_plain, arguments)))


def _elements(kind: Any) -> Any:
    """Type of the elements of a collection, or of the values of a mapping."""
    found: list[Any] = []
    for part in _alternatives(kind):
        origin = typing.get_origin(part)
        if part is Any or part in (dict, list, tuple, set):
            found.append(Any)
        elif inspect.isclass(origin) and issubclass(origin, Collection):
            arguments = [argument for argument in typing.get_args(part) if argument is not Ellipsis]
            found += arguments[1:] if issubclass(origin, Mapping) else arguments
    return functools.reduce(operator.or_, found) if found else inspect.Parameter.empty


def _hints(kind: type) -> dict[str, Any]:
    """Types of a class's arguments by name, those included that it passes on to its bases."""
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if inspect.isfunction(constructor := vars(base).get("__init__")):
            for name, parameter in inspect.signature(constructor).parameters.items():
                hints[name] = Any if parameter.annotation is inspect.Parameter.empty else inspect.Parameter.empty
            with contextlib.suppress(NameError, TypeError):
                hints |= typing.get_type_hints(constructor)
    return hints


def _is_recipe(kind: type) -> bool:
    """Whether a class is a dataclass or network that is of this package or derives from one, or is one of PyTorch's.

    Others of this package's classes do what a file must not: they start processes and write files.
    """
    if _is_under(kind.__module__, ("torch.nn", "torch.optim")):
        return issubclass(kind, torch.nn.Module | torch.optim.Optimizer)
    made = dataclasses.is_dataclass(kind) or issubclass(kind, torch.nn.Module)
    return made and any(_is_under(base.__module__, (_PACKAGE, "lightning.pytorch.core")) for base in kind.__mro__)


def _is_under(module: str, packages: Collection[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _is_own(module: types.ModuleType | None) -> bool:
    """Whether a module is the user's own: neither of Python, nor installed with it, nor of this package."""
    if module is None or module.__name__ == "__main__":
        return module is not None
    file = getattr(module, "__file__", None)
    paths = sysconfig.get_paths()
    installed = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parent)]
    return file is not None and not any(Path(file).is_relative_to(folder) for folder in installed)


def _split_function(name: str) -> tuple[str, str]:
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise UserError(f"function must be written as package.module:function, got {name!r}")
    return module, function


def _import_function(module: str, function: str) -> Callable[..., Any]:
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise UserError(f"the module of the function '{module}:{function}' cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"the module {module!r} has no function {function!r}, named by '{module}:{function}'")
    return found


def _refusal(kind: str, name: str, module: str) -> str:
    return (
        f"the file names the {kind} {name!r}, which could do anything; "
        f"if you trust {module or name}, import it first or allow it: allow in Python, --allow_imports"
    )
