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

_BY_COMMAND, _CLASS = "_instantiator", "_class_path"
"""Names that the command line leaves among the arguments."""


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
            _check_names(kind, checkpoint["hyper_parameters"])
            module = instantiate(kind, checkpoint["hyper_parameters"])
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


def instantiate(kind: type[Module], hyperparameters: Mapping[str, Any]) -> Module:
    """A module with the arguments that ``save_hyperparameters`` kept of another, and weights of its own.

    Args:
        kind: Its class, or a base of it where a command made the other.
        hyperparameters: What was kept.
    """
    arguments = dict(hyperparameters)
    # The command line leaves descriptions of objects and two names of its own; Python leaves the objects themselves.
    if arguments.pop(_BY_COMMAND, None) is not None:
        return instantiate_module(kind, arguments)
    names = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in arguments.items() if name in names})


def _check_names(kind: type[LightningModule], arguments: Mapping[str, Any]) -> None:
    """Raise if the arguments that a command left name a class that they may not name."""
    if arguments.get(_BY_COMMAND) is None:
        return
    path = arguments.get(_CLASS, f"{kind.__module__}.{kind.__qualname__}")
    described = {name: value for name, value in arguments.items() if name not in (_BY_COMMAND, _CLASS)}
    check_object(kind, {"class_path": path, "dict_kwargs": described})
