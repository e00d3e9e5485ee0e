"""Trained models of the package: they load by name, they are good, and they are small."""

import hashlib
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from flowmatch_rl.checkpoints import damage, pack_state, read_checkpoint
from flowmatch_rl.checks import UserError
from flowmatch_rl.inference import CheckpointPolicy, load_flow, load_occupancy, load_policy, slim_checkpoint
from flowmatch_rl.inference.kinds import IDENTITY
from flowmatch_rl.metrics import energy_distance, wasserstein_distance
from flowmatch_rl.testbeds import MazeLoopPolicy, PointMassMaze, TwoMoons, geometric_steps
from flowmatch_rl.zoo import checkpoint_path, zoo_names
from tests.cli.support import TWO_MOONS, call

NAMES = ["maze_loop", "pendulum", "two_moons"]
MOST_BYTES = 1_000_000
ENERGY_BOUND = 0.003
"""A Gaussian of the same mean and variance has 0.024."""
MAZE_BOUND = 0.1
"""Two real samples have 0.05."""
FOLDER = Path(checkpoint_path("zoo:pendulum")).parent


def test_the_zoo_holds_the_models_that_its_readme_describes_and_no_others() -> None:
    assert zoo_names() == NAMES
    assert re.findall(r"`zoo:(\w+)`", (FOLDER / "README.md").read_text("utf-8").partition("\n## ")[0]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_the_zoo_is_small_and_holds_nothing_of_its_training(name: str) -> None:
    path = Path(checkpoint_path(f"zoo:{name}"))
    assert path.stat().st_size < MOST_BYTES
    assert read_checkpoint(path).keys() <= {*IDENTITY, "state_dict"}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_the_zoo_is_what_its_readme_gives_the_checksum_of(name: str) -> None:
    path = Path(checkpoint_path(f"zoo:{name}"))
    assert damage(path) == ""
    assert hashlib.sha256(path.read_bytes()).hexdigest() in (FOLDER / "README.md").read_text("utf-8")


def test_the_policy_of_the_zoo_swings_the_pendulum_up() -> None:
    policy = load_policy("zoo:pendulum", deterministic=True)
    environments = gymnasium.make_vec("Pendulum-v1", num_envs=10)
    observation, _ = environments.reset(seed=1)
    returns = np.zeros(10)
    for _ in range(200):
        observation, reward, *_ = environments.step(policy(observation))
        returns += reward
    environments.close()
    assert returns.mean() > -200.0


def test_the_flow_of_the_zoo_draws_two_moons() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = TwoMoons().draw(torch.arange(2_000) % 2, generator)
    samples = torch.as_tensor(load_flow("zoo:two_moons").sample(2_000)).double()
    assert energy_distance(samples, exact) < ENERGY_BOUND


def test_the_occupancy_of_the_zoo_samples_where_its_policy_will_be() -> None:
    process, policy, discount, number = PointMassMaze(action_repeat=4), MazeLoopPolicy(), 0.99, 512
    generator = torch.Generator().manual_seed(0)
    state = process.start(torch.randn(8, process.noise_dim, generator=generator))
    noise = torch.randn(1_200, 8, process.noise_dim, generator=generator)
    futures, _ = process.futures(policy, state, policy.act(state), noise)
    occupancy = load_occupancy("zoo:maze_loop")
    modelled = torch.as_tensor(occupancy.sample(number, state.numpy()))
    distances = []
    for source in range(8):
        steps = geometric_steps(torch.rand(number, generator=generator, dtype=torch.float64), discount).long()
        real = futures[steps.clamp_max(1_200) - 1, source]
        distances.append(wasserstein_distance(modelled[source], real))
    assert torch.stack(distances).mean() < MAZE_BOUND


def test_a_name_that_the_zoo_lacks_is_refused_with_those_that_it_has() -> None:
    message = "there is no trained model zoo:cartpole; there are zoo:maze_loop, zoo:pendulum, zoo:two_moons"
    for load in (load_policy, load_flow, load_occupancy, CheckpointPolicy):
        with pytest.raises(UserError, match=re.escape(message)):
            load("zoo:cartpole")
    with pytest.raises(UserError, match="what loads it is load_flow"):
        load_policy("zoo:two_moons")
    outcome = call(["export", "--ckpt_path", "zoo:cartpole", "--output", "policy.pt2"])
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


def test_a_policy_of_the_zoo_may_be_followed_by_a_collection() -> None:
    observation = torch.tensor([[1.0, 0.0, 0.0]])
    assert CheckpointPolicy("zoo:pendulum").act(observation).shape == (1, 1)


def test_a_damaged_model_of_the_zoo_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(Path(checkpoint_path("zoo:two_moons")).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "two_moons.ckpt").write_bytes(content)
    monkeypatch.setattr("flowmatch_rl.zoo._FOLDER", tmp_path)
    with pytest.raises(UserError, match="is damaged"):
        load_flow("zoo:two_moons")


def test_slimming_leaves_out_what_training_alone_needs(tmp_path: Path) -> None:
    content = read_checkpoint("zoo:maze_loop")
    content |= {"optimizer_states": [{"state": {0: torch.ones(9)}}], "callbacks": {}, "resumption": {"seed": 1}}
    weights = content["state_dict"]
    weights["dynamics.weight"] = torch.ones(9)
    name = next(iter(weights))
    weights[name] = torch.stack([weights[name], weights[name]])[0]  # a part of a larger tensor
    (tmp_path / "trained.ckpt").write_bytes(pack_state(content))
    slim = slim_checkpoint(tmp_path / "trained.ckpt", tmp_path / "slim.ckpt")
    assert slim.read_bytes() == Path(checkpoint_path("zoo:maze_loop")).read_bytes()


def test_training_does_not_resume_from_a_model_of_the_zoo() -> None:
    outcome = call(["fit", "-c", str(TWO_MOONS), "--ckpt_path", "zoo:two_moons"])
    assert outcome.code == 2
    assert "holds a trained model and nothing of its training" in outcome.err
