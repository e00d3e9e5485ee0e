"""Posterior means of the endpoints by Markov chains."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.estimators.base import EndpointEstimate, EndpointEstimator, Prior
from flowmatch_rl.estimators.chains import ChainState, ExpectedStates, Secants, langevin_proposal
from flowmatch_rl.estimators.control_variates import ControlVariate, FisherControlVariate
from flowmatch_rl.estimators.proposals import ProductProposal, Proposal
from flowmatch_rl.estimators.stratified import choice
from flowmatch_rl.estimators.weighted import mean_estimate
from flowmatch_rl.paths import AffinePath, PathPoints, Source
from flowmatch_rl.shapes import append_dims, check_shape
from flowmatch_rl.types import LogDensityAndScore

NUM_BINS = 20
"""Bins of flow time within which the states of a batch share the size of a step."""


@dataclass(frozen=True)
class ChainMeanEstimator(EndpointEstimator):
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

    needs_jacobian = True

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

    @property
    def num_draws(self) -> int:
        """Two: where a chain goes, and whether it is taken there."""
        return 2

    @property
    def compares_points(self) -> bool:
        """False."""
        return False

    @property
    def needs_score(self) -> bool:
        """True: chains follow it."""
        return True

    def check(self, path: AffinePath, source: Source) -> None:
        """Refuse a source without a score, and a proposal that leaves part of the space out."""
        self.proposal.check(source)
        if not (source.is_smooth and self.proposal.covers_space):
            raise UserError(
                "ChainMeanEstimator needs a source with a smooth density everywhere and a proposal that covers the "
                f"whole space, got {source} and {self.proposal}"
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
        t = append_dims(points.t, like=x_t[:, 0]).expand(x_t.shape[0])
        alpha, sigma = (c[:, None, None] for c in (path.schedule.alpha(t), path.schedule.sigma(t)))
        rho = sigma / alpha

        def noise_of(x_1: Tensor) -> Tensor:
            return (x_t[:, None] - alpha * x_1) / sigma

        def posterior(x_1: Tensor) -> tuple[Tensor, Tensor]:
            log_density, score = log_density_and_score(x_1)
            check_shape("log density", log_density, tuple(x_1.shape[:2]))
            check_shape("score", score, tuple(x_1.shape))
            x_0 = noise_of(x_1)
            log_posterior = log_density.to(x_t.dtype) + source.log_prob(x_0)
            return log_posterior, score.to(x_t.dtype) - source.score(x_0) / rho

        if self.num_starts:
            x_0, x_1 = self.proposal.draw(noise[:, : self.num_starts], source, x_t[:, None], alpha, sigma)
            starts = ChainState.at(posterior, x_1)
            correction = self.proposal.correction(x_0, x_1, source, x_t[:, None], alpha, sigma)
            weights = (starts.log_density - source.log_prob(x_0) + correction).softmax(1)
            secants = Secants.between(starts, starts.select(torch.zeros_like(starts.log_density[:, :1]).long()))
            state = starts.select(choice(weights, chance[:, : self.num_chains]))
        else:
            state = ChainState.at(posterior, points.x_1[:, None])
            secants = Secants.between(state, state)  # of length zero: nothing is known yet
            state = state.select(torch.zeros_like(chance[:, : self.num_chains]).long())
        # No step is longer than the standard deviation of a normal posterior whose prior has the scale of the limit.
        limit = (rho.square().reciprocal() + self.limit**-2).rsqrt()
        rest = slice(self._first, self._first + self._steps * self.num_chains)
        shape = (self._steps, self.num_chains)
        z_of_steps = noise[:, rest, : x_t.shape[1]].unflatten(1, shape).unbind(1)
        moves = zip(z_of_steps, chance[:, rest].unflatten(1, shape).unbind(1), strict=True)
        found, weights = self._average(posterior, state, secants, t, limit, moves)
        x_0 = noise_of(found.x)
        log_density = found.log_density - source.log_prob(x_0)
        return mean_estimate(
            weights[..., None], x_0, found.x, log_density, rho * found.score, rho[:, 0], t, self.control_variate
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
        posterior: LogDensityAndScore,
        state: ChainState,
        secants: Secants,
        t: Tensor,
        limit: Tensor,
        moves: Iterable[tuple[Tensor, Tensor]],
    ) -> tuple[ChainState, Tensor]:
        """Points of the chains (B, N) and their weights.

        Args:
            posterior: The density that is sampled.
            state: Where the chains start.
            secants: What is known of the density.
            t: Flow times, shape (B,).
            limit: Largest scale of a step, shape (B, 1, 1).
            moves: Normal noise (B, C, D) and uniform noise (B, C) of each step.
        """
        size, average = self.step * state.x.shape[-1] ** (-1.0 / 6.0), ExpectedStates(state)
        burn_in = int(self.burn_in * self._steps)
        for place, (z, uniform) in enumerate(moves):
            if place == burn_in:
                average = ExpectedStates(state)
            scale = size * torch.minimum(secants.length(t, NUM_BINS)[:, None], limit)
            new, probability = langevin_proposal(state, posterior, scale, limit, z)
            taken = uniform < probability
            average.add(new, probability, taken)
            secants = secants.then(Secants.between(new, state))
            state = new.where(taken, state)
        return average.result()
