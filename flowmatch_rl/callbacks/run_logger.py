"""What trackers of runs have in common."""

import abc
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from flowmatch_rl.checks import UserError


class RunLogger(Logger, abc.ABC):
    """A logger that keeps its records with the run: it learns the run's folder, and takes files and parameters."""

    @abc.abstractmethod
    def begin_in(self, folder: Path, name: str, command: str, resumes: bool) -> None:
        """Choose the place of the records, and name the run that is about to begin.

        Args:
            folder: The run's folder.
            name: Name of the run, for those that the user has not named.
            command: What is run; each command in a folder has records of its own.
            resumes: Whether to continue the records of an earlier run in the folder.
        """

    @property
    def version(self) -> str | None:
        """Identifier of the run; None where records have none but their path, ``name``."""
        return None

    @abc.abstractmethod
    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Track parameters.

        Args:
            parameters: Values by name.
        """

    @abc.abstractmethod
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Track what else a run is known by, such as its seed and its commit.

        Args:
            tags: Values by name.
        """

    @abc.abstractmethod
    def log_file(self, path: Path, folder: str = "") -> None:
        """Track a file, if this is a kind of file that the tracker shows.

        Args:
            path: The file.
            folder: Folder among the run's files.
        """

    @abc.abstractmethod
    def lines(self) -> list[str]:
        """Where the run is to be seen, in lines that begin with a label; begins the records."""

    @abc.abstractmethod
    def close(self) -> None:
        """End the records; more that is logged continues them."""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``RunRecord`` logs the whole configuration, of which the module's part is a fraction."""


def import_extra(module: str, name: str, extra: str) -> Any:
    """A module that comes with an extra of this package.

    Args:
        module: Its import path.
        name: What needs it.
        extra: The extra.

    Raises:
        UserError: If it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{name} needs the extra '{extra}' ({error}): pip install flowmatch_rl[{extra}]") from error
