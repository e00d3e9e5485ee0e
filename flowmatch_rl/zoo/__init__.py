"""Trained checkpoints that come with the package, ``zoo:NAME`` wherever the path of a checkpoint is taken."""

from pathlib import Path

from flowmatch_rl.checks import UserError

PREFIX = "zoo:"
"""How the name of such a checkpoint begins."""

_FOLDER = Path(__file__).parent


def zoo_names() -> list[str]:
    """Names of the checkpoints, without the prefix, in the order of the alphabet."""
    return sorted(path.stem for path in _FOLDER.glob("*.ckpt"))


def checkpoint_path(path: str | Path) -> str:
    """Path of a checkpoint's file.

    Args:
        path: The path itself, or ``zoo:NAME`` for a checkpoint of the package.

    Raises:
        UserError: If the package has none of this name.
    """
    if not str(path).startswith(PREFIX):
        return str(path)
    name = str(path).removeprefix(PREFIX)
    if name not in zoo_names():
        known = ", ".join(f"{PREFIX}{known}" for known in zoo_names())
        raise UserError(f"there is no trained model {path}; there are {known}")
    return str(_FOLDER / f"{name}.ckpt")
