"""Copies in processes of their own: as copies in one process, and errors reach the process that steps them."""

import time

import pytest
import torch

from flowmatch_rl.checks import RunError
from flowmatch_rl.envs import GymnasiumEnvironment, build_environment
from tests.envs.odd_environments import PREFIX


def test_copies_in_processes_are_as_those_in_one_until_one_breaks() -> None:
    environment = GymnasiumEnvironment(f"{PREFIX}Breaks-v0", {"odd_from": 6})
    envs = [build_environment(environment, 2, parallel) for parallel in (False, True)]
    steps = []
    for env in envs:
        env.set_seed(3)
        torch.manual_seed(0)
        steps.append(env.rollout(5, break_when_any_done=False))
        with pytest.raises(RunError, match=r"^Breaks-v0 raised ZeroDivisionError in step: the robot fell over \(odd_"):
            env.rollout(5, break_when_any_done=False)
        started = time.monotonic()
        env.close(raise_if_closed=False)
        assert time.monotonic() - started < 10.0
    for key in ("observation", "action", ("next", "reward")):
        assert torch.equal(steps[0][key], steps[1][key])


@pytest.mark.slow
def test_copy_that_hangs_is_named() -> None:
    environment = GymnasiumEnvironment(f"{PREFIX}Hangs-v0", {"odd_from": 2}, timeout_s=1.0)
    env = build_environment(environment, 2, parallel=True)
    with pytest.raises(RunError, match=r"^Hangs-v0 did not return from step within 1 s"):
        env.rollout(5, break_when_any_done=False)
    env.close(raise_if_closed=False)
