"""Forward-backward representations from the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowmatch_rl.inference import load_forward_backward
from flowmatch_rl.testbeds import SpeedReward
from tests.cli.support import CONF, call, collect, dynamics_arguments

TASKS = sorted((CONF / "forward_backward").glob("*.yaml"))
SMALL = {"model__architecture__hidden_dim": 16, "model__num_references": 100}


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_every_task_trains_tests_and_acts(path: Path, tmp_path: Path) -> None:
    data, folder = collect(tmp_path / "data", path.stem), tmp_path / "run"
    options = SMALL | {"data__path": data, "trainer__default_root_dir": folder}
    fit = call(dynamics_arguments("fit", path, **options))
    assert (fit.code, fit.err) == (0, "")
    assert fit.last_words[0] == "held"
    last = folder / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == saved["OfflineData"]["drawn"] == 6
    tested = call(dynamics_arguments("test", path, **options, ckpt_path=last))
    assert tested.code == 0, tested.err
    (measured,) = [line for line in fit.out.splitlines() if line.startswith("held out")]
    assert measured in tested.out.splitlines()
    action = load_forward_backward(last).policy(SpeedReward())(np.zeros((3, 4)))
    assert action.shape == (3, 2)
    refused = call(dynamics_arguments("predict", path, **options, ckpt_path=last))
    assert refused.code == 2
    assert refused.error_lines == [
        "flowmatch-rl: error: a forward-backward representation acts for a reward; load it by load_forward_backward"
    ]
