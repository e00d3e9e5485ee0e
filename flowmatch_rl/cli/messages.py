"""Errors of the command line in three lines at most."""

import difflib
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, _loaders_dumpers, _typehints
from jsonargparse._util import import_object
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from flowmatch_rl.configuration import shorten

_SECTIONS = ("model", "data", "trainer", "checkpoints", "video")


def suggestion(message: str, names: Iterable[str]) -> str | None:
    """A known name that is nearly the name a message complains about, or None.

    Args:
        message: One line.
        names: Known keys, options, classes and commands; the words of a set that the message names go before them.
    """
    known = re.findall(r"'([^']+)'", message.partition("expected one of ")[2]) or sorted(set(names))
    received = re.search(r"'([^']+)'|unknown option -*(\S+)", message)
    if received is None:
        return None
    words = (received[1] or received[2]).partition("=")[0].split(".")
    for word in words:
        # The first of several words is a section of the configuration.
        candidates = _SECTIONS if word == words[0] and len(words) > 1 else known
        near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.65)
        if near and near[0] != word:
            return near[0]
    return None


def report(message: str, hint: str | None = None, code: int = 2) -> int:
    """Print an error of at most three lines.

    Args:
        message: What is wrong, one line.
        hint: A name that may have been meant.
        code: Exit status.

    Returns:
        ``code``.
    """
    print(f"flowmatch-rl: error: {message}", file=sys.stderr)
    if hint:
        print(f"  did you mean '{hint}'?", file=sys.stderr)
    return code


def _forget_arguments_of_another_class(parser: object, previous: Any, value: Any) -> None:
    """Let an object whose class changes start from the defaults of its new class.

    jsonargparse keeps the arguments that both classes know: ``class_path: MixtureSource`` would silently get the
    ``scale`` of the Gaussian it replaces. Models of one family keep them: a task's discount outlives the choice of a
    method.
    """
    if previous and "init_args" in previous and previous["class_path"] != value["class_path"]:
        shared = _shared_arguments(import_object(previous["class_path"]), import_object(value["class_path"]))
        given = vars(previous["init_args"])
        previous["init_args"] = Namespace(**{name: argument for name, argument in given.items() if name in shared})


def _shared_arguments(before: Any, after: Any) -> set[str]:
    """Arguments that two models of one family share, by name and type; none for anything else.

    A family is what inherits from one model. Recipes, such as sources, give the same name to different things.
    """
    models = [base for base in before.__mro__ if issubclass(base, LightningModule) and base is not LightningModule]
    if not any(issubclass(after, base) for base in models):
        return set()
    old, new = (inspect.signature(kind).parameters for kind in (before, after))
    return {name for name in old.keys() & new.keys() if old[name].annotation == new[name].annotation}


_typehints.discard_init_args_on_class_path_change = _forget_arguments_of_another_class


_YAML = _loaders_dumpers.get_yaml_default_loader()


def _each_key_once(loader: Any, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping whose keys are different; YAML's readers let the last of equal keys win without a word."""
    keys = [key.value for key, _ in node.value]
    if twice := [key for place, key in enumerate(keys) if key in keys[:place]]:
        raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is given twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_YAML.add_constructor("tag:yaml.org,2002:map", _each_key_once)


class Parser(LightningArgumentParser):
    """The parser of every command, with short errors.

    Its class attributes hold the names that suggestions are made from, and the arguments of the process.
    """

    known_names: frozenset[str] = frozenset()
    arguments: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Without abbreviations: a misspelt option must not pass for another.
        super().__init__(*args, **{"prog": "flowmatch-rl", "allow_abbrev": False} | kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and exit with status 2."""
        short = shorten(message)
        if short.startswith("not YAML"):
            sys.exit(report(f"{_broken_file(self.arguments)}: {short}"))
        options = {option.lstrip("-") for action in self._actions for option in action.option_strings}
        leaves = {option.rpartition(".")[2] for option in options}
        sys.exit(report(short, suggestion(short, self.known_names | leaves)))


def _broken_file(arguments: Iterable[str]) -> str:
    """The first configuration file among the arguments that is not YAML."""
    for argument in arguments:
        path = Path(argument.removeprefix("--config=").removeprefix("-c=").removeprefix("-c"))
        if path.suffix in (".yaml", ".yml") and path.is_file():
            try:
                yaml.load(path.read_text(), Loader=_YAML)
            except yaml.YAMLError:
                return str(path)
    return "config"
