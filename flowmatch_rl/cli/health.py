"""What the command ``doctor`` looks at beside packages: devices, threads, disk, tracking, rendering and speed."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mlflow.exceptions import MlflowException

from flowmatch_rl.callbacks.addresses import LOCAL_FOLDER, database_file, place_of, tracking_address
from flowmatch_rl.callbacks.database import bounded_requests, connect
from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.packages import Finding
from flowmatch_rl.cli.parser import make_parser, read_options
from flowmatch_rl.cli.speed import Speed, measure_speed
from flowmatch_rl.devices import device_name
from flowmatch_rl.redaction import redact

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says what part of the processor a container may use."""

_RENDER = "from flowmatch_rl.envs.rendering import render_frame; print(render_frame())"
_RENDER_S, _REQUEST_S, _SPEED_S = 30.0, 3, 5.0

_BROKEN_GB, _LITTLE_GB = 1.0, 10.0
"""Free space that a run cannot do with, and that several runs with replay buffers in their checkpoints may need."""

_FREE_CORE = 0.8
"""Fraction of its core that a process gets beside no other."""


def examine(args: Sequence[str], first: Finding) -> int:
    """Look at everything, and print each finding as it is made.

    Args:
        args: Arguments after the command.
        first: What was found about packages.

    Returns:
        Exit status: 1 if something is broken, else 0.
    """
    parser = make_parser("doctor", "Check what runs need, and say in a line what to do about what is wrong.", False)
    parser.add_argument(
        "--tracking_uri",
        type=str | None,
        default=None,
        help="Where runs are tracked; the environment variable MLFLOW_TRACKING_URI, or runs/mlflow.db, if null.",
    )
    parser.add_argument("--speed", type=bool, default=True, help="Whether to measure updates, which takes seconds.")
    options = read_options(parser, args)
    checks = [lambda: first, devices, threads, disk, lambda: tracking(options["tracking_uri"]), rendering]
    broken = []
    for check in [*checks, speed] if options["speed"] else checks:
        finding = check()
        print(redact(str(finding)), flush=True)
        broken += [finding.label] if finding.is_broken else []
    print(f"broken       {', '.join(broken)}" if broken else "nothing is broken")
    return 1 if broken else 0


def devices() -> Finding:
    """The processor, and GPUs that compute; a GPU that PyTorch cannot use is one to repair."""
    processor = device_name("cpu")
    if torch.cuda.is_available():
        number = torch.cuda.device_count()
        text = f"{number} x {torch.cuda.get_device_name()}; {processor}"
        try:
            for index in range(number):
                torch.ones(8, 8, device=f"cuda:{index}").mm(torch.ones(8, 8, device=f"cuda:{index}")).sum().item()
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            return Finding("devices", f"{text}; {reason}", "reboot, or update the driver of the GPU", is_broken=True)
        return Finding("devices", text)
    if shutil.which("nvidia-smi") is None:
        return Finding("devices", f"{processor}, no GPU")
    if torch.version.cuda is None:
        fix = "for the GPU, install torch with CUDA: docs/running.md"
        return Finding("devices", f"{processor}; a driver of NVIDIA, but torch {torch.__version__} is for the CPU", fix)
    fix = f"update the driver to one for CUDA {torch.version.cuda}, or hide the GPU with CUDA_VISIBLE_DEVICES="
    return Finding("devices", f"{processor}; torch finds no GPU, nvidia-smi is there", fix, is_broken=True)


def rendering() -> Finding:
    """Whether MuJoCo draws a frame, in a process of its own, since a driver may end it."""
    fix = "install libegl1 (or libosmesa6 and MUJOCO_GL=osmesa); without it runs train, but make no videos"
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH")) if part)
    command, environment = [sys.executable, "-P", "-c", _RENDER], os.environ | {"PYTHONPATH": path}
    try:
        drawn = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_RENDER_S, check=False)
    except subprocess.TimeoutExpired:
        return Finding("rendering", f"no frame within {_RENDER_S:g} s", fix)
    if drawn.returncode == 0:
        return Finding("rendering", f"{drawn.stdout.split()[-1]} gives a frame")
    reason = ([line for line in drawn.stderr.splitlines() if line and line[0].isalpha()] or ["no message"])[-1]
    return Finding("rendering", f"no frame: {reason} (exit status {drawn.returncode})", fix)


def available_cores() -> float:
    """Processor cores that this process may use, by its affinity and by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    limit, period = (QUOTA.read_text().split() if QUOTA.is_file() else ["max", "1"])[:2]
    return float(cores) if limit == "max" else min(float(cores), int(limit) / int(period))


def threads() -> Finding:
    """Threads of matrix products, beside the cores that there are."""
    number, cores = torch.get_num_threads(), available_cores()
    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    text = (
        f"{number} of OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}, OMP_WAIT_POLICY {policy}; "
        f"{cores:g} of {os.cpu_count()} cores are for this process, load {os.getloadavg()[0]:.1f}"
    )
    fix = ""
    if number > cores:
        fix = f"set OMP_NUM_THREADS to {max(1, int(cores))} at most: threads that share a core wait for each other"
    elif policy.upper() == "ACTIVE" and number > 1:
        fix = "set OMP_WAIT_POLICY=PASSIVE: threads that wait actively take cores from environments and other runs"
    return Finding("threads", text, fix)


def tracking(given: str | None) -> Finding:
    """Whether MLflow can be reached, and where.

    Args:
        given: Address of the tracking; None for that of the environment, or the local file.
    """
    fix = "start the server or correct MLFLOW_TRACKING_URI; until then -c conf/logger/none.yaml trains without tracking"
    try:
        address = tracking_address(given)
        file = database_file(address)
        if file is not None and not file.exists():
            return Finding("tracking", f"{place_of(address)}, which the first run makes")
        with bounded_requests(_REQUEST_S):
            connect(address).search_experiments(max_results=1)
    except (UserError, MlflowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        return Finding("tracking", reason, fix, is_broken=True)
    return Finding("tracking", f"{place_of(address)} answers")


def disk() -> Finding:
    """Free space where runs are written, and whether they may be."""
    folder = next(path for path in (Path(LOCAL_FOLDER), Path.cwd()) if path.is_dir())
    free_gb = shutil.disk_usage(folder).free / 1e9
    text = f"{free_gb:,.1f} GB are free for {folder.absolute()}"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 1024)
            file.flush()
    except OSError as error:
        fix = "run in a folder that you may write to, or name one with --trainer.default_root_dir"
        return Finding("disk", f"{text}; {error.strerror}", fix, is_broken=True)
    fix = "make room: a checkpoint with a million transitions takes up to half a gigabyte"
    return Finding("disk", text, fix if free_gb < _LITTLE_GB else "", is_broken=free_gb < _BROKEN_GB)


def speed(measure: Callable[[float, str], Speed] = measure_speed) -> Finding:
    """The rate of updates of a policy, beside what this device allows, as measured in the same seconds.

    Args:
        measure: Measures it, given seconds and a device.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = measure(_SPEED_S, device)
    text = (
        f"{1.0 / found.update_s:.3g} updates per second of a flow policy on {device}, expected at least "
        f"{1.0 / found.allowed_s:.3g} from {found.product_rate / 1e9:.3g} GFLOP/s of matrix products and "
        f"{1e3 * found.operators_s:.3g} ms of operators"
    )
    if not found.is_slow:
        return Finding("speed", text)
    if found.core_fraction is not None and found.core_fraction < _FREE_CORE:
        other = f"this process had its core {found.core_fraction:.0%} of the time"
        return Finding("speed", text, f"{other}: end other processes, or start fewer runs than there are cores")
    return Finding("speed", text, "run it again on an idle machine; if it stays, use fewer threads (OMP_NUM_THREADS)")
