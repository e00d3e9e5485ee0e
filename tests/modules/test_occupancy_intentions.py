"""Intentions: latents that tell apart the policies behind a data set."""

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from flowmatch_rl.batches import Rollouts, read_segment
from flowmatch_rl.data import OfflineData
from flowmatch_rl.data.transitions.collection import collect_transitions
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import with_members
from flowmatch_rl.inference import load_occupancy
from flowmatch_rl.models import Horizon, Intentions, Occupancy
from flowmatch_rl.modules import FlowOptimizer, ObservedSteps, OccupancyModule
from flowmatch_rl.modules.occupancy_intentions import infer_latents
from flowmatch_rl.nets import EmaSettings, GaussianArchitecture, VelocityArchitecture
from flowmatch_rl.objectives import TD2CFM, BiasedChordCFM, CoupledTDCFM, MonteCarloCFM
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import ConstantPolicy, PolicyMixture, RingProcess
from tests.modules.occupancy_toys import PLANE_POLICY, attach, occupancy, segments
from tests.modules.test_occupancy import TINY, tiny_data, trainer

ENCODER = GaussianArchitecture(hidden_dim=16, num_layers=1, activation="gelu")
INTENTIONS = Intentions(latent_dim=2, kl_weight=0.1, architecture=ENCODER)
FEW = Midpoint(num_steps=2)


def with_intentions(intentions: Intentions = INTENTIONS, **options: Any) -> OccupancyModule:
    small: dict[str, Any] = {"objective": TD2CFM(solver=FEW)} | options
    return attach(occupancy(policy=None, intentions=intentions, **small))


def batch_of(size: int = 24, num_steps: int = 1) -> dict[str, Tensor]:
    return segments(size, num_steps, next_action=True, future=segments(size)["arrivals"][:, 0])


VARIANTS: dict[str, dict[str, Any]] = {
    "squared": {},
    "coupled": {"objective": CoupledTDCFM(solver=FEW)},
    "published": {
        "objective": BiasedChordCFM(solver=FEW),
        "intentions": Intentions(2, 0.1, "direct", ENCODER),
        "horizon": Horizon(0.9, first_state="current"),
    },
    "Monte Carlo": {"objective": MonteCarloCFM()},
    "many horizons": {"horizon": Horizon(0.9, 0.5)},
    "several steps": {"segments": ObservedSteps(3)},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_loss_falls_and_every_weight_learns(options: dict[str, Any]) -> None:
    module = with_intentions(**options)
    for flow in (module.flow, module.flow_ema):
        flow.network.begin_at_zero()  # the aim of the bootstrapped term is then the same for all latents
    batch = batch_of(num_steps=options.get("segments", ObservedSteps()).observed_steps)
    # One point to learn, so that the target has little noise of its own.
    batch["arrivals"] = batch["arrivals"] * 0.0 + torch.tensor([4.0, -1.1, 40.0])
    batch["observation"], batch["future"] = batch["arrivals"][:, 0], batch["arrivals"][:, 0]

    def now() -> float:
        torch.manual_seed(9)
        with torch.no_grad():
            return sum(module.training_step(batch, 0).item() for _ in range(8))

    before = now()
    encoder = module.model.encoder
    assert encoder is not None
    weights = {**dict(module.flow.named_parameters(prefix="flow")), **dict(encoder.named_parameters(prefix="encoder"))}
    held = {id(weight) for group in module.configure_optimizers().param_groups for weight in group["params"]}
    assert {id(weight) for weight in weights.values()} <= held
    optimizer = torch.optim.Adam(weights.values(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        idle = [name for name, weight in weights.items() if weight.grad is None or not bool(weight.grad.any())]
        assert step < 3 or not idle
        optimizer.step()
    assert now() < 0.9 * before
    assert all(weight.grad is None and not weight.requires_grad for weight in module.flow_ema.parameters())


def test_the_divergence_is_logged_in_nats_and_weighs_as_stated() -> None:
    losses, divergences = [], []
    for weight in (0.0, 0.5):
        module = with_intentions(Intentions(2, weight, architecture=ENCODER))
        torch.manual_seed(3)
        losses.append(module.training_step(batch_of(), 0).detach())
        means = module.means.take()
        divergences.append(means["train/loss/intentions"])
        torch.testing.assert_close(means["train/loss"], losses[0])
    assert divergences[0] == divergences[1] > 0.0
    torch.testing.assert_close(losses[1] - losses[0], 0.5 * divergences[0])


def test_a_latent_is_inferred_from_the_state_and_the_action_at_the_end() -> None:
    module, batch = with_intentions(segments=ObservedSteps(3)), batch_of(4_000, num_steps=3)
    batch["length"] = torch.arange(4_000) % 3 + 1
    batch["terminated"].zero_()
    segment = read_segment(batch)
    found, divergence = infer_latents(module.model, segment)
    rows = torch.arange(4_000)
    state, action = segment.arrivals[rows, batch["length"] - 1], batch["next_action"]
    mean, log_std = module.model.latent_distribution(state, action)
    scores = (found.embedding - mean) / log_std.exp()
    assert float(scores.mean(0).abs().max()) < 4.0 / 4_000**0.5
    assert float(scores.var(0).log().abs().max()) < 0.1
    assert bool((divergence > 0.0).all())
    assert torch.equal(found.observation, segment.observation)


def test_the_latent_before_a_terminal_state_is_of_the_prior() -> None:
    module, batch = with_intentions(), batch_of(4_000)
    batch["terminated"][:] = True
    batch["next_action"] = batch["next_action"] + 1e9  # no action follows
    found, divergence = infer_latents(module.model, read_segment(batch))
    assert divergence.eq(0.0).all()
    assert float(found.embedding.mean(0).abs().max()) < 0.07
    assert float(found.embedding.var(0).log().abs().max()) < 0.1


def test_latents_drawn_for_sampling_are_standard_normal() -> None:
    drawn = with_intentions().model.draw_members(4_000, torch.Generator().manual_seed(0))
    assert drawn.shape == (4_000, 2)
    assert float(drawn.mean(0).abs().max()) < 0.07
    assert float(drawn.var(0).log().abs().max()) < 0.1


def rollouts_of(module: OccupancyModule) -> Rollouts:
    batch = segments(4, num_steps=3)
    return Rollouts(
        observation=batch["observation"],
        action=batch["action"],
        embedding=torch.empty(4, 0),
        states=batch["arrivals"][:, None],
        length=torch.tensor([[3], [1], [3], [2]]),
        ended=torch.tensor([[[False] * 3], [[False] * 3], [[True] * 3], [[False, False, True]]]),
        actions=torch.linspace(-0.9, 0.9, 24).reshape(4, 1, 3, 2),
    )


def test_evaluations_infer_the_latent_after_the_first_step_where_the_trajectory_goes_on() -> None:
    module = with_intentions()
    given = rollouts_of(module)
    found, again = (with_members(module.model, given).embedding for _ in range(2))
    assert torch.equal(found, again)
    assert given.states is not None
    assert given.actions is not None
    generator = torch.Generator().manual_seed(3)
    prior = module.model.draw_members(4, generator)
    inferred = module.model.infer_members(given.states[:, 0, 0], given.actions[:, 0, 0], generator)
    wanted = torch.stack([inferred[0], prior[1], prior[2], inferred[3]])
    torch.testing.assert_close(found, wanted)
    alone = Rollouts(given.observation, given.action, given.embedding, None, None, None)
    torch.testing.assert_close(with_members(module.model, alone).embedding, prior)


def test_a_model_without_intentions_keeps_the_members_of_its_source_states() -> None:
    module = occupancy()
    given = rollouts_of(module)
    assert with_members(module.model, given) is given
    with pytest.raises(ValueError, match="expected a model with intentions"):
        module.model.infer_members(given.observation, given.action)


def test_parts_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="expected policy null, got LinearPolicy"):
        occupancy(policy=PLANE_POLICY, intentions=INTENTIONS)
    with pytest.raises(ValueError, match="term must be one of direct, bootstrap, got 'both'"):
        Intentions(term=cast(Any, "both"))
    with pytest.raises(ValueError, match="latent_dim"):
        Intentions(latent_dim=0)
    with pytest.raises(KeyError, match="intentions are inferred from the next actions"):
        with_intentions().training_step(segments(), 0)


def test_a_run_is_evaluated_and_its_checkpoint_samples_infers_and_is_refused_by_another_dimension(
    tmp_path: Path,
) -> None:
    data = tiny_data(tmp_path)
    module = OccupancyModule(**data.dimensions, **TINY, intentions=INTENTIONS)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    assert bool(torch.isfinite(run.callback_metrics["val/wasserstein"]))
    (metrics,) = run.test(module, datamodule=data, verbose=False)
    assert math.isfinite(metrics["test/nll_per_dim"])
    (made,) = cast(list[dict[str, Tensor]], run.predict(module, datamodule=data))
    assert made["condition"].shape[1] == 2 + 1 + 2
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load_occupancy(tmp_path / "model.ckpt")
    latents, state = loaded.draw_members(5), torch.randn(5, 2).numpy()
    assert loaded.sample(7, state, 0.1 + 0.0 * state[:, :1], latents).shape == (5, 7, 2)
    inferred = loaded.infer_members(state, 0.1 + 0.0 * state[:, :1])
    assert inferred.shape == latents.shape == (5, 2)
    with pytest.raises(ValueError, match="expected embedding of dimension 2, got 0"):
        loaded.sample(7, state, 0.1 + 0.0 * state[:, :1])
    again = OccupancyModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert again.intentions == INTENTIONS
    for one, other in zip(module.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    other = OccupancyModule(**data.dimensions, **TINY, intentions=Intentions(3))
    with pytest.raises(ValueError, match="the checkpoint was trained with latent_dim 2, got 3"):
        other.on_load_checkpoint(torch.load(tmp_path / "model.ckpt", weights_only=True))


RING, BOTH_WAYS = RingProcess(), PolicyMixture([ConstantPolicy([1.0]), ConstantPolicy([-1.0])])


@pytest.fixture(scope="module")
def ring(tmp_path_factory) -> Occupancy:
    """A model of two policies that go around a ring either way, with three in ten actions at random."""
    folder = tmp_path_factory.mktemp("ring")
    environment = ProcessEnvironment(RING, max_steps=50)
    collect_transitions(
        environment, str(folder / "set"), 20_000, BOTH_WAYS, num_envs=100, random_fraction=0.3, progress=False
    )
    data = OfflineData(str(folder / "set"), batch_size=256, num_updates=600, epoch_updates=600, eval_steps=40)
    torch.manual_seed(0)
    module = OccupancyModule(
        **data.dimensions,
        intentions=Intentions(2, 0.05, architecture=GaussianArchitecture(64, 2, "gelu")),
        objective=TD2CFM(solver=Midpoint(3)),
        network=VelocityArchitecture(hidden_dim=64, num_blocks=2, time_features=16),
        horizon=Horizon(0.8),
        ema=EmaSettings(0.9),
        optimizer=FlowOptimizer(2e-3, "cosine"),
        sampler=OdeSampler(Midpoint(5)),
    )
    options: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 0}
    run: Trainer = trainer(folder, **options)
    run.fit(module, datamodule=data)
    assert 0.1 < float(run.callback_metrics["train/loss/intentions"]) < 10.0
    return module.model.eval()


def turned(model: Occupancy, latents: Tensor, action: float) -> Tensor:
    """Mean sine of the angle that futures lie ahead of their source states, shape (N,), for latents (N, Z)."""
    generator = torch.Generator().manual_seed(6)
    state = RING.start(torch.randn(len(latents), RING.noise_dim, generator=generator))
    noise = model.draw_noise(len(latents), 100, generator=generator)
    with torch.no_grad():
        futures = model.sample(
            noise, state[:, None], torch.full((len(latents), 1, 1), action), latents[:, None].expand(-1, 1, -1)
        )
    ahead = torch.atan2(futures[..., 1], futures[..., 0]) - torch.atan2(state[:, 1], state[:, 0])[:, None]
    return ahead.sin().mean(1)


def test_an_inferred_latent_leads_where_the_policy_behind_it_goes(ring: Occupancy) -> None:
    """Latents of actions elsewhere on the ring, at states and actions that tell nothing of the policy."""
    generator = torch.Generator().manual_seed(5)
    elsewhere = RING.start(torch.randn(200, RING.noise_dim, generator=generator))
    forward, back = (ring.infer_members(elsewhere, torch.full((200, 1), way), generator) for way in (1.0, -1.0))
    for action in (1.0, -1.0):
        ahead, behind = turned(ring, forward, action), turned(ring, back, action)
        assert float((ahead > behind).float().mean()) > 0.9
        assert float(ahead.mean() - behind.mean()) > 0.25


def test_latents_of_the_prior_cover_both_policies(ring: Occupancy) -> None:
    generator = torch.Generator().manual_seed(5)
    elsewhere = RING.start(torch.randn(200, RING.noise_dim, generator=generator))
    ways = [ring.infer_members(elsewhere, torch.full((200, 1), way), generator) for way in (1.0, -1.0)]
    for action in (1.0, -1.0):
        behind, ahead = (turned(ring, latents, action).mean() for latents in reversed(ways))
        drawn = turned(ring, ring.draw_members(200, generator), action)
        middle = 0.5 * (ahead + behind)
        assert 0.2 < float((drawn > middle).float().mean()) < 0.8
        spread = drawn.quantile(torch.tensor([0.1, 0.9])).diff()
        assert float(spread) > 0.8 * float(ahead - behind)
