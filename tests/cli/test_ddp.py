"""Two processes that train together."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flowmatch_rl.modules.safe_globals  # noqa: F401 (a checkpoint holds objects of the package)
from flowmatch_rl.cli import run
from flowmatch_rl.data import collect_transitions
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.ranks import states_of_ranks
from tests.cli.support import (
    CONF,
    MAZE_LOOP,
    PENDULUM,
    TWO_MOONS,
    arguments,
    collect,
    dynamics_arguments,
    environment,
    flow_arguments,
    occupancy_arguments,
)
from tests.cli.test_offline_policies import words as offline_words
from tests.processes import in_processes

pytestmark = pytest.mark.ddp


def started(words: list[str], folder: Path) -> str:
    """What both processes of a command print, of which the first starts the second."""
    command = [sys.executable, "-m", "flowmatch_rl", *words]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=folder, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def forked(words: list[str], folder: Path) -> str:
    """What both processes of a command print, which are started as torchrun does."""
    ended = in_processes(command, folder, words)
    assert [process.code for process in ended] == [0, 0], ended
    return "".join(process.out for process in ended)


def command(folder: Path, words: list[str]) -> None:
    os.chdir(folder)
    sys.exit(run(words))


def train(
    args: list[str], probe: str, folder: Path, printed: Callable[[list[str], Path], str] = forked
) -> list[dict[str, Any]]:
    """Reports of both processes; the first also holds the last checkpoint and what was printed."""
    callbacks = json.dumps([{"class_path": f"tests.cli.probes.{probe}", "init_args": {"folder": str(folder)}}])
    out = printed([*args, f"--trainer.callbacks={callbacks}"], folder)
    reports = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    reports[0]["checkpoint"] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    reports[0]["out"] = out
    return reports


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ddp")
    args = arguments(
        "fit",
        PENDULUM,
        CONF / "trainer" / "ddp.yaml",
        CONF / "logger" / "none.yaml",
        trainer__default_root_dir=folder,
        data__total_env_steps=56,
        data__epoch_env_steps=24,
        data__eval_episodes=2,
        data__test_episodes=2,
        data__env_steps_per_collection=1,
        model__optimizer__reset_interval=5,
        model__normalisation__observations="true",
        model__normalisation__temperature="true",
    )
    return train(args, "RankReport", folder, started)


def test_both_processes_begin_and_end_with_equal_weights_that_have_moved(ranks) -> None:
    first, second = ranks
    assert first["world_size"] == second["world_size"] == 2
    for name in ("start", "weights", "lagging"):
        assert first[name] == second[name], name
    assert first["weights"] != first["start"]


def test_units_count_the_batches_of_both_processes_and_are_the_same(ranks) -> None:
    first, second = ranks
    for name in ("moments", "reward_moments", "temperature"):
        assert first[name] == second[name], name
    assert first["moments"][0][0] == first["reward_moments"][0][0] == 12 * 2 * 8


def test_processes_draw_different_noise(ranks) -> None:
    assert not set(ranks[0]["draw"]) & set(ranks[1]["draw"])
    warmup = [set(report["actions"][:16]) for report in ranks]
    assert not warmup[0] & warmup[1]


def test_processes_collect_different_data(ranks) -> None:
    assert ranks[0]["observations"] != ranks[1]["observations"]
    assert ranks[0]["starts"] != ranks[1]["starts"]


def test_environment_steps_count_both_processes(ranks) -> None:
    for report in ranks:
        assert report["rows"] == 16 + 12
        assert report["env_steps"] == 56
        assert report["gradient_steps"] == 12
    assert [state["local_env_steps"] for state in states_of_ranks(ranks[0]["checkpoint"]["OnlineData"])] == [28, 28]


def test_evaluation_counts_the_episodes_of_both_processes_and_is_printed_once(ranks) -> None:
    assert ranks[0]["out"].count("return  ") == 1
    assert "of 2 episodes" in ranks[0]["out"]


@pytest.fixture(scope="module")
def flow_ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("flow_ddp")
    args = flow_arguments(
        "fit",
        TWO_MOONS,
        CONF / "trainer" / "ddp.yaml",
        trainer__default_root_dir=folder,
        data__dataset__init_args__num_samples=600,
    )
    return train(args, "FlowRankReport", folder)


def test_processes_of_a_flow_end_with_equal_weights_from_different_batches_and_noise(flow_ranks) -> None:
    first, second = flow_ranks
    assert first["world_size"] == second["world_size"] == 2
    for name in ("start", "weights", "lagging", "gradient_steps"):
        assert first[name] == second[name], name
    assert first["weights"] != first["start"]
    assert len(first["batches"]) == len(second["batches"]) == first["gradient_steps"] == 12
    assert not set(first["batches"]) & set(second["batches"])
    assert not set(first["draw"]) & set(second["draw"])
    assert first["out"].count("distance  ") == 1


def test_processes_of_a_flow_keep_the_same_place_among_their_batches(flow_ranks) -> None:
    first, second = flow_ranks
    assert states_of_ranks(first["checkpoint"]["SampleData"]) == [first["place"], second["place"]]
    assert first["place"] == second["place"]


def test_processes_of_an_occupancy_end_with_equal_weights_from_different_rows_and_noise(tmp_path) -> None:
    args = occupancy_arguments(
        "fit",
        MAZE_LOOP,
        CONF / "trainer" / "ddp.yaml",
        trainer__default_root_dir=tmp_path,
        data__path=collect(tmp_path / "maze", "maze"),
    )
    first, second = train(args, "FlowRankReport", tmp_path)
    assert first["world_size"] == second["world_size"] == 2
    for name in ("start", "weights", "lagging", "gradient_steps", "place"):
        assert first[name] == second[name], name
    assert first["weights"] != first["start"]
    assert len(first["batches"]) == len(second["batches"]) == first["gradient_steps"] == 6
    assert not set(first["batches"]) & set(second["batches"])
    assert not set(first["draw"]) & set(second["draw"])
    assert states_of_ranks(first["checkpoint"]["OfflineData"]) == [{"drawn": 6}] * 2
    assert first["out"].count("distance  ") == 1


@pytest.mark.slow  # a second proof of what those of the flow and of the occupancy show
def test_processes_of_a_one_step_model_end_with_equal_weights_from_different_rows_and_noise(tmp_path) -> None:
    args = dynamics_arguments(
        "fit",
        CONF / "dynamics" / "linear_gaussian.yaml",
        CONF / "trainer" / "ddp.yaml",
        trainer__default_root_dir=tmp_path,
        data__path=collect(tmp_path / "data", "linear_gaussian"),
    )
    first, second = train(args, "FlowRankReport", tmp_path)
    assert first["world_size"] == second["world_size"] == 2
    for key in ("start", "weights", "gradient_steps", "place"):
        assert first[key] == second[key], key
    assert first["weights"] != first["start"]
    assert len(first["batches"]) == len(second["batches"]) == first["gradient_steps"] == 6
    assert not set(first["batches"]) & set(second["batches"])
    assert not set(first["draw"]) & set(second["draw"])
    assert states_of_ranks(first["checkpoint"]["OfflineData"]) == [{"drawn": 6}] * 2
    assert first["out"].count("loss  ") == 1


def test_processes_of_a_policy_from_data_end_with_equal_weights_from_different_rows_and_noise(tmp_path) -> None:
    path = tmp_path / "data"
    collect_transitions(GymnasiumEnvironment("Pendulum-v1"), str(path), 60, progress=False)
    args = offline_words(
        "fit",
        CONF / "offline" / "pendulum.yaml",
        CONF / "offline" / "methods" / "flow_q_learning.yaml",
        CONF / "trainer" / "ddp.yaml",
        trainer__default_root_dir=tmp_path,
        data__path=path,
        model__optimizer__reset_interval=3,
    )
    first, second = train(args, "FlowRankReport", tmp_path)
    assert first["world_size"] == second["world_size"] == 2
    for key in ("start", "weights", "lagging", "gradient_steps", "place"):
        assert first[key] == second[key], key
    assert first["weights"] != first["start"]
    assert len(first["batches"]) == len(second["batches"]) == first["gradient_steps"] == 4
    assert not set(first["batches"]) & set(second["batches"])
    assert not set(first["draw"]) & set(second["draw"])
    assert states_of_ranks(first["checkpoint"]["PolicyData"]) == [{"drawn": 4, "epoch_batches": 2}] * 2
    assert first["out"].count("return  ") == first["out"].count("behaviour  ") == 1
