"""The checkpoint that a command names: the newest whole one of a run, or one by its path."""

import inspect
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from flowmatch_rl.checkpoints import damage, read_checkpoint
from flowmatch_rl.checks import UserError, first_names
from flowmatch_rl.trust import UntrustedNameError, find_class

LAST = "last"
"""Stands for the newest whole checkpoint of the run."""

_say = rank_zero_only(print)


def folder_of_run(section: Any, given: Sequence[str]) -> Path:
    """The folder of the run that a command continues.

    Args:
        section: The configuration of the command.
        given: Its arguments.

    Raises:
        UserError: If neither an option nor a configuration file names it.
    """
    if chosen := section["trainer"].get("default_root_dir"):
        return Path(chosen)
    files = [Path(word.removeprefix("--config=").removeprefix("-c=").removeprefix("-c")) for word in given]
    kept = [file.parent for file in files if file.name == "config.yaml" and (file.parent / "checkpoints").is_dir()]
    if not kept:
        raise UserError(
            f"--ckpt_path {LAST} needs the folder of the run: name it with --trainer.default_root_dir, or give the "
            "configuration that the run keeps in it, -c runs/<task>/<time>/config.yaml"
        )
    return kept[-1]


def last_checkpoint(folder: Path) -> Path | None:
    """``last.ckpt`` of a folder, or where it is damaged the newest checkpoint that is whole; None if there is none.

    Args:
        folder: Folder of the checkpoints.

    Raises:
        UserError: If there are checkpoints, none of which is whole.
    """
    found = _newest_first(folder)
    if not found:
        _say(f"starts afresh: there is no checkpoint in {folder}")
        return None
    for path in found:
        if not (problem := _unreadable(path)):
            return path
        _say(f"{problem}: tries the next older checkpoint")
    raise UserError(f"no checkpoint in {folder} is whole; delete them to start afresh")


def read_chosen(path: str, command: str, given: Sequence[str]) -> dict[str, Any]:
    """The content of the checkpoint that a command names, its tensors read as they are used.

    Args:
        path: Path of the checkpoint.
        command: Name of the command.
        given: Its arguments.

    Raises:
        UserError: If it is missing, damaged or of another program; with the command for the newest of its folder that
            is none of these, if there is one. If ``fit`` is to resume from a trained model alone.
    """
    try:
        if "://" not in path and Path(path).is_file() and (problem := damage(path)):
            raise UserError(problem)
        content = read_checkpoint(path, memory_map=True)
    except UntrustedNameError:
        raise
    except UserError as error:
        others = (other for other in _newest_first(Path(path).parent) if other != Path(path))
        whole = next((other for other in others if not _unreadable(other)), None)
        if whole is None:
            raise
        words = [str(whole) if word == path else word.replace(f"={path}", f"={whole}") for word in given]
        words += ["--ckpt_path", str(whole)] if words == list(given) else []
        raise UserError(f"{error}; the newest whole one: flowmatch-rl {shlex.join([command, *words])}") from error
    of_run = "_class_path" in content["hyper_parameters"]
    if command == "fit" and of_run and "optimizer_states" not in content:  # see slim_checkpoint
        raise UserError(f"{path} holds a trained model and nothing of its training, which fit needs to resume")
    return content


def check_arguments(class_path: str, names: Collection[str]) -> None:
    """Raise unless a model has the arguments that its checkpoint names.

    Args:
        class_path: Import path of the model's class.
        names: Names of the arguments.

    Raises:
        UserError: If it lacks one.
    """
    parameters = inspect.signature(find_class(class_path)).parameters
    unknown = [name for name in names if name not in parameters]
    if unknown and not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        kind = class_path.rpartition(".")[2]
        raise UserError(f"of another version of flowmatch-rl: {kind} has no argument {first_names(unknown)}")


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a folder, ``last.ckpt`` before all others."""
    found = folder.glob("*.ckpt")
    return sorted(found, key=lambda path: (path.name == "last.ckpt", path.stat().st_mtime), reverse=True)


def _unreadable(path: Path) -> str:
    """What is wrong with a checkpoint; empty if nothing."""
    if problem := damage(path):
        return problem
    try:
        arguments = read_checkpoint(path, memory_map=True)["hyper_parameters"]
        return "" if "_class_path" in arguments else f"{path} is not of a run of flowmatch-rl"
    except UntrustedNameError:
        return ""  # it is whole, and the user may allow what it names
    except UserError as error:
        return str(error)
