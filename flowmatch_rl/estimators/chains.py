"""Metropolis-adjusted Langevin steps, their size, and the points that chains of them are averaged over."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.estimators.base import EndpointEstimator
from flowmatch_rl.estimators.proposals import Proposal
from flowmatch_rl.estimators.time_bins import time_bin_average
from flowmatch_rl.paths import AffinePath, PathPoints, Source
from flowmatch_rl.shapes import append_dims, check_shape
from flowmatch_rl.types import LogDensityAndScore

NUM_BINS = 20
"""Bins of flow time within which the states of a batch share the size of a step."""


class ChainEstimator(EndpointEstimator, abc.ABC):
    """Estimators whose samples follow the score in chains that begin at samples of a proposal.

    Attributes:
        proposal: Where the first samples are drawn from.
        step: Size of a step in units of its natural scale.
        limit: Largest scale of a step, in units of the latent space.
    """

    needs_jacobian = True

    proposal: Proposal
    step: float
    limit: float

    @property
    def num_draws(self) -> int:
        """Two: where a sample lies, and whether its chain goes there."""
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
                f"{type(self).__name__} needs a source with a smooth density everywhere and a proposal that covers the "
                f"whole space, got {source} and {self.proposal}"
            )

    def scale_limit(self, rho: Tensor) -> Tensor:
        """Largest scale of a step: that of a normal posterior whose prior has the scale of the limit.

        Args:
            rho: Standard deviation of the likelihood, shape (B, 1, 1).
        """
        return (rho.square().reciprocal() + self.limit**-2).rsqrt()

    def scale(self, secants: "Secants", t: Tensor, limit: Tensor) -> Tensor:
        """Standard deviation of the next step, shape (B, 1, D), for flow times (B,) and a limit (B, 1, 1)."""
        size = self.step * secants.x.shape[-1] ** (-1.0 / 6.0)
        return size * torch.minimum(secants.length(t, NUM_BINS)[:, None], limit)


class Posterior:
    """The density of x_1 given x_t, up to a constant per state, as chains sample it.

    Args:
        path: The path.
        source: Distribution of x_0.
        log_density_and_score: Of p_1.
        points: Points on the path.

    Attributes:
        t: Flow times, shape (B,).
        x_t: Points, shape (B, 1, D).
        alpha, sigma, rho: Coefficients of the path and ``sigma / alpha``, shape (B, 1, 1).
    """

    def __init__(
        self, path: AffinePath, source: Source, log_density_and_score: LogDensityAndScore, points: PathPoints
    ) -> None:
        self._source, self._log_density_and_score = source, log_density_and_score
        self.x_t = points.x_t[:, None]
        self.t = append_dims(points.t, like=points.x_t[:, 0]).expand(len(points.x_t))
        self.alpha, self.sigma = (c[:, None, None] for c in (path.schedule.alpha(self.t), path.schedule.sigma(self.t)))
        self.rho = self.sigma / self.alpha

    def noise_of(self, x_1: Tensor) -> Tensor:
        """The noise x_0 that leads with endpoints (B, C, D) to the points."""
        return (self.x_t - self.alpha * x_1) / self.sigma

    def log_likelihood(self, x_1: Tensor) -> Tensor:
        """Log-density of the noise of endpoints (B, C, D), which lacks a factor ``sigma^-D``; shape (B, C)."""
        return self._source.log_prob(self.noise_of(x_1))

    def __call__(self, x_1: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density (B, C) of endpoints (B, C, D), and its gradient."""
        log_density, score = self._log_density_and_score(x_1)
        check_shape("log density", log_density, tuple(x_1.shape[:2]))
        check_shape("score", score, tuple(x_1.shape))
        x_0 = self.noise_of(x_1)
        pull = self._source.score(x_0) / self.rho
        return log_density.to(x_1.dtype) + self._source.log_prob(x_0), score.to(x_1.dtype) - pull


@dataclass(frozen=True, eq=False)
class ChainState:
    """Where C chains of each state of a batch are.

    Attributes:
        x: Points, shape (B, C, D).
        log_density: Log-density that is sampled, up to a constant per state, nats, shape (B, C).
        score: Its gradient, shape (B, C, D).
    """

    x: Tensor
    log_density: Tensor
    score: Tensor

    @classmethod
    def at(cls, density: LogDensityAndScore, x: Tensor) -> "ChainState":
        """The chains at points (B, C, D)."""
        return cls(x, *density(x))

    @classmethod
    def cat(cls, parts: "Sequence[ChainState]") -> "ChainState":
        """All chains of several, in their order."""
        x, log_density, score = zip(*((s.x, s.log_density, s.score) for s in parts), strict=True)
        return cls(torch.cat(x, 1), torch.cat(log_density, 1), torch.cat(score, 1))

    def select(self, index: Tensor) -> "ChainState":
        """The chains with indices (B, M) in 0, ..., C - 1."""
        rows = index[..., None].expand(-1, -1, self.x.shape[-1])
        return ChainState(self.x.gather(1, rows), self.log_density.gather(1, index), self.score.gather(1, rows))

    def where(self, chosen: Tensor, other: "ChainState") -> "ChainState":
        """These chains where ``chosen`` (B, C), elsewhere others."""
        return ChainState(
            torch.where(chosen[..., None], self.x, other.x),
            torch.where(chosen, self.log_density, other.log_density),
            torch.where(chosen[..., None], self.score, other.score),
        )


Scale: TypeAlias = Tensor
"""Standard deviation of a step in each coordinate, shape (B, 1, D)."""


def langevin_drift(score: Tensor, scale: Scale, limit: Tensor) -> Tensor:
    """Where a step of Langevin diffusion leads on average, from the point: ``scale^2 score / 2``, clipped to a limit.

    Args:
        score: Gradient of the log-density at the point, shape (B, C, D).
        scale: Standard deviation of the step, positive, shape (B, 1, D).
        limit: Largest drift of a coordinate, positive, shape (B, 1, 1).
    """
    return (0.5 * scale.square() * score).maximum(-limit).minimum(limit)


def langevin_proposal(
    state: ChainState, density: LogDensityAndScore, scale: Scale, limit: Tensor, z: Tensor
) -> tuple[ChainState, Tensor]:
    """One step of Langevin diffusion from each chain, and the probability at which Metropolis accepts it.

    The step is normal, with standard deviation ``scale`` about ``x`` plus ``langevin_drift``. A chain that takes it at
    the returned probability, and stays where it is otherwise, leaves the density invariant, whatever the scale, as long
    as that doesn't depend on the chain.

    Args:
        state: Where the chains are.
        density: Maps points (B, C, D) to the log-density that is sampled (B, C) and its gradient.
        scale: Standard deviation of the step, positive, shape (B, 1, D).
        limit: Largest drift of a coordinate, positive, shape (B, 1, 1).
        z: Standard normal noise, shape (B, C, D).

    Returns:
        The proposed points and the probability of each, shape (B, C).

    Reference:
        Roberts and Tweedie, Bernoulli 2 (1996), MALA and its truncated form.
    """
    there = state.x + langevin_drift(state.score, scale, limit)
    new = ChainState.at(density, there + scale * z)
    back = (state.x - new.x - langevin_drift(new.score, scale, limit)) / scale
    log_ratio = new.log_density - state.log_density + 0.5 * (z.square() - back.square()).sum(-1)
    # A density of zero, or one that overflows, at the new point is never accepted.
    return new, log_ratio.nan_to_num(nan=-torch.inf).clamp_max(0.0).exp()


@dataclass(frozen=True, eq=False)
class Secants:
    """Squared differences between points and between the scores at them: how fast the score changes.

    Attributes:
        x: Mean square of the differences of points, shape (B, D).
        score: Mean square of those of the scores, shape (B, D).
    """

    x: Tensor
    score: Tensor

    @classmethod
    def between(cls, one: ChainState, other: ChainState) -> "Secants":
        """From points (B, C, D) to others, or to one (B, 1, D) that all of them share."""
        return cls((one.x - other.x).square().mean(1), (one.score - other.score).square().mean(1))

    def then(self, later: "Secants") -> "Secants":
        """With later secants, which count as much as all before them."""
        return Secants(0.5 * self.x + later.x, 0.5 * self.score + later.score)

    def length(self, t: Tensor, num_bins: int) -> Tensor:
        """Length on which the score changes by its inverse, shape (B, D), infinite where nothing is known.

        It is the standard deviation of a normal, in any coordinate that is independent of the others.

        Args:
            t: Flow times in [0, 1], shape (B,).
            num_bins: Number of equal bins of flow time within which all states share it.
        """
        x, score = (time_bin_average(v, t, num_bins) for v in (self.x, self.score))
        return torch.where(x > 0.0, (x / score).pow(0.25), torch.inf)


class ExpectedStates:
    """Average over the steps of chains: a proposal counts by its probability, and the point it is made at by the rest.

    It has less variance than an average over the points that were taken, and uses every evaluation.

    Args:
        state: Where the chains are before the first step that counts.

    Reference:
        Frenkel, PNAS 101 (2004), waste recycling.
    """

    def __init__(self, state: ChainState) -> None:
        self._states, self._weights = [state], torch.zeros_like(state.log_density)[:, None]  # (B, N, C)
        self._held = torch.zeros_like(state.log_density, dtype=torch.long)[:, None]  # (B, 1, C)

    def add(self, new: ChainState, probability: Tensor, taken: Tensor) -> None:
        """Add one step.

        Args:
            new: Proposed points.
            probability: Probability of each, shape (B, C).
            taken: Which were taken, shape (B, C).
        """
        stayed = self._weights.scatter_add(1, self._held, 1.0 - probability[:, None])
        self._weights = torch.cat([stayed, probability[:, None]], 1)
        self._held = torch.where(taken[:, None], len(self._states), self._held)
        self._states.append(new)

    def result(self) -> tuple[ChainState, Tensor]:
        """All N points of all chains, and their weights (B, N), which sum to 1."""
        weights = self._weights.flatten(1)
        return ChainState.cat(self._states), weights / weights.sum(1, keepdim=True)
