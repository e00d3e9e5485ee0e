"""The policy of an actor-critic's checkpoint."""

import os
import shutil

import numpy as np
import pytest
import torch

from flowmatch_rl.inference import CheckpointPolicy, TrainedPolicy, load_policy
from flowmatch_rl.inference.policy import load_policy_module
from tests.inference.test_occupancy import checkpoint as occupancy_checkpoint
from tests.inference.test_policy import checkpoint, module
from tests.modules.occupancy_toys import occupancy
from tests.modules.test_reverse_flow_actor_critic import S


def states(*batch: int) -> torch.Tensor:
    return torch.randn(*batch, S, generator=torch.Generator().manual_seed(5))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def path(tmp_path) -> str:
    return str(checkpoint(module(), tmp_path))


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)], ids=str)
def test_it_acts_as_the_policy_that_is_loaded_from_the_file(batch, path) -> None:
    wanted = load_policy(path)(states(*batch).numpy())
    action = CheckpointPolicy(path).act(states(*batch), generator=seeded())
    np.testing.assert_allclose(action.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_it_is_a_single_policy_within_the_unit_box(path) -> None:
    policy = CheckpointPolicy(path)
    assert policy.embedding_dim == 0
    assert policy.embeddings(torch.empty(7, 0)).shape == (7, 0)
    action = policy.act(20.0 * states(50), torch.empty(50, 0))
    assert action.abs().max() <= 1.0
    with pytest.raises(ValueError, match="embedding of dimension 0"):
        policy.act(states(5), torch.zeros(5, 2))


def test_its_noise_comes_from_the_generator_alone(path) -> None:
    policy, before = CheckpointPolicy(path), torch.get_rng_state()
    first, again, other = (policy.act(states(6), generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_number_of_particles_is_its_own_or_that_of_the_checkpoint(path) -> None:
    trained = load_policy_module(path).actor("eval").num_particles
    own = CheckpointPolicy(path).act(states(6), generator=seeded())
    same, single = (CheckpointPolicy(path, count).act(states(6), generator=seeded()) for count in (trained, 1))
    assert trained > 1
    assert torch.equal(own, same)
    assert not torch.equal(own, single)


def test_file_that_has_changed_is_read_again(path, tmp_path) -> None:
    policy = CheckpointPolicy(path)
    before = policy.act(states(6), generator=seeded())
    other = module()
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=seeded(7)))
    (tmp_path / "other").mkdir()
    shutil.copy(checkpoint(other, tmp_path / "other"), path)
    os.utime(path, ns=(0, 1))
    after = policy.act(states(6), generator=seeded())
    assert not torch.equal(before, after)
    np.testing.assert_allclose(after.numpy(), TrainedPolicy(other)(states(6).numpy()), rtol=1e-5, atol=1e-6)


def test_file_that_does_not_serve_is_refused_by_name(path, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nowhere"):
        CheckpointPolicy("nowhere.ckpt")
    with pytest.raises(ValueError, match="num_particles must be at least 1, got 0"):
        CheckpointPolicy(path, num_particles=0)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for other, words in (
        (tmp_path / "text.ckpt", "text.ckpt is not a checkpoint"),
        (
            occupancy_checkpoint(occupancy(), tmp_path),
            "occupancy.ckpt is a checkpoint of an occupancy, not of a policy",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            CheckpointPolicy(str(other)).act(states(2))
