"""Scores of policies at actions of a data set against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.evaluation import score_actions
from flowmatch_rl.models import FirstSelection, LatentPolicy, ParticleActor, no_values
from flowmatch_rl.paths import ClipSquash
from tests.oracles import normal

B = 4000


class NormalPolicy(LatentPolicy):
    """Acts by normal noise around the observation."""

    def __init__(self, dims: int, scale: float) -> None:
        super().__init__(dims, ClipSquash())
        self.scale = scale

    @property
    def noise_dim(self) -> int:
        return self.action_dim

    @property
    def num_draws(self) -> int:
        return 0

    def sample_latents(self, observation: Tensor, noise: Tensor, draw: object = None) -> Tensor:
        return observation[:, None] + self.scale * noise

    def trajectories(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def compile_sampling(self) -> None:
        raise NotImplementedError


def score(scale: float, observation: Tensor, action: Tensor, noise_scale: float = 1.0, number: int = 4) -> float:
    policy = NormalPolicy(observation.shape[1], scale)
    actor = ParticleActor(policy, no_values, 1, FirstSelection(), 1.0, noise_scale)
    return float(score_actions(actor, observation, action, number))


@pytest.mark.parametrize("number", [2, 4])
@pytest.mark.parametrize("scale", [0.05, 0.1, 0.2])
def test_a_normal_policy_on_normal_data_has_the_closed_form(scale: float, number: int) -> None:
    observation = 0.2 * normal(B, 1, seed=1, dtype=torch.float32).clamp(-1.0, 1.0)
    action = observation + 0.1 * normal(B, 1, seed=2, dtype=torch.float32)
    exact = math.sqrt(2.0 / math.pi) * math.hypot(scale, 0.1) - scale / math.sqrt(math.pi)
    assert score(scale, observation, action, number=number) == pytest.approx(exact, abs=4e-3)


def test_the_behaviour_itself_has_the_smallest_score() -> None:
    observation = torch.zeros(B, 2)
    action = 0.1 * normal(B, 2, seed=2, dtype=torch.float32)
    behavior = score(0.1, observation, action)
    assert all(score(scale, observation, action) > behavior for scale in (0.03, 0.06, 0.15, 0.3))
    assert score(0.1, observation + 0.1, action) > behavior


def test_a_policy_without_noise_has_the_mean_distance() -> None:
    observation, action = (0.3 * normal(50, 3, seed=seed, dtype=torch.float32).clamp(-1.0, 1.0) for seed in (1, 2))
    exact = float((observation - action).norm(dim=1).mean())
    assert score(1.0, observation, action, noise_scale=0.0) == pytest.approx(exact, rel=1e-5)
