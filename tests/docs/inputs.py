"""What the commands of the pages take as given: files of the user, and what commands of other pages leave behind."""

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from flowmatch_rl.data import DensityTable
from flowmatch_rl.testbeds import EightGaussians
from flowmatch_rl.zoo import checkpoint_path
from tests.data.arm_log import arm_log, write_log
from tests.data.layout_files import write_d4rl, write_exorl, write_ogbench
from tests.docs.blocks import BLOCKS, ROOT

ENDS = [0, 0, 0, 0, 1] * 8
"""Ends of episodes in files of other people."""


def write_table(path: Path) -> None:
    """The table whose first line ``docs/generative_model.md`` shows: two columns with units, and one of text."""
    rng = np.random.default_rng(0)
    numbers = zip(rng.normal(1.7, 0.1, 1000), rng.normal(65.0, 9.0, 1000), strict=True)
    path.write_text(
        "height,weight,city\nm,kg,\n" + "".join(f"{height:.2f},{mass:.1f},Rome\n" for height, mass in numbers)
    )


def write_conditions(path: Path) -> None:
    """A class of each row of the table that ``conf/flow/eight_gaussians_by_class.yaml`` learns."""
    pd.DataFrame({"part": DensityTable(EightGaussians(), 10).load()["part"]}).to_csv(path, index=False)


FILES: dict[str, Callable[[Path], object]] = {
    "my.csv": write_table,
    "conditions.csv": write_conditions,
    "logs/robot_arm.csv": lambda path: write_log(arm_log((251, 201, 198)), path),
    "hopper.hdf5": lambda path: write_d4rl(path, ENDS, [0] * len(ENDS), arrivals=True),
    "pointmaze-medium-navigate-v0.npz": lambda path: write_ogbench(path, ENDS),
    "exorl/walker/rnd/buffer": lambda path: write_exorl(path, {0: 5, 1: 7}),
    "mine.ckpt": lambda path: shutil.copy(checkpoint_path("zoo:maze_loop"), path),
    "my_package": lambda path: path.with_suffix(".py").touch(),
}
"""How to write files that commands name and a user has, by their names."""

GIVEN = {
    "docs/benchmarks.md": ["flowmatch-rl fit -c conf/actor_critic/pendulum.yaml"],
    "docs/comparing.md": ["flowmatch-rl fit -c conf/actor_critic/pendulum.yaml"],
    "docs/datasets.md": [
        "flowmatch-rl collect -c conf/collect/cube_single.yaml --output data/cube_play"
        " --ogbench_file data/cube-single-play-v0.npz",
    ],
    "docs/export.md": ["flowmatch-rl fit -c conf/actor_critic/pendulum.yaml"],
    "docs/running.md": ["flowmatch-rl collect -c conf/collect/maze.yaml --output data/maze"],
    "docs/sweeps.md": ["flowmatch-rl sweep -c conf/sweep/pendulum.yaml --output runs/sweeps/pendulum"],
    "docs/tracking.md": ["flowmatch-rl fit -c conf/actor_critic/hopper.yaml"],
}
"""Commands that go before those of a page, which begins where another one ends."""


def write_files(page: str, folder: Path) -> None:
    """Write the files that a page says to write, and those that it names and a user has."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, write in FILES.items():
        if re.search(rf"(?<![\w/]){re.escape(name)}\b", text):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write(folder / name)
    for block in BLOCKS:
        if block.page == page and block.file:
            (folder / block.file).write_text(block.text)
        elif block.page == page and block.kind == "python":
            written = set(re.findall(r'\.to_csv\("([^"]+)"', block.text)) - set(FILES)
            if written:
                with contextlib.redirect_stdout(None):
                    exec(compile(block.text, block.name, "exec"), {})
