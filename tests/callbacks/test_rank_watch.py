"""A process that dies, fails or hangs is named, and the others end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from flowmatch_rl.callbacks import rank_watch
from flowmatch_rl.callbacks.rank_watch import Judge, RankWatch, Status
from flowmatch_rl.checks import RunError, UserError
from tests.cli.support import TWO_MOONS, environment, flow_arguments
from tests.processes import in_processes
from tests.test_exact_resume import flow


def statuses(look: int, second: int | None = None, stages: tuple[int, int] = (0, 0), left: str | None = None) -> Any:
    """What two processes say in a look; the second may have said the last word earlier."""
    return [Status(look, stages[0], 0, 1), Status(look if second is None else second, stages[1], 0, 2, left)]


def test_a_process_that_says_nothing_is_named_after_the_time_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "SILENCE_S", 4.0)
    judge = Judge(0, 2, 1000.0)
    verdicts = [judge.verdict(statuses(look, min(look, 3))) for look in range(8)]
    assert verdicts[:7] == [None] * 7
    assert verdicts[7] == (1, "rank 1 of 2 has said nothing for 4 s: it was killed or stopped")


def test_the_process_that_is_behind_is_named_when_none_has_made_progress() -> None:
    judge = Judge(0, 2, 3.0)
    verdicts = [judge.verdict(statuses(look, stages=(min(look, 4), min(look, 3)))) for look in range(9)]
    assert verdicts[:7] == [None] * 7
    assert verdicts[7] is not None
    assert verdicts[7][0] == 1
    assert verdicts[7][1].startswith("rank 1 of 2 keeps the others waiting: no progress for 3 s")


def test_where_all_are_at_the_same_point_no_one_is_named() -> None:
    judge = Judge(0, 2, 1.0)
    verdicts = [judge.verdict(statuses(look)) for look in range(3)]
    assert verdicts[1] is not None
    assert verdicts[1][1].startswith("no rank has made progress for 1 s")


def test_a_failure_is_named_with_its_reason_and_who_is_done_is_no_failure() -> None:
    judge = Judge(0, 2, 1000.0)
    assert judge.verdict(statuses(0)) is None
    assert judge.verdict(statuses(1, left="no reward")) == (1, "rank 1 of 2 failed: no reward")
    assert judge.verdict([*statuses(2)[:1], Status(2, 0, 0, 2, has_told=True)]) == (1, "")
    judge = Judge(0, 2, 1000.0)
    assert [judge.verdict(statuses(look, 0, left="")) for look in range(100)] == [None] * 100


def test_a_time_out_that_is_not_positive_is_refused() -> None:
    with pytest.raises(UserError, match="timeout_s"):
        RankWatch(0.0)


class Trouble(Callback):
    """What befalls the second process in its third update."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.kind == "kill of a child" and trainer.global_rank == 0:
            rank_watch.LOOK_S = (
                3.0  # of which it waits two for the others to hear why: Lightning looks every five seconds
            )

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            if self.kind.startswith("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "fail":
                raise RunError("the robot has fallen over")
            time.sleep(300.0)

    def on_test_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_rank == (0 if self.kind == "test first" else 1):
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("the process goes on after the signal")


def troubled(folder: Path) -> None:
    module, data = flow(folder)
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=3,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Trouble(folder.name), RankWatch(timeout_s=4.0 if folder.name == "hang" else 60.0)],
    )
    (trainer.test if folder.name.startswith("test") else trainer.fit)(module, data)


def error_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("flowmatch-rl: error:")]


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("hang", "rank 1 of 2 keeps the others waiting: no progress for 4 s"),
        ("test", "rank 1 of 2 failed: it was ended by SIGTERM; the last checkpoint stays"),
        pytest.param("fail", "rank 1 of 2 failed: the robot has fallen over", marks=pytest.mark.slow),
        pytest.param("kill", "rank 1 of 2 has said nothing for 5 s: it was killed", marks=pytest.mark.slow),
    ],
)
def test_the_other_process_ends_and_says_who_is_to_blame(kind: str, words: str, tmp_path: Path) -> None:
    (tmp_path / kind).mkdir()
    started = time.monotonic()
    first, second = in_processes(troubled, tmp_path / kind, timeout=120.0)
    assert time.monotonic() - started < 110.0
    assert (first.code, second.code != 0) == (1, True)
    (line,) = error_lines(first.err)
    assert words in line
    assert error_lines(second.err) == []


@pytest.mark.slow
@pytest.mark.ddp
def test_a_signal_to_the_first_process_of_a_test_ends_the_other(tmp_path: Path) -> None:
    (tmp_path / "test first").mkdir()
    started = time.monotonic()
    first, second = in_processes(troubled, tmp_path / "test first", timeout=120.0)
    assert time.monotonic() - started < 110.0
    assert first.code == second.code == 1
    assert "SIGTERMException: it was ended by SIGTERM" in first.err
    assert len(error_lines(second.err)) < 2  # it may have heard of the end, or found the first one gone


@pytest.mark.ddp
def test_a_process_that_the_first_has_started_is_named_with_the_signal_that_ended_it(tmp_path: Path) -> None:
    args = flow_arguments("fit", TWO_MOONS, trainer__default_root_dir=tmp_path, trainer__strategy="ddp")
    trouble = '[{"class_path": "tests.callbacks.test_rank_watch.Trouble", "init_args": {"kind": "kill of a child"}}]'
    args += ["--trainer.devices=2", f"--trainer.callbacks={trouble}"]
    command = [sys.executable, "-m", "flowmatch_rl", *args]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=240)
    assert result.returncode == 1
    assert error_lines(result.stderr) == [
        "flowmatch-rl: error: rank 1 of 2 was ended by SIGKILL; the last checkpoint stays, resume with --ckpt_path last"
    ]
