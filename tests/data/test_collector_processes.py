"""Collection in processes of their own."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn

from flowmatch_rl.batches import DONE, TRANSITION
from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.data import OnlineData
from flowmatch_rl.data.ahead import AheadCollector, CollectorWorkers, Recipe
from flowmatch_rl.data.collector_processes import LocalProcesses
from flowmatch_rl.envs.environments import GymnasiumEnvironment
from tests.data.test_online import build as online
from tests.toys import ConstantPolicy


class Constant(TensorDictModuleBase):
    """Acts by its weight, whatever it observes."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["observation"], ["action"]
        self.weight = nn.Parameter(torch.zeros(1))

    def collection_policy(self) -> TensorDictModuleBase:
        return self

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation = tensordict.get("observation")
        return tensordict.set("action", self.weight.detach().expand(*observation.shape[:-1], 1).clone())


class Still(ConstantPolicy):
    """Acts alike in every state, and has no weights."""

    def collection_policy(self) -> TensorDictModuleBase:
        return self


class Training:
    """A weight that changes, and the number of its changes."""

    def __init__(self) -> None:
        self.updates = 0
        self.weights = {"weight": torch.zeros(1)}

    def update(self, number: int = 1, value: float | None = None) -> None:
        self.updates += number
        self.weights["weight"].fill_(self.updates / 100.0 if value is None else value)

    def collector(self, settings: CollectorWorkers, num_envs: int = 1, block: int = 3, random: int = 0) -> Any:
        recipes = [
            Recipe(Constant, GymnasiumEnvironment("Pendulum-v1"), num_envs, block, random, (*TRANSITION, DONE), seed)
            for seed in range(settings.number)
        ]
        return AheadCollector(settings, recipes, self.weights, torch.device("cpu"), lambda: self.updates)


@pytest.fixture
def training() -> Iterator[Training]:
    yield Training()
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


def values(block: TensorDictBase) -> list[float]:
    return sorted(set(block.get("action").flatten().mul(100.0).round().tolist()))


def take_two(collector: AheadCollector) -> TensorDictBase:
    """The second of two blocks: the first may have been sent before something happened."""
    collector.block()
    return collector.block()


def test_a_block_is_of_the_weights_with_which_the_one_before_was_taken(training: Training) -> None:
    collector = training.collector(LocalProcesses(2), num_envs=2, random=12)
    first = collector.block()
    assert first.shape == (4, 3)
    assert len(values(first)) > 2, "the first twelve steps of each process are random"
    rows = first["observation"].reshape(4, -1)
    assert len(torch.unique(rows, dim=0)) == 4, "each environment has its own episodes"
    collector.block()
    for number in (5, 2, 7):
        training.update(number)
        before = training.updates
        block = collector.block()
        assert values(block) == [before - number]
        assert collector.ages[-1] == number
    assert torch.equal(block["next", "observation"][:, :-1], block["observation"][:, 1:])
    assert collector.restarts == 0
    collector.shutdown()
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_or_hangs_is_replaced_and_reported_until_there_were_too_many(training, capsys) -> None:
    collector = training.collector(LocalProcesses(timeout_s=1.0, max_restarts=2))
    observation = collector.block()["next", "observation"][:, -1]
    for number, sent, words in ((1, signal.SIGKILL, "exit status -9"), (2, signal.SIGSTOP, "took more than 1 s")):
        collector.block()
        (process,) = multiprocessing.active_children()
        os.kill(process.pid or 0, sent)
        training.update()
        block = take_two(collector)
        assert collector.restarts == number
        assert words in capsys.readouterr().out
        assert not torch.equal(block["observation"][:, 0], observation), "another episode"
    (process,) = multiprocessing.active_children()
    os.kill(process.pid or 0, signal.SIGKILL)
    with pytest.raises(RunError, match=r"Pendulum-v1 ended with exit status -9, after 2 were replaced, the most"):
        take_two(collector)


def test_what_fails_in_a_process_is_raised_in_the_run_and_what_a_terminal_sends_ends_none(training) -> None:
    collector = training.collector(LocalProcesses(timeout_s=20.0))
    collector.block()
    (process,) = multiprocessing.active_children()
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.pid or 0, sent)
    training.update(value=float("nan"))
    collector.block()
    with pytest.raises(RunError, match="nan"):
        take_two(collector)
    assert collector.restarts == 0


def test_no_transition_joins_the_steps_of_a_process_to_those_of_the_one_that_replaces_it() -> None:
    data = online(n_steps=3, env_steps_per_collection=2, workers=LocalProcesses())
    module: Any = data.trainer.lightning_module
    module.builder, module.state_dict = Still, dict
    for _ in range(4):
        data.next_batch()
        (process,) = multiprocessing.active_children()
        os.kill(process.pid or 0, signal.SIGKILL)
        data.next_batch()
    data.next_batch()
    assert data.replay is not None
    begun, reached = (
        data.replay["observation"],
        data.replay["next", "observation"],
    )  # steps so far, number of the episode
    assert len(begun) >= 12
    assert torch.equal(begun[:, 1], reached[:, 1])
    assert torch.equal(reached[:, 0] - begun[:, 0], data.replay["length"].squeeze(-1).float())
    data.teardown("fit")


def test_what_replaces_a_process_takes_the_random_steps_that_remain_in_other_episodes() -> None:
    recipe = Recipe(Constant, GymnasiumEnvironment("Pendulum-v1"), 2, 3, 20, (*TRANSITION, DONE), 5)
    assert [recipe.after(blocks, 1).random_steps for blocks in (0, 1, 3, 4)] == [20, 14, 2, 0]
    assert len({recipe.seed, recipe.after(0, 1).seed, recipe.after(0, 2).seed}) == 3


LEAVING = """
import multiprocessing, os, signal, torch
from flowmatch_rl.batches import TRANSITION
from flowmatch_rl.data.ahead import AheadCollector, Recipe
from flowmatch_rl.data.collector_processes import LocalProcesses
from flowmatch_rl.envs.environments import GymnasiumEnvironment
from tests.data.test_collector_processes import Constant
if __name__ == "__main__":
    recipe = Recipe(Constant, GymnasiumEnvironment("Pendulum-v1"), 1, 3, 0, TRANSITION, 0)
    weights = {"weight": torch.zeros(1)}
    collector = AheadCollector(LocalProcesses(), [recipe], weights, torch.device("cpu"), lambda: 0)
    collector.block()
    print(multiprocessing.active_children()[0].pid, flush=True)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("raise SystemExit(3)", 3),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", -9, marks=pytest.mark.slow),
    ],
)
def test_processes_end_with_a_run_that_fails_or_is_killed(tmp_path, end: str, status: int) -> None:
    script = tmp_path / "leaving.py"
    script.write_text(f"{LEAVING}    {end}\n")
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, script], env=found, capture_output=True, text=True, timeout=120)
    assert run.returncode == status, run.stderr
    end_by = time.monotonic() + 30.0
    while Path(f"/proc/{int(run.stdout)}").exists() and time.monotonic() < end_by:
        time.sleep(0.1)
    assert not Path(f"/proc/{int(run.stdout)}").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_envs": 3}, "num_envs must be a multiple of their number 2, and parallel false, got 3 and False"),
        ({"num_envs": 2, "parallel": True}, "got 2 and True"),
    ],
)
def test_environments_that_cannot_be_divided_are_refused(options: Mapping[str, Any], words: str) -> None:
    data = partial(OnlineData, env_steps_per_collection=6, workers=LocalProcesses(2))
    with pytest.raises(UserError, match=words):
        data(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"number": 0}, "number must"), ({"timeout_s": 0.0}, "timeout_s must"), ({"max_restarts": -1}, "max_restarts")],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        LocalProcesses(**options)
