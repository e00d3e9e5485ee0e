"""Collects transitions of a script of OGBench into a data set on disk, and into a file of OGBench."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from tqdm import tqdm

from flowmatch_rl.batches import ACTION, DONE, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, TRUNCATED
from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.data.layouts.base import vector_names
from flowmatch_rl.data.layouts.ogbench_writer import OgbenchWriter
from flowmatch_rl.data.transitions.store import StoreInfo, TransitionStore
from flowmatch_rl.data.transitions.writer import TransitionWriter, progress_bar
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.envs.ogbench import OgbenchEnvironment, TaskReward
from flowmatch_rl.envs.oracles import Oracle, Trajectory, take_trajectory

_ATTEMPTS = 20
"""Trajectories in a row whose simulation may go wrong."""


def collect_demonstrations(
    environment: Environment,
    oracle: Oracle,
    path: str,
    num_transitions: int,
    trajectory_steps: int = 1000,
    seed: int = 0,
    random_fraction: float = 0.0,
    ogbench_file: str | None = None,
    progress: bool = True,
) -> TransitionStore:
    """Collect transitions of a script of OGBench into a data set of ordered rows.

    The script has goals of its own; the rewards are those of the environment's task, by the rule of OGBench's own data
    sets: a step that begins where the task is solved is rewarded with 0 and terminates, and what follows is another
    trajectory. A collection that was interrupted resumes when it is called again with the same arguments, and ends with
    the same rows as without the interruption.

    Args:
        environment: Where the script acts, and the task whose rewards are written, an ``OgbenchEnvironment``.
        oracle: The script.
        path: Folder of the data set; see ``TransitionWriter``.
        num_transitions: Rows, each one step.
        trajectory_steps: Steps after which things are put into other random places.
        seed: Seed of all noise.
        random_fraction: Fraction of the steps, drawn independently of each other, whose action is uniform instead.
        ogbench_file: A ``.npz`` file to write as well, as OGBench stores its data sets: without rewards but with all of
            the state, so that ``OgbenchFile`` reads it with those of any task. None for none.
        progress: Whether to show a bar.

    Returns:
        The data set.

    Raises:
        UserError: If OGBench is not installed, or has no such environment or task, the script does not act in it, an
            argument does not fit, or a place is occupied or holds another collection.
        RunError: If the simulation goes wrong again and again.
    """
    check_range("[1, inf)", num_transitions=num_transitions, trajectory_steps=trajectory_steps)
    check_range("[0, 1]", random_fraction=random_fraction)
    if not isinstance(environment, OgbenchEnvironment):
        raise UserError(
            f"{type(environment).__name__} {environment.label} has no oracle; {type(oracle).__name__} acts in an "
            "OgbenchEnvironment"
        )
    oracle.check(environment)
    reward, env = TaskReward(environment), oracle.make(environment)
    first = _trajectory(oracle, env, 1, seed, 0, random_fraction).arrays
    action_dim = first["actions"].shape[1]
    info = StoreInfo(
        num_transitions=num_transitions,
        columns=tuple(vector_names("observation", first["observations"].shape[1])),
        action_dim=action_dim,
        ordered=True,
        action_low=(-1.0,) * action_dim,
        action_high=(1.0,) * action_dim,
        provenance={
            "made_by": "collect_demonstrations",
            "environment": repr(environment),
            "oracle": repr(oracle),
            "trajectory_steps": trajectory_steps,
            "seed": seed,
            "random_fraction": random_fraction,
            "ogbench_file": ogbench_file,
        },
    )
    with TransitionWriter(path, info) as writer:
        file = None if ogbench_file is None else OgbenchWriter(ogbench_file, writer.rows_written)
        with progress_bar(writer, environment.label, progress) as bar:
            goals = _Goals(bar)
            while missing := num_transitions - writer.rows_written:
                steps = min(trajectory_steps, missing)
                trajectory = _trajectory(oracle, env, steps, seed, writer.rows_written, random_fraction)
                if file is not None:
                    file.append(trajectory.arrays)
                writer.append(_rows(trajectory.arrays, reward))
                goals.show(trajectory)
        if file is None:
            return writer.finish()
        # The file comes first, so that a collection that ends between the two can be resumed.
        file.join()
        store = writer.finish()
        file.clear()
        return store


class _Goals:
    """Shows on a bar how many goals an oracle has reached since the command was given."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar
        self._goals = self._reached = 0

    def show(self, trajectory: Trajectory) -> None:
        """Count those of another trajectory."""
        self._goals += trajectory.goals
        self._reached += trajectory.reached
        self._bar.set_postfix_str(f"{self._reached} of {self._goals} goals reached", refresh=False)
        self._bar.update(len(trajectory.arrays["terminals"]) - 1)


def _trajectory(oracle: Oracle, env: Any, steps: int, seed: int, row: int, random_fraction: float) -> Trajectory:
    """The trajectory that begins with a row of the data set: it depends on nothing that was done before."""
    for attempt in range(_ATTEMPTS):
        own_seed = int(np.random.SeedSequence([seed, row, attempt]).generate_state(1)[0]) % 2**31
        trajectory = take_trajectory(oracle, env, steps, own_seed, random_fraction)
        if trajectory is not None:
            return trajectory
    raise RunError(
        f"the simulation has thrown things off the table in {_ATTEMPTS} trajectories in a row; "
        f"shorten trajectory_steps {steps}, or lower the noise of {oracle}"
    )


def _rows(arrays: Mapping[str, np.ndarray], reward: TaskReward) -> TensorDict:
    """Transitions between the states of a trajectory."""
    rewards, solved = reward(arrays)
    observation, action = (torch.from_numpy(arrays[name]) for name in ("observations", "actions"))
    terminated = torch.from_numpy(solved[:-1])[:, None]
    truncated = torch.zeros_like(terminated)
    truncated[-1] = ~terminated[-1]
    rows = TensorDict({OBSERVATION: observation[:-1], ACTION: action[:-1]}, [len(action) - 1])
    rows[NEXT_OBSERVATION] = observation[1:]
    rows[REWARD] = torch.from_numpy(rewards[:-1])[:, None]
    rows[TERMINATED], rows[TRUNCATED], rows[DONE] = terminated, truncated, terminated | truncated
    return rows
