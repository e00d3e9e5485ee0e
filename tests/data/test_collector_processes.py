"""Collection in processes of their own."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from flowmatch_rl.batches import DONE, TRANSITION
from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.data import OnlineData, ahead, collector_processes
from flowmatch_rl.data.ahead import AheadCollector
from flowmatch_rl.data.collector_processes import LocalProcesses
from flowmatch_rl.data.workers import CollectorWorkers, Recipe, Worker
from flowmatch_rl.envs.environments import GymnasiumEnvironment
from flowmatch_rl.envs.states import UnknownStateError
from tests.data.test_online import build as online
from tests.data.test_online import held
from tests.processes import FORKS
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


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes that need no imports; those of the run that fails, and of the command line, are spawned."""
    monkeypatch.setattr(collector_processes, "get_context", lambda _: FORKS)


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


def test_a_process_that_dies_is_replaced_and_one_that_hangs_has_no_state_until_there_were_too_many(
    training, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(ahead, "STATE_S", 0.2)
    collector = training.collector(LocalProcesses(timeout_s=1.0, max_restarts=1))
    observation = collector.block()["next", "observation"][:, -1]
    (process,) = multiprocessing.active_children()
    os.kill(process.pid or 0, signal.SIGKILL)
    training.update()
    block = take_two(collector)
    assert collector.restarts == 1
    assert "exit status -9" in capsys.readouterr().out
    assert not torch.equal(block["observation"][:, 0], observation), "another episode"
    (process,) = multiprocessing.active_children()
    collector.state_dict()  # its block has arrived
    os.kill(process.pid or 0, signal.SIGSTOP)
    collector.block()
    with pytest.raises(UnknownStateError, match=r"did not end its block within 0\.2 s"):
        collector.state_dict()
    with pytest.raises(RunError, match=r"Pendulum-v1 took more than 1 s for a block, after 1 were replaced, the most"):
        collector.block()


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


class Immediate(Worker):
    """Collects in this process when the answer is taken; ``is_dead`` says that it never will."""

    def __init__(self, recipe: Recipe, weights: Mapping[str, Tensor]) -> None:
        super().__init__(recipe)
        self._acting, self._weights, self.is_dead = recipe.build(), weights, False

    def order(self) -> None: ...

    def answer(self, timeout_s: float) -> Any:
        return "died" if self.is_dead else self._acting.block(self._weights)

    def has_answer(self, timeout_s: float) -> bool:
        return not self.is_dead

    def state(self, timeout_s: float) -> Any:
        return self._acting.state()

    def kill(self) -> None: ...

    def ask_to_end(self) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Here(CollectorWorkers):
    """Workers in this process."""

    begun: list[Immediate] = field(default_factory=list)

    def begin(self, recipe: Recipe, weights: Mapping[str, Tensor]) -> Worker:
        self.begun.append(Immediate(recipe, weights))
        return self.begun[-1]


def collected_here(**options: Any) -> tuple[OnlineData, list[Immediate]]:
    workers = Here(options.pop("number", 1))
    data = online(n_steps=3, workers=workers, **options)
    module: Any = data.trainer.lightning_module
    module.builder, module.state_dict = Still, dict
    return data, workers.begun


def test_no_transition_joins_the_steps_of_a_process_to_those_of_the_one_that_replaces_it() -> None:
    data, workers = collected_here(env_steps_per_collection=2)
    data.next_batch()
    for number in range(1, 5):
        while workers[-1].blocks < 3:
            data.next_batch()
        workers[-1].is_dead = True
        while len(workers) == number:
            data.next_batch()
    data.next_batch()
    rows = held(data)
    begun, reached = rows["observation"], rows["next", "observation"]  # steps so far, mark of the episode
    assert len(begun) > 20
    assert torch.equal(begun[:, 1], reached[:, 1])
    assert torch.equal(reached[:, 0] - begun[:, 0], rows["length"].squeeze(-1).float())


def test_a_checkpoint_without_the_block_of_a_dead_worker_says_so_and_the_run_continues() -> None:
    data, workers = collected_here()
    data.next_batch()
    assert set(data.state_dict()["episodes"]) >= {"workers", "blocks", "age"}
    data.next_batch()
    workers[-1].is_dead = True
    assert "did not end its block within 5 s" in data.state_dict()["episodes"]["unknown"]
    for _ in range(3):
        data.next_batch()
    assert len(workers) == 2


@pytest.mark.parametrize("changes", [{"number": 2}, {"workers": None}])
def test_a_run_with_other_workers_begins_new_episodes(changes: dict[str, Any], capsys) -> None:
    sizes = {"num_envs": 2, "env_steps_per_collection": 2}
    data, _ = collected_here(**sizes)
    data.next_batch()
    fresh = online(n_steps=3, **sizes, **changes) if "workers" in changes else collected_here(**sizes, **changes)[0]
    fresh.load_state_dict(data.state_dict())
    assert "begins new episodes: the run that is resumed has another environment or workers" in capsys.readouterr().out
    for _ in range(12):
        fresh.next_batch()
    rows = held(fresh)
    assert len(rows) > len(held(data))
    assert torch.equal(rows["observation"][:, 1], rows["next", "observation"][:, 1]), "steps that waited are dropped"
    fresh.teardown("fit")


def test_what_replaces_a_process_takes_the_random_steps_that_remain_in_other_episodes() -> None:
    recipe = Recipe(Constant, GymnasiumEnvironment("Pendulum-v1"), 2, 3, 20, (*TRANSITION, DONE), 5)
    assert [recipe.after(blocks, 1).random_steps for blocks in (0, 1, 3, 4)] == [20, 14, 2, 0]
    assert len({recipe.seed, recipe.after(0, 1).seed, recipe.after(0, 2).seed}) == 3


LEAVING = """
import multiprocessing, os, signal, torch
from flowmatch_rl.batches import TRANSITION
from flowmatch_rl.data.ahead import AheadCollector
from flowmatch_rl.data.workers import Recipe
from flowmatch_rl.data.collector_processes import LocalProcesses
from flowmatch_rl.envs.environments import GymnasiumEnvironment
from flowmatch_rl.envs.states import UnknownStateError
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
