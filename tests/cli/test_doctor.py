"""What is looked at, what is found, and what is to be done about it."""

import logging
import shutil
import socket
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowmatch_rl.cli import diagnosing, health
from flowmatch_rl.cli.packages import Finding, versions
from flowmatch_rl.cli.speed import Speed, measure_speed
from flowmatch_rl.envs.rendering import reason_without_backend
from tests.cli.support import call


@pytest.fixture
def required(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the package requires."""
    return lambda *lines: monkeypatch.setattr(metadata, "requires", lambda name: list(lines))


def test_packages_that_do_not_fit_are_named_with_the_command_that_installs_them(required: Any) -> None:
    required("torch>=99", "numpy>=1", "no-such-package>=2", "absent; extra == 'a'", "pytest>=999; extra == 'a'")
    finding = versions()
    assert finding.is_broken
    assert finding.fix == "pip install 'torch>=99' 'no-such-package>=2' 'pytest>=999'"
    assert f"torch {torch.__version__} does not fit >=99, no-such-package is missing, pytest" in finding.text
    required("torch>=2", "absent; extra == 'a'")
    assert (versions().is_broken, versions().fix) == (False, "")


def test_nothing_else_is_looked_at_where_a_package_is_missing(required: Any) -> None:
    required("no-such-package>=2")
    outcome = call(["doctor"])
    assert (outcome.code, outcome.err) == (1, "")
    lines = outcome.out.splitlines()
    assert lines[1:] == [
        "  broken:    pip install 'no-such-package>=2'",
        "broken       versions; the rest is looked at once they are installed",
    ]


def test_libraries_say_nothing_though_they_are_imported_after_the_command_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lightning, seen = logging.getLogger("lightning.pytorch"), []

    def imported(name: str) -> SimpleNamespace:
        lightning.setLevel(logging.INFO)  # as Lightning does when it is imported
        return SimpleNamespace(examine=lambda args, first: seen.append(lightning.level) or 0)

    monkeypatch.setattr(diagnosing, "importlib", SimpleNamespace(import_module=imported))
    assert diagnosing.doctor([]) == 0
    assert seen == [logging.WARNING]


def test_a_driver_without_a_torch_for_it_is_advised_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = {}
    for program, cuda in ((None, None), ("nvidia-smi", None), ("nvidia-smi", "13.0")):
        monkeypatch.setattr(shutil, "which", lambda name, program=program: program)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        finding = health.devices()
        found[program, cuda] = (bool(finding.fix), finding.is_broken)
    assert found == {
        (None, None): (False, False),
        ("nvidia-smi", None): (True, False),
        ("nvidia-smi", "13.0"): (True, True),
    }


def test_more_threads_than_cores_and_threads_that_wait_actively_are_advised_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fix(threads: int, policy: str) -> str:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
        return health.threads().fix

    monkeypatch.setattr(health, "available_cores", lambda: 2.5)
    assert fix(3, "PASSIVE").startswith("set OMP_NUM_THREADS to 2 at most")
    assert fix(2, "active").startswith("set OMP_WAIT_POLICY=PASSIVE")
    assert fix(2, "PASSIVE") == fix(1, "ACTIVE") == ""


def test_the_quota_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(health, "QUOTA", quota)
    whole = health.available_cores()
    quota.write_text("max 100000\n")
    assert health.available_cores() == whole >= 1.0
    quota.write_text("50000 100000\n")
    assert health.available_cores() == 0.5


@pytest.mark.parametrize(("free", "expected"), [(2e10, (False, False)), (5e9, (True, False)), (5e8, (True, True))])
def test_little_space_is_advised_on_and_none_is_broken(
    monkeypatch: pytest.MonkeyPatch, free: float, expected: tuple[bool, bool]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    finding = health.disk()
    assert (bool(finding.fix), finding.is_broken) == expected


def test_a_folder_that_cannot_be_written_to_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    finding = health.disk()
    assert finding.is_broken
    assert finding.text.endswith("Permission denied")


def test_tracking_is_reached_or_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    new = health.tracking(f"sqlite:///{tmp_path}/new.db")
    assert new == Finding("tracking", f"{tmp_path}/new.db, which the first run makes")
    assert not list(tmp_path.iterdir())
    (tmp_path / "other.db").write_text("no database" * 100)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for address in (f"sqlite:///{tmp_path}/other.db", f"http://127.0.0.1:{port}"):
        finding = health.tracking(address)
        assert finding.is_broken
        assert "conf/logger/none.yaml" in finding.fix
        assert "\n" not in finding.text
    monkeypatch.setattr(
        health, "connect", lambda address: SimpleNamespace(search_experiments=lambda max_results: [address])
    )
    assert health.tracking("http://me:secret@host:5000") == Finding("tracking", "http://host:5000 answers")


def test_a_frame_is_drawn_or_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    finding = health.rendering()
    assert finding.text.startswith("no frame: RuntimeError: no OpenGL library")
    assert "libegl1" in finding.fix
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(health.sys, "executable", "/bin/false")
    assert health.rendering().text == "no frame: no message (exit status 1)"


@pytest.mark.skipif(reason_without_backend() is not None, reason=str(reason_without_backend()))
def test_a_backend_gives_a_frame() -> None:
    assert health.rendering().text.endswith("gives a frame")


def made_speed(update_s: float, core: float | None) -> Callable[[float, str], Speed]:
    return lambda seconds, device: Speed(update_s, 0.03, 0.01, 5e10, core)


def test_speed_is_judged_by_what_was_measured_with_it() -> None:
    assert health.speed(made_speed(0.079, 0.2)).fix == ""
    assert "this process had its core 20% of the time" in health.speed(made_speed(0.081, 0.2)).fix
    assert "OMP_NUM_THREADS" in health.speed(made_speed(0.081, 0.95)).fix
    finding = health.speed(made_speed(0.1, None))
    assert "10 updates per second" in finding.text
    assert "at least 12.5" in finding.text
    assert not finding.is_broken


def test_an_update_takes_longer_than_its_products_or_its_operators() -> None:
    found = measure_speed(0.0, "cpu")
    assert 0.0 < found.products_s < found.update_s
    assert 0.0 < found.operators_s < found.update_s
    assert found.core_fraction is not None
    assert 0.0 < found.core_fraction <= 1.05


def test_the_command_names_what_is_broken_and_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(health, "rendering", lambda: Finding("rendering", "egl gives a frame"))
    monkeypatch.setattr(health, "speed", made_speed)  # which would fail if it were called
    outcome = call(["doctor", "--speed=false", f"--tracking_uri=sqlite:///{tmp_path}/new.db"])
    labels = [line.split()[0] for line in outcome.out.splitlines() if not line.startswith(" ")]
    assert labels == ["versions", "devices", "threads", "disk", "tracking", "rendering", "nothing"]
    assert (outcome.code, outcome.err) == (0, "")
    (tmp_path / "other.db").write_text("no database" * 100)
    outcome = call(["doctor", "--speed=false", f"--tracking_uri=sqlite:///{tmp_path}/other.db"])
    assert outcome.code == 1
    assert outcome.out.splitlines()[-1] == "broken       tracking"
