"""An hour of training with all of it on: whether memory, handles and the time of a step stay as they are.

Two ranks (gloo), each with a process that collects a block ahead and a replay buffer on a disk, which is full after
the first minutes; an evaluation, a video and a checkpoint after every 1,000 environment steps, each tenth of which is
kept (the newest three); metrics go to a server of MLflow. Every ten seconds the processes of the run, without the
server's, are looked at: resident memory (pages that processes share count in each), open files and sockets, threads,
and CPU seconds; steps are those of the metrics. Each look also takes the CPU time of some work that is always the
same, by which the time of a step is divided as well: the speed of a processor that others share changes. The first
sixth of the time is not counted. Draws ``docs/soak.png``.
"""

import bisect
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.tracking_outage import serving
from flowmatch_rl.callbacks.journal import METRICS, journals, read_entries
from flowmatch_rl.figures.style import BLUE, new_figure, save_figure, tidy

RUN = [
    *("-c=conf/actor_critic/pendulum.yaml", "-c=conf/collectors/processes.yaml", "-c=conf/trainer/ddp.yaml"),
    *("--data.storage=DiskStorage", "--data.buffer_capacity=5000", "--data.total_env_steps=1000000000"),
    *("--data.epoch_env_steps=1000", "--data.eval_episodes=2", "--data.test_episodes=2", "--trainer.accelerator=cpu"),
    *("--checkpoints.keep_every=10", "--checkpoints.keep_most=3", "--trainer.enable_progress_bar=false"),
]
_INTERVAL_S = 10.0
DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Sample:
    """The processes of a run at a moment.

    Attributes:
        time_s: Seconds since its beginning.
        memory_mb: Resident memory, millions of bytes.
        handles: Open files and sockets.
        threads: Threads.
        processes: Processes.
        cpu_s: CPU seconds so far.
        work_s: CPU seconds of the work that is always the same.
    """

    time_s: float
    memory_mb: float
    handles: int
    threads: int
    processes: int
    cpu_s: float
    work_s: float


def run(minutes: float = 60.0) -> dict[str, Any]:
    """Train so long; returns one row per quantity."""
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as server:
        folder = Path(name) / "run"
        tracking = ["--trainer.logger=Tracker", f"--trainer.logger.init_args.tracking_uri={server.address}"]
        command = [sys.executable, "-m", "flowmatch_rl", "fit", *RUN, *tracking]
        command += [f"--trainer.default_root_dir={folder}", f"--trainer.max_time.seconds={60 * minutes:.0f}"]
        began, samples = time.time(), list[Sample]()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            time.sleep(_INTERVAL_S)
            if (sample := look_at(process.pid, time.time() - began)) is not None:
                samples.append(sample)
        if process.returncode:
            raise RuntimeError(f"the run ended with status {process.returncode}")
        steps = steps_by_time(folder, began)
        kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    print(kept, flush=True)
    samples = [sample for sample in samples if 10.0 * minutes <= sample.time_s <= 60.0 * minutes]
    return {"title": "An hour of training with all of it on", "steps": steps[-1][1], "rows": rows(samples, steps)}


def look_at(pid: int, time_s: float) -> Sample | None:
    """A sample of a process and its descendants; None if one of them ends meanwhile."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
        memory = sum(each.memory_info().rss for each in family)
        handles, threads = sum(each.num_fds() for each in family), sum(each.num_threads() for each in family)
        # Those of processes that have ended and were waited for are in the times of their parents.
        cpu = sum(sum(each.cpu_times()[:4]) for each in family)
    except psutil.NoSuchProcess:
        return None
    return Sample(time_s, memory / 1e6, handles, threads, len(family), cpu, same_work())


def same_work() -> float:
    """CPU seconds of some products of matrices as large as those of the run."""
    torch.set_num_threads(1)
    batch, weights = torch.ones(256, 128), torch.ones(128, 128)
    began = time.process_time()
    for _ in range(200):
        torch.relu(batch @ weights)
    return time.process_time() - began


def steps_by_time(folder: Path, began: float) -> list[tuple[float, int]]:
    """Seconds since the beginning and environment steps of the metrics that a run logged."""
    (journal,) = journals(folder)
    entries = [entry for entry in read_entries(journal) if entry.kind == METRICS]
    return sorted({(entry.time / 1e3 - began, int(entry.values["step"])) for entry in entries})


def rows(samples: list[Sample], steps: list[tuple[float, int]]) -> list[dict[str, Any]]:
    """First and last third of each quantity, and the slope over all samples; draws them as well."""
    times = [sample.time_s for sample in samples]
    counts = [_steps_at(steps, when) for when in times]
    apart = max(1, len(samples) // 30)
    pairs = [(place, place + apart) for place in range(0, len(samples) - apart, apart)]
    per_step = [
        1e3 * (samples[last].cpu_s - samples[first].cpu_s) / (counts[last] - counts[first]) for first, last in pairs
    ]
    work = [statistics.fmean(each.work_s for each in samples[first : last + 1]) for first, last in pairs]
    relative = [step / (1e3 * each) for step, each in zip(per_step, work, strict=True)]
    ends = [times[last] for _, last in pairs]
    curves: dict[str, tuple[list[float], list[float]]] = {
        "resident memory, MB": (times, [sample.memory_mb for sample in samples]),
        "open files and sockets": (times, [float(sample.handles) for sample in samples]),
        "threads": (times, [float(sample.threads) for sample in samples]),
        "CPU time of a step, ms": (ends, per_step),
        "CPU time of a step / of fixed work": (ends, relative),
    }
    figure = new_figure(9.0, 5.0, "")
    drawn = {name: curve for name, curve in curves.items() if name != "CPU time of a step, ms"}
    for axes, (name, (when, values)) in zip(figure.subplots(2, 2).ravel(), drawn.items(), strict=True):
        axes.plot([each / 60.0 for each in when], values, color=BLUE)
        axes.set_ylim(0.0, 1.25 * max(values))
        tidy(axes, "minutes", name)
    save_figure(figure, DOCS / "soak.png")
    return [
        {
            "quantity": name,
            "first_third": statistics.median(values[: len(values) // 3]),
            "last_third": statistics.median(values[-(len(values) // 3) :]),
            "largest": max(values),
            "slope_per_hour": 3600.0 * statistics.linear_regression(when, values).slope,
        }
        for name, (when, values) in curves.items()
    ]


def _steps_at(steps: list[tuple[float, int]], when: float) -> float:
    """Steps at a moment, between the entries on both sides of it."""
    place = min(max(bisect.bisect(steps, (when, 0)), 1), len(steps) - 1)
    (before, fewer), (after, more) = steps[place - 1], steps[place]
    return fewer + (more - fewer) * (when - before) / (after - before)
