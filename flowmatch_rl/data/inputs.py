"""What a run takes its data from, for its record: data sets, tables and environments, with a digest of each."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowmatch_rl.data.transitions.checksums import CHECKSUMS_FILE
from flowmatch_rl.data.transitions.store import INFO_FILE, TransitionStore
from flowmatch_rl.envs.environments import Environment

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_DIGITS = 32  # of a SHA-256; MLflow takes 36 characters at most


@dataclass(frozen=True)
class DataInput:
    """One thing that data come from.

    Attributes:
        name: Short name, such as the label of an environment.
        source: Absolute path of a file or folder, or a recipe in words.
        digest: Digest of the content of a file, or of the recipe, hexadecimal.
        columns: Names of its columns of numbers, or of the entries of an observation; empty if they are not known.
        rows: Number of rows or transitions; of an environment, the steps that the run takes; None if there is none.
        is_file: Whether ``source`` is a path.
        context: What it is for.
    """

    name: str
    source: str
    digest: str
    columns: tuple[str, ...] = ()
    rows: int | None = None
    is_file: bool = False
    context: Literal["training", "evaluation"] = "training"


def recipe_input(name: str, recipe: object, columns: Sequence[str] = (), **others: Any) -> DataInput:
    """Data that a run makes itself, by an environment or a density.

    Args:
        name: Its short name.
        recipe: What makes it; its text is taken for what it is.
        columns: Names of its columns.
        **others: Other attributes.
    """
    text = _ADDRESS.sub("", repr(recipe))
    return DataInput(name, text, _digest(text.encode()), tuple(columns), **others)


def store_input(store: TransitionStore) -> DataInput:
    """A data set of transitions; its digest is that of the checksums of its rows, or of its description without them.

    The description holds the date: the same rows, made again, have the same digest.

    Args:
        store: The data set.
    """
    sums = store.path / CHECKSUMS_FILE
    content = (sums if sums.is_file() else store.path / INFO_FILE).read_bytes()
    if sums.is_file():
        content = b"".join(line for line in content.splitlines(True) if not line.endswith(f"  {INFO_FILE}\n".encode()))
    path = store.path.absolute()
    return DataInput(path.name, str(path), _digest(content), store.info.columns, len(store), is_file=True)


def stored_inputs(
    store: TransitionStore, environment: Environment | None, env_steps: int | None = None
) -> list[DataInput]:
    """A data set of transitions, and the environment that its policy acts in, if there is one.

    Args:
        store: The data set.
        environment: The environment.
        env_steps: Steps of training in it; None for evaluations alone.
    """
    if environment is None:
        return [store_input(store)]
    context = "evaluation" if env_steps is None else "training"
    acts = recipe_input(environment.label, environment, store.info.columns, rows=env_steps, context=context)
    return [store_input(store), acts]


def table_input(name: str, path: Path, columns: Sequence[str], rows: int) -> DataInput:
    """A table in a file, which is read once more for its digest, or in a folder of files.

    Args:
        name: Its short name.
        path: The file or folder.
        columns: Names of the columns that are used.
        rows: Number of rows that are used.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return DataInput(name, str(path.absolute()), whole.hexdigest()[:_DIGITS], tuple(columns), rows, is_file=True)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
