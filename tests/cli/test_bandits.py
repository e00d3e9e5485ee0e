"""Runs of ``fit`` on bandits."""

import pandas as pd
import pytest
import torch
import yaml

from tests.cli.support import BANDIT_SIZES, CONF, call

BANDITS = sorted(path for path in (CONF / "bandit").glob("*.yaml") if path.stem != "estimators")


@pytest.mark.parametrize("path", BANDITS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("without_figures")
def test_every_bandit_trains(path, tmp_path) -> None:
    sizes = BANDIT_SIZES | {"trainer.default_root_dir": tmp_path}
    outcome = call(["fit", f"-c={path}", *(f"--{name}={value}" for name, value in sizes.items())])
    assert outcome.code == 0, outcome.err
    assert "distance     " in outcome.out
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    wanted = yaml.safe_load(path.read_text())["data"]["init_args"]["bandit"]["class_path"]
    assert type(checkpoint["hyper_parameters"]["bandit"]).__name__ == wanted
    assert all(bool(torch.isfinite(weight).all()) for weight in checkpoint["state_dict"].values())
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()
    actions = pd.read_csv(tmp_path / "actions.csv")
    assert actions.shape == (20, checkpoint["hyper_parameters"]["bandit"].action_dim)
    assert actions.abs().max().max() <= 1.0


@pytest.mark.usefixtures("without_figures")
def test_a_checkpoint_is_tested_on_its_bandit_only(tmp_path) -> None:
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    small = [
        "--data.num_updates=2",
        "--data.batch_size=8",
        "--data.eval_samples=20",
        "--model.policy.network.hidden_dim=16",
    ]
    flat = CONF / "bandit" / "flat.yaml"
    outcome = call(["fit", f"-c={flat}", *quiet, *small, f"--trainer.default_root_dir={tmp_path}"])
    assert outcome.code == 0, outcome.err
    last = tmp_path / "checkpoints" / "last.ckpt"
    again = ["--data.eval_samples=20", f"--ckpt_path={last}", f"--trainer.default_root_dir={tmp_path}", *quiet]
    outcome = call(["test", f"-c={flat}", *again])
    assert outcome.code == 0, outcome.err
    assert "distance     " in outcome.out
    other = call(["test", f"-c={CONF / 'bandit' / 'quadratic.yaml'}", *again])
    assert other.code == 2
    assert "the checkpoint was trained on Flat" in other.err
