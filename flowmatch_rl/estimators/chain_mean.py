"""Posterior means of the endpoints by Markov chains."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.estimators.base import EndpointEstimate, Prior
from flowmatch_rl.estimators.chains import (
    ChainEstimator,
    ChainState,
    ExpectedStates,
    Posterior,
    Secants,
    langevin_proposal,
)
from flowmatch_rl.estimators.control_variates import ControlVariate, FisherControlVariate
from flowmatch_rl.estimators.proposals import ProductProposal, Proposal
from flowmatch_rl.estimators.stratified import choice
from flowmatch_rl.estimators.weighted import mean_estimate
from flowmatch_rl.paths import AffinePath, PathPoints, Source
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.types import LogDensityAndScore


@dataclass(frozen=True)
class ChainMeanEstimator(ChainEstimator):
    """Mean of x_1 given x_t over chains of Metropolis-adjusted Langevin steps, for actions of many dimensions.

    Weights of independent samples collapse with the dimension; steps along the gradient hardly do. A chain starts at
    one of ``num_starts`` samples of a proposal, chosen by its importance weight, and takes the steps that the other
    evaluations allow. The mean is that over the second half of the chain, with a control variate. It is biased toward
    the proposal until the chain has forgotten its start.

    With ``num_starts`` 0 a chain starts at the endpoint that the point was made of. Where endpoints are samples of the
    policy, it then starts in equilibrium once the policy has the distribution it is trained toward, and the estimate
    is unbiased for any number of steps. Until then a chain hardly leaves the mode it starts in: nothing restores the
    probabilities of modes, and policies were measured to lose all but one.

    The size of a step follows from how much the score changes from point to point (secants), per coordinate, over
    states of like flow time, and shrinks as ``D^(-1/6)``. Sharper values need no other settings.

    Args:
        num_samples: Evaluations per state, starts and steps, at least 2.
        num_starts: Samples of the proposal among them, at least as many as chains, or 0; 0 starts at the endpoint of
            the point, which takes one evaluation.
        num_chains: Chains per state, at least 1; the steps are divided among them and those of different chains are
            evaluated at once.
        proposal: Where the starts are drawn from.
        step: Size of a step in units of its natural scale, positive.
        burn_in: Fraction of the steps of a chain that do not count in the mean, in [0, 1).
        limit: Largest scale of a step, in units of the latent space, positive.
        control_variate: Rule for the coefficient of the posterior score.

    Raises:
        UserError: If a number is out of its range, or nothing is left for a step of each chain.

    Reference:
        Roberts and Rosenthal, J. R. Stat. Soc. B 60 (1998), for the scale of a step.
    """

    num_samples: int = 16
    num_starts: int = 4
    num_chains: int = 1
    proposal: Proposal = field(default_factory=ProductProposal)
    step: float = 1.6
    burn_in: float = 0.5
    limit: float = 1.0
    control_variate: ControlVariate = field(default_factory=lambda: FisherControlVariate(num_bins=20))

    def __post_init__(self) -> None:
        check_range("[2, inf)", num_samples=self.num_samples)
        check_range("[0, inf)", num_starts=self.num_starts)
        check_range("[1, inf)", num_chains=self.num_chains)
        check_range("(0, inf)", step=self.step, limit=self.limit)
        check_range("[0, 1)", burn_in=self.burn_in)
        if 0 < self.num_starts < self.num_chains:
            raise UserError(
                f"expected num_starts of at least num_chains or 0, got {self.num_starts}, {self.num_chains}"
            )
        if self._steps < 1:
            raise UserError(
                f"{self.num_samples} samples leave no step for each of {self.num_chains} chains after the evaluations "
                f"of the {self._first} starts"
            )

    def estimate(
        self,
        path: AffinePath,
        source: Source,
        log_density_and_score: LogDensityAndScore,
        points: PathPoints,
        z: Tensor,
        prior: Prior | None = None,
    ) -> EndpointEstimate:
        """Means over the points of the chains, minus the mean score."""
        x_t = points.x_t
        width = source.noise_dim(x_t.shape[1])
        check_shape("z", z, (x_t.shape[0], self.num_samples, self.num_draws * width))
        noise, chance = z[..., :width], torch.special.ndtr(z[..., width])  # (B, K, width), (B, K)
        posterior = Posterior(path, source, log_density_and_score, points)
        if self.num_starts:
            place = source, posterior.x_t, posterior.alpha, posterior.sigma
            x_0, x_1 = self.proposal.draw(noise[:, : self.num_starts], *place)
            starts = ChainState.at(posterior, x_1)
            correction = self.proposal.correction(x_0, x_1, *place)
            weights = (starts.log_density - source.log_prob(x_0) + correction).softmax(1)
            secants = Secants.between(starts, starts.select(torch.zeros_like(starts.log_density[:, :1]).long()))
            state = starts.select(choice(weights, chance[:, : self.num_chains]))
        else:
            state = ChainState.at(posterior, points.x_1[:, None])
            secants = Secants.between(state, state)  # of length zero: nothing is known yet
            state = state.select(torch.zeros_like(chance[:, : self.num_chains]).long())
        rest = slice(self._first, self._first + self._steps * self.num_chains)
        shape = (self._steps, self.num_chains)
        z_of_steps = noise[:, rest, : x_t.shape[1]].unflatten(1, shape).unbind(1)
        moves = zip(z_of_steps, chance[:, rest].unflatten(1, shape).unbind(1), strict=True)
        found, weights = self._average(posterior, state, secants, moves)
        rho = posterior.rho
        return mean_estimate(
            weights[..., None],
            posterior.noise_of(found.x),
            found.x,
            found.log_density - posterior.log_likelihood(found.x),
            rho * found.score,
            rho[:, 0],
            posterior.t,
            self.control_variate,
        )

    @property
    def _first(self) -> int:
        """Evaluations before the first step."""
        return max(self.num_starts, 1)

    @property
    def _steps(self) -> int:
        """Steps of each chain."""
        return (self.num_samples - self._first) // self.num_chains

    def _average(
        self,
        posterior: Posterior,
        state: ChainState,
        secants: Secants,
        moves: Iterable[tuple[Tensor, Tensor]],
    ) -> tuple[ChainState, Tensor]:
        """Points of the chains (B, N) and their weights.

        Args:
            posterior: The density that is sampled.
            state: Where the chains start.
            secants: What is known of the density.
            moves: Normal noise (B, C, D) and uniform noise (B, C) of each step.
        """
        limit, average = self.scale_limit(posterior.rho), ExpectedStates(state)
        burn_in = int(self.burn_in * self._steps)
        for place, (z, uniform) in enumerate(moves):
            if place == burn_in:
                average = ExpectedStates(state)
            scale = self.scale(secants, posterior.t, limit)
            new, probability = langevin_proposal(state, posterior, scale, limit, z)
            taken = uniform < probability
            average.add(new, probability, taken)
            secants = secants.then(Secants.between(new, state))
            state = new.where(taken, state)
        return average.result()
