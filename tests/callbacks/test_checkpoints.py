"""Which checkpoints a run leaves."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from flowmatch_rl.callbacks import AtomicCheckpointIO, Checkpoints
from flowmatch_rl.checks import RunError, UserError


class Worsening(LightningModule):
    """Its evaluation return falls from epoch to epoch."""

    monitor = ("val/return_mean", "max")

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx) -> None:
        self.log("val/return_mean", -float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, epochs: int, limits: dict | None = None, module=None, watch=(), ckpt_path=None, **options):
    data = DataLoader(torch.ones(3, 1))
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[Checkpoints(**options), *watch],
        **(limits or {}),
    )
    trainer.fit(module or Worsening(), data, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return {path.stem: torch.load(path)["global_step"] for path in (folder / "checkpoints").iterdir()}


def test_last_checkpoint_is_of_the_last_evaluation_and_best_of_the_best(tmp_path) -> None:
    assert fit(tmp_path, epochs=3) == {"last": 9, "best": 3}


def test_the_lowest_is_the_best_where_the_module_or_the_user_says_so(tmp_path, monkeypatch) -> None:
    assert fit(tmp_path / "user", epochs=3, monitor="val/return_mean", mode="min")["best"] == 9
    monkeypatch.setattr(Worsening, "monitor", ("val/return_mean", "min"))
    assert fit(tmp_path / "module", epochs=3)["best"] == 9


def test_last_checkpoint_is_written_at_the_end_whatever_the_interval(tmp_path) -> None:
    assert fit(tmp_path, epochs=3, every_n_epochs=2)["last"] == 9


def test_checkpoints_of_some_evaluations_stay_under_names_with_their_steps(tmp_path) -> None:
    assert fit(tmp_path, epochs=5, keep_every=2) == {"last": 15, "best": 3, "step_6": 6, "step_12": 12}


def test_the_newest_of_those_that_stay_are_kept_also_where_the_run_is_resumed(tmp_path) -> None:
    kept = {"keep_every": 1, "keep_most": 2}
    assert fit(tmp_path, 3, **kept) == {"last": 9, "best": 3, "step_6": 6, "step_9": 9}
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.samefile(last.with_name("step_9.ckpt"))
    assert fit(tmp_path, 4, ckpt_path=last, **kept) == {"last": 12, "best": 3, "step_9": 9, "step_12": 12}


def test_a_number_of_checkpoints_that_stay_needs_a_rule_which(tmp_path) -> None:
    with pytest.raises(UserError, match="keep_most 3 needs keep_every"):
        Checkpoints(keep_most=3)


@pytest.mark.parametrize("limits", [{"max_steps": 5}, {"limit_val_batches": 0, "max_steps": 5}], ids=str)
def test_a_run_that_ends_between_evaluations_keeps_its_last_update(tmp_path, limits) -> None:
    assert fit(tmp_path, epochs=3, limits=limits)["last"] == 5


class Diverging(Worsening):
    """Refuses to be written after some updates, as the package's own modules do."""

    diverges_after = 4

    def on_save_checkpoint(self, checkpoint) -> None:
        if self.global_step >= self.diverges_after:
            raise RunError("the weights of the layer are not finite after 4 updates")


class Interrupts(Callback):
    """Ends the run as the user would."""

    def on_train_batch_end(self, trainer, *_, **__) -> None:
        if trainer.global_step == 5:
            raise KeyboardInterrupt


class InterruptsEvaluation(Callback):
    """Ends the run as the user would, in the second evaluation."""

    def on_validation_start(self, trainer, *_) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_a_run_that_is_interrupted_in_an_evaluation_keeps_what_it_was_trained_to(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, 3, watch=[InterruptsEvaluation()])
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last)["global_step"] == 6
    assert f"interrupted; resume with --ckpt_path {last}\n" in capsys.readouterr().out


def test_an_interrupted_run_of_the_command_line_names_the_whole_command_that_resumes_it(tmp_path, capsys) -> None:
    config = tmp_path / "config.yaml"
    config.touch()
    with pytest.raises(SystemExit):
        fit(tmp_path, 3, watch=[InterruptsEvaluation()])
    assert f"interrupted; resume with flowmatch-rl fit -c {config} --ckpt_path last\n" in capsys.readouterr().out


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_diverged_run_keeps_the_checkpoints_before_and_names_the_last(tmp_path, capsys, interrupted) -> None:
    watch = [Interrupts()] if interrupted else []
    with pytest.raises(SystemExit if interrupted else RunError) as caught:
        fit(tmp_path, 3, module=Diverging(), watch=watch)
    written = {path.stem: torch.load(path)["global_step"] for path in (tmp_path / "checkpoints").iterdir()}
    assert written == {"last": 3, "best": 3}
    said = capsys.readouterr().out
    how = f"resume with --ckpt_path {tmp_path / 'checkpoints' / 'last.ckpt'}"
    if interrupted:
        assert how in said
    else:
        assert caught.value.__notes__ == [how]
    assert ("not finite after 4 updates" in said) == interrupted


def test_a_run_that_diverges_before_its_first_checkpoint_names_none(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(Diverging, "diverges_after", 1)
    with pytest.raises(RunError) as caught:
        fit(tmp_path, 3, module=Diverging())
    assert not hasattr(caught.value, "__notes__")
    assert "ckpt" not in capsys.readouterr().out


def test_a_resumed_run_that_diverges_at_once_names_the_checkpoint_that_it_resumed_from(tmp_path) -> None:
    fit(tmp_path / "first", 1)
    kept = tmp_path / "first" / "checkpoints" / "last.ckpt"
    with pytest.raises(RunError) as caught:
        fit(tmp_path / "second", 3, module=Diverging(), ckpt_path=kept)
    assert caught.value.__notes__ == [f"resume with --ckpt_path {kept}"]


def test_failed_write_leaves_the_former_checkpoint_whole_and_nothing_beside_it(tmp_path, monkeypatch) -> None:
    path, writer = tmp_path / "last.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)

    def half(checkpoint, file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        writer.save_checkpoint({"step": 2}, path)
    assert torch.load(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]
