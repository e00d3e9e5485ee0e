"""The log of a robot arm with two joints, one row per step, as ``conf/convert/robot_arm.yaml`` names its columns."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

OBSERVATIONS = ["q1", "q2", "dq1", "dq2"]
ACTIONS = ["tau1", "tau2"]
INTERVAL_S = 0.02


def arm_log(lengths: Sequence[int] = (6, 4, 5), reached: Sequence[int] = (1,)) -> pd.DataFrame:
    """A log of episodes of as many rows; those in ``reached`` end in a terminal state, which their last row holds."""
    rng = np.random.default_rng(0)
    episodes = []
    for number, rows in enumerate(lengths):
        torque = rng.uniform(-1.0, 1.0, (rows, 2)) * [18.0, 9.0]
        speed = INTERVAL_S * np.cumsum(np.vstack([np.zeros((1, 2)), torque[:-1]]), 0)
        angle = rng.uniform(-1.0, 1.0, 2) + INTERVAL_S * np.cumsum(np.vstack([np.zeros((1, 2)), speed[:-1]]), 0)
        frame = pd.DataFrame(np.hstack([angle, speed, torque]), columns=[*OBSERVATIONS, *ACTIONS])
        frame.insert(0, "episode", number)
        frame.insert(1, "time", INTERVAL_S * np.arange(rows))
        frame["reward"] = -np.abs(angle).sum(1)
        frame["reached"] = ((np.arange(rows) == rows - 1) & (number in reached)).astype(int)
        episodes.append(frame)
    return pd.concat(episodes, ignore_index=True)


def write_log(frame: pd.DataFrame, file: Path) -> Path:
    """Write a log as the end of the file's name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        frame.to_parquet(file)
    elif file.suffix == ".npz":
        np.savez(file, **{str(name): frame[name].to_numpy() for name in frame})
    else:
        frame.to_csv(file, index=False)
    return file
