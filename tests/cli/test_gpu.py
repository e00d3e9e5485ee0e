"""Training on a GPU; run with ``pytest -m gpu`` where there is one."""

import numpy as np
import pytest
import torch

from flowmatch_rl.inference import load_flow, load_occupancy
from tests.cli.support import (
    CONF,
    MAZE_LOOP,
    PENDULUM,
    TWO_MOONS,
    arguments,
    call,
    collect,
    flow_arguments,
    occupancy_arguments,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("without_figures")]


@pytest.mark.parametrize("layers", [[], [CONF / "trainer" / "bf16.yaml"]], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", ["false", "true"], ids=["eager", "compiled"])
def test_task_trains_on_a_gpu_and_its_checkpoint_loads_on_a_cpu(layers, compiled, tmp_path) -> None:
    outcome = call(
        arguments(
            "fit",
            PENDULUM,
            *layers,
            trainer__accelerator="gpu",
            trainer__logger="false",
            trainer__default_root_dir=tmp_path,
            model__compile=compiled,
        )
    )
    assert outcome.code == 0, outcome.err
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    assert all(bool(torch.isfinite(weight).all()) for weight in checkpoint["state_dict"].values())


@pytest.mark.parametrize("layers", [[], [CONF / "trainer" / "bf16.yaml"]], ids=["float32", "bfloat16"])
def test_flow_trains_on_a_gpu_and_its_checkpoint_loads_on_a_cpu(layers, tmp_path) -> None:
    outcome = call(
        flow_arguments(
            "fit",
            TWO_MOONS,
            *layers,
            trainer__accelerator="gpu",
            trainer__default_root_dir=tmp_path,
            data__dataset__init_args__num_samples=600,
        )
    )
    assert outcome.code == 0, outcome.err
    assert load_flow(tmp_path / "checkpoints" / "last.ckpt").sample(5).shape == (5, 2)


PRESETS = CONF / "occupancy" / "presets"


@pytest.mark.parametrize(
    "layers",
    [[], [CONF / "trainer" / "bf16.yaml"], [PRESETS / "td2_dd.yaml"], [PRESETS / "many_horizons.yaml"]],
    ids=["float32", "bfloat16", "diffusion", "horizons"],
)
def test_occupancy_trains_on_a_gpu_and_its_checkpoint_loads_on_a_cpu(layers, tmp_path) -> None:
    outcome = call(
        occupancy_arguments(
            "fit",
            MAZE_LOOP,
            *layers,
            trainer__accelerator="gpu",
            trainer__default_root_dir=tmp_path,
            data__path=collect(tmp_path / "maze", "maze"),
        )
    )
    assert outcome.code == 0, outcome.err
    assert "roll-outs" in outcome.out
    assert load_occupancy(tmp_path / "checkpoints" / "last.ckpt").sample(5, np.zeros(4)).shape == (5, 4)
