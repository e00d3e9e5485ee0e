"""The command ``export``."""

from pathlib import Path

import pytest
import torch

from flowmatch_rl.inference.export import run_exported
from flowmatch_rl.modules import FlowMatchingModel
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Euler
from tests.cli.support import call
from tests.combinations import one_test
from tests.inference.test_export import GOALS, saved


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    network = VelocityArchitecture(hidden_dim=8, num_blocks=1, time_features=4)
    return saved(FlowMatchingModel(GOALS, network=network, sampler=OdeSampler(Euler(5))), tmp_path)


def test_export_writes_a_program_and_says_in_a_line_what_it_takes_and_returns(checkpoint, tmp_path) -> None:
    path = tmp_path / "new" / "flow.pt2"
    options = [f"--ckpt_path={checkpoint}", f"--output={path}", "--batch_size=3", "--num_steps=1"]
    outcome = call(["export", *options])
    assert (outcome.code, outcome.err) == (0, "")
    (line,) = outcome.out.splitlines()
    for words in (str(path), str(checkpoint), "noise (3, 2) -> sample (3, 2)", "in 1 step;", "of PyTorch"):
        assert words in line
    assert run_exported(path, {"noise": torch.zeros(3, 2)}).shape == (3, 2)


@one_test
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "export needs ckpt_path and output; begin with: flowmatch-rl export --ckpt_path runs/"),
        (["--ckpt_path=none.ckpt", "--output=policy.onnx"], "there is no checkpoint none.ckpt"),
        (["--ckpt_path={}", "--output=policy.tflite"], "must be one of .onnx, .pt2, got '.tflite'"),
        (["--ckpt_path={}", "--output=a.pt2", "--particles=3"], "--particles"),
        (["--ckpt_path={}", "--output=b.pt2"], "error: output must be a file, b.pt2 is a folder"),
        (["--ckpt_path={}", "--output=file/a.pt2"], "error: cannot write file/a.pt2: File exists"),
        (["--ckpt_path={}", "--output=a.pt2", "--num_particles=3"], "num_particles must be null for a flow"),
    ],
)
def test_wrong_arguments_of_export_take_one_line(options, words, checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.pt2").mkdir(exist_ok=True)
    (tmp_path / "file").touch()
    outcome = call(["export", *(option.format(checkpoint) for option in options)])
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err
    assert len(outcome.err.splitlines()) <= 2
    assert not list(tmp_path.glob("a.*"))
