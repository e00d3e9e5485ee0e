"""What comparisons and laboratories have in common: entries with names, layers of files, and a folder to hold."""

import contextlib
import fcntl
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from flowmatch_rl.checks import RunError

Options = dict
"""Values by name, left as they are written: in a ``dict[str, Any]`` the parser makes objects of what names a class."""

_NAME = re.compile(r"[\w+=-][\w.+=-]*")


def check_names(kind: str, names: Iterable[Any]) -> None:
    """Raise unless there are names, and each can be that of a folder.

    Args:
        kind: What is named, such as ``methods``.
        names: Names as YAML read them.

    Raises:
        ValueError: If there is none, or one does not fit.
    """
    names = list(names)
    if not names:
        raise ValueError(f"{kind} must name at least one, got none")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{kind}: a name must be a word, got {name!r}; put it in quotes")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{kind}.{name!r}: a name is made of letters, digits and _ + = - .; it names a folder")


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise unless there are seeds, all different.

    Args:
        seeds: Seeds.

    Raises:
        ValueError: If there is none, one comes twice, or one is negative.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be different numbers of at least 0, got {list(seeds)}")


def read_layer(where: str, path: str) -> dict[str, Any]:
    """The content of a configuration file, empty if the file is.

    Args:
        where: Entry of the definition that names the file, for errors.
        path: Path of the file.

    Raises:
        ValueError: If there is no such file, or it does not hold sections.
    """
    if not Path(path).is_file():
        raise ValueError(f"{where}: there is no file {path} (from {Path.cwd()})")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: {path} is not YAML") from error
    if not isinstance(content, dict | None):
        raise ValueError(f"{where}: {path} must hold sections, such as model, got {content!r}")
    return content or {}


@contextlib.contextmanager
def only_one(output: Path) -> Iterator[None]:
    """Hold the folder of a comparison or laboratory; the lock goes with the process, however it ends.

    Args:
        output: The folder, which must exist.

    Raises:
        RunError: If another process holds it.
    """
    with (output / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another command works in {output}; wait until it ends, or choose another folder"
            ) from error
        yield
