"""Evaluation in pieces that fit a processor's cache, on all of its threads."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch
from torch import Tensor

CPU_ROWS = 2048
"""Rows per piece on a CPU: 2048 rows of 256 floats are 2 MB, about the size of a core's cache. Without pieces the
elementwise functions between two matrix products are limited by main memory; see ``benchmarks/update_speed.py``."""

THREAD_ROWS = 256
"""Rows per piece below which a second thread costs more than it brings."""


def map_in_chunks(
    function: Callable[..., tuple[Tensor, ...]], rows_per_state: int, *inputs: Tensor, ordered: bool = False
) -> tuple[Tensor, ...]:
    """Apply a function that treats states independently, on a CPU a few states at a time.

    With several threads (``torch.get_num_threads``) each takes whole pieces, so that none waits for the others after
    every operation. No gradient flows through the result then.

    Args:
        function: Takes tensors whose first dimension counts states and returns a tuple of such tensors.
        rows_per_state: Rows of the largest matrix product inside the function, per state.
        *inputs: Tensors of shape (B, ...).
        ordered: Whether the pieces must follow one another, as those of a function that draws random numbers, or
            differentiates in forward mode.

    Returns:
        The result of ``function(*inputs)``.
    """
    if torch.compiler.is_exporting():
        return function(*inputs)
    whole = inputs[0].device.type != "cpu" or len(inputs[0]) * rows_per_state <= CPU_ROWS
    if whole and torch.compiler.is_compiling():
        return function(*inputs)  # a graph does not know the number of threads
    return _map_in_chunks(function, rows_per_state, inputs, ordered)


@torch.compiler.disable()  # a graph of all pieces one after the other takes minutes to make
def _map_in_chunks(
    function: Callable[..., tuple[Tensor, ...]], rows_per_state: int, inputs: tuple[Tensor, ...], ordered: bool
) -> tuple[Tensor, ...]:
    threads = 1 if ordered or torch.is_grad_enabled() else torch.get_num_threads()
    states = _states_per_piece(len(inputs[0]), rows_per_state, threads)
    if inputs[0].device.type != "cpu" or len(inputs[0]) <= states:
        return function(*inputs)
    arguments = zip(*(x.split(states) for x in inputs), strict=True)
    if threads == 1:
        pieces = [function(*piece) for piece in arguments]
    else:
        pieces = list(_pool(threads, os.getpid()).map(_with_modes_of_this_thread(function), arguments))
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))


def _states_per_piece(number: int, rows_per_state: int, threads: int) -> int:
    """States of a piece: as many as fit the cache, and fewer where threads would have nothing to do."""
    # A power of two: usual batches split into pieces of one size, for which a function is compiled once.
    fitting = _power_of_two(CPU_ROWS // rows_per_state)
    if threads == 1:
        return fitting
    return min(fitting, max(_power_of_two(number // threads), _power_of_two(THREAD_ROWS // rows_per_state)))


def _power_of_two(most: int) -> int:
    """The greatest power of two of at most a number; 1 if that is below 1."""
    return 1 << max(0, most.bit_length() - 1)


@functools.cache
def _pool(threads: int, _: int) -> ThreadPoolExecutor:
    """Threads of a process, each of which computes by itself; a process that was forked has its own."""
    pool = ThreadPoolExecutor(threads, "flowmatch_rl", initializer=_compute_alone)
    begun = threading.Barrier(threads)
    wait([pool.submit(begun.wait) for _ in range(threads)])
    # Each thread has a number of its own, but one that begins later takes the number that was set last.
    torch.set_num_threads(threads)
    return pool


def _compute_alone() -> None:
    """Let the operations of this thread use no others."""
    torch.get_num_threads()  # the first use would set the number to that of the process
    torch.set_num_threads(1)


def _with_modes_of_this_thread(
    function: Callable[..., tuple[Tensor, ...]],
) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """A function of a piece that runs in another thread as it would in this one; there is no gradient."""
    rounds, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    inference = torch.is_inference_mode_enabled()

    def run(piece: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with contextlib.ExitStack() as modes:
            modes.enter_context(torch.inference_mode() if inference else torch.no_grad())
            modes.enter_context(torch.autocast("cpu", dtype, enabled=rounds))
            return function(*piece)

    return run
