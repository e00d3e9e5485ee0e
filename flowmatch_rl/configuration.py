"""What configuration files have in common, and what is wrong with one in a line."""

import re
from collections.abc import Mapping
from typing import Any

DIMENSIONS = ("observation_dim", "action_dim", "action_bounds", "embedding_dim", "schema", "bandit")
"""Arguments of models that data may give."""

_NOISE = re.compile(
    r"^(Subtypes|Errors|Given value|Does not validate|Expected a path but|Expected a <class 'NoneType'>|Got value"
    r"|Problem with)"
)


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
        r"Expected a <class 'list'>$(.*)^\s*Given value: ([^\n]+)",
        r"expected a list, such as [\2]\1",
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    text = re.sub(r"Expected a typing\.Literal\[(.+?)\]\. Got value: (.+)", r"got '\2', expected one of \1", text)
    text = re.sub(r"Option '([^']+)' is not accepted", r"unknown key '\1'", text)
    text = re.sub(
        r"(?:Subcommand '\w+' does not accept option|Key) '([^']+)'(?: is not expected)?", r"unknown key '\1'", text
    )
    text = re.sub(r"^unrecognized arguments: (.+)$", r"unknown option \1", text)
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
