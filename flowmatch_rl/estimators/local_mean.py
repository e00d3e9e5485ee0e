"""Posterior means of the endpoints by importance sampling about the points found so far."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.estimators.base import EndpointEstimate, Prior
from flowmatch_rl.estimators.chains import (
    ChainEstimator,
    ChainState,
    Posterior,
    Secants,
    langevin_drift,
    langevin_proposal,
)
from flowmatch_rl.estimators.control_variates import ControlVariate, FisherControlVariate
from flowmatch_rl.estimators.proposals import ProductProposal, Proposal
from flowmatch_rl.estimators.stratified import latin_hypercube, systematic_choice
from flowmatch_rl.estimators.weighted import weighted_estimate
from flowmatch_rl.paths import AffinePath, PathPoints, Source
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.types import LogDensityAndScore


@dataclass(frozen=True)
class LocalMeanEstimator(ChainEstimator):
    """Importance sampling of E[x_1 given x_t] with local proposals that follow the gradient, in any dimension.

    The first ``num_starts`` samples come from a proposal, spread evenly over its quantiles. Each of the others is
    drawn from a Gaussian about a point found before, moved along the gradient of the posterior: a Langevin step of a
    chain that begins at one of the starts and goes on from a step if Metropolis accepts it. All samples, accepted or
    not, get importance weights against the mixture of the distributions they were drawn from. In few dimensions
    several of them count and set the probabilities of modes right; in many, where one has nearly all the weight, the
    steps have carried it to where the posterior is. As with all importance weights the estimate is biased at a finite
    number of samples, and tends to the posterior mean as they are added.

    The steps are divided among the starts in proportion to ``weight^power``, ``weight`` the importance weight of a
    start. Weights of a few nats, as in few dimensions, hardly matter to a small power, so that the steps explore from
    every start; weights of tens of nats give all steps to one.

    The size of a step is that of ``ChainMeanEstimator``: it needs no tuning to temperature and dimension.

    Args:
        num_samples: Evaluations per state, starts and steps, at least 2.
        num_starts: Samples of the proposal among them, from 1 to ``num_samples``; with all of them it is
            ``PosteriorMeanEstimator`` on evenly spread samples.
        proposal: Where the starts are drawn from.
        power: Power of the weights that the steps are divided by, at least 0; with 0 every start has as many.
        step: Size of a step in units of its natural scale, positive.
        limit: Largest scale of a step, in units of the latent space, positive.
        control_variate: Rule for the coefficient of the posterior score.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Cornuet, Marin, Mira and Robert, Scand. J. Stat. 39 (2012), for weights against the mixture of all proposals;
        Martino, Elvira, Luengo and Corander, Stat. Comput. 27 (2017), for proposals that a chain carries along. Kim et
        al., arXiv:2605.30749 (FLAG), draw from a Gaussian about an action of the flow policy for the same reason;
        there policy and target are conditioned on it, here the target is the posterior itself.
    """

    num_samples: int = 16
    num_starts: int = 6
    proposal: Proposal = field(default_factory=ProductProposal)
    power: float = 0.1
    step: float = 1.6
    limit: float = 1.0
    control_variate: ControlVariate = field(default_factory=lambda: FisherControlVariate(num_bins=20))

    def __post_init__(self) -> None:
        check_range("[2, inf)", num_samples=self.num_samples)
        check_range(f"[1, {self.num_samples}]", num_starts=self.num_starts)
        check_range("[0, inf)", power=self.power)
        check_range("(0, inf)", step=self.step, limit=self.limit)

    def estimate(
        self,
        path: AffinePath,
        source: Source,
        log_density_and_score: LogDensityAndScore,
        points: PathPoints,
        z: Tensor,
        prior: Prior | None = None,
    ) -> EndpointEstimate:
        """Weighted means of starts and steps, minus the weighted mean score."""
        size, dim = points.x_t.shape
        width = source.noise_dim(dim)
        check_shape("z", z, (size, self.num_samples, self.num_draws * width))
        noise, chance = z[..., :width], torch.special.ndtr(z[..., width])  # (B, K, width), (B, K)
        posterior = Posterior(path, source, log_density_and_score, points)
        place = source, posterior.x_t, posterior.alpha, posterior.sigma

        def log_likelihood(x_1: Tensor) -> Tensor:
            return posterior.log_likelihood(x_1) - dim * posterior.sigma[..., 0].log()

        def log_proposal(x_1: Tensor) -> Tensor:
            # Asked about as many points at a time as were drawn: a mixture of proposals divides them.
            rows = torch.arange(-(-x_1.shape[1] // self.num_starts) * self.num_starts, device=x_1.device)
            parts = [
                self.proposal.correction(posterior.noise_of(x), x, *place).expand(x.shape[:2])
                for x in x_1[:, rows % x_1.shape[1]].split(self.num_starts, 1)
            ]
            return log_likelihood(x_1) - torch.cat(parts, 1)[:, : x_1.shape[1]]

        first = slice(None, self.num_starts)
        strata = latin_hypercube(noise[:, first], torch.special.ndtr(z[:, first, width:]))
        _, x_1 = self.proposal.draw(strata, *place)
        starts = ChainState.at(posterior, x_1)
        divided = (self.power * (starts.log_density - log_proposal(x_1))).softmax(1)
        # Nothing follows the last step, so that whether it is taken does not matter, and its chance is free.
        chosen = systematic_choice(divided, chance[:, -1:], self.num_samples - self.num_starts)
        found, kernels = self._steps(posterior, starts, chosen, noise[..., :dim], chance)
        parts = [log_proposal(found.x) + math.log(self.num_starts)]
        log_mixture = torch.stack(parts + [_log_normal(found.x, *kernel) for kernel in kernels], -1).logsumexp(-1)
        log_density = found.log_density - posterior.log_likelihood(found.x)
        correction = log_likelihood(found.x) - log_mixture
        x_0, r = posterior.noise_of(found.x), posterior.rho * found.score
        rho, t = posterior.rho[:, 0], posterior.t
        return weighted_estimate(x_0, found.x, log_density, correction, r, rho, t, self.control_variate)

    def _steps(
        self,
        posterior: Posterior,
        starts: ChainState,
        chosen: Tensor,
        noise: Tensor,
        chance: Tensor,
    ) -> tuple[ChainState, list[tuple[Tensor, Tensor]]]:
        """All samples, starts first, and mean and standard deviation of what each step was drawn from, (B, 1, D) each.

        Args:
            posterior: Density that the steps follow.
            starts: Where chains begin.
            chosen: Start of the chain of each step, in ascending order, shape (B, L).
            noise: Normal noise, shape (B, K, D).
            chance: Uniform noise, shape (B, K).
        """
        limit = self.scale_limit(posterior.rho)
        secants = Secants.between(starts, starts.select(torch.zeros_like(starts.log_density[:, :1]).long()))
        found, kernels, state = [starts], [], starts.select(chosen[:, :1])
        for place in range(chosen.shape[1]):
            start, before = chosen[:, place, None], chosen[:, max(place - 1, 0), None]
            state = state.where(start == before, starts.select(start))
            row = slice(self.num_starts + place, self.num_starts + place + 1)
            scale = self.scale(secants, posterior.t, limit)
            kernels.append((state.x + langevin_drift(state.score, scale, limit), scale))
            new, probability = langevin_proposal(state, posterior, scale, limit, noise[:, row])
            secants = secants.then(Secants.between(new, state))
            state = new.where(chance[:, row] < probability, state)
            found.append(new)
        return ChainState.cat(found), kernels


def _log_normal(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Log-density of points (B, K, D) under normals (B, 1, D), shape (B, K)."""
    terms = 0.5 * ((x - mean) / scale).square() + scale.log()
    return -terms.sum(-1) - 0.5 * math.log(math.tau) * x.shape[-1]
