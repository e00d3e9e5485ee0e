"""The log-density of a flow policy's actions."""

from dataclasses import dataclass

from torch import Tensor

from flowmatch_rl.models.policy import FlowPolicy
from flowmatch_rl.solvers import Divergence, Euler, ExactDivergence, Solver


@dataclass(frozen=True)
class LogDensityEstimate:
    """Follows actions back to the noise they come from, by the policy's probability-flow equation.

    Args:
        solver: Solver; its error is the estimate's.
        divergence: How the divergence is computed: exact, or by random probes for actions of many dimensions.
    """

    solver: Solver = Euler(num_steps=10)
    divergence: Divergence = ExactDivergence()

    def of_actions(
        self, policy: FlowPolicy, observation: Tensor, latent: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Log-density of actions under plain samples of a policy, before any choice among particles.

        Args:
            policy: The policy.
            observation: Shape (B, S).
            latent: Latent points of the actions, shape (B, A).
            noise: Standard normal noise of the probes, shape (needed_probes, B, A); None where there are none.

        Returns:
            Log-density over actions in nats, shape (B,).
        """
        value = policy.log_prob(observation, latent, self.solver, self.divergence, noise)
        return value - policy.squash.log_jacobian(latent)
