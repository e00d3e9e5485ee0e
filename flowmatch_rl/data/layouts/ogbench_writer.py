"""Writes a file as OGBench stores them, trajectory by trajectory, so that an interrupted process can resume."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.layouts.arrays import numbered_files, read_npz
from flowmatch_rl.files import atomic_path


class OgbenchWriter:
    """Writes trajectories to ``FILE.partial``, a folder, and joins them to one file.

    Args:
        file: The ``.npz`` file, which must not exist.
        num_transitions: Transitions that are written already; trajectories beyond them will be written again.

    Raises:
        UserError: If the file exists or is called otherwise, or other trajectories are there than were written.
    """

    def __init__(self, file: str | Path, num_transitions: int) -> None:
        self.file = Path(file)
        self._parts = self.file.with_name(f"{self.file.name}.partial")
        if self.file.suffix != ".npz":
            raise UserError(f"a file of OGBench is called NAME.npz, got {str(file)!r}")
        if self.file.exists() and not self._parts.is_dir():
            raise UserError(f"{str(file)!r} exists already, and is not overwritten")
        # Parts are called by their first transitions.
        before = [part for part in self._parts.glob("*.npz") if int(part.stem) < num_transitions]
        self._written = sum(len(read_npz(part, ["terminals"])["terminals"]) - 1 for part in before)
        if self._written != num_transitions:
            raise UserError(
                f"{str(self._parts)!r} holds {self._written} transitions, wanted the {num_transitions} that were "
                "written of the data set; delete both beginnings to begin again"
            )

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a trajectory.

        Args:
            arrays: Rows by name, as in the file; the last one is a state without a transition.
        """
        self._save(self._parts / f"{self._written}.npz", arrays)
        self._written += len(arrays["terminals"]) - 1

    def join(self) -> None:
        """Make the file of all trajectories, which are in memory then."""
        parts = []
        for part in numbered_files(self._parts):
            with np.load(part) as held:
                parts.append(dict(held))
        self._save(self.file, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def clear(self) -> None:
        """Delete the folder of trajectories."""
        shutil.rmtree(self._parts)

    @staticmethod
    def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
