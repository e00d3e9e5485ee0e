"""Runs that diverge end before they are evaluated or written, and say which network was the first."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from flowmatch_rl.batches import read_transition
from flowmatch_rl.checks import RunError
from flowmatch_rl.modules.running_means import RunningMeans
from flowmatch_rl.modules.watched import WatchedModule
from tests.modules import test_bandit_flow as bandits
from tests.modules import test_flow_matching as flows
from tests.modules.occupancy_toys import occupancy
from tests.modules.options import quiet_trainer
from tests.modules.test_actor_critic import KINDS, Batches, build
from tests.modules.test_reverse_flow_actor_critic import transitions

ACTOR_CRITICS = [kind for kind, _ in KINDS]


class Spoil(Callback):
    """Writes infinity into a network after an update."""

    def __init__(self, network: str, update: int) -> None:
        self.network, self.update = network, update

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.update:
            with torch.no_grad():
                next(iter(pl_module.get_submodule(self.network).parameters())).fill_(torch.inf)


class Scaled(Batches):
    """Batches with rewards of another size."""

    def __init__(self, reward: float) -> None:
        super().__init__()
        self.reward = reward

    def __iter__(self):
        for batch in super().__iter__():
            batch["next", "reward"].mul_(0.0).add_(self.reward)
            yield batch


def fit(module: LightningModule, folder: Path, data: Any = None, interval: int = 10, steps: int = 20, watch=()) -> None:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=list(watch),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        log_every_n_steps=interval,
    )
    trainer.fit(module, DataLoader(data or Batches(), batch_size=None, collate_fn=lambda x: x))


@pytest.mark.parametrize("kind", ACTOR_CRITICS)
@pytest.mark.parametrize(("network", "name"), [("critics.online", "critics"), ("policy", "policy")])
def test_the_network_that_was_the_first_to_diverge_is_named_with_its_update(kind, network, name, tmp_path) -> None:
    # By the logging at update 10 the other one is not finite either, since each learns from the other.
    with pytest.raises(RunError, match=rf"of the .*{name}.* not finite since update 5; lower optimizer\.") as caught:
        fit(build(kind), tmp_path, watch=[Spoil(network, 4)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ACTOR_CRITICS)
def test_rewards_whose_squares_are_infinite_end_the_run_and_are_named(kind, tmp_path) -> None:
    with pytest.raises(RunError, match=r"loss of the critics is not finite since update 1; .* are \d.* and 1e\+30\)"):
        fit(build(kind), tmp_path, Scaled(1e30))


@pytest.mark.parametrize("kind", ACTOR_CRITICS)
def test_a_run_without_logging_trains_and_still_ends_where_it_diverges(kind, tmp_path) -> None:
    module = build(kind)
    fit(module, tmp_path, interval=0, steps=3)
    module.check_finite()
    module.means.add({"train/loss/critic": torch.tensor(torch.nan)})
    with pytest.raises(RunError, match="critics"):
        module.on_validation_start()


MODULES = {
    "flow": (flows.model, "flow"),
    "occupancy": (occupancy, "flow"),
    "bandit": (bandits.build, "policy"),
    **{kind.__name__: (lambda kind=kind: build(kind), "policy") for kind in ACTOR_CRITICS},
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("hook", ["on_validation_start", "on_test_start", "on_predict_start", "on_save_checkpoint"])
def test_weights_that_are_not_finite_are_neither_evaluated_nor_written(name, hook) -> None:
    make, network = MODULES[name]
    module: WatchedModule = make()
    given = [{"hyper_parameters": {}}] if hook == "on_save_checkpoint" else []
    getattr(module, hook)(*given)
    with torch.no_grad():
        list(module.get_submodule(network).parameters())[-1].view(-1)[0] = torch.nan
    with pytest.raises(RunError, match=f"weights of the {network} are not finite after 0 updates"):
        getattr(module, hook)(*given)


def test_a_value_that_is_not_finite_is_traced_back_also_where_more_were_added_than_are_kept() -> None:
    means = RunningMeans(["loss"])
    for index in range(2_500):
        means.add({"loss": torch.tensor(1.0 if index < 2_300 else torch.inf)})
    assert means.ages_not_finite() == {"loss": 199}
    means.take()
    assert means.ages_not_finite() == {}
    for _ in range(1_200):
        means.add({"loss": torch.tensor(torch.nan)})
    assert means.ages_not_finite() == {"loss": 999}


class Waits(TorchDispatchMode):
    """Counts what makes the program wait for a device: reading a number of a tensor."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ACTOR_CRITICS)
def test_an_update_waits_for_the_device_at_the_logging_interval_only(kind, monkeypatch) -> None:
    module = build(kind)
    module.trainer = quiet_trainer()
    batch = transitions()
    with Waits() as needed:  # by a check inside torch, on the CPU alone
        module.losses(read_transition(batch))
    with Waits() as waits:
        module.loss(batch).backward()
        module.after_update()
    assert waits.number == needed.number


@pytest.mark.parametrize("kind", ACTOR_CRITICS)
def test_a_critic_that_has_become_constant_is_warned_about_once_by_its_number(kind, tmp_path) -> None:
    module = build(kind, critic_learning_rate=1e-30)
    with torch.no_grad():
        for parameter in module.critics.online.parameters():
            parameter[1] = 0.0
    with pytest.warns(UserWarning, match=r"critic 2 of 2 .* same value, .* dead.*reset_interval") as caught:
        fit(module, tmp_path, interval=2, steps=6)
    assert len([warning for warning in caught if "same value" in str(warning.message)]) == 1


@pytest.mark.parametrize("kind", ACTOR_CRITICS)
@pytest.mark.filterwarnings("error:.*same value")
def test_a_critic_is_not_called_constant_where_its_inputs_are(kind) -> None:
    module = build(kind)
    module.trainer = quiet_trainer()
    module.loss(transitions()[[0, 0]])
    assert module.critics.constant_members() == []
    module.loss(transitions()[:1])
    assert module.critics.constant_members() == []


def test_metrics_that_some_process_lacks_are_not_waited_for(monkeypatch) -> None:
    module = occupancy()
    own, names = {"a": torch.tensor(1.0), "c": torch.tensor(2.0)}, ("a", "b", "c")
    monkeypatch.setattr(module, "all_gather", lambda held: held)
    assert module.known_to_all(own, names) == own
    # The other process has no "c".
    monkeypatch.setattr(module, "all_gather", lambda held: torch.stack([held, torch.tensor([True, True, False])]))
    assert module.known_to_all(own, names) == {"a": own["a"]}
