"""The parser of the commands: errors in a line, and what a user gave turned into objects."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # pyright: ignore[reportPrivateImportUsage]

from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.messages import what_is_missing, with_hint
from flowmatch_rl.configuration import classes_of, same_class, shorten

ALLOW_IMPORTS = (
    "Packages whose classes and functions a checkpoint, or a run's folder, may name, as a list such as [mine]."
)
"""Help of the option that lets files name what is imported."""


class CommandParser(ArgumentParser):
    """The parser of the commands.

    It differs from its base in three things. Errors take one line, with a hint where a name is nearly right. And an
    object whose class is changed starts from the defaults of its new class: the base would keep the arguments that
    both classes know, so that another schedule would silently get the ``sigma_min`` of the default one. A null may be
    given to an argument of an object inside an object.

    Attributes:
        known_names: Names beside those of its own options that hints are made from.
        overlays: What is about to be parsed, as nested dictionaries.
    """

    known_names: frozenset[str] = frozenset()
    overlays: Sequence[Any] = ()

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        """Defaults, without the arguments of classes that are replaced."""
        return _forget_replaced(super().get_defaults(*args, **kwargs), self.overlays)

    def parse_args(self, args: Any = None, *others: Any, **kwargs: Any) -> Namespace:
        """Parse arguments; the parsers inside this one get a null as the word that Python writes for it."""
        if args is not None and not self.exit_on_error:
            args = [re.sub(r"^(--[\w.]+=)None$", r"\1null", word) for word in args]
        return super().parse_args(args, *others, **kwargs)

    def parse_object(self, obj: Any, namespace: Namespace | None = None, *args: Any, **kwargs: Any) -> Namespace:
        """Parse on top of a configuration, without the arguments of classes that are replaced."""
        outer, self.overlays = self.overlays, [obj.as_dict() if isinstance(obj, Namespace) else obj]
        try:
            below = _forget_replaced(namespace, self.overlays) if namespace else namespace
            return super().parse_object(obj, below, *args, **kwargs)
        finally:
            self.overlays = outer

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error; those of the parsers inside this one are put together by it."""
        if not self.exit_on_error:
            super().error(message, ex)
        if missing := what_is_missing(message, self.prog):
            raise UserError(missing) from ex
        options = re.findall(r"--([\w.]+)", self.format_help())
        leaves = {option.rpartition(".")[2] for option in options}
        raise UserError(with_hint(shorten(message), self.known_names.union(options, leaves))) from ex


def make_parser(command: str, description: str, with_files: bool = True) -> CommandParser:
    """The parser of a command.

    Args:
        command: Its name.
        description: What it does.
        with_files: Whether options may come from configuration files.
    """
    # Without abbreviations: a misspelt option must not pass for another.
    parser = CommandParser(prog=f"flowmatch-rl {command}", description=description, allow_abbrev=False)
    if with_files:
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with options; may be repeated.")
    return parser


def read_options(parser: CommandParser, args: Sequence[str], overlays: Sequence[Any] = ()) -> dict[str, Any]:
    """Values of the options by name, classes instantiated.

    Args:
        parser: Parser of the command.
        args: Arguments.
        overlays: What they state, as nested dictionaries.

    Raises:
        UserError: If an argument does not fit.
    """
    parser.overlays = overlays
    with user_errors():
        options: Any = parser.instantiate_classes(parser.parse_args(list(args)))
    return {name: value for name, value in vars(options).items() if name != "config"}


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors that come from what the user gave into ``UserError``, in a ``with`` block.

    Args:
        *kinds: Kinds of errors beside ``ValueError`` and ``OSError``.

    Raises:
        UserError: In place of one of these.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, *kinds) as error:
        raise UserError(shorten(str(error))) from error


def _forget_replaced(config: Namespace, overlays: Sequence[Any]) -> Namespace:
    """A configuration whose objects have no arguments where overlays name another class."""
    config = config.clone()
    for overlay in overlays:
        for place, name, _ in classes_of(overlay):
            spec: Any = config
            for key in place:
                arguments = spec.get("init_args", spec) if isinstance(spec, Namespace) else Namespace()
                spec = arguments.get(key) if isinstance(arguments, Namespace) else None
            if isinstance(spec, Namespace) and "class_path" in spec and not same_class(spec["class_path"], name):
                spec.pop("init_args", None)
    return config
