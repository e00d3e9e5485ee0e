"""Data sets of transitions that are not what was written are noticed before anything is learned from them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from flowmatch_rl.checks import UserError
from flowmatch_rl.data import OfflineData, TransitionStore
from tests.data.toy_rows import toy_store

ROWS = 500


def flip(file: Path, place: int) -> None:
    """Turn over one bit, which changes no size and leaves a finite number."""
    held = bytearray(file.read_bytes())
    held[place] ^= 1
    file.write_bytes(held)


def flip_a_bit(folder: Path) -> None:
    flip(folder / "transitions" / "observation.memmap", 1000)


def swap_two_files(folder: Path) -> None:
    first, second = (folder / "transitions" / "next" / f"{name}.memmap" for name in ("terminated", "truncated"))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)


def lose_a_block(folder: Path) -> None:
    with (folder / "transitions" / "next" / "reward.memmap").open("r+b") as file:
        file.seek(512)
        file.write(bytes(512))


def change_a_statistic(folder: Path) -> None:
    info = TransitionStore.open(folder).info
    file = folder / "dataset.json"
    file.write_text(file.read_text().replace(repr(info.reward_mean), repr(info.reward_mean + 1.0)))


def lose_a_checksum(folder: Path) -> None:
    file = folder / "SHA256SUMS"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))


def damage_a_checksum(folder: Path) -> None:
    flip(folder / "SHA256SUMS", 5)


CORRUPTIONS = [flip_a_bit, swap_two_files, lose_a_block, change_a_statistic, lose_a_checksum, damage_a_checksum]


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_a_data_set_that_has_changed_is_refused(corrupt: Callable[[Path], None], tmp_path: Path) -> None:
    toy_store(tmp_path / "set", ROWS)
    OfflineData(str(tmp_path / "set"))
    corrupt(tmp_path / "set")
    with pytest.raises(UserError, match="damaged") as caught:
        OfflineData(str(tmp_path / "set"))
    assert str(tmp_path / "set") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(OfflineData(str(tmp_path / "set"), verify=False).store) == ROWS


def test_message_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    toy_store(tmp_path / "set")
    flip(tmp_path / "set" / "transitions" / "next" / "reward.memmap", 3)
    with pytest.raises(UserError, match=r"next/reward\.memmap is not what was written.*SHA256SUMS.*make .* again"):
        TransitionStore.open(tmp_path / "set").verify()


def test_checksums_are_those_of_other_tools_and_cover_every_file(tmp_path: Path) -> None:
    toy_store(tmp_path / "set")
    lines = (tmp_path / "set" / "SHA256SUMS").read_text().splitlines()
    listed = {line.split("  ")[1]: line.split("  ")[0] for line in lines}
    files = {path for path in (tmp_path / "set").rglob("*") if path.is_file() and path.name != "SHA256SUMS"}
    assert {tmp_path / "set" / name for name in listed} == files
    for name, checksum in listed.items():
        assert checksum == hashlib.sha256((tmp_path / "set" / name).read_bytes()).hexdigest()


def test_a_data_set_without_checksums_is_taken_as_it_is(tmp_path: Path) -> None:
    toy_store(tmp_path / "set")
    (tmp_path / "set" / "SHA256SUMS").unlink()
    TransitionStore.open(tmp_path / "set").verify()


def test_a_data_set_may_be_moved_and_annotated(tmp_path: Path) -> None:
    toy_store(tmp_path / "set")
    (tmp_path / "set" / "notes.txt").write_text("mine")
    (tmp_path / "set").rename(tmp_path / "other")
    TransitionStore.open(tmp_path / "other").verify()
