"""``--ckpt_path last``: the folder of the run that continues, and the newest whole checkpoint in it."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from flowmatch_rl.checks import UserError

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
    found = sorted(folder.glob("*.ckpt"), key=lambda path: (path.name == "last.ckpt", path.stat().st_mtime))
    if not found:
        _say(f"starts afresh: there is no checkpoint in {folder}")
        return None
    for path in reversed(found):
        if _is_whole(path):
            return path
        _say(f"{path} is damaged: tries the next older checkpoint")
    raise UserError(f"no checkpoint in {folder} is whole; delete them to start afresh")


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint, which is an archive, has all that it lists: no half file, no byte that was changed."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError):
        return False
