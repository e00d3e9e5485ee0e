"""How a flow policy is trained toward a density that is known up to a constant."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.estimators import EndpointEstimate, EndpointEstimator, Prior
from flowmatch_rl.models import FlowPolicy
from flowmatch_rl.objectives import FlowObjective
from flowmatch_rl.paths import PathPoints
from flowmatch_rl.types import LogDensityAndScore


@dataclass(frozen=True, eq=False)
class PolicyLearner:
    """Flow matching on pairs of endpoints that are estimated from the values of a density: reverse flow matching.

    Actor-critics and bandits share it; the one takes the density from its critics, the other from a formula.

    Args:
        policy: The policy.
        objective: What its network predicts, and the loss that trains it.
        estimator: Estimator of the endpoints given a point of the path.

    Raises:
        UserError: If the estimator cannot be used with the policy's path and source.

    Reference:
        Li et al., arXiv:2601.08136 (alpha, sigma here are alpha, beta there).
    """

    policy: FlowPolicy
    objective: FlowObjective
    estimator: EndpointEstimator

    def __post_init__(self) -> None:
        self.estimator.check(self.policy.flow.path, self.policy.flow.source)

    def loss(
        self, observation: Tensor, x_1: Tensor, density: LogDensityAndScore, prior: Prior | None = None
    ) -> tuple[Tensor, "Learned"]:
        """Loss at points of the paths to given endpoints; draws flow times and noise.

        Args:
            observation: States, shape (B, S).
            x_1: Latent points where the paths end, shape (B, A).
            density: Maps latent points (B, K, A) to their unnormalised log-density (B, K) and its gradient.
            prior: What the density is relative to, where the estimator needs it.

        Returns:
            Loss per state, shape (B,), and what it was made of.
        """
        flow, size, noise_dim = self.policy.flow, len(x_1), self.policy.noise_dim
        uniform = torch.rand(self.objective.num_uniforms, size, device=x_1.device)
        x_0 = flow.source.transform(torch.randn(size, noise_dim, device=x_1.device))
        points = self.objective.points(flow.path, x_0, x_1, uniform, flow.t_min)
        z = torch.randn(size, self.estimator.num_samples, self.estimator.num_draws * noise_dim, device=x_1.device)
        with torch.no_grad():
            estimate = self.estimator.estimate(flow.path, flow.source, density, points, z, prior)
        loss = flow.loss(self.objective, points.with_pair(estimate.x_0, estimate.x_1), observation)
        return estimate.weight * loss, Learned(points, estimate)


@dataclass(frozen=True, eq=False)
class Learned:
    """What a policy was trained on, for diagnostics.

    Attributes:
        points: Points of the path.
        estimate: Estimated endpoints given them.
    """

    points: PathPoints
    estimate: EndpointEstimate
