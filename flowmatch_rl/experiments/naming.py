"""Names of the tasks and methods of runs outside comparisons, whose configurations are all that tells them apart."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmatch_rl.configuration import DIMENSIONS, flatten

_NAMED_SETTINGS = 3
_DATA_SETTINGS = ("action_chunk", "batch_size", "n_steps", "num_updates", "online")
"""Settings of data from a data set that are part of a method: they change what a model learns from it."""


@dataclass(frozen=True)
class LooseRun:
    """A run outside a comparison.

    Attributes:
        folder: Its folder.
        environment: What it was trained on, in words.
        data: Folders that lead to its data set; none if it has no data set.
        config: Its configuration; empty if it is lost.
    """

    folder: Path
    environment: str
    data: tuple[str, ...]
    config: Mapping[str, Any]

    @property
    def model(self) -> str:
        """Class of its model."""
        return str(self.config.get("model", {}).get("class_path", "run")).rpartition(".")[2]

    @property
    def settings(self) -> dict[str, Any]:
        """What tells methods of one class of model apart, by name: settings of the model, and some of its data set."""
        model, data = (self.config.get(section, {}).get("init_args") or {} for section in ("model", "data"))
        stated = flatten({key: value for key, value in model.items() if key not in DIMENSIONS})
        if "path" in data:
            stated |= flatten({key: data[key] for key in _DATA_SETTINGS if key in data}, "data.")
            stated["data.online"] = data.get("online") is not None
        return {key.replace("init_args.", "").removesuffix(".class_path"): value for key, value in stated.items()}


def name_runs(found: Sequence[LooseRun], root: str) -> list[tuple[str, str]]:
    """Task and method of each run, such that different ones have different names.

    Args:
        found: The runs.
        root: Folder that others are named relative to.
    """
    tasks, settings = _name_tasks(found), [run.settings for run in found]
    return [(task, _name_method(place, found, tasks, settings, root)) for place, task in enumerate(tasks)]


def _name_tasks(found: Sequence[LooseRun]) -> list[str]:
    """Name tasks by environment and data set, this by as many of its last folders as tell it from the others there."""
    # A data set may serve several tasks of its environment, and these may have several data sets.
    named = []
    for run in found:
        others = {other.data for other in found if other.environment == run.environment and other.data != run.data}
        ends = (run.data[-length:] for length in range(1, len(run.data) + 1))
        end = next((end for end in ends if all(its[-len(end) :] != end for its in others)), run.data)
        named.append(f"{Path(*end)} in {run.environment}" if run.data else run.environment)
    return named


def _name_method(
    place: int, found: Sequence[LooseRun], tasks: Sequence[str], settings: Sequence[dict[str, Any]], root: str
) -> str:
    """Name the method of a run by its model, and by the settings that models of this class differ in."""
    alike = [other for other, run in enumerate(found) if run.model == found[place].model]
    # Each task may have its own data set, of another size: what is made of it counts among runs on the same task.
    keys = sorted(
        {
            key
            for other in alike
            for key in _differences(settings[other], settings[place])
            if tasks[other] == tasks[place] or not key.startswith("data.")
        }
    )
    if len(keys) <= _NAMED_SETTINGS:
        said = [f"{key}={settings[place].get(key)}" for key in keys]
    else:
        its = settings[place]
        first = next(other for other in alike if all(settings[other].get(key) == its.get(key) for key in keys))
        said = [f"as in {os.path.relpath(found[first].folder, root)}"]
    return " ".join([found[place].model, *said])


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """Settings that differ, without those of a part that is of another class or missing in one of them."""
    keys = {key for key in {*one, *other} if one.get(key) != other.get(key)}
    return {key for key in keys if not any(key.startswith(f"{part}.") for part in keys)}
