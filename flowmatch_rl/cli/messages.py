"""What the command line prints about errors."""

import difflib
import re
import sys
from collections.abc import Iterable

from flowmatch_rl.redaction import redact

_TRAINED = "-c runs/<task>/<time>/config.yaml --ckpt_path runs/<task>/<time>/checkpoints/last.ckpt"

EXAMPLES = {
    "fit": "-c conf/flow/two_moons.yaml",
    "validate": _TRAINED,
    "test": _TRAINED,
    "predict": _TRAINED,
    "convert": "--layout D4rlFile --layout.path hopper.hdf5 --output data/hopper",
    "collect": "-c conf/collect/maze.yaml --output data/maze",
    "export": "--ckpt_path runs/<task>/<time>/checkpoints/last.ckpt --output policy.onnx",
    "compare": "-c conf/comparison/pendulum.yaml --output runs/pendulum",
    "sweep": "-c conf/sweep/pendulum.yaml --output runs/sweeps/pendulum",
    "report": "runs",
    "deliver": "runs/<task>/<time>",
}
"""Arguments to begin with, of the commands that need some."""

_OTHER_NAMES = {
    "train": "fit",
    "run": "fit",
    "resume": "fit",
    "learn": "fit",
    "eval": "test",
    "evaluate": "test",
    "sample": "predict",
    "generate": "predict",
    "record": "collect",
    "onnx": "export",
    "deploy": "export",
    "import": "convert",
    "tune": "sweep",
    "optuna": "sweep",
    "optimize": "sweep",
    "search": "sweep",
    "benchmark": "compare",
    "plot": "report",
    "mlflow": "ui",
    "show": "ui",
}
"""What other programs call the commands."""

_SECTIONS = ("model", "data", "trainer", "checkpoints", "video")


def print_error(message: str, code: int = 2) -> int:
    """Print an error.

    Args:
        message: What is wrong.
        code: Exit status.

    Returns:
        ``code``.
    """
    print(f"flowmatch-rl: error: {redact(message)}", file=sys.stderr)
    return code


def with_hint(message: str, names: Iterable[str]) -> str:
    """A message, with a second line if a known name is nearly the one that it complains about.

    Args:
        message: One line.
        names: Known keys, options, classes and commands; the words of a set that the message names go before them.
    """
    near = _nearest(message, names)
    return f"{message}\n  did you mean '{near}'?" if near else message


def what_is_missing(message: str, program: str) -> str | None:
    """What a command needs beside what it was given, and how to begin; None if a message is about something else.

    Args:
        message: What the parser says.
        program: Name of the parser.
    """
    found = re.search("the following arguments are required: (.+)", message)
    if found is None:
        return None
    names = found[1]
    if keys := re.findall(r'Parser key "([^"]+)"', message):  # an object in a configuration
        (*_, kind) = re.findall(r"given class_path '([^']+)'", message[: found.start()]) or ["it"]
        return f"{'.'.join(keys)}: {kind.rpartition('.')[2]} needs {names}"
    needed = [name.strip().rpartition(".")[2] for name in names.split(",")]
    command = names.partition(".")[0] if "." in names else program.split()[-1]
    begin = f"; begin with: flowmatch-rl {command} {EXAMPLES[command]}" if command in EXAMPLES else ""
    return (
        f"{command} needs {' and '.join([', '.join(needed[:-1]), needed[-1]] if needed[1:] else needed)}{begin}\n"
        f"  options: flowmatch-rl {command} --help"
    )


def unknown_command(name: str, commands: Iterable[str]) -> str:
    """An unknown command, those that there are, and the one that is probably meant.

    Args:
        name: What was given; empty if nothing.
        commands: Names of the commands.
    """
    problem = f"unknown command '{name}'" if name else "no command"
    message = f"{problem}, expected one of {', '.join(commands)}"
    meant = _OTHER_NAMES.get(name)
    message = f"{message}\n  did you mean '{meant}'?" if meant else with_hint(message, commands)
    known = meant or _nearest(message, commands)
    return message if known else f"{message}\n  what they do: flowmatch-rl --help"


def _nearest(message: str, names: Iterable[str]) -> str | None:
    known = re.findall(r"'([^']+)'", message.partition("expected one of ")[2]) or sorted(set(names))
    received = re.search(r"'([^']+)'|unknown option -*(\S+)", message)
    if received is None or re.search(r"expected \w+, got ", message):  # a value that is no name
        return None
    if "unknown class" in message:
        known = [name for name in known if name[:1].isupper()]
    words = (received[1] or received[2]).partition("=")[0].split(".")
    for word in words:
        # The first of several words is a section of the configuration.
        candidates = _SECTIONS if word == words[0] and len(words) > 1 else known
        near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.65)
        if near and near[0] != word:
            return near[0]
    return None
