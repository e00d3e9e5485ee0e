"""Objectives that teach a flow the discounted future states of a policy from single transitions."""

import abc
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from flowmatch_rl.paths import Field, TimeDistribution, UniformTime
from flowmatch_rl.samplers import DdimSampler, OdeSampler, Sampler
from flowmatch_rl.shapes import check_same_shape, check_shape
from flowmatch_rl.solvers import Midpoint, Solver
from flowmatch_rl.types import Prediction

Term: TypeAlias = Literal["direct", "bootstrap"]
"""A term of the loss: that of observed states, or that of the EMA flow."""


@dataclass(frozen=True)
class Backup:
    """A batch of Bellman backups of an occupancy.

    Attributes:
        condition: Where the occupancy is learned, (state, action, ...), shape (B, C).
        state: An observed state that it counts, shape (B, D).
        state_weight: Weight of that state, shape (B,).
        next_condition: Where the rest of the occupancy is taken from the EMA flow, shape (B, C).
        next_weight: Weight of the rest, shape (B,).
        latent_term: Term whose gradient reaches a condition that requires it, as one that holds an inferred latent; the
            direct term where nothing is bootstrapped.
    """

    condition: Tensor
    state: Tensor
    state_weight: Tensor
    next_condition: Tensor
    next_weight: Tensor
    latent_term: Term = "bootstrap"


@dataclass(frozen=True)
class BackupNoise:
    """Randomness of one update.

    Attributes:
        direct: Standard normal noise of the direct term, shape (B, D).
        start: Standard normal noise where bootstrapped samples start, shape (B, D).
        fresh: Standard normal noise that bootstrapped samples are re-noised with, shape (B, D).
        t_direct: Flow times of the direct term, shape (B,).
        t_bootstrap: Flow times of the bootstrapped term, shape (B,).
        branch: Uniform noise in [0, 1) that picks one of the two terms, where only one is evaluated, shape (B,).
    """

    direct: Tensor
    start: Tensor
    fresh: Tensor
    t_direct: Tensor
    t_bootstrap: Tensor
    branch: Tensor


@dataclass(frozen=True)
class OccupancyObjective(abc.ABC):
    """Loss of a network against a Bellman backup of its EMA flow.

    The distribution along the path obeys the Bellman equation of the occupancy at every flow time, and so does its
    flux: a regression with weight ``1 - discount`` on the path to the arrival state and weight ``discount`` on the EMA
    flow at the next state and action has the backed-up velocity as its minimum.

    Args:
        mixing: ``stratified`` evaluates both terms for every sample and weighs them; ``bernoulli`` evaluates one per
            sample, picked with the probability of its weight: the same expected gradient, with more variance.
        reduction: Whether squared errors are summed over dimensions or averaged.
        time_distribution: Distribution of the flow times.

    Reference:
        Farebrother et al., Temporal Difference Flows, arXiv:2503.09817.
    """

    prediction: ClassVar[Prediction]
    """What the network predicts."""

    bootstraps: ClassVar[bool]
    """Whether the loss uses the EMA flow; otherwise the states of its batches are of the occupancy itself."""

    mixing: Literal["stratified", "bernoulli"] = "stratified"
    reduction: Literal["sum", "mean"] = "sum"
    time_distribution: TimeDistribution = UniformTime()

    @abc.abstractmethod
    def bootstrap(
        self, field: Field, noise: BackupNoise, interval: tuple[float, float]
    ) -> tuple[Tensor, Tensor] | None:
        """Points of the EMA flow's path and its prediction there.

        Args:
            field: The EMA flow at the next condition.
            noise: Randomness.
            interval: First and last flow time of sampling.

        Returns:
            Points at ``noise.t_bootstrap`` and regression targets there, both of shape (B, D); None where nothing is
            bootstrapped.
        """

    def loss(
        self,
        field: Field,
        field_ema: Field,
        backup: Backup,
        noise: BackupNoise,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> tuple[Tensor, Tensor]:
        """Weighted squared errors of the direct and of the bootstrapped term; their sum is the loss.

        No gradient flows into the EMA flow. Values of different objectives are not comparable: at the optimum
        they still differ by the variance of their targets.

        Args:
            field: The network, its prediction called with x of shape (B, 2, D), t (B, 2) and a condition (B, 1, C), or
                (B, 2, C) where the condition requires gradient.
            field_ema: The EMA flow, called with x of shape (B, D).
            backup: The backups.
            noise: Randomness.
            interval: First and last flow time of sampling.

        Returns:
            Direct and bootstrapped term, each of shape (B,).

        Raises:
            ValueError: If the shapes do not fit.
        """
        x_1, path = backup.state, field.path
        check_same_shape(state=x_1, direct=noise.direct, start=noise.start, fresh=noise.fresh)
        for name in ("t_direct", "t_bootstrap", "branch"):
            check_shape(name, getattr(noise, name), tuple(x_1.shape[:1]))
        points = [path.sample(noise.direct, x_1, noise.t_direct)]
        targets = [path.target(self.prediction, noise.direct, x_1, noise.t_direct)]
        times, weights = [noise.t_direct], [backup.state_weight]
        with torch.no_grad():
            future = self.bootstrap(field_ema.at(backup.next_condition), noise, interval)
        if future is not None:
            points, targets = [*points, future[0]], [*targets, future[1]]
            times, weights = [*times, noise.t_bootstrap], [*weights, backup.next_weight]
        condition = _condition_of_terms(backup, len(points))
        predicted = field.predict(torch.stack(points, 1), torch.stack(times, 1), condition)
        error = (predicted - torch.stack(targets, 1)).square()
        error = error.sum(-1) if self.reduction == "sum" else error.mean(-1)
        terms = error * self._mixed(torch.stack(weights, 1), noise.branch)
        return terms[:, 0], torch.zeros_like(terms[:, 0]) if future is None else terms[:, 1]

    def _mixed(self, weights: Tensor, branch: Tensor) -> Tensor:
        if self.mixing == "stratified" or weights.shape[1] == 1:
            return weights
        total = weights.sum(1)
        direct = branch * total < weights[:, 0]
        return torch.stack([direct, ~direct], 1) * total[:, None]


@dataclass(frozen=True)
class MonteCarloCFM(OccupancyObjective):
    """Conditional flow matching on states drawn from the occupancy itself: nothing is bootstrapped.

    Needs trajectories of the policy. It is what the others aim at, and their upper bound.
    """

    prediction = "velocity"
    bootstraps = False

    def bootstrap(self, field: Field, noise: BackupNoise, interval: tuple[float, float]) -> None:
        """There is nothing to bootstrap."""


@dataclass(frozen=True)
class TDCFM(OccupancyObjective):
    """Bootstrapped samples are carried to the end of the path, re-noised and regressed on.

    Args:
        mixing: As in ``OccupancyObjective``.
        reduction: As in ``OccupancyObjective``.
        solver: Solver of the bootstrapped samples.

    Reference:
        Farebrother et al., arXiv:2503.09817, equation 7.
    """

    prediction = "velocity"
    bootstraps = True

    solver: Solver = Midpoint(num_steps=10)

    def bootstrap(self, field: Field, noise: BackupNoise, interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Points between bootstrapped samples and fresh noise, with their conditional velocities."""
        return _renoised(OdeSampler(self.solver), field, noise.start, noise.fresh, noise.t_bootstrap, interval)


@dataclass(frozen=True)
class CoupledTDCFM(OccupancyObjective):
    """As ``TDCFM``, with each bootstrapped sample noised by the noise that it was made from.

    Targets have less variance where flow lines are straight. Only the distribution at the end of the path obeys the
    Bellman equation exactly; on curved paths the intermediate ones are off.

    Args:
        mixing: As in ``OccupancyObjective``.
        reduction: As in ``OccupancyObjective``.
        solver: Solver of the bootstrapped samples.

    Reference:
        Farebrother et al., arXiv:2503.09817, equation 8.
    """

    prediction = "velocity"
    bootstraps = True

    solver: Solver = Midpoint(num_steps=10)

    def bootstrap(self, field: Field, noise: BackupNoise, interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Points between bootstrapped samples and their own noise, with the velocities between the two."""
        return _renoised(OdeSampler(self.solver), field, noise.start, noise.start, noise.t_bootstrap, interval)


@dataclass(frozen=True)
class TD2CFM(OccupancyObjective):
    """Follows the EMA flow up to the flow time of the sample, and regresses on its velocity there.

    The expected gradient of ``TDCFM`` with less variance: the noise of an end point that would be thrown away again is
    never drawn. A solver's error moves the points of the regression, not its targets.

    Args:
        mixing: As in ``OccupancyObjective``.
        reduction: As in ``OccupancyObjective``.
        solver: Solver, its steps dividing the interval up to each sample's own flow time.

    Reference:
        Farebrother et al., arXiv:2503.09817, equation 9.
    """

    prediction = "velocity"
    bootstraps = True

    solver: Solver = Midpoint(num_steps=10)

    def bootstrap(self, field: Field, noise: BackupNoise, interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Points that the EMA flow leads to, with its velocity there."""
        return _followed(OdeSampler(self.solver), field, noise.start, noise.t_bootstrap, interval)


@dataclass(frozen=True)
class BiasedChordCFM(OccupancyObjective):
    """Biased, for comparison: the estimator of future states in the public code of InFOM.

    The points are those of ``CoupledTDCFM``, between a bootstrapped sample and the noise that it was made from, the
    targets those of ``TD2CFM``, the velocity of the EMA flow. That velocity belongs to the points that the flow leads
    to. Points between the ends of a curved flow line have another distribution, so that the exact flow is not the
    minimum of this loss, and not even the end of the path is right. Use ``TD2CFM``.

    As in that code, bootstrapped samples start from the noise of the direct term. This changes the variance alone; the
    bias remains with noise of their own.

    Args:
        mixing: As in ``OccupancyObjective``.
        reduction: As in ``OccupancyObjective``.
        solver: Solver of the bootstrapped samples.

    Reference:
        Zheng et al., Intention-Conditioned Flow Occupancy Models, arXiv:2506.08902, by its public code
        (``flow_occupancy_loss``), without the clipping of samples to the range of the data.
    """

    prediction = "velocity"
    bootstraps = True

    solver: Solver = Midpoint(num_steps=10)

    def bootstrap(self, field: Field, noise: BackupNoise, interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Points between bootstrapped samples and their own noise, with the EMA flow's velocity there."""
        x_1 = OdeSampler(self.solver).sample(field, noise.direct, *interval, torch.zeros_like)
        x_t = field.path.sample(noise.direct, x_1, noise.t_bootstrap)
        return x_t, field.predict(x_t, noise.t_bootstrap, None)


@dataclass(frozen=True)
class TDDD(OccupancyObjective):
    """The diffusion form of ``TDCFM``: predicts noise, bootstraps by DDIM, and re-noises the samples.

    Args:
        mixing: As in ``OccupancyObjective``.
        reduction: As in ``OccupancyObjective``.
        sampler: Sampler of the bootstrapped samples, deterministic.

    Raises:
        ValueError: If the sampler is stochastic.

    Reference:
        Farebrother et al., arXiv:2503.09817, equation 25.
    """

    prediction = "noise"
    bootstraps = True

    sampler: DdimSampler = DdimSampler(num_steps=20)

    def __post_init__(self) -> None:
        _check_deterministic(self.sampler)

    def bootstrap(self, field: Field, noise: BackupNoise, interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Points between bootstrapped samples and fresh noise, with that noise."""
        return _renoised(self.sampler, field, noise.start, noise.fresh, noise.t_bootstrap, interval)


@dataclass(frozen=True)
class TD2DD(OccupancyObjective):
    """The diffusion form of ``TD2CFM``: denoises up to the flow time of the sample, and regresses on the noise there.

    Args:
        mixing: As in ``OccupancyObjective``.
        reduction: As in ``OccupancyObjective``.
        sampler: Sampler, deterministic, its steps dividing the interval up to each sample's own flow time.

    Raises:
        ValueError: If the sampler is stochastic.

    Reference:
        Farebrother et al., arXiv:2503.09817, equation 26.
    """

    prediction = "noise"
    bootstraps = True

    sampler: DdimSampler = DdimSampler(num_steps=20)

    def __post_init__(self) -> None:
        _check_deterministic(self.sampler)

    def bootstrap(self, field: Field, noise: BackupNoise, interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Points that the EMA flow leads to, with the noise it predicts there."""
        return _followed(self.sampler, field, noise.start, noise.t_bootstrap, interval)


def _condition_of_terms(backup: Backup, num_terms: int) -> Tensor:
    """The condition of both terms, shape (B, 1, C), whose features are then computed once.

    Of shape (B, 2, C) where it requires gradient, which one term is to have none of.
    """
    condition = backup.condition
    if num_terms == 1 or not condition.requires_grad:
        return condition[:, None]
    terms = [condition, condition.detach()]
    return torch.stack(terms if backup.latent_term == "direct" else terms[::-1], 1)


def _renoised(
    sampler: Sampler, field: Field, start: Tensor, noise: Tensor, t: Tensor, interval: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    x_1 = sampler.sample(field, start, *interval, torch.zeros_like)
    return field.path.sample(noise, x_1, t), field.path.target(field.prediction, noise, x_1, t)


def _followed(
    sampler: Sampler, field: Field, start: Tensor, t: Tensor, interval: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    x_t = sampler.sample(field, start, interval[0], t, torch.zeros_like)
    return x_t, field.predict(x_t, t, None)


def _check_deterministic(sampler: DdimSampler) -> None:
    if sampler.eta > 0.0:
        raise ValueError(f"expected a deterministic sampler, with eta 0, got {sampler}")
