"""The file that says that a run is done."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from flowmatch_rl.callbacks import LearningCurve, RunResult
from flowmatch_rl.devices import processor_instructions
from flowmatch_rl.envs import DMControlEnvironment, GymnasiumEnvironment
from flowmatch_rl.envs.environments import D4RL_RETURNS
from flowmatch_rl.files import RESULT
from tests.callbacks.stand_ins import tiny_data, tiny_module, tiny_trainer
from tests.callbacks.test_figures import read_table


class Breaks(Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("broken off")


def test_result_appears_after_the_test_that_follows_a_training(tmp_path: Path) -> None:
    module, data = tiny_module(), tiny_data()
    trainer = tiny_trainer(tmp_path, [RunResult()], max_epochs=2)
    trainer.fit(module, datamodule=data)
    assert not (tmp_path / RESULT).exists()
    (metrics,) = trainer.test(module, datamodule=data, verbose=False)
    result = json.loads((tmp_path / RESULT).read_text())
    assert result["task"] == "Pendulum-v1"
    assert (result["env_steps"], result["gradient_steps"], result["return_range"]) == (40, 20, None)
    assert result["arithmetic"].startswith("32-true on ")
    assert processor_instructions() in result["arithmetic"]
    assert result["metrics"]["test/return_mean"] == pytest.approx(metrics["test/return_mean"])
    assert [path.name for path in tmp_path.iterdir()] == [RESULT]


def test_a_test_alone_leaves_the_result_of_the_run_as_it_is(tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text("{}")
    tiny_trainer(tmp_path, [RunResult()], max_epochs=1).test(tiny_module(), datamodule=tiny_data(), verbose=False)
    assert (tmp_path / RESULT).read_text() == "{}"


def test_a_run_that_breaks_off_has_no_result_but_a_table(tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text("{}")
    trainer = tiny_trainer(tmp_path, [RunResult(), LearningCurve(), Breaks()], max_epochs=2)
    with pytest.raises(RuntimeError, match="broken off"):
        trainer.fit(tiny_module(), datamodule=tiny_data())
    assert not (tmp_path / RESULT).exists()
    assert [row["env_steps"] for row in read_table(tmp_path)] == ["30"]


class Killed(Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            assert [row["env_steps"] for row in read_table(Path(trainer.default_root_dir))] == ["30"]


def test_the_table_exists_during_the_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, [LearningCurve(), Killed()], max_epochs=2)
    trainer.fit(tiny_module(), datamodule=tiny_data())
    assert len(read_table(tmp_path)) == 2


def test_only_environments_with_rules_for_it_state_a_range_of_returns() -> None:
    assert DMControlEnvironment("cheetah", "run").return_range == (0.0, 1000.0)
    assert GymnasiumEnvironment().return_range is None
    assert GymnasiumEnvironment("Hopper-v5").return_range == (-20.272305, 3234.3)
    others = [GymnasiumEnvironment("Hopper-v5", {"forward_reward_weight": 2.0}), GymnasiumEnvironment("mine:Hopper-v5")]
    assert [environment.return_range for environment in others] == [None, None]


def test_scores_are_per_cent_of_the_way_between_the_reference_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(D4RL_RETURNS, "Pendulum", (-2000.0, -400.0))
    trainer, module = tiny_trainer(tmp_path, [], max_epochs=1), tiny_module()
    (metrics,) = trainer.test(module, datamodule=tiny_data(), verbose=False)
    wanted = (metrics["test/return_mean"] + 2000.0) / 16.0
    assert metrics["test/normalised_score"] == pytest.approx(wanted, abs=1e-3)
    assert f"normalised   {metrics['test/normalised_score']:.1f} %" in "\n".join(module.result_lines(metrics))
    monkeypatch.delitem(D4RL_RETURNS, "Pendulum")
    (metrics,) = trainer.test(module, datamodule=tiny_data(), verbose=False)
    assert "test/normalised_score" not in metrics
