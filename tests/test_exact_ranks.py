"""A run of two processes that was killed and resumed is the run that was never killed, to the last digit."""

from pathlib import Path

import pytest
import torch

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.ranks import states_of_ranks
from tests.processes import in_processes
from tests.test_exact_resume import End, difference, fit

pytestmark = pytest.mark.ddp


def train(folder: Path) -> None:
    name, two = "soft, 3 steps", {"devices": 2, "strategy": "ddp"}
    fit(name, folder / "whole", **two)
    fit(name, folder / "parts", ends_at=10, how="kill", **two)
    fit(name, folder / "parts", resumes=True, **two)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    for ended in in_processes("tests.test_exact_ranks:train", path):
        assert ended.code == 0, ended.err
        assert "begins new episodes" not in ended.out
    return path


def test_a_killed_and_resumed_run_of_two_processes_is_the_run_that_was_never_killed(folder: Path) -> None:
    got, wanted = End.of(folder / "parts"), End.of(folder / "whole")
    assert difference(got.state, wanted.state) == ""
    assert got.curve == wanted.curve
    assert len(wanted.curve) == 3


def test_a_checkpoint_holds_what_each_process_has_of_its_own_and_nothing_lies_beside_it(folder: Path) -> None:
    state = read_checkpoint(folder / "whole" / "checkpoints" / "last.ckpt")
    first, second = states_of_ranks(state["OnlineData"])
    assert not torch.equal(first["replay"]["observation"], second["replay"]["observation"])
    noise = [own["generators"]["torch"] for own in states_of_ranks(state["resumption"])]
    assert not torch.equal(*noise)
    assert not list(folder.rglob("*.part*"))
