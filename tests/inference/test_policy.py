"""A trained policy outside training."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.inference import TrainedPolicy, load_policy
from flowmatch_rl.modules import ReverseFlowActorCritic
from flowmatch_rl.modules.critic_learner import CriticLearner
from flowmatch_rl.paths import NoSquash
from flowmatch_rl.schema import ActionBounds
from tests.combinations import each_value, one_test
from tests.modules.options import grouped
from tests.modules.test_reverse_flow_actor_critic import TINY, A, S
from tests.tracing import trace_compilations

LOW, HIGH = (-2.0, 0.0), (2.0, 10.0)
BOUNDS = ActionBounds(LOW, HIGH)


def module(**options) -> ReverseFlowActorCritic:
    torch.manual_seed(0)
    return ReverseFlowActorCritic(**{"observation_dim": S, "action_dim": A, **grouped(**TINY | options)})


def checkpoint(built: ReverseFlowActorCritic, folder) -> str:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False, max_steps=0)
    trainer.strategy.connect(built)
    trainer.save_checkpoint(folder / "policy.ckpt", weights_only=True)
    return folder / "policy.ckpt"


def test_three_lines_run_a_policy_in_its_environment(tmp_path) -> None:
    env = gymnasium.make("Pendulum-v1")
    path = checkpoint(module(observation_dim=3, action_dim=1, action_bounds=ActionBounds((-2.0,), (2.0,))), tmp_path)
    observation, _ = env.reset(seed=0)
    policy = load_policy(path)
    for _ in range(5):
        action = policy(observation)
        assert env.action_space.contains(action)
        observation, *_ = env.step(action)


@each_value
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_actions_are_single_precision_within_the_bounds_for_any_batch(batch, dtype) -> None:
    policy = TrainedPolicy(module(action_bounds=BOUNDS))
    observation = np.random.default_rng(0).normal(scale=5.0, size=(*batch, S)).astype(dtype)
    action = policy(observation)
    assert isinstance(action, np.ndarray)
    assert action.shape == (*batch, A)
    assert action.dtype == np.float32
    assert (action >= LOW).all()
    assert (action <= HIGH).all()


def test_actions_are_the_policys_rescaled_to_the_environments_unit() -> None:
    built = module(action_bounds=BOUNDS)
    observation = np.random.default_rng(0).normal(size=(6, S)).astype(np.float32)
    unit = built.actor("eval")(torch.as_tensor(observation), torch.Generator().manual_seed(3)).numpy()
    wanted = np.array(LOW) + (unit + 1.0) / 2.0 * (np.array(HIGH) - np.array(LOW))
    np.testing.assert_allclose(TrainedPolicy(built, seed=3)(observation), wanted, rtol=1e-6)


def test_numbers_that_are_not_finite_are_refused_as_observations_and_never_returned_as_actions() -> None:
    built = module()
    policy = TrainedPolicy(built)
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(UserError, match="observation of finite numbers"):
            policy(np.array([0.0, bad, 0.0]))
    with torch.no_grad():
        next(iter(built.policy.parameters())).fill_(torch.nan)
    with pytest.raises(RunError, match=r"policy's action is not finite; the largest number that it observed is 2$"):
        policy(np.array([0.0, -2.0, 1.0]))


def test_without_bounds_actions_lie_in_the_unit_box() -> None:
    built = module()
    observation = np.ones((6, S), np.float32)
    unit = built.actor("eval")(torch.as_tensor(observation), torch.Generator().manual_seed(0)).numpy()
    np.testing.assert_allclose(TrainedPolicy(built)(observation), unit, rtol=1e-5, atol=1e-7)


def test_seed_repeats_the_actions_and_the_global_noise_stays() -> None:
    built, observation = module(), np.ones(S)
    state = torch.get_rng_state()
    first, again, other = (TrainedPolicy(built, seed=seed)(observation) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_loaded_policy_equals_the_saved_modules(tmp_path) -> None:
    built = module(action_bounds=BOUNDS)
    observation = np.random.default_rng(0).normal(size=(6, S))
    np.testing.assert_array_equal(
        load_policy(checkpoint(built, tmp_path))(observation), TrainedPolicy(built)(observation)
    )


@pytest.mark.parametrize(("samples", "wanted"), [(False, 2), (True, 1)], ids=["best particle", "sample"])
def test_compiled_policy_is_one_graph_for_its_sampling_and_one_for_values(
    samples, wanted, tmp_path, monkeypatch
) -> None:
    path, observation = checkpoint(module(action_bounds=BOUNDS), tmp_path), np.random.default_rng(0).normal(size=(1, S))
    plain = load_policy(path, samples=samples)(observation)
    graphs = trace_compilations(monkeypatch)
    policy = load_policy(path, samples=samples, compile=True)
    np.testing.assert_allclose(policy(observation), plain, rtol=1e-5, atol=1e-6)
    assert len(graphs) == wanted


def test_compiling_without_a_compiler_is_refused_by_what_was_looked_for(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"C\+\+ compiler \(no-such-compiler\)"):
        TrainedPolicy(module(), compile=True)
    TrainedPolicy(module())
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"g\+\+ or clang\+\+"):
        TrainedPolicy(module(), compile=True)


@one_test
@pytest.mark.parametrize("shape", [(), (S + 1,), (S, 1), (0,), (4, S - 1)], ids=str)
def test_observation_of_another_shape_is_refused_with_both_shapes(shape) -> None:
    with pytest.raises(ValueError) as caught:
        TrainedPolicy(module())(np.zeros(shape))
    assert str(S) in str(caught.value)
    assert str(shape) in str(caught.value)


def test_actions_of_an_unbounded_latent_space_stay_within_the_bounds() -> None:
    policy = TrainedPolicy(module(squash=NoSquash(), action_bounds=BOUNDS))
    action = policy(np.random.default_rng(0).normal(scale=20.0, size=(50, S)))
    assert (action >= LOW).all()
    assert (action <= HIGH).all()


def test_missing_file_raises(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "none.ckpt")


def test_a_file_with_a_changed_bit_is_refused(tmp_path) -> None:
    """PyTorch reads it without a word, and the policy would act by other weights."""
    path = Path(checkpoint(module(action_bounds=BOUNDS), tmp_path))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"policy.ckpt is damaged: it is not what was written"):
        load_policy(path)


def test_a_policy_acts_by_plain_samples_on_request(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the temperature itself: no value has a say in the choice."""
    built = module()
    path, observation = checkpoint(built, tmp_path), np.ones((500, S), np.float32)
    best = load_policy(path)(observation)
    monkeypatch.setattr(CriticLearner, "values", lambda *_: pytest.fail("evaluated the values"))
    sampled = load_policy(path, samples=True)(observation)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 1, built.policy.noise_dim, generator=generator)
    latent = built.policy.sample_latents(torch.ones(500, S), noise, torch.randn_like)[:, 0]
    np.testing.assert_allclose(sampled, built.policy.squash.action(latent).detach().numpy(), atol=1e-6)
    assert np.abs(sampled.mean(0) - best.mean(0)).max() > 0.0
