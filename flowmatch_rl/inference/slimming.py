"""Checkpoints that hold a trained model and nothing of its training."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from flowmatch_rl.checkpoints import pack_state, read_checkpoint
from flowmatch_rl.checks import UserError
from flowmatch_rl.files import atomic_path
from flowmatch_rl.inference.kinds import IDENTITY, kind_of
from flowmatch_rl.trust import allow_imports

_TRAINED_WITH = "dynamics."
"""Weights of the one-step model that an occupancy may be trained with, which its use does not need."""


def slim_checkpoint(checkpoint: str | Path, output: str | Path, allow: Collection[str] = ()) -> Path:
    """Write what loading a model needs: weights, arguments, names and units.

    Optimizers, replay buffer, generators and callbacks are left out, so that training cannot resume from it. The same
    checkpoint gives the same bytes.

    Args:
        checkpoint: Path of a ``.ckpt`` file.
        output: File to write.
        allow: Packages whose classes it may name, beside this one and those that were imported.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        UserError: If it is not of a model that loads without a trainer, or names a class of another package.
    """
    allow_imports(allow)
    return write_slim(read_checkpoint(checkpoint), output, str(checkpoint))


def write_slim(content: dict[str, Any], output: str | Path, name: str) -> Path:
    """Write what loading a model needs of a checkpoint that has been read, see ``slim_checkpoint``.

    Args:
        content: What ``read_checkpoint`` returned.
        output: File to write.
        name: What the checkpoint is called in errors.

    Returns:
        The file that was written.

    Raises:
        UserError: If it is not of a model that loads without a trainer.
    """
    kind = kind_of(content)
    if kind is None:
        raise UserError(f"{name} is not a checkpoint of a model that loads without a trainer")
    slim = {name: content[name] for name in IDENTITY if name in content}
    left_out = _TRAINED_WITH if kind == "an occupancy" else None
    weights = {
        name: weight.detach().clone()  # a view would be written with all that it is a part of
        for name, weight in content["state_dict"].items()
        if left_out is None or not name.startswith(left_out)
    }
    with atomic_path(output) as partial:
        partial.write_bytes(pack_state(slim | {"state_dict": weights}))
    return Path(output)
