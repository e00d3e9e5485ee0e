"""What a policy learns from by flow time: sums over updates and processes, and the metrics of a training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from tensordict import TensorDict
from torch import Tensor

from flowmatch_rl.batches import read_transition
from flowmatch_rl.estimators import EndpointEstimate, EndpointEstimator, PosteriorMeanEstimator
from flowmatch_rl.modules import ReverseFlowActorCritic
from flowmatch_rl.modules.policy_learner import Learned, PolicyLearner
from flowmatch_rl.modules.posterior_profile import PosteriorMeter, PosteriorProfile
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture
from flowmatch_rl.objectives import ConditionalFlowMatching
from flowmatch_rl.paths import AffinePath, CosineSchedule, LinearSchedule, PathPoints, Schedule
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Euler
from flowmatch_rl.types import Prediction
from tests.callbacks.stand_ins import tiny_data, tiny_module
from tests.combinations import each_value, one_test
from tests.families import ESTIMATORS
from tests.modules.options import grouped
from tests.oracles import normal, uniform

D, B, BINS, T_MIN = 3, 40, 4, 0.05
NAMES = ("effective_sample_fraction", "eta", "target_rms", "saturated", "log_density_spread")


def module_with(**options: Any) -> ReverseFlowActorCritic:
    parts: dict[str, Any] = {
        "velocity": VelocityArchitecture(hidden_dim=8, num_blocks=1, time_features=4),
        "critic": CriticArchitecture(hidden_dim=8),
        "sampler": OdeSampler(Euler(2)),
        "estimator": PosteriorMeanEstimator(num_samples=8),
        "train_particles": 2,
    }
    torch.manual_seed(0)
    return ReverseFlowActorCritic(2, D, temperature=1.0, **grouped(t_min=T_MIN, **parts | options))


def learner(prediction: Prediction = "velocity", schedule: Schedule = LinearSchedule()) -> PolicyLearner:
    return module_with(path=AffinePath(schedule), objective=ConditionalFlowMatching(prediction)).learner


def learned(seed: int, size: int = B, low: float = 0.0, high: float = 1.0) -> Learned:
    """Numbers of any origin in the places of what a policy learned from."""
    t = T_MIN + (1.0 - 2.0 * T_MIN) * (low + (high - low) * uniform(size, seed=seed))
    unused = torch.full((size, D), math.nan, dtype=t.dtype)
    ends = EndpointEstimate(
        x_0=normal(size, D, seed=seed + 100),
        x_1=3.0 * normal(size, D, seed=seed + 200),
        weight=torch.ones_like(t),
        eta=uniform(size, D, seed=seed + 300),
        effective_sample_size=1.0 + 7.0 * uniform(size, seed=seed + 400),
        log_density_spread=uniform(size, seed=seed + 500),
    )
    return Learned(PathPoints(unused, unused, unused, t), ends)


class Remembers(CSVLogger):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.logged: list[dict[str, Any]] = []

    def log_metrics(self, metrics: dict[str, Tensor | float], step: int | None = None) -> None:
        self.logged.append({**metrics, "step": step})


def alone(sums: Tensor) -> Tensor:
    return sums


def take(meter: PosteriorMeter, step: int = 1) -> PosteriorProfile:
    profile = meter.take(step, alone)
    assert profile is not None
    return profile


def rows(updates: list[Learned], index: int) -> list[tuple[Learned, int]]:
    """The states of some updates whose flow time lies in a bin."""
    width = (1.0 - 2.0 * T_MIN) / BINS
    low = T_MIN + index * width
    return [(u, i) for u in updates for i, t in enumerate(u.points.t.tolist()) if low <= t < low + width]


TARGETS = {
    "data": lambda x_0, x_1, t: x_1,
    "noise": lambda x_0, x_1, t: x_0,
    "score": lambda x_0, x_1, t: -x_0 / math.cos(math.pi / 2 * t),
    "velocity": lambda x_0, x_1, t: math.pi / 2 * (math.cos(math.pi / 2 * t) * x_1 - math.sin(math.pi / 2 * t) * x_0),
}


@pytest.mark.parametrize("prediction", list(TARGETS))
def test_the_means_of_a_bin_are_those_over_its_states_of_all_updates(prediction: Prediction) -> None:
    meter = PosteriorMeter(learner(prediction, CosineSchedule()), num_bins=BINS, interval=1)
    updates = [learned(seed=1), learned(seed=2, size=7), learned(seed=3, size=1)]
    for update in updates:
        meter.add(update)
    profile = take(meter, step=12)
    assert profile.step == 12
    assert profile.t == pytest.approx([T_MIN + (index + 0.5) * 0.9 / BINS for index in range(BINS)])
    assert tuple(profile.means) == NAMES
    for index in range(BINS):
        members = rows(updates, index)
        assert len(members) > 3
        wanted = dict.fromkeys(NAMES, 0.0)
        for update, i in members:
            ends = update.estimate
            target = TARGETS[prediction](ends.x_0[i], ends.x_1[i], update.points.t[i].item())
            wanted["effective_sample_fraction"] += ends.effective_sample_size[i].item() / 8
            wanted["eta"] += sum(ends.eta[i].tolist()) / D
            wanted["target_rms"] += sum(value**2 for value in target.tolist()) / D
            wanted["saturated"] += sum(abs(math.tanh(value)) > 0.99 for value in ends.x_1[i].tolist()) / D
            wanted["log_density_spread"] += ends.log_density_spread[i].item()
        wanted = {name: total / len(members) for name, total in wanted.items()}
        wanted["target_rms"] = math.sqrt(wanted["target_rms"])
        assert {name: mean[index] for name, mean in profile.means.items()} == pytest.approx(wanted, rel=1e-9)


def test_one_update_in_an_interval_counts_and_the_first_after_each_reading_does() -> None:
    meter, plain = (PosteriorMeter(learner(), num_bins=BINS, interval=interval) for interval in (3, 1))
    for seed in range(5):
        meter.add(learned(seed))
    for seed in (0, 3):
        plain.add(learned(seed))
    assert take(meter) == take(plain)
    for each in (meter, plain):
        each.add(learned(9))
    assert take(meter) == take(plain)


def test_without_an_update_since_the_last_reading_there_is_no_profile() -> None:
    meter = PosteriorMeter(learner())
    assert meter.take(1, alone) is None
    meter.add(learned(1))
    assert meter.take(1, alone) is not None
    assert meter.take(1, alone) is None


def test_processes_count_by_their_states() -> None:
    together = PosteriorMeter(learner(), num_bins=BINS, interval=1)
    parts = [PosteriorMeter(learner(), num_bins=BINS, interval=1) for _ in range(2)]
    for meter, update in zip(parts, (learned(1, size=30), learned(2, size=5)), strict=True):
        meter.add(update)
        together.add(update)
    sums: list[Tensor] = []
    parts[1].take(1, lambda own: sums.append(own) or own)
    found, wanted = parts[0].take(1, lambda own: torch.stack([own, sums[0]])), take(together)
    assert found is not None
    for name, mean in wanted.means.items():
        assert found.means[name] == pytest.approx(mean, rel=1e-12)


def test_bins_without_states_are_unknown_and_no_metrics() -> None:
    meter = PosteriorMeter(learner(), num_bins=BINS)
    meter.add(learned(1, low=0.3, high=0.45))  # the second of four bins
    profile = take(meter)
    assert all([math.isnan(value) for value in mean] == [True, False, True, True] for mean in profile.means.values())
    metrics = profile.metrics("some/name")
    assert metrics == {f"some/name/{name}/1": mean[1] for name, mean in profile.means.items()}


@each_value
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("estimator", [member for member in ESTIMATORS if not member.needs_prior], ids=repr)
def test_every_estimator_has_a_profile(estimator: EndpointEstimator, half: bool) -> None:
    module = module_with(estimator=estimator)
    observation, action = normal(B, 2, seed=1, dtype=torch.float32), uniform(B, D, seed=2, dtype=torch.float32)
    arrival = {"reward": torch.zeros(B, 1), "observation": observation, "terminated": torch.zeros(B, 1).bool()}
    batch = TensorDict({"observation": observation, "action": 2.0 * action - 1.0, "next": arrival}, [B])
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        module.losses(read_transition(batch))
    profile = take(module.posterior_meter)
    assert set(profile.means) == set(NAMES[0 if estimator.num_samples else 1 :])
    assert len(profile.t) == 10
    for name, mean in profile.means.items():
        known = [value for value in mean if not math.isnan(value)]
        assert len(known) > 5
        assert all(math.isfinite(value) for value in known)
        if name in ("effective_sample_fraction", "saturated"):
            assert all(0.0 <= value <= 1.0 + 1e-5 for value in known)


@pytest.mark.parametrize("validates", [True, False])
def test_a_training_logs_its_profile_once_per_epoch(tmp_path: Path, validates: bool) -> None:
    logger, module = Remembers(tmp_path), tiny_module()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        limit_val_batches=1.0 if validates else 0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(module, datamodule=tiny_data())
    found = [metrics for metrics in logger.logged if any(name.startswith("train/by_time/") for name in metrics)]
    assert [metrics["step"] for metrics in found] == [30, 40]
    assert module.posterior_profile is not None
    assert module.posterior_profile.step == 40
    for name, value in module.posterior_profile.metrics("train/by_time").items():
        assert found[-1][name] == pytest.approx(value, rel=1e-6)


@one_test
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bins": 0}, "num_bins must be at least 1, got 0"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"limit": 1.0}, r"limit must lie in \[0, 1\), got 1.0"),
        ({"limit": -0.1}, r"limit must lie in \[0, 1\), got -0.1"),
    ],
)
def test_numbers_out_of_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PosteriorMeter(learner(), **changes)
