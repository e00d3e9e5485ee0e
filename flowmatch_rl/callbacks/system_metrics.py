"""What a run and its machine are busy with, measured from another process."""

import contextlib
import time

import psutil
import pynvml

_GB = 1e9


class SystemMetrics:
    """Measures a process with all that it has started, the machine, and its GPUs.

    Args:
        process: Number of the process.
        without: Number of a process that is left out with all that it has started, such as the one that measures.
    """

    def __init__(self, process: int, without: int) -> None:
        self._process, self._without = process, without
        self._gpus = _gpus()
        self._seconds: dict[int, float] = {}
        self._measured_at = time.monotonic()
        psutil.cpu_percent()  # the next call measures from here on
        self.measure()

    def measure(self) -> dict[str, float]:
        """Metrics by name since the last call; memory in units of 1e9 bytes; empty once the process has ended.

        ``system/run_cores`` is the number of cores that the run kept busy: its processor time, seconds per second.
        ``system/run_memory_gb`` counts memory that its processes share once for each of them. Percentages are of the
        machine, and of each of its GPUs.
        """
        seconds, memory = self._of_run()
        now = time.monotonic()
        passed, self._measured_at = now - self._measured_at, now
        spent = sum(value - self._seconds.get(number, 0.0) for number, value in seconds.items())
        self._seconds = seconds
        if not seconds:
            return {}
        found = {
            "system/run_cores": spent / passed,
            "system/run_memory_gb": memory / _GB,
            "system/cpu_percent": psutil.cpu_percent(),
            "system/memory_percent": psutil.virtual_memory().percent,
        }
        for index, gpu in enumerate(self._gpus):
            with contextlib.suppress(pynvml.NVMLError):  # a part of a divided GPU does not say how busy it is
                found[f"system/gpu_{index}_percent"] = float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
            with contextlib.suppress(pynvml.NVMLError):
                found[f"system/gpu_{index}_memory_gb"] = float(pynvml.nvmlDeviceGetMemoryInfo(gpu).used) / _GB
        return found

    def _of_run(self) -> tuple[dict[int, float], float]:
        """Processor time in seconds by process, and resident memory of all of them in bytes."""
        seconds: dict[int, float] = {}
        memory = 0.0
        left = [self._process]
        while left:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
                process = psutil.Process(left.pop())
                left += [child.pid for child in process.children() if child.pid != self._without]
                times = process.cpu_times()
                memory += process.memory_info().rss
                seconds[process.pid] = times.user + times.system
        return seconds, memory


def _gpus() -> list[object]:
    """GPUs of the machine by NVIDIA's driver; none where it has no such driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
