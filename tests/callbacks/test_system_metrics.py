"""What a run is busy with is measured from another process, and reaches its journal while it trains."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from flowmatch_rl.callbacks import deliverer
from flowmatch_rl.callbacks.journal import END, METRICS, OPEN, Entry, Journal, read_entries
from flowmatch_rl.callbacks.system_metrics import SystemMetrics

BUSY = "bytearray(200_000_000)\nprint(flush=True)\nwhile True: pass"


def test_the_work_of_a_process_and_of_its_children_is_measured_without_the_one_that_is_left_out() -> None:
    children = [subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        other = SystemMetrics(children[0].pid, 0)
        whole, part = SystemMetrics(os.getpid(), 0), SystemMetrics(os.getpid(), children[0].pid)
        time.sleep(0.5)
        everything, without, alone = whole.measure(), part.measure(), other.measure()
    finally:
        for child in children:
            child.kill()
            child.wait()
    # Three processes since the last call: this one has worked for seconds before.
    assert 0.0 < alone["system/run_cores"] < everything["system/run_cores"] < 3.5
    assert everything["system/run_cores"] - without["system/run_cores"] == pytest.approx(
        alone["system/run_cores"], abs=0.15
    )
    assert everything["system/run_memory_gb"] > without["system/run_memory_gb"] > 0.0
    assert 0.0 <= everything["system/memory_percent"] <= 100.0
    assert other.measure() == {}


def test_measurements_are_added_while_a_run_trains_at_its_interval(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "tracking" / "fit-1.jsonl")
    system, looked = deliverer._System(journal.path, os.getpid()), 0

    def metrics_after(*times: float) -> list[Entry]:
        """Measurements in the journal after moments of a clock, once what is new in it has been noted."""
        nonlocal looked
        for entry in read_entries(journal.path, looked):
            system.note(entry)
            looked = entry.offset
        for now in times:
            system.measure(now)
        return [entry for entry in read_entries(journal.path) if entry.kind == METRICS]

    assert metrics_after(0.0, 100.0) == []
    journal.append(OPEN, system_s=10.0)
    time.sleep(1.1)
    found = metrics_after(0.0, 9.0, 10.0, 12.0, 21.0)
    assert len(found) == 2
    assert 1 <= found[0].values["step"] <= 60
    assert found[0].values["values"]["system/run_memory_gb"] > 0.0
    journal.append(END, status="FINISHED")
    assert len(metrics_after(100.0, 120.0)) == 2
    journal.append(OPEN, system_s=None)
    assert len(metrics_after(200.0, 220.0)) == 2


def test_a_gpu_that_does_not_say_how_busy_it_is_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def utilization(gpu: int) -> SimpleNamespace:
        if gpu:
            raise pynvml.NVMLError_NotSupported  # pyright: ignore[reportAttributeAccessIssue]
        return SimpleNamespace(gpu=40)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", utilization)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda gpu: SimpleNamespace(used=3_000_000_000 * (gpu + 1)))
    found = SystemMetrics(os.getpid(), 0).measure()
    of_gpus = {name.removeprefix("system/gpu_"): value for name, value in found.items() if "gpu" in name}
    assert of_gpus == {"0_percent": 40.0, "0_memory_gb": 3.0, "1_memory_gb": 6.0}
