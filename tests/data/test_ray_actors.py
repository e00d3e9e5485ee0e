"""Collection by actors of Ray."""

import importlib
import os
import signal

import pytest
import torch

from flowmatch_rl.batches import DONE, TRANSITION
from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.data import RayActors
from flowmatch_rl.data.ahead import AheadCollector
from flowmatch_rl.data.workers import Recipe
from flowmatch_rl.envs.environments import GymnasiumEnvironment
from tests.data.test_collector_processes import Constant, Training, take_two, values
from tests.processes import free_port

ray = pytest.importorskip("ray", reason="the extra ray is not installed")


class Fatal(Constant):
    """Acts by its weight, and ends its process when that becomes 7."""

    def load_state_dict(self, state_dict, *args, **options):
        weights = dict(state_dict)
        if float(weights["weight"]) == 7.0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load_state_dict(weights, *args, **options)


@pytest.mark.slow
def test_an_actor_collects_a_block_ahead_and_is_replaced_when_it_dies_and_its_errors_are_raised(capsys) -> None:
    training = Training()
    recipe = Recipe(Fatal, GymnasiumEnvironment("Pendulum-v1"), 1, 3, 0, (*TRANSITION, DONE), 0)
    settings = RayActors(timeout_s=60.0, max_restarts=2)
    collector = AheadCollector(settings, [recipe], training.weights, torch.device("cpu"), lambda: training.updates)
    try:
        assert collector.block().shape == (1, 3)
        collector.block()
        for number in (5, 2):
            training.update(number)
            before = training.updates
            assert values(collector.block()) == [before - number]
            assert collector.ages[-1] == number
        training.update(value=7.0)  # the actor dies when it takes this
        collector.block()
        training.update(value=0.0)
        with pytest.raises(RunError, match="after 2 were replaced"):
            take_two(collector)  # each that replaces it is given the same weights
        assert "replaced, 2 of at most 2" in capsys.readouterr().out
        training.update(value=float("nan"))
        fresh = AheadCollector(settings, [recipe], training.weights, torch.device("cpu"), lambda: training.updates)
        with pytest.raises(RunError, match="nan"):
            fresh.block()
    finally:
        ray.shutdown()


def test_without_ray_the_extra_is_named(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    recipe = Recipe(Constant, GymnasiumEnvironment("Pendulum-v1"), 1, 3, 0, (*TRANSITION, DONE), 0)
    with pytest.raises(UserError, match=r"pip install 'flowmatch_rl\[ray\]'"):
        RayActors().begin(recipe, {})


@pytest.mark.parametrize("address", ["head", "head:", "http://head/x:1", "head:99999", ""])
def test_what_is_no_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(UserError, match=rf"got '{address}'; wanted auto, host:port or ray://host:port"):
        RayActors(address=address)


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_where_nothing_answers_is_refused_in_one_line_before_ray_tries(prefix: str, monkeypatch) -> None:
    def unwanted(**_: object) -> None:
        raise AssertionError("Ray would try for minutes")

    monkeypatch.setattr(ray, "init", unwanted)
    recipe = Recipe(Constant, GymnasiumEnvironment("Pendulum-v1"), 1, 3, 0, (*TRANSITION, DONE), 0)
    address = f"{prefix}127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"found no Ray cluster at address {address} within 10 s .*refused.*; wanted"):
        RayActors(address=address).begin(recipe, {})
