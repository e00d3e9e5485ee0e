"""Every block of Python in the pages runs, with tiny values and small models in place of trained ones."""

import contextlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from flowmatch_rl import experiments
from flowmatch_rl.data import EpisodeLog, OgbenchFile, convert_layout
from flowmatch_rl.testbeds import SpeedReward
from tests.data.arm_log import arm_log, write_log
from tests.data.layout_files import write_ogbench
from tests.docs.blocks import BLOCKS, Block
from tests.docs.trained import save

TINY = {
    r"num_updates=\d+, epoch_updates=\d+": "num_updates=2, epoch_updates=1",
    r"range\(200\)": "range(2)",
    r"<time>": "time",
    r"sample\(1000": "sample(7",
    r"number=32": "number=3",
    r"discount=0.999": "discount=0.992",
    r"\(24, 2\)": "(3, 2)",
}
"""What is made smaller, wherever it stands."""

MODELS = {
    ("flow", "two_moons"): "zoo:two_moons",
    ("flow", "mine.ckpt"): "zoo:two_moons",
    ("policy", "Pendulum-v1"): "zoo:pendulum",
    ("policy", "pendulum"): "zoo:pendulum",
    ("occupancy", "maze"): "zoo:maze_loop",
    ("occupancy", "maze_two"): "intentions",
    ("occupancy", "maze_goals"): "goals",
    ("occupancy", "maze_walks"): "goals",
    ("dynamics", "maze"): "dynamics",
    ("policy", "maze_family"): "family",
    ("forward_backward", "maze"): "forward_backward",
}
"""Models in place of those of runs, by the function that loads them and the folder of the run."""

TESTED_ELSEWHERE = {"README.md": "tests/test_readme.py runs it"}
README = {line for block in BLOCKS if block.page == "README.md" for line in block.text.splitlines()}


def states() -> dict[str, Any]:
    """What blocks take as given: a state of the maze with its action, and an observation of Pendulum."""
    state, action = np.array([0.2, 0.1, 0.0, 0.0]), np.array([0.5, -0.5])
    many: dict[str, Any] = {"states": np.tile(state, (16, 1)), "next_states": np.tile(state, (16, 1))}
    many["next_actions"] = many["actions"] = np.tile(action, (16, 1))
    return many | {"state": state, "action": action, "reward": SpeedReward(scale=0.4)}


def prepare_datasets(folder: Path, given: dict[str, Any]) -> None:
    """A file of OGBench, and the log of a robot arm as a data set."""
    write_ogbench(folder / "pointmaze-medium-navigate-v0.npz", [0, 0, 1, 0, 1])
    write_log(arm_log(), folder / "arm.csv")
    columns: dict[str, Any] = {"observations": ["q1", "q2", "dq1", "dq2"], "actions": ["tau1", "tau2"]}
    log = EpisodeLog(str(folder / "arm.csv"), episode="episode", time="time", reward="reward", **columns)
    convert_layout(log, str(folder / "data" / "robot_arm"), progress=False)


def prepare_policies(folder: Path, given: dict[str, Any]) -> None:
    """A data set, an observation of the family of policies, and a goal."""
    write_ogbench(folder / "pendulum.npz", [0, 0, 0, 1] * 8)
    convert_layout(OgbenchFile(str(folder / "pendulum.npz")), str(folder / "data" / "pendulum"), progress=False)
    given |= {"observation": given["state"], "goal": np.array([0.1, 0.1])}


def prepare_running(folder: Path, given: dict[str, Any]) -> None:
    """An observation, and a package of the user."""
    given["observation"] = np.array([1.0, 0.0, 0.0], np.float32)
    (folder / "my_package.py").write_text("")


def prepare_export(folder: Path, given: dict[str, Any]) -> None:
    """A served policy that only says what it was given: tests of runs load one that was tracked."""
    given["observations"] = np.zeros((2, 3), np.float32)


def prepare_control_variate(folder: Path, given: dict[str, Any]) -> None:
    """What the file that the class joins imports."""
    exec("from dataclasses import dataclass\nfrom torch import Tensor\n", given)
    exec("from flowmatch_rl.estimators import ControlVariate", given)


PREPARE: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "docs/datasets.md": prepare_datasets,
    "docs/offline_policies.md": prepare_policies,
    "docs/running.md": prepare_running,
    "docs/export.md": prepare_export,
    "CONTRIBUTING.md": prepare_control_variate,
}


def tiny(code: str, folder: Path) -> str:
    """A block with small sizes, and small models at the places that it loads models from."""
    for large, small in TINY.items():
        code = re.sub(large, small, code)

    def replaced(match: re.Match[str]) -> str:
        loader, path = match.groups()
        model = MODELS[loader, path.removeprefix("runs/").partition("/")[0]]
        return f'load_{loader}("{model if model.startswith("zoo:") else save(model, folder)}"'

    return re.sub(r'load_(\w+)\("(runs/[^"]+|mine\.ckpt)"', replaced, code)


def test_every_page_with_python_is_run_here_or_elsewhere() -> None:
    assert set(TESTED_ELSEWHERE) | set(PREPARE) <= {block.page for block in BLOCKS if block.kind == "python"}


PAGES = sorted({block.page for block in BLOCKS if block.kind == "python"} - set(TESTED_ELSEWHERE))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small models, each made once."""
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of the page in their order, as one program."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    stand_in(monkeypatch)
    given = states()
    if page in PREPARE:
        PREPARE[page](tmp_path, given)
    for block in BLOCKS:
        if block.page == page and block.kind == "python":
            run_block(block, given, models, tmp_path)


def run_block(block: Block, given: dict[str, Any], models: Path, folder: Path) -> None:
    """Run a block; one that is a file becomes one, which blocks after it import."""
    if block.file.endswith(".py"):
        (folder / block.file).write_text(block.text)
        return
    if set(block.text.splitlines()) <= README:  # a part of what the README's test runs
        return
    code = compile("\n" * (block.line - 1) + tiny(block.text, models), block.page, "exec")
    with contextlib.redirect_stdout(None):
        exec(code, given)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the arguments alone of what takes minutes, or a server; other tests run it."""
    improved = inspect.signature(experiments.improve)
    monkeypatch.setattr(experiments, "improve", lambda *args, **kwargs: improved.bind(*args, **kwargs))

    class Served:
        def predict(self, observations: np.ndarray) -> np.ndarray:
            return observations

    loaded = inspect.signature(mlflow.pyfunc.load_model)
    monkeypatch.setattr(mlflow.pyfunc, "load_model", lambda *args, **kwargs: loaded.bind(*args, **kwargs) and Served())
