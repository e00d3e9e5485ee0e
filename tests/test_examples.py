"""The example that runs an exported policy without this package."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flowmatch_rl.inference import export_checkpoint, load_policy
from tests.inference.test_export import S, built, saved

EXAMPLE = Path(__file__).parents[1] / "examples" / "run_policy.py"


def test_the_example_acts_as_the_deterministic_policy_and_needs_numpy_and_onnxruntime_alone(tmp_path) -> None:
    path = saved(built("stochastic"), tmp_path)
    program = export_checkpoint(path, tmp_path / "policy.onnx", batch_size=1, num_steps=1)
    example = runpy.run_path(str(EXAMPLE))
    policy, expected = example["load"](str(program.path), seed=3), load_policy(path, deterministic=True, seed=3)
    sampler = expected.module.policy.sampler.with_steps(1)
    expected.module.policy.sampler = sampler
    expected.step_noise = expected.step_noise[:1]
    for observation in np.random.default_rng(0).normal(size=(4, S)):
        np.testing.assert_allclose(policy(observation), expected(observation), rtol=1e-5, atol=1e-5)
    hidden = "import sys; sys.modules['torch'] = sys.modules['flowmatch_rl'] = None; import runpy; "
    run = f"{hidden}sys.argv = ['', {str(program.path)!r}, '5']; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("5 steps at 50 Hz, "), done.stderr
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.walk(ast.parse(EXAMPLE.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def test_the_example_keeps_the_rate_and_counts_the_steps_that_come_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    example = runpy.run_path(str(EXAMPLE))
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    times: list[float] = []

    def policy(observation: float) -> float:
        clock[0] += 0.05 if len(times) == 3 else 0.004  # the fourth takes longer than two periods
        return observation

    def act(action: float) -> None:
        times.append(clock[0])

    assert example["control"](policy, lambda: clock[0], act, 8) == 2
    np.testing.assert_allclose(np.diff(times)[:2], 0.02, atol=1e-9)
    assert times[-1] == pytest.approx(7 * 0.02 + 0.004)


def run_slurm_script(folder: Path, *, status: int, image: str, tracking: str) -> subprocess.CompletedProcess[str]:
    """Run the job script with SLURM's and Apptainer's commands replaced by ones that write their arguments down."""
    for name, does in (
        ("srun", 'shift; exec "$@"'),
        ("apptainer", f'printf "%s\\n" "$@" > arguments; exit {status}'),
        ("scontrol", f'[ "$*" = "show config" ] && echo "ProctrackType   = {tracking}" || echo "$@" > requeued'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    script = EXAMPLE.with_name("slurm_apptainer.sh")
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "IMAGE": image}
    command = ["bash", str(script), "-c", "my conf.yaml"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("status", [0, 1, 143])
def test_the_slurm_script_requeues_a_job_that_was_ended_by_sigterm_and_no_other(status: int, tmp_path: Path) -> None:
    (tmp_path / "some.sif").touch()
    done = run_slurm_script(tmp_path, status=status, image="some.sif", tracking="proctrack/cgroup")
    assert done.returncode == status, done.stderr
    assert (tmp_path / "requeued").exists() == (status == 143)
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[arguments.index("some.sif") + 1 :] == [
        *("flowmatch-rl", "fit", "-c", "my conf.yaml"),
        *("--trainer.default_root_dir", "/workspace/runs/7", "--ckpt_path", "last"),
    ]
    assert (tmp_path / "runs").is_dir()


@pytest.mark.parametrize(
    ("image", "tracking", "warns"),
    [
        ("file.sif", "proctrack/linuxproc", True),
        ("file.sif", "proctrack/cgroup", False),
        ("folder", "proctrack/linuxproc", False),
    ],
)
def test_the_slurm_script_warns_where_sigterm_would_end_the_process_that_serves_the_image(
    image: str, tracking: str, warns: bool, tmp_path: Path
) -> None:
    (tmp_path / "file.sif").touch()
    (tmp_path / "folder").mkdir()
    done = run_slurm_script(tmp_path, status=0, image=image, tracking=tracking)
    assert done.returncode == 0, done.stderr
    assert ("apptainer build --sandbox" in done.stderr) == warns
    assert (tmp_path / "arguments").exists()
