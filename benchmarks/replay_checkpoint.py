"""How long a checkpoint of a million transitions pauses training, with the replay buffer in memory and on a disk."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from flowmatch_rl.batches import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED
from flowmatch_rl.callbacks import AtomicCheckpointIO
from flowmatch_rl.data.replay import Replay, RestoredRows
from flowmatch_rl.data.replay_log import FILES, ReplayLog
from flowmatch_rl.data.replay_storage import DiskStorage, MemoryStorage

ROWS, NEW, BATCH = 1_000_000, 10_000, 256
OBSERVATION_DIM, ACTION_DIM = 17, 6  # of HalfCheetah-v5
CHECKPOINTS = 10


def run() -> dict[str, Any]:
    """Fill a buffer of a million transitions (float32) and write checkpoints of it; returns one row per storage.

    The first checkpoint writes all transitions, with either storage; each of the ten that follow comes after 10,000
    new ones. The time is that of the data module's state and of the file, to its ``fsync``. Then the last checkpoint is
    read and the buffer filled from it. A sample is a batch of 256, an addition that of a single transition; median
    of a thousand.
    """
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as home:
        rows = [_measured(on_disk, Path(home) / str(on_disk)) for on_disk in (False, True)]
    return {"title": "Checkpoints of a million transitions", "rows": rows}


def _transitions(number: int) -> TensorDict:
    sizes = {OBSERVATION: OBSERVATION_DIM, ACTION: ACTION_DIM, NEXT_OBSERVATION: OBSERVATION_DIM, REWARD: 1}
    entries: dict[Any, torch.Tensor] = {key: torch.randn(number, size) for key, size in sizes.items()}
    return TensorDict(entries | {TERMINATED: torch.zeros(number, 1, dtype=torch.bool)}, [number])


def _measured(on_disk: bool, folder: Path) -> dict[str, Any]:
    storage = DiskStorage() if on_disk else MemoryStorage()

    def buffer(restored: Any = None, state: Any = None) -> Replay:
        return Replay(ROWS, BATCH, 1, 1, torch.device("cpu"), storage, folder, restored, state)

    replay, log, last = buffer(), ReplayLog(folder / "replay"), folder / "last.ckpt"
    block = _transitions(NEW)[None]
    for _ in range(ROWS // NEW):
        replay.add(block)

    def write() -> None:
        if on_disk:
            log.save(replay)
            log.prune([folder])
            state: Any = {FILES: log.held.state_dict()}
        else:
            state = {"replay": dict(replay.transitions.flatten_keys("/").items())}
        content = {"state_dict": {}, "hyper_parameters": {}, "OnlineData": state, "buffer": replay.state_dict()}
        AtomicCheckpointIO().save_checkpoint(content, last)

    def read() -> None:
        content = AtomicCheckpointIO().load_checkpoint(last)
        held = content["OnlineData"].get("replay")
        rows = {} if held is None else {tuple(name.split("/")): entry for name, entry in held.items()}
        restored = log.held.found([]) if on_disk else RestoredRows(TensorDict(rows, [ROWS]))
        assert len(buffer(restored, content["buffer"])) == ROWS

    first = _seconds(write)
    pauses = []
    for _ in range(CHECKPOINTS):
        replay.add(block)
        pauses.append(_seconds(write))
    row = {
        "buffer": "on disk" if on_disk else "in memory",
        "first_checkpoint_s": first,
        "median_pause_s": statistics.median(pauses),
        "longest_pause_s": max(pauses),
        "checkpoint_megabytes": last.stat().st_size / 1e6,
        "resumption_s": _seconds(read),
    }
    single = block[:, :1]
    for name, call in (("sample_us", replay.sample), ("addition_us", lambda: replay.add(single))):
        row[name] = 1e6 * statistics.median(_seconds(call) for _ in range(1000))
    return row


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
