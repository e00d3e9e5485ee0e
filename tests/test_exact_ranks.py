"""Runs of two processes that were ended and resumed: in as many they are the run that was never ended."""

import shutil
from pathlib import Path

import pytest
import torch

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.data.replay_log import named_files
from flowmatch_rl.ranks import states_of_ranks
from tests.cli.support import default_signals
from tests.processes import in_processes
from tests.test_exact_resume import End, difference, fit

pytestmark = pytest.mark.ddp

NAME = "soft, 3 steps"
"""Warm-up of 12 steps and 42 more, two for each update: an epoch has 7 updates, with two processes 4."""


ON_DISK = "reverse flow, on disk"


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def train(folder: Path) -> None:
    two = {"devices": 2, "strategy": "ddp"}
    fit(NAME, folder / "whole", **two)
    parts = folder / "parts"
    fit(NAME, parts, ends_at=2, **two)  # within the first epoch; the signal reaches the second process alone
    shutil.copy(last(parts), folder / f"first{torch.distributed.get_rank()}.ckpt")
    fit(NAME, parts, ends_at=7, resumes=True, **two)  # in the last update of the second
    fit(NAME, parts, ends_at=9, how="kill", resumes=True, **two)
    fit(NAME, parts, resumes=True, **two)
    fit(NAME, folder / "more", resumes=True, **two)
    fit(ON_DISK, folder / "disk", ends_at=10, resumes=True, **two)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    with default_signals():
        fit(NAME, path / "more", ends_at=9)
        fit(ON_DISK, path / "disk", ends_at=9)
    shutil.copy(last(path / "more"), path / "single.ckpt")
    (path / "disk_alone.rows").write_bytes(b"".join(stored(path / "disk")))
    for rank, ended in enumerate(in_processes(train, path)):
        assert ended.code == 0, ended.err
        assert ended.out.count("begins new episodes") == 2 * (rank == 0)  # those that a single process began
        assert ended.out.count("transitions of 1 processes are divided among 2") == 2 * (rank == 0)
    return path


def stored(folder: Path) -> list[bytes]:
    """The transitions that a checkpoint names, of each process one after the other."""
    rows = [torch.cat(list(named.read(0, len(named)))) for named in named_files(last(folder))]  # pyright: ignore
    return [row["next", "observation"].numpy().tobytes() for part in rows for row in part]


def test_a_run_of_two_processes_that_is_ended_and_resumed_is_the_run_that_was_never_ended(folder: Path) -> None:
    got, wanted = End.of(folder / "parts"), End.of(folder / "whole")
    assert difference(got.state, wanted.state) == ""
    assert got.curve == wanted.curve
    assert len(wanted.curve) == 3


def test_a_checkpoint_holds_what_each_process_has_of_its_own_and_nothing_lies_beside_it(folder: Path) -> None:
    state = read_checkpoint(last(folder / "whole"))
    first, second = states_of_ranks(state["OnlineData"])
    assert not torch.equal(first["replay"]["observation"], second["replay"]["observation"])
    noise = [own["generators"]["torch"] for own in states_of_ranks(state["resumption"])]
    assert not torch.equal(*noise)
    assert not list(folder.rglob("*.part*"))


def env_steps(path: Path) -> int:
    return sum(state["local_env_steps"] for state in states_of_ranks(read_checkpoint(path)["OnlineData"]))


def test_a_run_of_two_processes_continues_in_one_for_the_steps_that_remain(
    folder: Path, tmp_path: Path, capsys
) -> None:
    last(tmp_path).parent.mkdir()
    shutil.copy(folder / "first0.ckpt", last(tmp_path))
    assert env_steps(last(tmp_path)) == 12 + 3 * 2 * 2
    with default_signals():
        fit(NAME, tmp_path, resumes=True)
    assert "transitions of 2 processes are divided among 1" in capsys.readouterr().out
    # Three of four updates are five of seven.
    assert env_steps(last(tmp_path)) == 12 + 3 * 2 * 2 + (2 + 7 + 7) * 2
    assert [int(row["env_steps"]) for row in End.of(tmp_path).curve] == [28, 42, 56]


def test_a_run_of_one_process_continues_in_two_for_the_steps_that_remain(folder: Path) -> None:
    assert env_steps(folder / "single.ckpt") == 12 + 10 * 2
    # Three of seven updates in the second epoch are two of four; two updates of it remain, and four of the last.
    assert env_steps(last(folder / "more")) == 12 + 10 * 2 + (2 + 4) * 2 * 2
    assert [int(row["env_steps"]) for row in End.of(folder / "more").curve] == [26, 40, 56]


def test_a_buffer_on_a_disk_is_divided_among_more_processes_and_joined_again(folder: Path, capsys) -> None:
    alone = (folder / "disk_alone.rows").read_bytes()
    both = stored(folder / "disk")
    size = len(both[0])
    rows = {alone[first : first + size] for first in range(0, len(alone), size)}
    assert len(rows) == 13
    assert rows < set(both)  # the second process has a part of them, and none is lost
    assert len(set(both)) == len(both)
    first, second = named_files(last(folder / "disk"))
    assert second.folder.name == "rank_1"
    assert min(len(first), len(second)) > 6
    (last(folder / "disk").parent / "best.ckpt").unlink()  # it needs files of both processes
    with default_signals():
        fit(ON_DISK, folder / "disk", resumes=True)
    assert f"{len(both)} transitions of 2 processes are divided among 1" in capsys.readouterr().out
    (named,) = named_files(last(folder / "disk"))
    assert named.folder.name == "rank_0"
    assert not list((folder / "disk" / "replay" / "rank_1").iterdir())
    assert len(named) == len(set(stored(folder / "disk"))) == 13
