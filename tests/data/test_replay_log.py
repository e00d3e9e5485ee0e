"""Files of transitions that checkpoints name: each has the rows of its own moment, and none is kept in vain."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.data import OnlineData
from flowmatch_rl.data.layouts.replay import CheckpointReplay
from flowmatch_rl.data.replay import Replay, RestoredRows
from flowmatch_rl.data.replay_log import FILES, Named, ReplayLog
from flowmatch_rl.data.replay_storage import DiskStorage, MemoryStorage
from tests.data.test_replay import rows

CPU = torch.device("cpu")


def on_disk(folder: Path, **options: Any) -> Replay:
    return Replay(7, 5, 1, 1, CPU, DiskStorage(), folder, **options)


def first_column(named: Named) -> list[float]:
    return torch.cat([part["observation"][:, 0] for part in named.read(0, len(named))]).tolist()


def checkpoint(path: Path, *named: Named) -> None:
    """A checkpoint that names files, of one process or several."""
    states = [{FILES: part.state_dict()} for part in named]
    state = states[0] if len(states) == 1 else {"ranks": states}
    torch.save({"state_dict": {}, "hyper_parameters": {}, "OnlineData": state}, path)


def test_every_checkpoint_names_the_rows_of_its_moment(tmp_path: Path) -> None:
    replay, log = on_disk(tmp_path), ReplayLog(tmp_path / "log")
    saved, wanted, count = [], [], 0
    for number in (3, 0, 2, 4, 9, 1, 6):  # fills it, nothing, wraps around, more than it holds
        if number:
            replay.add(rows(count, number)[None])
        count += number
        log.save(replay)
        saved.append(log.held)
        wanted.append([float(place) for place in range(max(0, count - 7), count)])
    assert [first_column(named) for named in saved] == wanted
    assert len({name for named in saved for name in named.names}) == 6
    assert sum(named.first > 0 for named in saved) > 1


def test_large_buffers_are_written_to_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowmatch_rl.data.replay_log._MOST_BYTES", 60)  # two rows
    replay, log = on_disk(tmp_path), ReplayLog(tmp_path / "log")
    replay.add(rows(0, 9)[None])
    log.save(replay)
    assert log.held.counts == (2, 2, 2, 1)
    assert first_column(log.held) == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("added", [5, 7, 17])
def test_a_buffer_that_is_filled_from_files_is_the_buffer_that_wrote_them_place_by_place(
    tmp_path: Path, added: int
) -> None:
    first, log = on_disk(tmp_path), ReplayLog(tmp_path / "log")
    for place in range(added):
        first.add(rows(place, 1)[None])
        if place % 3 == 0:
            log.save(first)
    log.save(first)
    others = [log.held, RestoredRows(first.transitions)]
    buffers = [first, *(on_disk(tmp_path, restored=other, state=first.state_dict()) for other in others)]
    buffers.append(Replay(7, 5, 1, 1, CPU, MemoryStorage(), restored=log.held, state=first.state_dict()))
    for buffer in buffers:
        torch.manual_seed(0)
        buffer.add(rows(added, 2)[None])
        assert torch.equal(buffer.sample()["observation"], torch.manual_seed(0) and first.sample()["observation"])
    again = ReplayLog(tmp_path / "log")
    again.adopt(log.held)
    again.save(buffers[1])
    assert first_column(again.held) == [float(place) for place in range(added + 2)][-7:]
    assert len(set(again.held.names) - set(log.held.names)) == 1


def test_files_that_no_checkpoint_of_a_process_names_are_deleted(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    replay, log = on_disk(tmp_path), ReplayLog(tmp_path / "log")
    saved = []
    for place in range(4):
        replay.add(rows(7 * place, 7)[None])
        log.save(replay)
        saved.append(log.held)
    checkpoint(checkpoints / "best.ckpt", saved[0])
    checkpoint(checkpoints / "of_two.ckpt", Named(tmp_path), saved[2])
    damaged = checkpoints / "damaged.ckpt"
    damaged.write_bytes(b"PK\x03\x04")
    log.prune([checkpoints])
    assert len(list((tmp_path / "log").iterdir())) == 4
    damaged.unlink()
    log.prune([checkpoints])
    names = {path.name for path in (tmp_path / "log").iterdir()}
    assert names == {*saved[0].names, *saved[2].names, *saved[3].names}
    checkpoint(checkpoints / "best.ckpt", saved[3])
    log.prune([checkpoints])
    assert len(list((tmp_path / "log").iterdir())) == 2


def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path) -> None:
    replay, log = on_disk(tmp_path), ReplayLog(tmp_path / "log")
    replay.add(rows(0, 7)[None])
    log.save(replay)
    path = log.held.folder / log.held.names[0]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"^{path} is damaged: a part of it is missing$"):
        log.held.found([])


def test_a_buffer_on_disk_takes_its_room_at_once_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    allocate = os.posix_fallocate

    def note(file: int, start: int, length: int) -> None:
        taken.append(length)
        allocate(file, start, length)

    monkeypatch.setattr(os, "posix_fallocate", note)
    replay = Replay(1000, 5, 1, 1, CPU, DiskStorage(str(tmp_path / "fast")), tmp_path / "run")
    replay.add(rows(0, 3)[None])
    assert sum(taken) == 1000 * rows(0, 1).bytes()
    assert not list((tmp_path / "fast").iterdir())
    assert not (tmp_path / "run").exists()
    assert replay.transitions["observation"][:, 0].tolist() == [0, 1, 2]


def test_the_rows_that_a_checkpoint_names_can_be_converted(tmp_path: Path) -> None:
    replay, log = on_disk(tmp_path), ReplayLog(tmp_path / "replay" / "rank_0")
    replay.add(rows(0, 9)[None])
    log.save(replay)
    (tmp_path / "checkpoints").mkdir()
    checkpoint(tmp_path / "checkpoints" / "last.ckpt", log.held)
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "_moved"))
    (read,) = CheckpointReplay(str(moved / "checkpoints" / "last.ckpt")).rows()
    assert read.observation[:, 0].tolist() == [2, 3, 4, 5, 6, 7, 8]


def test_another_number_of_processes_divides_the_rows_that_a_checkpoint_names(tmp_path: Path) -> None:
    states = []
    for rank in range(2):
        replay, log = on_disk(tmp_path), ReplayLog(tmp_path / f"rank_{rank}")
        replay.add(rows(10 * rank, 4)[None])
        log.save(replay)
        states.append({"local_env_steps": 4, "pending_updates": 0.0, FILES: log.held.state_dict()})
    data = OnlineData(warmup_env_steps=8, total_env_steps=9, batch_size=2)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, ckpt_path=None)  # pyright: ignore
    data.load_state_dict({"ranks": states})
    assert data.replay is not None
    assert sorted(data.replay["observation"][:, 0].tolist()) == [0, 1, 2, 3, 10, 11, 12, 13]
