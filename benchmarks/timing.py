"""Rates measured side by side."""

import time
from collections.abc import Callable, Mapping

import torch


def rates(functions: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, float]:
    """Calls per second of several functions, each its best round; the rounds alternate."""
    best = dict.fromkeys(functions, 0.0)
    for function in functions.values():
        for _ in range(warmup):
            function()
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            best[name] = max(best[name], 1.0 / (time.perf_counter() - start))
    return best


def milliseconds(
    calls: Mapping[str, Callable[[], object]], rounds: int, repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Least milliseconds of a call of each, in alternating rounds."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds + 1):  # the first warms up
        for name, call in calls.items():
            start = clock()
            for _ in range(repeats):
                call()
            best[name] = min(best[name], 1e3 * (clock() - start) / repeats)
    return best


def gemm(dtype: torch.dtype, device: str) -> tuple[Callable[[], object], float]:
    """A matrix product of the shape that dominates (8192 x 256 x 256), and its floating point operations."""
    a = torch.randn(8192, 256, device=device).to(dtype)
    b = torch.randn(256, 256, device=device).to(dtype)

    def multiply() -> None:
        for _ in range(10):
            torch.mm(a, b)

    return multiply, 10 * 2.0 * 8192 * 256 * 256
