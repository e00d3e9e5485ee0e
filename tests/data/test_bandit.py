"""Batches of a bandit: zeros to train on, exact samples to compare with."""

import pytest
import torch

from flowmatch_rl.data import BanditData
from flowmatch_rl.testbeds import Bimodal


def test_training_batches_are_the_one_state_and_an_epoch_has_its_share_of_updates() -> None:
    data = BanditData(Bimodal(), batch_size=5, num_updates=10, epoch_updates=4)
    assert data.num_epochs == 3
    batches = list(data.train_dataloader())
    assert len(batches) == 3
    assert all(torch.equal(batch["observation"], torch.zeros(5, 1)) for batch in batches)


def test_evaluation_holds_two_exact_samples_at_the_temperature_of_the_module() -> None:
    data = BanditData(Bimodal(2), eval_samples=2000)
    (batch,) = data.val_dataloader()
    assert batch["action"].shape == batch["reference"].shape == (2000, 2)
    assert batch["action"].dtype == torch.float32
    assert not torch.equal(batch["action"], batch["reference"])
    for sample in batch.values():
        assert Bimodal(2).mode_shares(sample).tolist() == pytest.approx([0.25] * 4, abs=0.05)
        assert (sample.abs() - 0.5).std().item() == pytest.approx(0.15, abs=0.01)

    class Trainer:
        class lightning_module:  # noqa: N801
            temperature = 0.25

    data.trainer = Trainer  # pyright: ignore
    (colder,) = data.test_dataloader()
    assert (colder["action"].abs() - 0.5).std().item() == pytest.approx(0.075, abs=0.006)


def test_the_exact_samples_depend_on_the_seed_alone() -> None:
    first, again, other = (
        next(iter(BanditData(Bimodal(), eval_samples=10, eval_seed=seed).val_dataloader())) for seed in (0, 0, 1)
    )
    assert torch.equal(first["action"], again["action"])
    assert not torch.equal(first["action"], other["action"])


def test_the_bandit_is_what_a_model_is_told() -> None:
    data = BanditData(Bimodal(3))
    assert data.dimensions == {"bandit": Bimodal(3)}
    assert data.label == "bimodal_3d"


@pytest.mark.parametrize("name", ["batch_size", "num_updates", "epoch_updates"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        BanditData(**{name: 0})


def test_one_sample_makes_no_distance() -> None:
    with pytest.raises(ValueError, match="eval_samples must be at least 2, got 1"):
        BanditData(eval_samples=1)
