"""Calls that do not return are ended: after a time-out, and when the system asks for the end."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.envs import GymnasiumEnvironment, build_environment, examine, watchdog
from flowmatch_rl.envs.guard import Guard
from flowmatch_rl.envs.watchdog import CallTimeout, listening, watched
from tests.envs.odd_environments import PREFIX


class End(BaseException):
    """What these tests raise at a signal."""


def call(timeout_s: float | None = None):
    return watched("Arm-v0", "step", timeout_s, lambda _: None)


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(watchdog, "GRACE_S", 0.5)


def test_call_that_does_not_return_is_ended_and_named() -> None:
    started = time.monotonic()
    with pytest.raises(CallTimeout, match=r"Arm-v0 did not return from step within 0\.5 s"), call(0.5):
        time.sleep(60.0)
    assert time.monotonic() - started < 10.0


def sleep_stubbornly() -> None:
    while True:
        try:
            time.sleep(60.0)
        except Exception:  # noqa: BLE001 - what users write
            continue


def test_code_that_catches_every_error_does_not_hold_a_call() -> None:
    with pytest.raises(CallTimeout), call(0.5):
        sleep_stubbornly()


def test_many_short_calls_take_longer_than_the_time_of_one() -> None:
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        with call(0.6):
            time.sleep(0.2)


def test_time_in_which_the_process_is_stopped_does_not_count() -> None:
    stopper = f"import os, signal, time; os.kill({os.getpid()}, signal.SIGSTOP); time.sleep(1.5); "
    stopper += f"os.kill({os.getpid()}, signal.SIGCONT)"
    with call(1.2):
        assert subprocess.run([sys.executable, "-c", stopper], check=True).returncode == 0


def test_calls_of_other_threads_are_left_alone() -> None:
    ended: list[bool] = []

    def work() -> None:
        with call(0.1):
            time.sleep(0.8)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [True]


def test_the_end_of_the_run_that_a_handler_raises_within_a_step_is_no_error_of_the_environment() -> None:
    guard = Guard("Robot")
    with listening(SIGTERMException):
        with pytest.raises(SIGTERMException), guard("step"):
            raise SIGTERMException
        with pytest.raises(RunError, match="Robot raised SystemExit in step"), guard("step"):
            raise SystemExit(3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_call_that_goes_on_after_a_signal_is_ended_and_so_is_the_next_one(number) -> None:
    before = signal.signal(number, lambda *_: None)
    try:
        with listening(End):
            threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
            with pytest.raises(End), call():
                time.sleep(60.0)
            with pytest.raises(End), call():
                pass
        with call():
            pass
    finally:
        signal.signal(number, before)


def test_process_ends_where_no_exception_reaches_its_main_thread() -> None:
    code = """
import ctypes
from flowmatch_rl.envs import watchdog
watchdog.PATIENCE_S = 0.3
mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
with watchdog.watched("Arm-v0", "reset", 0.3, lambda _: None):
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 1
    assert "Arm-v0 did not return from reset within 0.3 s" in child.stderr
    assert len(child.stderr.splitlines()) == 1


def hanging(odd_from: int) -> GymnasiumEnvironment:
    return GymnasiumEnvironment(f"{PREFIX}Hangs-v0", {"odd_from": odd_from}, timeout_s=0.5)


def test_environment_that_hangs_is_refused_before_a_run() -> None:
    with pytest.raises(UserError, match=r"Hangs-v0 did not return from step within 0\.5 s.*timeout_s"):
        examine(hanging(0))


@pytest.mark.parametrize("num_envs", [1, 2])
def test_environment_that_hangs_later_ends_the_run(num_envs) -> None:
    env = build_environment(hanging(3), num_envs)
    with pytest.raises(RunError, match=r"Hangs-v0 did not return from step within 0\.5 s"):
        env.rollout(9, break_when_any_done=False)
    env.close(raise_if_closed=False)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_time_without_seconds_is_refused(timeout_s) -> None:
    with pytest.raises(UserError, match="timeout_s must be positive"):
        GymnasiumEnvironment(timeout_s=timeout_s)


def test_without_a_time_out_an_environment_may_take_its_time() -> None:
    env = build_environment(GymnasiumEnvironment("Pendulum-v1", timeout_s=None))
    assert torch.isfinite(env.rollout(3)["observation"]).all()
