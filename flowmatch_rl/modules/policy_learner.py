"""How a flow policy learns toward a density that is known up to a constant."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.estimators import EndPointEstimator, PathPoints, PosteriorMean
from flowmatch_rl.models import FlowPolicy
from flowmatch_rl.objectives import FlowObjective, reverse_flow_target
from flowmatch_rl.types import LogDensityAndScore


@dataclass(frozen=True, eq=False)
class PolicyLearner:
    """Flow matching whose end points are posterior means, estimated from the values of a density.

    Actor-critics and bandits share it; the one takes the density from its critics, the other from a formula.

    Args:
        policy: The policy.
        objective: What its network predicts, and the loss that teaches it.
        estimator: Estimator of the end points given a point of the path.

    Raises:
        ValueError: If the estimator can't work with the policy's path and source.
    """

    policy: FlowPolicy
    objective: FlowObjective
    estimator: EndPointEstimator

    def __post_init__(self) -> None:
        self.estimator.check(self.policy.path, self.policy.source)

    def loss(self, observation: Tensor, x_1: Tensor, density: LogDensityAndScore) -> tuple[Tensor, "Learned"]:
        """Loss at points of the paths to given end points; draws flow times and noise.

        Args:
            observation: States, shape (B, S).
            x_1: Latent points where the paths end, shape (B, A).
            density: Maps latent points (B, K, A) to their unnormalised log-density (B, K) and its gradient.

        Returns:
            Loss per state, shape (B,), and what it was made of.
        """
        policy, size, noise_dim = self.policy, len(x_1), self.policy.noise_dim(x_1.shape[1])
        uniform = torch.rand(self.objective.num_uniforms, size, device=x_1.device)
        t = self.objective.times(uniform, policy.t_min)
        x_0 = policy.source.transform(torch.randn(size, noise_dim, device=x_1.device))
        points = PathPoints.between(policy.path, x_0, x_1, t)
        z = torch.randn(size, self.estimator.num_samples, noise_dim, device=x_1.device)
        ends = reverse_flow_target(self.estimator, policy.path, policy.source, density, points, z)
        loss = self.objective.loss(policy.predict, policy.path, ends.x_0, ends.x_1, uniform, policy.t_min, observation)
        return ends.weight * loss, Learned(points, ends)


@dataclass(frozen=True, eq=False)
class Learned:
    """What a policy has learned from, for diagnostics.

    Attributes:
        points: Points of the path.
        ends: Estimated end points given them.
    """

    points: PathPoints
    ends: PosteriorMean
