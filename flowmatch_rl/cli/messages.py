"""What the command line prints about errors."""

import difflib
import re
import sys
from collections.abc import Iterable

_SECTIONS = ("model", "data", "trainer", "checkpoints", "video")


def print_error(message: str, code: int = 2) -> int:
    """Print an error.

    Args:
        message: What is wrong.
        code: Exit status.

    Returns:
        ``code``.
    """
    print(f"flowmatch-rl: error: {message}", file=sys.stderr)
    return code


def with_hint(message: str, names: Iterable[str]) -> str:
    """A message, with a second line if a known name is nearly the one that it complains about.

    Args:
        message: One line.
        names: Known keys, options, classes and commands; the words of a set that the message names go before them.
    """
    near = _nearest(message, names)
    return f"{message}\n  did you mean '{near}'?" if near else message


def _nearest(message: str, names: Iterable[str]) -> str | None:
    known = re.findall(r"'([^']+)'", message.partition("expected one of ")[2]) or sorted(set(names))
    received = re.search(r"'([^']+)'|unknown option -*(\S+)", message)
    if received is None or re.search(r"expected \w+, got ", message):  # a value that is no name
        return None
    words = (received[1] or received[2]).partition("=")[0].split(".")
    for word in words:
        # The first of several words is a section of the configuration.
        candidates = _SECTIONS if word == words[0] and len(words) > 1 else known
        near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.65)
        if near and near[0] != word:
            return near[0]
    return None
