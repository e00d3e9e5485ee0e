"""A flow policy of a bandit: what it learns from, what it keeps, and what it refuses."""

from typing import Any

import pytest
import torch

from flowmatch_rl.estimators import LikelihoodProposal, PointScoreEstimator, PosteriorMeanEstimator, ReweightedEndpoints
from flowmatch_rl.models import FirstSelection, GreedySelection
from flowmatch_rl.modules import BanditFlow
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.objectives import ConditionalFlowMatching, MeanFlow
from flowmatch_rl.paths import AffinePath, ClipSquash, VariancePreservingSchedule
from flowmatch_rl.samplers import AverageVelocitySampler, DdimSampler, OdeSampler
from flowmatch_rl.solvers import AdaptiveSolver, Heun
from flowmatch_rl.testbeds import Bimodal, Flat, FourModes, Quadratic
from tests.combinations import one_test
from tests.modules.options import grouped

SMALL = VelocityArchitecture(hidden_dim=16, num_blocks=1, time_features=8)
BATCH = {"observation": torch.zeros(32, 1)}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "replay": {"x_1_source": "replay", "replay_capacity": 50, "replay_actions": 20},
    "uniform": {"x_1_source": "uniform"},
    "particles": {"train_particles": 4, "train_selection": GreedySelection()},
    "diffusion": {
        "path": AffinePath(VariancePreservingSchedule()),
        "squash": ClipSquash(),
        "sampler": DdimSampler(num_steps=4, eta=1.0),
        "objective": ConditionalFlowMatching(prediction="noise"),
        "estimator": PosteriorMeanEstimator(8, LikelihoodProposal()),
    },
    "average velocity": {"objective": MeanFlow(), "sampler": AverageVelocitySampler()},
    "mirror descent": {"estimator": ReweightedEndpoints()},
    "point score": {"estimator": PointScoreEstimator(), "normalise": True},
}


def build(bandit=FourModes(), **changes: Any) -> BanditFlow:
    torch.manual_seed(0)
    defaults = {"velocity": SMALL, "estimator": PosteriorMeanEstimator(16), "train_particles": 1}
    return BanditFlow(bandit, **grouped(**defaults | changes))


def evaluate(model: BanditFlow, stage: str, number: int = 100) -> dict[str, float]:
    """What a validation or a test logs on exact samples."""
    found: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    exact = model.bandit.sample(
        torch.rand(2 * number, model.bandit.action_dim, generator=generator), model.temperature
    ).chunk(2)
    model.log_dict = lambda metrics, **_: found.update({k: float(v) for k, v in metrics.items()})  # pyright: ignore
    getattr(model, f"{stage}_step")({"action": exact[0], "reference": exact[1]}, 0)
    return found


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_learns_from_a_finite_loss_that_reaches_all_weights(changes) -> None:
    model = build(**changes)
    model.training_step(BATCH, 0).backward()
    gradients = [parameter.grad for parameter in model.policy.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    # The state of a bandit is zero: the weights it is multiplied with learn nothing.
    silent = sum(int(not gradient.any()) for gradient in gradients if gradient is not None)
    assert silent <= 2
    actions = model.sample_actions(50)
    assert actions.shape == (50, 2)
    assert actions.abs().max() <= 1.0


def train(model: BanditFlow, updates: int) -> None:
    optimizer = torch.optim.Adam(model.policy.parameters(), lr=3e-3)
    for _ in range(updates):
        loss = model.training_step({"observation": torch.zeros(128, 1)}, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_training_moves_the_policy_to_the_distribution() -> None:
    model = build(Quadratic(2, centre=0.6, scale=0.2), eval_steps=[20])
    before = evaluate(model, "test")
    train(model, 150)
    after = evaluate(model, "test")
    assert before["test/energy_distance"] > 0.2
    assert after["test/energy_distance"] < 0.03
    assert after["test/energy_distance/20_steps"] < 0.03
    assert after["test/mmd"] < 0.1 * before["test/mmd"]
    assert after["test/sliced_wasserstein"] < 0.3 * before["test/sliced_wasserstein"]
    assert abs(after["test/exact/energy_distance"]) < 0.02
    assert after["test/saturated"] == 0.0


def test_the_temperature_widens_the_distribution() -> None:
    spread = []
    for temperature in (0.25, 4.0):
        model = build(Quadratic(2, centre=0.0, scale=0.2), temperature=temperature)
        train(model, 150)
        spread.append(model.sample_actions(500, torch.Generator().manual_seed(1)).std().item())
    assert 0.05 < spread[0] < 0.3
    assert spread[1] > 1.4 * spread[0]


def test_validation_and_test_use_the_same_noise_each_time() -> None:
    model = build()
    assert evaluate(model, "validation") == evaluate(model, "validation")
    assert evaluate(model, "validation")["val/energy_distance"] == evaluate(model, "test")["test/energy_distance"]


def test_shares_of_modes_and_saturation_are_those_of_the_samples() -> None:
    model = build(Bimodal(1))
    model.sample_actions = lambda *_: torch.tensor([[0.995]] * 25 + [[-0.4]] * 75)  # pyright: ignore
    found = evaluate(model, "test")
    assert found["test/smallest_mode_share"] == pytest.approx(0.25)
    assert found["test/largest_mode_share"] == pytest.approx(0.75)
    assert found["test/saturated"] == pytest.approx(0.25)


def test_a_sampler_that_chooses_its_own_steps_is_evaluated_with_none_but_these() -> None:
    model = build(sampler=OdeSampler(AdaptiveSolver()))
    assert not any("steps" in name for name in evaluate(model, "test", 20))
    with pytest.raises(ValueError, match="no number of steps"):
        model.sample_actions(3, num_steps=5)


def test_another_number_of_steps_shares_the_weights_and_changes_the_samples() -> None:
    model = build(sampler=OdeSampler(Heun(num_steps=3)))
    noise = [torch.Generator().manual_seed(2) for _ in range(3)]
    own, same, finer = (model.sample_actions(20, g, steps) for g, steps in zip(noise, (None, 3, 30), strict=True))
    assert torch.equal(own, same)
    assert not torch.equal(own, finer)
    assert model.policy.sampler == OdeSampler(Heun(num_steps=3))


def test_the_replay_buffer_takes_the_newest_actions_of_the_policy_and_forgets_the_oldest() -> None:
    model = build(x_1_source="replay", replay_capacity=50, replay_actions=20)
    before = model.replay.clone()
    model.training_step(BATCH, 0)
    assert torch.equal(model.replay[:30], before[20:])
    assert not torch.isin(model.replay[30:], before).any()
    assert model.state_dict()["replay"].shape == (50, 2)


def test_the_best_of_many_particles_has_a_higher_value_than_the_first() -> None:
    torch.manual_seed(1)
    values = []
    for changes in ({"train_selection": FirstSelection()}, {"train_particles": 16}):
        model = build(**changes)
        actions = model.policy.squash.action(model.endpoints(torch.zeros(300, 1)))
        values.append(model.bandit.value_and_gradient(actions)[0].mean().item())
    assert values[1] > values[0] + 0.5


def test_a_checkpoint_of_another_bandit_is_refused() -> None:
    model = build()
    model.on_load_checkpoint({"hyper_parameters": {"bandit": FourModes()}})
    with pytest.raises(ValueError, match=r"trained on Flat.*has FourModes"):
        model.on_load_checkpoint({"hyper_parameters": {"bandit": Flat()}})


@one_test
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"actor_learning_rate": -1.0}, "actor_learning_rate must be positive"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm must be positive"),
        ({"replay_capacity": 0}, "replay_capacity must be at least 1, got 0"),
        ({"replay_actions": 0}, "replay_actions must be at least 1, got 0"),
        ({"eval_steps": [10, 0]}, "eval_steps must be at least 1, got 0"),
        ({"train_particles": 0}, "train_particles must be at least 1"),
    ],
)
def test_bad_numbers_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)
