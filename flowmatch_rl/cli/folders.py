"""Folders of runs: a new one for each, and one run at a time in each."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from flowmatch_rl.checks import UserError, first_names
from flowmatch_rl.files import FIGURES, RUN_LOCK, RUN_TIME, delete_partial_files, exclusive, shown

_RUN_DIR = "FLOWMATCH_RL_RUN_DIR"


def run_folder(label: str) -> str:
    """A new folder for a run, the same on all its processes.

    Args:
        label: What the run is about.

    Raises:
        UserError: If torchrun or SLURM has started several processes, none of which knows the folder of another.
    """
    if _RUN_DIR not in os.environ:
        if (processes := _started_together()) > 1:
            raise UserError(
                f"the {processes} processes that torchrun or srun has started need one folder, which all of them see: "
                "name it with --trainer.default_root_dir"
            )
        parent = Path("runs") / label
        name = time.strftime(RUN_TIME)
        folder, copies = parent / name, 1
        while not _make(folder):
            copies += 1
            folder = parent / f"{name}-{copies}"
        # Processes that Lightning launches inherit it.
        os.environ[_RUN_DIR] = str(folder)
    return os.environ[_RUN_DIR]


@contextlib.contextmanager
def sole_run(folder: Path, checkpoints: Path | None, is_new: bool) -> Iterator[None]:
    """Keep other runs out of a run's folders, in a ``with`` block, and delete what killed ones left half written.

    Args:
        folder: Folder of the run.
        checkpoints: Folder that it writes checkpoints to, which may lie elsewhere; None if it writes none.
        is_new: Whether the run begins, and so must not find the checkpoint of another one.

    Raises:
        UserError: If a folder is a file, is in use by another process, or holds another run.
    """
    with contextlib.ExitStack() as held:
        for path, option in ((folder, "trainer.default_root_dir"), (checkpoints, "checkpoints.dirpath")):
            if path is None:
                continue
            if path.exists() and not path.is_dir():
                raise UserError(f"{path} is a file; choose a folder for the run")
            if not path.exists():
                held.callback(_remove_if_empty, path)  # of a run that was refused before it wrote anything
            advice = f"wait until it ends, or choose another folder with --{option}"
            held.enter_context(exclusive(path / RUN_LOCK, str(path), advice))
        if checkpoints is not None:
            _clear([folder, checkpoints, folder / FIGURES])
        last = None if checkpoints is None else checkpoints / "last.ckpt"
        if is_new and last is not None and last.exists():
            raise UserError(
                f"{folder} holds a run already; resume it with flowmatch-rl fit -c {folder / 'config.yaml'} "
                "--ckpt_path last, or choose another folder"
            )
        yield


def _clear(folders: Sequence[Path]) -> None:
    """Delete the partial files of killed processes, and say so."""
    deleted = {path: size for folder in folders for path, size in delete_partial_files(folder).items()}
    if deleted:
        megabytes = sum(deleted.values()) / 1e6
        names = first_names([shown(path) for path in deleted])
        print(f"deleted what a killed run left half written, {megabytes:.1f} MB: {names}")


def _started_together() -> int:
    """Number of processes that torchrun or SLURM has started for this run; 1 without them."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment().world_size()
    return SLURMEnvironment().world_size() if SLURMEnvironment.detect() else 1


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _make(folder: Path) -> bool:
    """Make a folder; False if there is one, perhaps of a run that began in the same moment."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
