"""States of several processes in one checkpoint, and blocks that end alike on all of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import RunError
from flowmatch_rl.ranks import gather_states, in_memory, own_state, states_of_ranks, together


def dumped(rank: int) -> dict[str, Any]:
    return {"state_dict": {"w": torch.ones(2)}, "data": {"rows": torch.full((3,), float(rank))}}


def gathered(folder: Path, world_size: int = 3) -> dict[str, Any]:
    """What the first process writes; the others come before it."""
    for rank in range(world_size - 1, -1, -1):
        checkpoint = dumped(rank)
        gather_states(checkpoint, ["data"], folder, rank, world_size, bool)
    return checkpoint  # pyright: ignore[reportPossiblyUnboundVariable]


def test_the_first_process_writes_the_states_of_all_in_their_order_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "rank7.part").touch()  # of a run of eight that was killed
    checkpoint = gathered(tmp_path)
    assert list(tmp_path.iterdir()) == []
    torch.save(checkpoint, tmp_path / "last.ckpt")
    read = in_memory(read_checkpoint(tmp_path / "last.ckpt", memory_map=True, parts=["data"]))
    assert [state["rows"].tolist() for state in states_of_ranks(read["data"])] == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
    assert torch.equal(own_state(read["data"], 2)["rows"], torch.full((3,), 2.0))


def test_a_checkpoint_in_memory_outlives_its_file_and_maps_the_states_of_processes_only(tmp_path: Path) -> None:
    torch.save(gathered(tmp_path), tmp_path / "last.ckpt")
    mapped = read_checkpoint(tmp_path / "last.ckpt", memory_map=True, parts=["data"])
    weights = mapped["state_dict"]["w"].untyped_storage().data_ptr()
    parts = [state["rows"].data_ptr() for state in states_of_ranks(mapped["data"])]
    read = in_memory(mapped)
    assert read["state_dict"]["w"].untyped_storage().data_ptr() != weights
    assert [state["rows"].data_ptr() for state in states_of_ranks(read["data"])] == parts
    assert own_state(read["data"], 1)["rows"].data_ptr() not in parts


def test_a_single_process_writes_its_state_as_it_is(tmp_path: Path) -> None:
    checkpoint = gathered(tmp_path, world_size=1)
    assert states_of_ranks(checkpoint["data"]) == [checkpoint["data"]]
    assert set(checkpoint["data"]) == {"rows"}


def test_a_folder_that_the_first_process_does_not_share_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"rank1\.part.*must see its folder"):
        gather_states(dumped(0), ["data"], tmp_path, 0, 2, bool)


def test_a_block_that_fails_on_one_process_fails_on_all() -> None:
    with pytest.raises(RunError, match="another process"), together(lambda _: False):
        pass
    said: list[bool] = []
    with pytest.raises(OSError, match="full"), together(lambda fine: said.append(fine) or fine):
        raise OSError("full")
    assert said == [False]
