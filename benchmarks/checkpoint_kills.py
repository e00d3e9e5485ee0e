"""Runs that are killed while they write a checkpoint: how many leave one that is whole, and from which they resume."""

import multiprocessing
import random
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import flowmatch_rl.cli
from benchmarks.exact_resume import QUICK
from flowmatch_rl.checkpoints import damage
from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.names import known_classes
from flowmatch_rl.data.replay_log import named_files

RUNS: dict[str, list[str]] = {
    "flow model": [
        "-c=conf/flow/two_moons.yaml",
        *("--data.num_updates=1000000", "--data.epoch_updates=1", "--data.batch_size=16", "--data.eval_samples=8"),
        *("--model.network.hidden_dim=1024", "--model.network.num_blocks=4", "--figures.enabled=false"),
        *("--model.tests.likelihood_samples=0", "--model.tests.transport_samples=8"),
    ],
    "actor-critic, replay buffer on a disk": [
        "-c=conf/actor_critic/pendulum.yaml",
        *("--data.storage=DiskStorage", "--data.total_env_steps=1000000", "--data.warmup_env_steps=256"),
        *("--data.epoch_env_steps=1", "--data.buffer_capacity=300", "--data.eval_episodes=1"),
        *("--data.max_episode_steps=1", "--model.critics.architecture.hidden_dim=1024"),
    ],
}
"""Runs that write checkpoints as often as they can: after each update."""

FIT = ["fit", "-c=conf/logger/none.yaml", "--ckpt_path=last"]
_POLL_S = 0.001
_START_S = 300.0


def run(kills: int = 20, seed: int = 0) -> dict[str, Any]:
    """Kill each run so many times while it writes a checkpoint; returns one row per run.

    The run goes on in the same folder, ``--ckpt_path last``, until it is killed again (SIGKILL). A moment is drawn
    uniformly from a second, after which the next writing is waited for, and a second one uniformly from the time that
    the last writing took. Kills after which there is no partial file do not count, and are repeated. Whole are the
    ``last.ckpt`` after a kill in a write whose checksums fit, and those of the files of transitions that it names;
    resumed those after any kill that the
    next run continues from.
    """
    known_classes()  # imports what runs import: they are forks of this process
    rows, moments = [], random.Random(seed)
    for name, options in RUNS.items():
        with tempfile.TemporaryDirectory() as home:
            row: dict[str, Any] = {"run": name, "kills_in_a_write": 0, "other_kills": 0, "whole": 0, "resumed": 0}
            last = Path(home) / "checkpoints" / "last.ckpt"
            begins = True
            while row["kills_in_a_write"] < kills:
                resumed = _killed([*options, *QUICK], Path(home), moments)
                row["resumed"] += resumed and not begins
                begins = False
                in_write = any(last.parent.glob("*.ckpt.tmp*"))
                row["kills_in_a_write" if in_write else "other_kills"] += 1
                row["whole"] += in_write and _is_whole(last)
            row["resumed"] += _killed([*options, *QUICK], Path(home), moments)
            row["megabytes"] = last.stat().st_size / 1e6
            rows.append(row)
    return {"title": "Runs killed while they write a checkpoint", "rows": rows}


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint and the files of transitions that it names are what was written."""
    try:
        for named in named_files(checkpoint):
            named.found([])
    except UserError:
        return False
    return not damage(checkpoint)


def _killed(options: list[str], folder: Path, moments: random.Random) -> bool:
    """Kill a run in a write; whether it had continued from the last checkpoint."""
    checkpoints, log = folder / "checkpoints", folder / "log.txt"
    before = _written(checkpoints)
    arguments = [*FIT, *options, f"--trainer.default_root_dir={folder}"]
    process = multiprocessing.get_context("fork").Process(target=_fit, args=(arguments, log))
    process.start()
    try:
        _wait(lambda: _written(checkpoints) != before, process)
        time.sleep(moments.uniform(0.0, 1.0))
        _wait(lambda: not _writes(checkpoints), process)
        _wait(lambda: _writes(checkpoints), process)
        began = time.monotonic()
        _wait(lambda: not _writes(checkpoints), process)
        took = time.monotonic() - began
        _wait(lambda: _writes(checkpoints), process)
        time.sleep(moments.uniform(0.0, took))
    finally:
        process.kill()
        process.join()
    said = log.read_text()
    return f"resumes      {checkpoints / 'last.ckpt'}" in said and "is damaged" not in said


def _fit(arguments: list[str], log: Path) -> None:
    """Run a command, in a process of its own; what it prints goes to a file."""
    with log.open("w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        sys.exit(flowmatch_rl.cli.run(arguments))


def _written(checkpoints: Path) -> int | None:
    """When the last checkpoint was written; None if there is none."""
    last = checkpoints / "last.ckpt"
    return last.stat().st_mtime_ns if last.exists() else None


def _writes(checkpoints: Path) -> bool:
    return any(checkpoints.glob("*.ckpt.tmp*"))


def _wait(condition: Any, process: BaseProcess) -> None:
    end = time.monotonic() + _START_S
    while not condition():
        if not process.is_alive() or time.monotonic() > end:
            raise RuntimeError(f"the run ended with status {process.exitcode} before it could be killed")
        time.sleep(_POLL_S)
