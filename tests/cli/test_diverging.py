"""Runs that diverge, from the command line."""

import json

import pytest
import torch

import tests.toys  # noqa: F401  registers an environment
from tests.cli.support import PENDULUM, arguments, call


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("interval", [0, 1], ids=["without logging", "with logging"])
def test_a_run_that_diverges_ends_in_one_line_and_keeps_the_last_good_checkpoint(tmp_path, interval) -> None:
    # From environment step 44 on the squares of the rewards are infinite; step 40 ended the first epoch.
    environment = {
        "class_path": "GymnasiumEnvironment",
        "init_args": {"name": "ToyCounting-v0", "options": {"bad_reward_at": 44, "bad_value": 1e30}},
    }
    outcome = call(
        arguments(
            "fit",
            PENDULUM,
            trainer__default_root_dir=tmp_path,
            trainer__logger="false",
            trainer__log_every_n_steps=interval,
            data__environment=json.dumps(environment),
            data__total_env_steps=72,
            data__env_steps_per_collection=1,
        )
    )
    assert outcome.code == 1
    assert len(outcome.error_lines) == 1, outcome.err
    assert "loss of the critics is not finite since update" in outcome.err
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert f"resume with flowmatch-rl fit -c {tmp_path / 'config.yaml'} --ckpt_path last" in outcome.err
    saved = torch.load(last, weights_only=True)
    assert saved["OnlineData"]["local_env_steps"] in (40, 48)
    assert all(bool(value.isfinite().all()) for value in saved["state_dict"].values())
