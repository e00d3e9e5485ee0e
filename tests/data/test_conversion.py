"""Conversion: the data set on disk holds the rows of the layout, also after an interruption."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from flowmatch_rl.data import D4rlFile, ExorlEpisodes, OgbenchFile, TransitionStore, TransitionTable, convert_layout
from flowmatch_rl.data.layouts import conversion
from tests.combinations import each_value
from tests.data.layout_files import write_d4rl, write_exorl, write_ogbench


def same(store: TransitionStore, rows: TensorDict) -> None:
    held = store.transitions.flatten_keys("/").to_dict()
    wanted = rows.flatten_keys("/").to_dict()
    assert held.keys() == wanted.keys()
    assert all(torch.equal(held[key], wanted[key]) for key in wanted)


def test_data_set_holds_what_the_layout_holds(tmp_path: Path) -> None:
    write_exorl(tmp_path / "buffer", {0: 3, 1: 4}, discounts={1: 0.0})
    layout = ExorlEpisodes(str(tmp_path / "buffer"), columns=["x", "y", "z"], action_low=-1.0, action_high=1.0)
    store = convert_layout(layout, str(tmp_path / "out"), progress=False)
    same(store, TensorDict.cat(list(layout.blocks())))
    assert (store.info.num_transitions, store.info.num_trajectories, store.info.ordered) == (7, 2, True)
    assert store.info.columns == ("x", "y", "z")
    assert (store.info.action_low, store.info.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    assert "ExorlEpisodes" in store.info.provenance["layout"]


def test_files_without_a_transition_are_refused(tmp_path: Path) -> None:
    write_ogbench(tmp_path / "a.npz", [1, 1])
    with pytest.raises(ValueError, match=r"a\.npz' holds no transitions"):
        convert_layout(OgbenchFile(str(tmp_path / "a.npz")), str(tmp_path / "out"), progress=False)


def test_remarks_stay_with_the_data_set(tmp_path: Path) -> None:
    write_d4rl(tmp_path / "a.hdf5", [0, 1, 0, 0], [0, 0, 0, 1], arrivals=False)
    store = convert_layout(D4rlFile(str(tmp_path / "a.hdf5")), str(tmp_path / "out"), progress=False)
    assert "1 termination" in store.info.provenance["remarks"][0]


def test_table_keeps_its_next_actions_and_lack_of_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.arange(3.0), u=np.zeros(3), y=np.ones(3), w=np.full(3, 0.5))
    names = {"observations": ["x"], "actions": ["u"], "next_observations": ["y"], "next_actions": ["w"]}
    table = TransitionTable(str(tmp_path / "t.npz"), units={"u": "N"}, **names)
    store = convert_layout(table, str(tmp_path / "out"), progress=False)
    assert (store.info.labels, store.info.action_labels, store.info.has_rewards) == (("x",), ("u [N]",), False)
    assert store.transitions["next", "action"].flatten().tolist() == [0.5, 0.5, 0.5]
    assert (store.info.ordered, store.info.num_trajectories, store.info.has_next_action) == (False, None, True)


@pytest.mark.parametrize("appended", [0, 1, 2, 3])
def test_interrupted_conversion_ends_like_an_uninterrupted_one(appended: int, tmp_path: Path, monkeypatch) -> None:
    ends = [0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1]
    write_ogbench(tmp_path / "a.npz", ends)
    layout = OgbenchFile(str(tmp_path / "a.npz"))
    whole = TensorDict.cat(list(layout.blocks()))
    monkeypatch.setattr(conversion, "PIECE_ROWS", 3)
    append, done = conversion.TransitionWriter.append, []

    def append_some(writer, block) -> None:
        if len(done) == appended:
            raise KeyboardInterrupt
        done.append(len(block))
        append(writer, block)

    # One row per block, so that pieces do not end where blocks do.
    monkeypatch.setattr(OgbenchFile, "blocks", lambda _: iter(whole.split(1)))
    monkeypatch.setattr(conversion.TransitionWriter, "append", append_some)
    with pytest.raises(KeyboardInterrupt):
        convert_layout(layout, str(tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(conversion.TransitionWriter, "append", append)
    same(convert_layout(layout, str(tmp_path / "out"), progress=False), whole)


def test_other_options_do_not_go_on_with_a_conversion(tmp_path: Path, monkeypatch) -> None:
    write_ogbench(tmp_path / "a.npz", [0, 0, 1])
    with monkeypatch.context() as patch:
        patch.setattr(conversion.TransitionWriter, "finish", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert_layout(OgbenchFile(str(tmp_path / "a.npz")), str(tmp_path / "out"), progress=False)
    other = OgbenchFile(str(tmp_path / "a.npz"), action_low=-2.0, action_high=2.0)
    with pytest.raises(ValueError, match="action_low"):
        convert_layout(other, str(tmp_path / "out"), progress=False)


@each_value
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_pieces_hold_all_rows_in_order(size: int, whole: bool, tmp_path: Path) -> None:
    write_exorl(tmp_path / "buffer", dict(enumerate([1, 4, 2, 7, 3])))
    blocks = list(ExorlEpisodes(str(tmp_path / "buffer")).blocks())
    parts = list(conversion.pieces(iter(blocks), size, whole))
    assert all(len(part) >= (1 if whole else size) for part in parts[:-1])
    assert all(len(part) for part in parts)
    joined, wanted = TensorDict.cat(parts), TensorDict.cat(blocks)
    assert torch.equal(joined["observation"], wanted["observation"])
    if whole:
        assert all(bool(part["next", "done"][-1]) for part in parts)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 8])
def test_skipped_rows_are_the_first(number: int) -> None:
    blocks = [TensorDict({"x": torch.arange(start, stop)}, [stop - start]) for start, stop in ((0, 2), (2, 3), (3, 8))]
    rest = [int(x) for block in conversion.skip_rows(iter(blocks), number) for x in block["x"]]
    assert rest == list(range(number, 8))
