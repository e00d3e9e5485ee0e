"""What a checkpoint holds, and what loads it."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import UserError
from flowmatch_rl.modules.policy_module import PolicyModule
from flowmatch_rl.trust import allow_imports

IDENTITY = (
    "hyper_parameters",
    PolicyModule.NAME_KEY,
    PolicyModule.INTERFACE_KEY,
    "occupancy",
    "forward_backward",
    "dynamics",
    "epoch",
    "global_step",
    "pytorch-lightning_version",
)
"""Entries of a checkpoint that say of what kind of model the weights are, and how long it was trained."""

_LOADERS = {
    "a policy": "load_policy",
    "an occupancy": "load_occupancy",
    "a one-step model": "load_dynamics",
    "a forward-backward representation": "load_forward_backward",
    "a flow": "load_flow",
    "a policy of a bandit": "flowmatch-rl predict",
}


def read_kind(kind: str, path: str | Path, allow: Collection[str]) -> dict[str, Any]:
    """The content of a checkpoint of one kind.

    Args:
        kind: The kind, with its article.
        path: Path of the file.
        allow: Packages whose classes and functions the checkpoint may name.

    Raises:
        MissingFileError: If there is no such file.
        UntrustedNameError: If it names a class that it may not name.
        UserError: If it is of another kind, or no checkpoint.
    """
    allow_imports(allow)
    content = read_checkpoint(path)
    found = kind_of(content)
    if found == kind:
        return content
    if found is None:
        raise UserError(f"{path} is not a checkpoint of {kind}")
    raise UserError(f"{path} is a checkpoint of {found}, not of {kind}; what loads it is {_LOADERS[found]}")


def kind_of(content: dict[str, Any]) -> str | None:
    """Kind of a checkpoint, with its article, by what its module writes into it; None for another module's.

    Args:
        content: What ``read_checkpoint`` returned.
    """
    if PolicyModule.NAME_KEY in content:
        return "a policy"
    if "occupancy" in content:
        return "an occupancy"
    if "forward_backward" in content:
        return "a forward-backward representation"
    if "dynamics" in content:
        return "a one-step model"
    arguments = content["hyper_parameters"]
    if arguments.get("bandit") is not None:
        return "a policy of a bandit"
    return "a flow" if "schema" in arguments else None
