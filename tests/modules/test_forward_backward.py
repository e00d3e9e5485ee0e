"""Forward-backward representations as modules: what their losses reach, their runs, checkpoints and policies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from flowmatch_rl.batches import Segment, SegmentNeeds, read_segment
from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.data import OfflineData, TransitionStore, collect_transitions
from flowmatch_rl.data.transitions.segments import SegmentReader
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.inference import load_dynamics, load_forward_backward
from flowmatch_rl.modules import FlowOptimizer, ForwardBackward
from flowmatch_rl.nets import EmaSettings, ForwardBackwardArchitecture
from flowmatch_rl.objectives import on_sphere
from flowmatch_rl.schema import ActionBounds
from flowmatch_rl.testbeds import BoxReward, CirculationReward, LinearReward, PointMassMaze, SpeedReward

ARCHITECTURE = ForwardBackwardArchitecture(embedding_dim=6, hidden_dim=16)
MAZE = PointMassMaze(start_speed=0.4, action_repeat=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of random forces in the maze."""
    path = tmp_path_factory.mktemp("data") / "maze"
    environment = ProcessEnvironment(MAZE, max_steps=5)
    collect_transitions(environment, str(path), 2_000, num_envs=50, block_steps=5, progress=False)
    return path


def data_of(folder: Path, num_updates: int = 4) -> OfflineData:
    return OfflineData(str(folder), 32, num_updates, num_updates, eval_states=16, test_states=16)


def module_of(data: OfflineData, **options: Any) -> ForwardBackward:
    torch.manual_seed(0)
    known = {name: value for name, value in data.dimensions.items() if name != "embedding_dim"}
    defaults = {"architecture": ARCHITECTURE, "discount": 0.9, "num_references": 64}
    return ForwardBackward(**(known | defaults | options))


def trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
    )


def batch_of(folder: Path, size: int = 64) -> Segment:
    store = TransitionStore.open(folder)
    return read_segment(SegmentReader(store, SegmentNeeds(), size, seed=0).take())


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ForwardBackward, Path]:
    """A module after a short run, and its checkpoint, with actions in another unit."""
    data = data_of(folder)
    module, run = module_of(data, action_bounds=ActionBounds((-2.0, 0.0), (2.0, 10.0))), trainer()
    run.fit(module, datamodule=data)
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    run.save_checkpoint(path)
    return module.eval(), path


@pytest.mark.parametrize("cloning", [0.0, 1.0])
def test_each_loss_reaches_its_own_networks(cloning: float, folder: Path) -> None:
    module = module_of(data_of(folder), cloning=cloning)
    networks = module.model.networks
    parts = {"F": networks.forward_layers, "B": networks.backward_layers, "policy": networks.policy_layers}
    wanted = {"measure": {"F", "B"}, "orthonormality": {"B"}, "policy": {"policy"}}
    for name, reached in wanted.items():
        module.zero_grad()
        module.losses(batch_of(folder))[name].backward()
        for part, layers in parts.items():
            for label, weight in layers.named_parameters():
                moved = weight.grad is not None and bool(weight.grad.any())
                assert moved == (part in reached), f"{name}: {part} {label}"
    assert all(weight.grad is None and not weight.requires_grad for weight in module.target.parameters())


def test_the_policy_climbs_its_own_action_value(folder: Path) -> None:
    """The gradient of its loss is that of -F(s, pi(s, z), z)^T z over the mean magnitude, and of the cloning."""
    module, batch = module_of(data_of(folder), reduction="min", cloning=0.7), batch_of(folder)
    networks, embedding = module.model.networks, on_sphere(torch.randn(64, 6))
    state = module.model.standardise(batch.observation)
    module.policy_loss(state, batch.action, embedding).backward()
    found = [weight.grad.clone() for weight in networks.policy_layers.parameters() if weight.grad is not None]
    module.zero_grad()
    action = networks.act(state, embedding)
    value = (networks.represent(state, action, embedding) * embedding).sum(-1).amin(0)
    (0.7 * (action - batch.action).square().mean() - value.mean() / value.detach().abs().mean()).backward()
    for grad, weight in zip(found, networks.policy_layers.parameters(), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(grad, weight.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"layer_norm": False, "num_frequencies": 2, "num_layers": 1}], ids=str)
def test_the_losses_fall_on_a_fixed_batch(options: dict[str, Any], folder: Path) -> None:
    architecture = ForwardBackwardArchitecture(embedding_dim=6, hidden_dim=16, **options)
    module, batch = module_of(data_of(folder), architecture=architecture, ema=EmaSettings(0.9)), batch_of(folder)
    optimizer = torch.optim.Adam(module.model.networks.parameters(), 3e-3)

    def losses() -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return module.losses(batch)

    before = losses()
    for _ in range(60):
        optimizer.zero_grad()
        found = losses()
        (found["measure"] + found["orthonormality"] + found["policy"]).backward()
        optimizer.step()
    after = losses()
    assert after["measure"] < before["measure"] - 1.0
    assert after["orthonormality"] < before["orthonormality"]


def test_a_terminal_state_is_not_bootstrapped_from(folder: Path) -> None:
    module, batch = module_of(data_of(folder), target_noise=0.0), batch_of(folder)
    ended = Segment(**{**vars(batch), "terminated": torch.ones_like(batch.terminated)})
    module.eval()
    losses = []
    for given in (batch, ended):
        for scale in (1.0, 10.0):
            with torch.no_grad():
                module.target.backward_layers.biases[-1].add_(scale)  # which changes what is bootstrapped
            found, _ = module.representation_losses(given, torch.Generator().manual_seed(0))
            losses.append(float(found["measure"].detach()))
    assert losses[0] != losses[1]
    assert losses[2] == losses[3]


def test_a_checkpoint_repeats_the_evaluation_and_the_actions(checkpoint, folder: Path) -> None:
    module, path = checkpoint
    again = ForwardBackward.load_from_checkpoint(path, weights_only=True).eval()
    found = [trainer().test(each, datamodule=data_of(folder), verbose=False)[0] for each in (module, again)]
    assert found[0] == found[1]
    assert set(found[0]) == {"test/loss", "test/loss/orthonormality"}
    assert len(module.result_lines(found[0])) == 1
    assert module.result_lines({})[0].startswith("measured")
    assert torch.equal(module.model.references, again.model.references)
    assert bool(module.model.references.any())
    state, embedding = batch_of(folder).observation, torch.randn(6)
    assert torch.equal(module.model.act(state, embedding), again.model.act(state, embedding))


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)], ids=str)
def test_a_loaded_representation_acts_for_any_reward(batch: tuple[int, ...], checkpoint) -> None:
    module, path = checkpoint
    model = load_forward_backward(path)
    state, reward = np.random.default_rng(0).normal(size=(*batch, 4)) * 0.1, CirculationReward(scale=0.4)
    policy = model.policy(reward)
    action = policy(state)
    assert action.shape == (*batch, 2)
    assert (action[..., 0] >= -2.0).all()
    assert (action[..., 1] >= 0.0).all()  # the bounds of its environment
    values = policy.value(state)
    assert values.shape == batch
    np.testing.assert_allclose(policy.value(state, action), values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.value(reward, state), values)
    unit = module.model.act(torch.as_tensor(state).float(), torch.as_tensor(policy.embedding))
    np.testing.assert_allclose((action - [0.0, 5.0]) / [2.0, 5.0], unit.numpy(), atol=1e-5)
    # A function of states is a reward too, and the policy is that of all its multiples.
    doubled = model.policy(lambda states: 2.0 * reward.evaluate(torch.as_tensor(states), model.columns).numpy())
    np.testing.assert_allclose(doubled(state), action, atol=1e-4)
    np.testing.assert_allclose(doubled.value(state), 2.0 * values, rtol=1e-3, atol=1e-4)


def test_a_constant_reward_changes_values_and_no_policy(checkpoint) -> None:
    model, reward = load_forward_backward(checkpoint[1]), SpeedReward()
    state = np.random.default_rng(0).normal(size=(6, 4)) * 0.1

    def raised(states: np.ndarray) -> np.ndarray:
        return reward.evaluate(torch.as_tensor(states), model.columns).numpy() + 3.0

    plain, other = model.policy(reward), model.policy(raised)
    np.testing.assert_allclose(other(state), plain(state), atol=1e-4)
    constant = model.policy(lambda states: np.full(len(states), 3.0), centred=False).embedding
    states, unit = torch.as_tensor(state).float(), model.model.act(torch.as_tensor(state).float(), torch.ones(6))
    added = model.model.value(states, unit, torch.as_tensor(plain.embedding), torch.as_tensor(constant))
    action = 2.0 * unit.numpy() * [1.0, 2.5] + [0.0, 5.0]
    np.testing.assert_allclose(other.value(state, action), plain.value(state, action) + added.numpy(), atol=1e-3)
    uncentred = [model.policy(each, centred=False)(state) for each in (reward, raised)]
    assert not np.allclose(*uncentred, atol=1e-4)


def test_rewards_are_evaluated_on_the_states_that_are_given(checkpoint) -> None:
    model = load_forward_backward(checkpoint[1])
    states = np.random.default_rng(1).normal(size=(50, 4)) * 0.1
    kept = model.policy(SpeedReward()).embedding
    assert not np.allclose(model.policy(SpeedReward(), states).embedding, kept)
    np.testing.assert_allclose(
        model.policy(SpeedReward(), model.model.references.numpy()).embedding, kept, rtol=1e-4, atol=1e-5
    )


def test_what_does_not_fit_is_refused(checkpoint, folder: Path) -> None:
    model = load_forward_backward(checkpoint[1])
    with pytest.raises(UserError, match="is 0 in all of the 64 states of the data"):
        model.policy(BoxReward((5.0, 5.0), (6.0, 6.0)))
    with pytest.raises(UserError, match="needs the column 'speed'; the states have x, y, vx, vy"):
        model.policy(LinearReward(("speed",), (1.0,)))
    with pytest.raises(UserError, match=r"expected states of shape \(\.\.\., 4\), got \(3,\)"):
        model.policy(SpeedReward())(np.zeros(3))
    with pytest.raises(UserError, match="finite numbers"):
        model.policy(SpeedReward())(np.full(4, np.nan))
    with pytest.raises(UserError, match=r"expected actions of shape \(2,\), got \(3,\)"):
        model.policy(SpeedReward()).value(np.zeros(4), np.zeros(3))
    with pytest.raises(UserError, match=r"expected states \(N, S\) and rewards \(N,\)"):
        model.policy(lambda states: np.zeros((len(states), 1)))
    with pytest.raises(UserError, match=r"forward-backward representation, not of .*load_forward_backward"):
        load_dynamics(checkpoint[1])
    with pytest.raises(UserError, match="expected the schema of the data, got None"):
        ForwardBackward(None, 2)
    with pytest.raises(UserError, match=r"data_embeddings must .*got 1\.5"):
        module_of(data_of(folder), data_embeddings=1.5)


def test_a_diverged_representation_ends_the_run_by_name(folder: Path) -> None:
    with pytest.raises(RunError, match="representation"):
        trainer().fit(module_of(data_of(folder), optimizer=FlowOptimizer(1e30)), datamodule=data_of(folder))
