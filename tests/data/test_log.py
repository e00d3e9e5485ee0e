"""Logs with one row per step: their transitions, ends of episodes, units, and what is refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tensordict import TensorDict

from flowmatch_rl.checks import UserError
from flowmatch_rl.data import EpisodeLog, TransitionStore, convert_layout
from flowmatch_rl.data.layouts import arrays, conversion
from flowmatch_rl.data.layouts import log as log_layout
from tests.combinations import one_test
from tests.data.arm_log import ACTIONS, OBSERVATIONS, arm_log, write_log

COLUMNS: dict[str, Any] = {
    "observations": OBSERVATIONS,
    "actions": ACTIONS,
    "reward": "reward",
    "terminated": "reached",
    "episode": "episode",
    "outcomes": "arrival",
}
BOUNDS = {"action_low": [-20.0, -10.0], "action_high": [20.0, 10.0]}
ENDS = [4, 7, 11]
"""Transitions that end the episodes of ``arm_log``."""


def layout(path: Path | str, **changes: Any) -> EpisodeLog:
    """The log of the arm; None takes an option back."""
    options = {name: value for name, value in (COLUMNS | changes).items() if value is not None}
    return EpisodeLog(str(path), **options)


def read(log: EpisodeLog) -> dict[str, np.ndarray]:
    """All transitions by their names."""
    rows = TensorDict.cat(list(log.blocks()))
    assert len(rows) == log.describe().num_transitions
    return {name: value.squeeze(-1).numpy() for name, value in rows.flatten_keys("/").items()}


def remarks(log: EpisodeLog) -> list[str]:
    return log.describe().provenance["remarks"]


def ends_of(rows: dict[str, np.ndarray]) -> tuple[list[int], list[int]]:
    """Transitions that terminate, and those that are truncated."""
    terminated, truncated = rows["next/terminated"], rows["next/truncated"]
    assert (rows["next/done"] == (terminated | truncated)).all()
    return np.flatnonzero(terminated).tolist(), np.flatnonzero(truncated).tolist()


def without_last(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["episode"] == frame["episode"].shift(-1)]


def without_first(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["episode"] == frame["episode"].shift(1)]


def shifted(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    """A log whose outcomes are in the rows of their actions, in place of the rows that they led to."""
    moved = frame.groupby("episode")[list(names)].shift(-1)
    return frame.assign(**{name: moved[name] for name in names})


@pytest.mark.parametrize("outcomes", ["action", "arrival"])
def test_a_row_arrives_where_the_next_of_its_episode_starts(outcomes: str, tmp_path: Path) -> None:
    frame = arm_log()
    held = shifted(frame, "reward", "reached") if outcomes == "action" else frame
    rows = read(layout(write_log(held, tmp_path / "a.csv"), outcomes=outcomes, **BOUNDS))
    starts, arrivals = without_last(frame), without_first(frame)
    np.testing.assert_array_equal(rows["observation"], starts[OBSERVATIONS].to_numpy(np.float32))
    np.testing.assert_array_equal(rows["next/observation"], arrivals[OBSERVATIONS].to_numpy(np.float32))
    np.testing.assert_allclose(rows["action"], starts[ACTIONS] / [20.0, 10.0], atol=1e-7)
    np.testing.assert_array_equal(rows["next/reward"], arrivals["reward"].to_numpy(np.float32))
    assert ends_of(rows) == ([ENDS[1]], [ENDS[0], ENDS[2]])


def contents(folder: Path) -> dict[str, Any]:
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    del files["SHA256SUMS"]
    info = json.loads(files.pop("dataset.json"))
    del info["provenance"]
    return files | {"info": info}


def test_text_parquet_and_arrays_give_the_same_data_set_bit_for_bit(tmp_path: Path) -> None:
    frame, found = arm_log((40, 1, 25)), {}
    for kind in ("csv", "parquet", "npz"):
        file = write_log(frame, tmp_path / f"a.{kind}")
        log = layout(file, time="time", units={"q1": "rad", "tau2": "N m"})
        found[kind] = contents(convert_layout(log, str(tmp_path / kind), progress=False).path)
    assert found["csv"] == found["parquet"] == found["npz"]
    assert len(found["csv"]) > 7
    assert found["csv"]["info"]["units"] == {"q1": "rad", "tau2": "N m"}


@pytest.mark.parametrize("path", ["logs", "logs/arm_*.csv"])
def test_files_of_one_episode_are_read_in_the_order_of_their_numbers(path: str, tmp_path: Path) -> None:
    frame = arm_log()
    for number, name in enumerate(("arm_2", "arm_9", "arm_10")):
        write_log(frame[frame["episode"] == number], tmp_path / "logs" / f"{name}.csv")
    (tmp_path / "logs" / "README.md").write_text("mine")
    log, whole = layout(tmp_path / path, episode=None), layout(write_log(frame, tmp_path / "whole.csv"))
    found, wanted = read(log), read(whole)
    assert all((found[name] == wanted[name]).all() for name in wanted)
    assert (log.describe().action_low, ends_of(found)) == (whole.describe().action_low, ([7], [4, 11]))


def test_flags_alone_end_the_episodes_of_one_file(tmp_path: Path) -> None:
    frame = arm_log(reached=(1, 2))
    frame["stopped"] = (frame["episode"] == 0) & (frame["episode"].shift(-1) == 1)
    file = write_log(frame, tmp_path / "a.csv")
    assert ends_of(read(layout(file, episode=None, truncated="stopped"))) == ([7, 11], [4])


def test_blank_actions_tell_the_last_state_of_an_episode_from_the_first_of_the_next(tmp_path: Path) -> None:
    frame = shifted(arm_log(reached=(0, 1, 2)), "reward", "reached")
    lasts = ~frame.index.isin(without_last(frame).index)
    blank = frame.mask(np.outer(lasts, frame.columns.isin(ACTIONS)))
    rows = read(layout(write_log(blank, tmp_path / "a.csv"), episode=None, outcomes="action"))
    assert (len(rows["action"]), ends_of(rows)) == (12, (ENDS, []))
    np.testing.assert_array_equal(rows["next/observation"], without_first(frame)[OBSERVATIONS].to_numpy(np.float32))


def test_terminations_without_their_state_are_left_out_and_counted(tmp_path: Path) -> None:
    frame = arm_log(reached=(0, 2))
    log = layout(write_log(frame, tmp_path / "a.csv"), outcomes="action")
    assert ends_of(read(log)) == ([], ENDS)
    (remark,) = [text for text in remarks(log) if "termination" in text]
    assert remark.startswith("2 terminations are left out")
    assert "set outcomes to 'arrival'" in remark


def test_a_flag_that_stays_set_in_the_last_state_counts_once(tmp_path: Path) -> None:
    frame = shifted(arm_log(), "reward", "reached")
    frame["reached"] = frame["reached"].fillna(frame["reached"].shift())
    log = layout(write_log(frame, tmp_path / "a.csv"), outcomes="action")
    assert frame["reached"].sum() == 2
    assert ends_of(read(log)) == ([7], [4, 11])
    assert not [text for text in remarks(log) if "termination" in text]


def test_flags_may_be_words(tmp_path: Path) -> None:
    frame = arm_log()
    words = frame.assign(reached=np.where(frame["reached"] == 1, "True", "false"))
    assert ends_of(read(layout(write_log(words, tmp_path / "a.csv")))) == ([7], [4, 11])


def test_one_number_one_action_and_an_episode_of_one_step(tmp_path: Path) -> None:
    frame = pd.DataFrame({"run": ["a", "a", "b", "c"], "x": [0.5, 1.5, 7.0, 8.0], "u": [3.0, -9.0, np.nan, np.nan]})
    log = EpisodeLog(
        str(write_log(frame, tmp_path / "a.csv")), observations=["x"], actions=["u"], episode="run", constant_reward=-1
    )
    rows = read(log)
    assert {name: value.tolist() for name, value in rows.items()} == {
        "observation": [0.5],
        "action": [0.0],
        "next/observation": [1.5],
        "next/reward": [-1.0],
        "next/terminated": [False],
        "next/truncated": [True],
        "next/done": [True],
    }
    assert "2 episodes of one row are left out, which make no transition" in remarks(log)
    info = convert_layout(log, str(tmp_path / "out"), progress=False).info
    assert (info.action_low, info.action_high, info.has_rewards, info.reward_mean) == ((3.0,), (3.0,), True, -1.0)


def test_matrices_stand_for_their_columns(tmp_path: Path) -> None:
    frame = arm_log()
    np.savez(tmp_path / "a.npz", q=frame[OBSERVATIONS], tau=frame[ACTIONS], t=frame["time"], episode=frame["episode"])
    options = {"observations": ["q", "t"], "actions": ["tau"], "episode": "episode", "units": {"q": "rad", "t": "s"}}
    log = EpisodeLog(str(tmp_path / "a.npz"), **options)
    info = log.describe()
    assert info.labels == ("q[0] [rad]", "q[1] [rad]", "q[2] [rad]", "q[3] [rad]", "t [s]")
    assert info.action_labels == ("tau[0]", "tau[1]")
    np.testing.assert_array_equal(read(log)["observation"][:, :4], without_last(frame)[OBSERVATIONS].astype(np.float32))


def test_units_come_from_the_line_of_a_file_and_from_options_which_win(tmp_path: Path) -> None:
    names, *lines = write_log(arm_log(), tmp_path / "a.csv").read_text().splitlines()
    assert names == "episode,time,q1,q2,dq1,dq2,tau1,tau2,reward,reached"
    (tmp_path / "a.csv").write_text("\n".join([names, ",s,rad,rad,rad/s,,N m,N m,,", *lines]))
    info = layout(tmp_path / "a.csv", units={"q2": "deg"}).describe()
    assert info.units == {"q1": "rad", "q2": "deg", "dq1": "rad/s", "tau1": "N m", "tau2": "N m"}
    assert info.action_labels == ("tau1 [N m]", "tau2 [N m]")
    assert "line 2 (, s, rad, rad, rad/s, , N m, N m, , ) is taken for units" in info.provenance["remarks"]


def test_a_log_without_rewards_makes_a_data_set_that_says_so(tmp_path: Path) -> None:
    log = layout(write_log(arm_log(), tmp_path / "a.csv"), reward=None)
    store = convert_layout(log, str(tmp_path / "out"), progress=False)
    assert not store.info.has_rewards
    with pytest.raises(UserError, match="out' has no rewards"):
        store.require_rewards()
    assert layout(tmp_path / "a.csv", reward=None, constant_reward=0.0).describe().has_rewards


def test_gaps_of_time_cut_episodes(tmp_path: Path) -> None:
    frame = arm_log()
    for stretch, cut in ((0.005, []), (0.015, [1])):
        late = frame["time"] + stretch * ((frame["episode"] == 0) & (frame.index >= 3))
        log = layout(write_log(frame.assign(time=late), tmp_path / "a.csv"), time="time")
        rows = read(log)
        assert ends_of(rows) == ([7 - len(cut)], [*cut, 4 - len(cut), 11 - len(cut)])
        told = [text for text in remarks(log) if "apart" in text]
        assert told == ["1 episodes are cut where rows are not about 0.02 apart in 'time'"] * len(cut)


def test_time_that_goes_back_begins_an_episode_where_none_is_named(tmp_path: Path) -> None:
    log = layout(write_log(arm_log(), tmp_path / "a.csv"), episode=None, terminated=None, time="time")
    assert ends_of(read(log)) == ([], ENDS)
    assert "2 episodes begin where 'time' goes back" in remarks(log)


def test_times_may_be_dates(tmp_path: Path) -> None:
    frame = arm_log()
    start = pd.Timestamp("2026-01-31T23:59:59.99")
    frame["time"] = start + pd.to_timedelta(
        frame["time"] + 3600.0 * frame["episode"] + ((frame["episode"] == 0) & (frame.index > 1)), "s"
    )
    for kind in ("csv", "parquet"):
        rows = read(layout(write_log(frame, tmp_path / f"a.{kind}"), time="time"))
        assert (len(rows["action"]), ends_of(rows)[0]) == (11, [6])


def test_the_spacing_of_time_is_that_of_all_files(tmp_path: Path) -> None:
    frame = arm_log((4, 4))
    for number in (0, 1):
        part = frame[frame["episode"] == number].assign(time=np.arange(4.0) * (1 + 2 * number))
        write_log(part, tmp_path / "logs" / f"{number}.csv")
    log = layout(tmp_path / "logs", episode=None, terminated=None, time="time")
    assert len(read(log)["action"]) == 3
    assert "3 episodes are cut where rows are not about 1 apart in 'time'" in remarks(log)


def test_bounds_are_the_extremes_of_the_actions_taken_unless_they_are_given(tmp_path: Path) -> None:
    frame = arm_log()
    frame.loc[frame.index.difference(without_last(frame).index), "tau1"] = 99.0  # taken in no transition
    log, taken = layout(write_log(frame, tmp_path / "a.csv")), without_last(frame)[ACTIONS]
    info, rows = log.describe(), read(log)
    assert (info.action_low, info.action_high) == (tuple(taken.min()), tuple(taken.max()))
    assert (rows["action"].min(0).tolist(), rows["action"].max(0).tolist()) == ([-1.0] * 2, [1.0] * 2)
    assert info.action_bounds is not None
    np.testing.assert_allclose(
        info.action_bounds.restore(torch.from_numpy(rows["action"])), taken, rtol=1e-5, atol=1e-5
    )
    (remark,) = info.provenance["remarks"]
    assert remark.startswith(
        f"action_low and action_high are the extremes of the log: tau1 from {taken['tau1'].min():.4g}"
    )
    assert layout(tmp_path / "a.csv", **BOUNDS).describe().action_high == (20.0, 10.0)


@pytest.mark.parametrize("block_rows", [1, 1000])
def test_actions_outside_of_their_bounds_are_refused_or_clipped(block_rows: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(log_layout, "BLOCK_ROWS", block_rows)
    frame = arm_log()
    frame.loc[[1, 7], "tau1"], frame.loc[2, "tau2"] = [21.5, -20.5], -14.0
    file = write_log(frame, tmp_path / "a.csv")
    with pytest.raises(UserError) as caught:
        layout(file, **BOUNDS).describe()
    words = [f"3 of 12 actions of {str(file)!r} lie outside", "-14 of 'tau2' in line 4", "4 beyond [-10, 10]"]
    words += ["set clip_actions to true"]
    assert all(word in str(caught.value) for word in words), caught.value
    log = layout(file, clip_actions=True, **BOUNDS)
    assert read(log)["action"][[1, 2, 6]].tolist()[0][0] == 1.0
    assert read(log)["action"][2, 1] == read(log)["action"][6, 0] == -1.0
    assert any("3 of 12 actions" in text and "are clipped" in text for text in remarks(log))


def test_parts_of_a_long_log_are_those_of_the_whole(tmp_path: Path, monkeypatch) -> None:
    file = write_log(arm_log((9, 1, 2, 13)), tmp_path / "a.csv")
    whole = read(layout(file, time="time"))
    for size in (1, 4):
        monkeypatch.setattr(log_layout, "BLOCK_ROWS", size)
        found = read(layout(file, time="time"))
        assert all((found[name] == whole[name]).all() for name in whole)
    assert arrays.BLOCK_ROWS > 1_000


def test_a_second_conversion_leaves_the_first_as_it_is(tmp_path: Path) -> None:
    log = layout(write_log(arm_log(), tmp_path / "a.csv"))
    convert_layout(log, str(tmp_path / "out"), progress=False)
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="exists and is not overwritten"):
        convert_layout(log, str(tmp_path / "out"), progress=False)
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before


def test_an_interrupted_conversion_resumes(tmp_path: Path, monkeypatch) -> None:
    log = layout(write_log(arm_log(), tmp_path / "a.csv"))
    whole = convert_layout(log, str(tmp_path / "whole"), progress=False)
    monkeypatch.setattr(conversion, "PIECE_ROWS", 3)
    monkeypatch.setattr(log_layout, "BLOCK_ROWS", 3)
    with monkeypatch.context() as patch:
        patch.setattr(conversion.TransitionWriter, "finish", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert_layout(log, str(tmp_path / "out"), progress=False)
    store = convert_layout(layout(tmp_path / "a.csv"), str(tmp_path / "out"), progress=False)
    assert contents(store.path) == contents(whole.path)
    assert len(TransitionStore.open(tmp_path / "out")) == 12


def put(row: int, name: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A log with another value in a row."""

    def changed(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.astype({name: object})
        frame.loc[row, name] = value
        return frame

    return changed


def same(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


@one_test
@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (put(3, "q2", np.nan), {}, ["column 'q2' of the log", "a.csv", "missing, in line 5"]),
        (put(3, "tau1", np.nan), {}, ["column 'tau1' of the log", "a.csv", "missing, in line 5"]),
        (put(3, "reward", np.nan), {}, ["column 'reward' of the log", "missing, in line 5"]),
        (put(3, "reached", np.nan), {}, ["column 'reached' of the log", "missing, in line 5"]),
        (put(3, "episode", np.nan), {}, ["column 'episode' of the log", "lacks a value in line 5"]),
        (put(3, "time", np.nan), {"time": "time"}, ["column 'time' of the log", "missing, in line 5"]),
        (
            put(3, "time", "noon"),
            {"time": "time"},
            ["column 'time' of the log", "'noon' in line 5, which is not a number"],
        ),
        (
            lambda frame: frame.assign(time="noon"),
            {"time": "time"},
            ["holds 'noon' in line 2, wanted numbers or times"],
        ),
        (put(3, "q1", "warm"), {}, ["column 'q1'", "'warm' in line 5, which is not a number"]),
        (put(3, "q1", np.inf), {}, ["column 'q1'", "not finite, in line 5"]),
        (put(3, "q1", 1e39), {}, ["column 'q1'", "1e+39 in line 5, too large"]),
        (put(3, "reached", 2), {}, ["column 'reached'", "holds 2 in line 5, wanted 0 or 1"]),
        (put(3, "reached", 1), {}, ["line 5 of the log", "flagged as the end of episode 0", "2 more rows follow"]),
        (put(4, "reached", 1), {}, ["1 more row follows", "set outcomes to 'action'"]),
        (put(3, "reached", 1), {"outcomes": "action"}, ["flagged as the end of episode 0, of which 2 more"]),
        (put(8, "episode", 0), {}, ["episode 0 of the log", "begins again in line 10"]),
        (put(3, "time", 0.04), {"time": "time"}, ["'time'", "from 0.04 to 0.04 in line 5 of episode 0", "ascending"]),
        (put(3, "time", 0.01), {"time": "time"}, ["from 0.04 to 0.01 in line 5 of episode 0"]),
        (put(3, "time", 0.04), {"time": "time", "episode": None}, ["from 0.04 to 0.04 in line 5, wanted"]),
        (same, {"observations": ["q1", "dq"]}, ["no column 'dq'", "did you mean 'dq"]),
        (same, {"observations": []}, ["observations must name at least one column"]),
        (same, {"actions": []}, ["actions must name at least one column"]),
        (same, {"observations": ["q1", "q1"]}, ["two columns are named 'q1'"]),
        (same, {"truncated": "stopped"}, ["no column 'stopped'"]),
        (same, {"units": {"reward": "m"}}, ["units has 'reward', which is no column"]),
        (same, {"units": {"q3": "m"}}, ["units has 'q3'", "wanted some of q1, q2"]),
        (same, {"constant_reward": 1.0}, ["reward 'reward' and constant_reward 1.0, wanted one or none"]),
        (same, {"clip_actions": True}, ["clip_actions needs action_low and action_high"]),
        (same, {"outcomes": "next"}, ["outcomes must be one of action, arrival, got 'next'"]),
        (same, {"action_low": 0.0, "action_high": [1.0] * 3}, ["action_high has 3 values, wanted 1 or 2"]),
        (
            same,
            {"episode": None, "terminated": None},
            ["does not tell where its episodes end", "`episode`", "logs/*.csv"],
        ),
        (lambda frame: frame.assign(episode=frame.index), {}, ["holds no transitions", "two rows"]),
        (lambda frame: frame[:0], {}, ["has no rows"]),
    ],
)
def test_bad_logs_are_refused(change, options: dict[str, Any], words: Sequence[str], tmp_path: Path) -> None:
    write_log(change(arm_log(reached=())), tmp_path / "a.csv")
    with pytest.raises(UserError) as caught:
        layout(tmp_path / "a.csv", **options).describe()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_single_stretch_of_even_times_tells_no_ends(tmp_path: Path) -> None:
    file = write_log(arm_log((9,)), tmp_path / "a.csv")
    with pytest.raises(UserError, match="its times in 'time' are all evenly spaced"):
        layout(file, episode=None, terminated=None, time="time").describe()


@pytest.mark.parametrize("path", ["nothing.csv", "logs", "logs/*.csv"])
def test_places_without_a_log_are_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with pytest.raises(FileNotFoundError, match="wanted a table, a folder of tables, or a pattern"):
        layout(tmp_path / path).describe()


def test_files_with_matrices_of_other_sizes_are_refused(tmp_path: Path) -> None:
    for name, size in (("a", 2), ("b", 3)):
        np.savez(tmp_path / f"{name}.npz", q=np.zeros((4, size)), u=np.zeros(4))
    with pytest.raises(UserError, match=r"matrices of the log .*b\.npz' are of other sizes than those of .*a\.npz"):
        EpisodeLog(str(tmp_path / "*.npz"), observations=["q"], actions=["u"]).describe()
