"""Checkpoints are read here and nowhere else: from files, never from addresses, and without running what they hold."""

import io
import pickle
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from flowmatch_rl.checks import MissingFileError, UserError
from flowmatch_rl.trust import find_class, in_file, reading_file
from flowmatch_rl.zoo import checkpoint_path

PARTS = ("hyper_parameters", "state_dict")
"""What the checkpoint of a module with arguments holds."""

_ARCHIVE = b"PK\x03\x04"
"""How a checkpoint begins: it is an archive."""


def read_checkpoint(
    path: str | Path, device: Any = "cpu", memory_map: bool = False, parts: Collection[str] = PARTS
) -> dict[str, Any]:
    """The content of a checkpoint.

    Args:
        path: Path of the file, or ``zoo:NAME`` for a trained model of the package.
        device: Where its tensors go, as ``map_location`` of ``torch.load``.
        memory_map: Whether its tensors are read as they are used: it may hold a large replay buffer.
        parts: What it must hold.

    Raises:
        MissingFileError: If there is no such file.
        UntrustedNameError: If it names a class that it may not name.
        UserError: If the path is an address, or the file is not a checkpoint.
    """
    if "://" in str(path):
        raise UserError(f"{path} is an address; download the checkpoint and give the path of the file")
    path = checkpoint_path(path)
    if Path(path).is_dir():
        raise MissingFileError(f"{str(path)!r} is a folder, expected the path of a checkpoint, such as last.ckpt")
    if not Path(path).is_file():
        raise MissingFileError(f"there is no checkpoint {path}")
    # Where all of a file is read, to look at its checksums costs little more.
    if not memory_map and (problem := damage(path)):
        raise UserError(problem)
    try:
        with in_file(path), reading_file(), torch.serialization.safe_globals(_own_classes(path)):
            content = torch.load(path, map_location=device, weights_only=True, mmap=memory_map)
        lacking = [part for part in parts if part not in content]
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint of flowmatch-rl, or was changed: its content is refused"
        ) from error
    except Exception as error:  # a damaged file may raise anything
        raise UserError(damage(path) or f"{path} is not a checkpoint of flowmatch-rl") from error
    if lacking:
        raise UserError(f"{path} is not a checkpoint of flowmatch-rl: it holds no {lacking[0]}")
    _rename(content.get("hyper_parameters", {}))
    return content


def pack_state(state: dict[str, Any]) -> bytes:
    """A state as a checkpoint may hold it, to be sent to another process."""
    packed = io.BytesIO()
    torch.save(state, packed)
    return packed.getvalue()


def unpack_state(state: bytes) -> dict[str, Any]:
    """The state that another process has packed, see ``pack_state``."""
    return torch.load(io.BytesIO(state), weights_only=True)


def damage(path: str | Path) -> str:
    """What is wrong with a file that was a checkpoint when it was written; empty if it is whole, or never was one.

    PyTorch reads a file without a look at the checksums in it.

    Args:
        path: Path of the file.
    """
    with Path(path).open("rb") as file:
        if file.read(len(_ARCHIVE)) != _ARCHIVE:
            return "" if file.seek(0, 2) else f"{path} is damaged: it is empty"
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except (zipfile.BadZipFile, EOFError):
        return f"{path} is damaged: a part of it is missing"
    return "" if changed is None else f"{path} is damaged: it is not what was written"


def _rename(arguments: dict[str, Any]) -> None:
    """Give arguments that a run of version 0.2.0 wrote their present names."""
    if "_instantiator" in arguments and "num_steps" in arguments:
        steps = {"num_steps": arguments.pop("num_steps")}
        arguments["segments"] = {"class_path": "flowmatch_rl.modules.ObservedSteps", "init_args": steps}


def _own_classes(path: str | Path) -> list[Any]:
    """Classes of this package and of the user's in a checkpoint, beside those that PyTorch allows."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [find_class(name) for name in names if not name.startswith("torch.")]
