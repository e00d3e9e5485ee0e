"""Modules from checkpoints, without a trainer."""

import inspect
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import instantiate_module

from flowmatch_rl.checks import UserError
from flowmatch_rl.trust import check_object, in_file, reading_file

Module = TypeVar("Module", bound=LightningModule)


def build_module(kind: type[Module], checkpoint: Mapping[str, Any], path: str | Path) -> Module:
    """The module of a checkpoint, with its weights, on the CPU.

    Args:
        kind: Its class, or a base of it.
        checkpoint: What ``read_checkpoint`` returned.
        path: Path of the file, for errors.

    Raises:
        UntrustedNameError: If the checkpoint names a class that it may not name.
        UserError: If the checkpoint is not of this class.
    """
    try:
        with in_file(path), reading_file():
            module = _instantiate(kind, dict(checkpoint["hyper_parameters"]))
    except UserError:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a checkpoint of {kind.__name__}: {reason}") from error
    module.on_load_checkpoint(dict(checkpoint))
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit its {type(module).__name__}") from error
    return module


def _instantiate(kind: type[Module], arguments: dict[str, Any]) -> Module:
    # The command line leaves descriptions of objects and these two names; Python leaves the objects themselves.
    by_command = arguments.pop("_instantiator", None) is not None
    if not by_command:
        names = inspect.signature(kind).parameters
        return kind(**{name: value for name, value in arguments.items() if name in names})
    path = arguments.get("_class_path", f"{kind.__module__}.{kind.__qualname__}")
    check_object(kind, {"class_path": path, "dict_kwargs": {k: v for k, v in arguments.items() if k != "_class_path"}})
    return instantiate_module(kind, arguments)
