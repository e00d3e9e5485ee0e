"""Posterior means of the endpoints of a density that is given relative to a flow."""

import abc
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.estimators.base import EndpointEstimate, EndpointEstimator, Prior
from flowmatch_rl.estimators.control_variates import ControlVariate, FisherControlVariate
from flowmatch_rl.estimators.weighted import weighted_estimate
from flowmatch_rl.paths import AffinePath, PathPoints, Source
from flowmatch_rl.samplers import OdeSampler, Sampler, SdeSampler, SteppingSampler
from flowmatch_rl.shapes import append_dims, check_shape
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.types import LogDensityAndScore


@dataclass(frozen=True)
class PriorProposal(abc.ABC):
    """Where the endpoints x_1 are drawn from whose prior is a flow."""

    @property
    @abc.abstractmethod
    def num_draws(self) -> int:
        """Standard normal vectors that one sample takes."""

    @property
    @abc.abstractmethod
    def needs_normal_source(self) -> bool:
        """Whether the source must be standard normal."""

    @abc.abstractmethod
    def draw(self, prior: Prior, source: Source, points: PathPoints, z: Tensor) -> Tensor:
        """Samples of x_1.

        Args:
            prior: The prior.
            source: Distribution of x_0.
            points: Points on the path, B of them.
            z: Standard normal noise, shape (num_draws, B, K, noise_dim).

        Returns:
            Samples, shape (B, K, D).
        """

    @abc.abstractmethod
    def correction(self, x_0: Tensor, source: Source) -> Tensor:
        """Log-density of the prior's posterior given x_t over that of the samples, up to a constant per point.

        Args:
            x_0: Noise that joins x_t with each sample, shape (B, K, D).
            source: Distribution of x_0.

        Returns:
            Logarithm of the weights where the density is the prior itself, nats, shape (B, K).
        """


@dataclass(frozen=True)
class PosteriorProposal(PriorProposal):
    """Samples of the prior's posterior given x_t: the flow is followed from x_t to the data with fresh noise.

    Costs ``sampler.num_steps`` evaluations of the flow for each sample. Close to the data all samples are useful;
    close to the noise as many as those of the prior itself.

    Args:
        sampler: A sampler that adds as much noise as the reversed diffusion, as ``SdeSampler`` and ``DdimSampler`` with
            ``eta`` 1 do. With few steps the samples spread too little, which the control variate mends in part.

    Raises:
        UserError: If the sampler is deterministic, so that its samples are no posterior.
    """

    sampler: SteppingSampler = SdeSampler(num_steps=8)

    def __post_init__(self) -> None:
        if not self.sampler.adds_noise:
            raise UserError(f"samples of a posterior need a sampler that adds noise, got {self.sampler}")

    @property
    def num_draws(self) -> int:
        """One for each step."""
        return self.sampler.num_steps

    @property
    def needs_normal_source(self) -> bool:
        """True: samplers with noise use the score."""
        return True

    def draw(self, prior: Prior, source: Source, points: PathPoints, z: Tensor) -> Tensor:
        """Endpoints of K random paths from each point."""
        noise, start = iter(z), points.x_t[:, None].expand(z.shape[1:])
        end = torch.full_like(points.t, prior.interval[1])
        last = self.sampler.sample(prior.field, start, points.t, end, lambda _: next(noise))
        # What noise is left at the end of the flow's interval is taken off.
        return prior.field.read_as("data", last, end)

    def correction(self, x_0: Tensor, source: Source) -> Tensor:
        """Zero."""
        return torch.zeros_like(x_0[..., 0])


@dataclass(frozen=True)
class MarginalProposal(PriorProposal):
    """Samples of the prior, weighted by the likelihood of x_t.

    Close to the data only samples near x_t count, most often the endpoint that the point was made of.

    Args:
        sampler: How the flow is sampled.
    """

    sampler: Sampler = OdeSampler(Midpoint(num_steps=5))

    def __post_init__(self) -> None:
        if self.sampler.adds_noise:
            raise UserError(f"samples of the prior are drawn by a sampler without noise, got {self.sampler}")

    @property
    def num_draws(self) -> int:
        """1."""
        return 1

    @property
    def needs_normal_source(self) -> bool:
        """False."""
        return False

    def draw(self, prior: Prior, source: Source, points: PathPoints, z: Tensor) -> Tensor:
        """K samples of the prior for each point."""
        start, end = prior.interval
        sigma = prior.field.path.schedule.sigma(torch.full_like(points.t[:1], start))
        return self.sampler.sample(prior.field, sigma * source.transform(z[0]), start, end, torch.randn_like)

    def correction(self, x_0: Tensor, source: Source) -> Tensor:
        """Log-likelihood of x_t."""
        return source.log_prob(x_0)


@dataclass(frozen=True)
class PriorMeanEstimator(EndpointEstimator):
    """Self-normalised importance sampling of E[x_1 given x_t] for a density ``exp(f)`` relative to a flow.

    Reverse flow matching with a behaviour prior: the minimiser of the regression is the flow to ``prior exp(f)``. The
    first sample is the endpoint that the point was made of, where that is one of the prior's, as data is.

    Args:
        num_samples: Samples K per state, at least 1.
        proposal: Where the endpoints are drawn from.
        control_variate: Rule for the coefficient of the posterior score, which contains the score of the prior.
        score_time: Flow time at which the score of the prior is read, in (0, 1): later has less bias, and more of
            the error of the network.
        keeps_endpoint: Whether the endpoint of the point is the first sample: exact where the endpoints are samples of
            the prior.
        weighs_points: Whether a point counts in the loss by the mean weight of its samples, over the batch. The
            minimiser of the loss is then exact for any number of samples; otherwise each mean is biased toward the
            prior by O(1 / K). It compares states with one another, as ``ReweightedEndpoints`` does.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Li et al., arXiv:2601.08136, for the posterior mean and its control variate with a uniform prior.
    """

    needs_jacobian = False
    needs_prior = True

    num_samples: int = 16
    proposal: PriorProposal = PosteriorProposal()
    control_variate: ControlVariate = FisherControlVariate()
    score_time: float = 0.98
    keeps_endpoint: bool = True
    weighs_points: bool = True

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_samples=self.num_samples)
        check_range("(0, 1)", score_time=self.score_time)

    @property
    def num_draws(self) -> int:
        """As many as the proposal takes."""
        return self.proposal.num_draws

    @property
    def needs_score(self) -> bool:
        """Whether the control variate uses it."""
        return self.control_variate.needs_score

    @property
    def compares_points(self) -> bool:
        """Whether points count by their weights."""
        return self.weighs_points

    def check(self, path: AffinePath, source: Source) -> None:
        """Refuse a source whose noise the proposal or the score of the prior cannot use."""
        if (self.proposal.needs_normal_source or self.needs_score) and not source.is_standard_normal:
            raise UserError(f"{type(self).__name__} needs a standard normal source, got {source}")

    def estimate(
        self,
        path: AffinePath,
        source: Source,
        log_density_and_score: LogDensityAndScore,
        points: PathPoints,
        z: Tensor,
        prior: Prior | None = None,
    ) -> EndpointEstimate:
        """Weighted means of samples of the prior, minus the weighted mean score."""
        if prior is None:
            raise ValueError(f"{type(self).__name__} needs a prior, got None")
        x_t, noise_dim = points.x_t, source.noise_dim(points.x_t.shape[1])
        check_shape("z", z, (x_t.shape[0], self.num_samples, self.num_draws * noise_dim))
        noise = z.unflatten(-1, (self.num_draws, noise_dim)).movedim(2, 0)
        x_1 = self.proposal.draw(prior, source, points, noise)  # (B, K, D)
        if self.keeps_endpoint:
            x_1 = torch.cat([points.x_1[:, None], x_1[:, 1:]], dim=1)
        t = append_dims(points.t, like=x_t[:, 0]).expand(x_t.shape[0])
        alpha, sigma = (c[:, None, None] for c in (path.schedule.alpha(t), path.schedule.sigma(t)))
        rho = sigma / alpha
        x_0 = (x_t[:, None] - alpha * x_1) / sigma
        tilt, score = log_density_and_score(x_1)
        check_shape("log density", tilt, tuple(x_1.shape[:2]))
        check_shape("score", score, tuple(x_1.shape))
        tilt, score = tilt.to(x_t.dtype), score.to(x_t.dtype)
        if self.needs_score:
            late = torch.full_like(points.t, self.score_time)
            scale = path.schedule.alpha(late[:1])
            score = score + scale * prior.field.read_as("score", scale * x_1, late)
        r, correction = rho * score - source.score(x_0), self.proposal.correction(x_0, source)
        estimate = weighted_estimate(x_0, x_1, tilt, correction, r, rho[:, 0], t, self.control_variate)
        if not self.weighs_points:
            return estimate
        # The correction is known up to a constant per point: its own mean weight takes that off.
        log_mean = torch.logsumexp(tilt + correction, 1) - torch.logsumexp(correction, 1)
        return replace(estimate, weight=len(log_mean) * log_mean.softmax(0))
