"""Names a process of a run that died or hangs, and ends the others, which would wait for it."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from flowmatch_rl.checks import check_range
from flowmatch_rl.endings import (
    SharedEnd,
    end_evaluation,
    evaluation_is_ending,
    mark_stage,
    progress,
    settle_evaluation,
)

LOOK_S = 1.0
"""Seconds between two looks at the other processes. Looks are counted, not seconds: a stopped machine is not late."""

SILENCE_S = 30.0
"""Seconds after which a process that says nothing is gone: killed, stopped, or on a node that was lost."""

SILENCE_AFTER_ERROR_S = 5.0
"""The same once a connection to another process was lost."""

GRACE_S = 5.0
"""Seconds that a process waits for another one to say why the run ends, before it ends without a word."""

_CONNECTION_WORDS = ("gloo", "NCCL", "Connection reset", "Connection closed")
"""What PyTorch says where another process is gone or late; for gloo the class of the error is a plain one."""


@dataclass(frozen=True)
class Status:
    """What a process says of itself.

    Attributes:
        beat: Number of the look; it grows while the process lives.
        stages: Points of the run that it has reached, see ``endings``.
        actions: What it has done between them.
        pid: Number of the process.
        left: Why it failed; empty where it is done; None while it trains.
        has_told: Whether it has said why the run ends, so that the others end without a word.
    """

    beat: int
    stages: int
    actions: int
    pid: int
    left: str | None = None
    has_told: bool = False


class Judge:
    """Tells from what the processes say, look by look, which of them keeps the others waiting.

    Args:
        rank: Rank of this process.
        world_size: Number of processes.
        timeout_s: Seconds without progress of any process after which the run hangs.
    """

    def __init__(self, rank: int, world_size: int, timeout_s: float) -> None:
        self.rank, self.world_size, self.timeout_s = rank, world_size, timeout_s
        self.silence_s = SILENCE_S
        self._last: list[Status] = []
        self._silent = [0] * world_size  # looks since a process said something new
        self._idle = 0  # looks since one of them made progress

    def verdict(self, statuses: Sequence[Status]) -> tuple[int, str] | None:
        """The process that is at fault, and what is wrong with it, empty where one has told; None if nothing is.

        Args:
            statuses: What each process says, by rank.
        """
        if not self._last:
            self._last = list(statuses)
            return None
        before, self._last = self._last, list(statuses)
        moved = any((a.stages, a.actions) != (b.stages, b.actions) for a, b in zip(before, statuses, strict=True))
        self._idle = 0 if moved else self._idle + 1
        for rank, status in enumerate(statuses):
            if status.has_told or (rank == 0 and status.left):  # the first one says itself why it failed
                return rank, ""
        for rank, (old, new) in enumerate(zip(before, statuses, strict=True)):
            if rank == self.rank or new.left == "":
                continue
            if new.left is not None:
                return rank, f"{self.name(rank)} failed: {new.left}"
            self._silent[rank] = 0 if new.beat != old.beat else self._silent[rank] + 1
            if self._silent[rank] * LOOK_S >= self.silence_s:
                return rank, f"{self.name(rank)} has said nothing for {self.silence_s:g} s: it was killed or stopped"
        return self._hung(statuses) if self._idle * LOOK_S >= self.timeout_s else None

    def name(self, rank: int) -> str:
        """What a process is called."""
        return f"rank {rank} of {self.world_size}"

    def _hung(self, statuses: Sequence[Status]) -> tuple[int, str] | None:
        late = min(status.stages for status in statuses)
        ranks = [rank for rank, status in enumerate(statuses) if status.stages == late]
        advice = "raise ranks.timeout_s if it needs longer"
        if len(ranks) == len(statuses):
            return ranks[0], f"no rank has made progress for {self.timeout_s:g} s; {advice}"
        names = " and ".join(self.name(rank) for rank in ranks)
        return ranks[0], f"{names} keeps the others waiting: no progress for {self.timeout_s:g} s; {advice}"


class RankWatch(Callback):
    """Ends a run of several processes when one of them dies or hangs, in one line that names it, with exit status 1.

    The processes tell each other every second, through a store that the first one holds, that they live and how far
    they have come. A process that another one has started, as Lightning's launcher does, is named at once when it ends,
    with its exit status or signal; others within 30 seconds. A single process has nothing to watch.

    A termination signal ends an evaluation of several processes at once, see ``endings.end_evaluation``: by Lightning
    the process that it reaches would talk to the others from within the handler, and wait for them.

    Args:
        timeout_s: Seconds without progress of any process, after which the one that is behind is named and the run
            ends. More than the longest pause in which no update ends and no environment takes a step, such as the
            drawing of figures, and less than the time-out of the process group, 1800 s.
    """

    def __init__(self, timeout_s: float = 900.0) -> None:
        check_range("(0, inf)", timeout_s=timeout_s)
        self.timeout_s = timeout_s
        self._store: TCPStore | None = None
        self._rounds = self._beat = self._rank = 0
        self._world_size, self._is_first_of_node = 1, True
        self._judge = Judge(0, 1, timeout_s)
        self._left: str | None = None
        self._has_told = self._trains = False
        self._done = threading.Event()
        self._statuses: list[Status] = []
        self._thread: threading.Thread | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to watch."""
        if trainer.world_size == 1:
            return
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        self._is_first_of_node = trainer.local_rank == 0
        strategy: Any = trainer.strategy
        self._trains = stage == "fit"
        if self._store is None:
            self._store = _shared_store(strategy, trainer.is_global_zero)
        self._rounds, self._beat, self._left, self._done = self._rounds + 1, 0, None, threading.Event()
        self._judge = Judge(self._rank, self._world_size, self.timeout_s)
        self._say()
        strategy.barrier()  # all have said something
        self._statuses = self._heard()
        self._thread = threading.Thread(target=self._watch, name="rank-watch", daemon=True)
        self._thread.start()
        for rank, status in enumerate(self._statuses):
            if self._rank != rank:
                threading.Thread(target=self._await_child, args=(rank, status.pid, self._done), daemon=True).start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals end the ``validate`` command; a training ends after an update."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_start(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals end all processes."""
        if trainer.world_size > 1:
            launcher: Any = trainer.strategy.launcher
            end_evaluation(lambda number: None if launcher is None else launcher.kill(number), SIGTERMException)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals end all processes."""
        self.on_test_start(trainer, pl_module)

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Say that a batch is there."""
        mark_stage()

    def on_before_backward(self, *args: Any, **kwargs: Any) -> None:
        """Say that the loss is there: gradients of all processes are averaged next."""
        mark_stage()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Say that an update is over."""
        mark_stage()

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Say that a batch is there."""
        mark_stage()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Say that a batch was evaluated."""
        mark_stage()

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Say that a batch is there."""
        mark_stage()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Say that a batch was evaluated."""
        mark_stage()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell the others why this process ends; where a connection was lost, wait for who is to blame."""
        if self._thread is None:
            return
        if isinstance(exception, SharedEnd):
            self._leave("")
        elif isinstance(exception, DistError) or any(words in str(exception) for words in _CONNECTION_WORDS):
            self._judge.silence_s = SILENCE_AFTER_ERROR_S
            self._thread.join(SILENCE_AFTER_ERROR_S + GRACE_S + 5 * LOOK_S)  # it ends the process, or finds nothing
            self._leave(_line(exception))
        else:
            self._leave(_line(exception))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Be done; the first process, which holds the store, when all others are."""
        settle_evaluation()
        if self._thread is None or self._done.is_set():
            return
        self._left = ""
        self._say()
        while self._rank == 0 and any(status.left is None for status in self._heard()):
            time.sleep(0.05)  # its thread still watches them
        self._done.set()

    def _leave(self, why: str) -> None:
        """Say why this process ends; from now on it ends by itself."""
        self._left = why
        with contextlib.suppress(DistError):  # the first process may be gone
            self._say()
        self._done.set()

    def _watch(self) -> None:
        done = self._done
        while not done.wait(LOOK_S):
            try:
                self._say()
                self._statuses = self._heard()
            except DistError:
                if not done.is_set():
                    self._end(0, f"{self._judge.name(0)} is gone: its process has ended", done)
                return
            if fault := self._judge.verdict(self._statuses):
                self._end(*fault, done)
                return

    def _await_child(self, rank: int, pid: int, done: threading.Event) -> None:
        """Name a process that this one has started as soon as it ends."""
        try:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # its status is left
        except ChildProcessError:
            return  # another one has started it, perhaps on another node
        if ended is None or (ended.si_code == os.CLD_EXITED and ended.si_status == 0):
            return
        how = f"ended with status {ended.si_status}"
        if ended.si_code != os.CLD_EXITED:
            how = f"was ended by {signal.Signals(ended.si_status).name}"
        with contextlib.suppress(DistError):
            self._statuses = self._heard()
        left = self._statuses[rank].left
        self._end(rank, f"{self._judge.name(rank)} " + (f"failed: {left}" if left else how), done)

    def _end(self, culprit: int, message: str, done: threading.Event) -> None:
        """End this process, whose main thread waits where no exception reaches it; the first one says why."""
        speaks = self._rank == 0 or (culprit == 0 and (self._rank == 1 or self._is_first_of_node))
        if not speaks and message:
            done.wait(GRACE_S)
        if done.is_set() or evaluation_is_ending():
            return
        with contextlib.suppress(ChildProcessError):
            # If the culprit is a child, its status is collected here: Lightning, which looks every five seconds, would
            # kill this process before the others know.
            os.waitpid(self._statuses[culprit].pid, os.WNOHANG)
        if speaks and message:
            text = f"{message}; the last checkpoint stays" + (", resume with --ckpt_path last" if self._trains else "")
            print(f"flowmatch-rl: error: {text}", file=sys.stderr, flush=True)
            with contextlib.suppress(DistError):
                self._has_told = True
                self._say()
                time.sleep(2 * LOOK_S)  # the store ends with the first process
        for status in self._statuses:
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                if os.waitid(os.P_PID, status.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                    os.kill(status.pid, signal.SIGKILL)  # a child of this process, which still runs
        sys.stdout.flush()
        os._exit(1)

    def _say(self) -> None:
        assert self._store is not None
        self._beat += 1
        status = Status(self._beat, *progress(), os.getpid(), self._left, self._has_told)
        self._store.set(self._key(self._rank), json.dumps(asdict(status)))

    def _heard(self) -> list[Status]:
        assert self._store is not None
        texts = self._store.multi_get([self._key(rank) for rank in range(self._world_size)])
        return [Status(**json.loads(text)) for text in texts]

    def _key(self, rank: int) -> str:
        return f"{self._rounds}/{rank}"


def _shared_store(strategy: Any, is_first: bool) -> TCPStore:
    """A store of all processes, which the first one holds at a free port."""
    host, wait = strategy.cluster_environment.main_address, timedelta(seconds=SILENCE_S)
    store = TCPStore(host, 0, is_master=True, timeout=wait, wait_for_workers=False) if is_first else None
    port = strategy.broadcast(None if store is None else store.port)
    return store or TCPStore(host, port, is_master=False, timeout=wait)


def _line(exception: BaseException) -> str:
    """An error in one line; an interruption has no words of its own."""
    return " ".join(str(exception).split()) or type(exception).__name__
