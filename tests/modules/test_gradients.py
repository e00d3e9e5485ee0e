"""What modules that clip gradients themselves ask of a trainer, and what their runs count."""

import types
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Trainer

from flowmatch_rl.estimators import LikelihoodProposal, NoControlVariate, PosteriorMeanEstimator
from flowmatch_rl.modules import BanditFlow, ReverseFlowActorCritic
from flowmatch_rl.modules.gradients import clip_gradient
from flowmatch_rl.modules.running_means import RunningMeans
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.objectives import AnnealedTemperature, EntropyTemperature, Temperature
from flowmatch_rl.paths import UniformSource
from flowmatch_rl.testbeds import FourModes
from tests.combinations import each_value
from tests.modules.options import grouped
from tests.modules.test_reverse_flow_actor_critic import TINY, A, S

QUIET: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}


def modules() -> list[ReverseFlowActorCritic | BanditFlow]:
    return [
        ReverseFlowActorCritic(S, A, **grouped(**TINY)),
        BanditFlow(FourModes(), **grouped(velocity=VelocityArchitecture(8, 1))),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_a_clipping_that_would_not_be_done_is_refused(kind: int) -> None:
    module = modules()[kind]
    module.trainer = Trainer(gradient_clip_val=0.5, **QUIET)
    with pytest.raises(ValueError, match=r"max_gradient_norm: trainer.gradient_clip_val must be unset, got 0.5"):
        module.on_fit_start()


def test_actor_critics_take_a_step_per_batch() -> None:
    module = modules()[0]
    module.trainer = Trainer(accumulate_grad_batches=4, **QUIET)
    with pytest.raises(ValueError, match="accumulate_grad_batches must be 1, got 4"):
        module.on_fit_start()


@each_value
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", True), ("16-mixed", False)])
def test_adam_leaves_the_scale_of_float16_to_the_trainer_which_takes_it_off_before_the_clipping(
    kind: int, precision: str, fused: bool
) -> None:
    module = modules()[kind]
    module.trainer = cast(Trainer, types.SimpleNamespace(precision=precision))
    optimizer = module.configure_optimizers()
    assert optimizer.defaults["fused"] is fused
    assert bool(getattr(optimizer, "_step_supports_amp_scaling", False)) is fused  # what Lightning asks


@pytest.mark.parametrize("rule", [EntropyTemperature(start=1), AnnealedTemperature(1, 0.5, 10)])
def test_a_whole_number_is_a_temperature_like_any_other(rule: Temperature) -> None:
    module = ReverseFlowActorCritic(S, A, **grouped(**TINY | {"temperature": rule}))
    module.temperature.fill_(0.75)
    assert module.temperature.item() == 0.75


def test_a_fresh_start_leaves_the_noise_of_gpus_alone(monkeypatch) -> None:
    module = modules()[0]
    module.trainer = Trainer(**QUIET)
    module.trainer.strategy.connect(module)
    module.trainer.strategy.setup_optimizers(module.trainer)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded the GPUs"))
    before, weight = torch.get_rng_state(), next(module.policy.parameters()).clone()
    module.reset_networks()
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(next(module.policy.parameters()), weight)


@pytest.mark.parametrize("options", [{"entropy_backup": True}, {"temperature": EntropyTemperature()}])
def test_an_entropy_of_noise_with_an_edge_is_refused(options: dict[str, Any]) -> None:
    estimator = PosteriorMeanEstimator(4, LikelihoodProposal(), NoControlVariate())
    parts = TINY | {"source": UniformSource(), "estimator": estimator}
    ReverseFlowActorCritic(S, A, **grouped(**parts))
    with pytest.raises(ValueError, match=r"an entropy needs a source with a smooth density everywhere, got Uniform"):
        ReverseFlowActorCritic(S, A, **grouped(**parts | options))


def test_means_do_not_follow_a_number_that_changes_in_place() -> None:
    means, value = RunningMeans(), torch.tensor(1.0)
    means.add({"value": value})
    value.fill_(4.0)
    means.add({"value": value})
    assert means.take()["value"].item() == 2.5


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0, float("nan"), float("inf")])
def test_a_gradient_is_clipped_as_torch_does_it(size: float) -> None:
    weights = [torch.zeros(3, 2), torch.zeros(4), torch.zeros(1)]
    for weight in weights[:2]:
        weight.grad = size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    others = [weight.clone() for weight in weights]
    for other, weight in zip(others[:2], weights, strict=False):
        assert weight.grad is not None
        other.grad = weight.grad.clone()
    wanted = torch.nn.utils.clip_grad_norm_(others, 3.0)
    assert torch.equal(clip_gradient(weights, 3.0).nan_to_num(), wanted.nan_to_num())
    for other, weight in zip(others[:2], weights, strict=False):
        assert weight.grad is not None
        assert other.grad is not None
        assert torch.equal(weight.grad.nan_to_num(), other.grad.nan_to_num())
