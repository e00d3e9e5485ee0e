"""A linear process with normal noise, whose discounted future is a mixture of normals known exactly."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.paths import AffinePath
from flowmatch_rl.shapes import append_dims, check_shape
from flowmatch_rl.testbeds.policies.simple import LinearPolicy
from flowmatch_rl.testbeds.processes.base import Process
from flowmatch_rl.testbeds.processes.full_mixture import FullGaussianMixture
from flowmatch_rl.types import Velocity

_TOLERANCE = 1e-12
_CHUNK = 2**20
"""Numbers (point, component, dimension) that are in work at a time: more are slower, since they leave the cache."""


@dataclass(frozen=True)
class LinearGaussianProcess(Process):
    """The process ``s' = transition s + control a + drift + noise_factor xi`` with standard normal xi; it never ends.

    Actions are taken as they are, not clamped to [-1, 1], so that the closed forms hold for every linear policy.

    Args:
        transition: Matrix of S rows of S numbers.
        control: Matrix of S rows of A numbers.
        drift: S numbers, in units of the state per step; None for zeros.
        noise_factor: Matrix L of S rows of S numbers, of full rank; the noise of a step has the covariance L L^T.
        start_scale: Standard deviation of each entry of the initial state, which has mean 0; at least 0.

    Raises:
        UserError: If a shape does not fit, the noise is degenerate or ``start_scale`` is negative.
    """

    label: ClassVar[str] = "linear-gaussian"

    transition: list[list[float]] = field(default_factory=lambda: [[0.9, 0.2], [-0.2, 0.8]])
    control: list[list[float]] = field(default_factory=lambda: [[0.0], [0.3]])
    drift: list[float] | None = None
    noise_factor: list[list[float]] = field(default_factory=lambda: [[0.1, 0.0], [0.05, 0.1]])
    start_scale: float = 0.5

    def __post_init__(self) -> None:
        number = len(self.transition)
        wanted = {
            "transition": (self.transition, {number}),
            "control": (self.control, {len(row) for row in self.control[:1]} - {0}),
            "noise_factor": (self.noise_factor, {number}),
        }
        for name, (rows, lengths) in wanted.items():
            if not rows or len(rows) != number or {len(row) for row in rows} != lengths:
                raise UserError(
                    f"{name} must have {number} rows, one per row of transition, of the right length, got {rows}"
                )
        if self.drift is not None and len(self.drift) != number:
            raise UserError(f"drift must have {number} entries, got {len(self.drift)}")
        if not abs(float(torch.linalg.det(torch.tensor(self.noise_factor, dtype=torch.float64)))) > 0.0:
            raise UserError(f"noise_factor must be of full rank, got {self.noise_factor}")
        check_range("[0, inf)", start_scale=self.start_scale)

    @property
    def columns(self) -> tuple[str, ...]:
        """Entries of the state, s0, s1 and so on."""
        return tuple(f"s{i}" for i in range(len(self.transition)))

    @property
    def action_dim(self) -> int:
        """Columns of ``control``."""
        return len(self.control[0])

    @property
    def noise_dim(self) -> int:
        """One number per entry of the state."""
        return len(self.transition)

    def start(self, noise: Tensor) -> Tensor:
        """The noise, scaled."""
        check_shape("noise", noise, (*noise.shape[:-1], self.noise_dim))
        return self.start_scale * noise

    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One step, see the class; no state is terminal."""
        check_shape("noise", noise, tuple(state.shape))
        moved = self.next_mean(state, action) + noise @ noise.new_tensor(self.noise_factor).T
        return moved, torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)

    def next_mean(self, state: Tensor, action: Tensor) -> Tensor:
        """Mean of the next state, shape (*batch, S), for states (*batch, S) and actions (*batch, A)."""
        check_shape("state", state, (*state.shape[:-1], len(self.transition)))
        check_shape("action", action, (*state.shape[:-1], self.action_dim))
        transition, control, drift = self._matrices(state)
        return state @ transition.T + action @ control.T + drift

    def occupancy(
        self, state: Tensor, action: Tensor, policy: LinearPolicy, discount: float, num_terms: int | None = None
    ) -> FullGaussianMixture:
        """Exact discounted distribution of the future states, the current one not counted.

        Component k is the distribution of the state after k steps, of weight ``(1 - g) g^(k - 1)``; the last one has
        all the remaining weight.

        Args:
            state: States at time 0, shape (*batch, S).
            action: Actions at time 0, shape (*batch, A).
            policy: Takes the later actions.
            discount: Discount g per step, in [0, 1).
            num_terms: Number of components; None for as many as leave an error of about 1e-12, which are few where the
                process soon becomes stationary.

        Returns:
            Mixtures of batch shape (*batch), in the precision of the states.

        Raises:
            ValueError: If a shape does not fit, the discount or ``num_terms`` is out of its range, or the process
                under the policy grows by ``1 / discount`` per step or more.
        """
        return self._components(policy, discount, num_terms, state).mixture(self.next_mean(state, action))

    def exact_velocity(self, policy: LinearPolicy, discount: float, path: AffinePath) -> Velocity:
        """The exact marginal velocity of the path from standard normal noise to the discounted future.

        Args:
            policy: Takes the actions after the first.
            discount: Discount per step, in [0, 1).
            path: The path.

        Returns:
            A field ``velocity(x, t, condition)`` for points (*batch, S), times whose shape is a prefix of (*batch), and
            conditions (*batch, S + A) of states and actions side by side.

        Raises:
            ValueError: As ``occupancy``; and when called without a condition, or with one that does not fit.
        """
        dim = len(self.transition)
        components = self._components(policy, discount, None, torch.zeros((), dtype=torch.float64))
        rows = max(1, _CHUNK // (len(components.weights) * dim))

        def exact(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
            if condition is None:
                raise ValueError(f"expected a condition of dimension {dim + self.action_dim}, got none")
            check_shape("condition", condition, (*x.shape[:-1], dim + self.action_dim))
            parts = components.to(x)
            first = self.next_mean(condition[..., :dim].to(x), condition[..., dim:].to(x)).reshape(-1, dim)
            times = append_dims(t, like=x[..., 0]).expand(x.shape[:-1]).reshape(-1)
            chunks = zip(first.split(rows), x.reshape(-1, dim).split(rows), times.split(rows), strict=True)
            velocities = [parts.mixture(mean).field(path)(point, time, None) for mean, point, time in chunks]
            return torch.cat(velocities).reshape(x.shape)

        return exact

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        drift = [0.0] * len(self.transition) if self.drift is None else self.drift
        return like.new_tensor(self.transition), like.new_tensor(self.control), like.new_tensor(drift)

    def _components(self, policy: LinearPolicy, discount: float, num_terms: int | None, like: Tensor) -> "_Components":
        """The part of the distributions that all first states and actions share, computed in double precision."""
        check_range("[0, 1)", discount=discount)
        transition, control, drift = self._matrices(torch.zeros((), dtype=torch.float64))
        gain, bias = policy.matrices(transition)
        check_shape("the gain of the policy", gain, (self.action_dim, len(transition)))
        closed, shift = transition + control @ gain, control @ bias + drift
        number = _count_terms(closed, discount) if num_terms is None else num_terms
        check_range("[1, inf)", num_terms=number)
        factor = transition.new_tensor(self.noise_factor)
        covariance, identity = factor @ factor.T, torch.eye(len(transition)).to(transition)
        powers, offsets, covariances = [identity], [torch.zeros_like(drift)], [covariance]
        for _ in range(number - 1):
            powers.append(closed @ powers[-1])
            offsets.append(closed @ offsets[-1] + shift)
            covariances.append(closed @ covariances[-1] @ closed.T + covariance)
        weights = (1.0 - discount) * discount ** torch.arange(number, dtype=torch.float64)
        weights[-1] = discount ** (number - 1)
        variances, axes = torch.linalg.eigh(torch.stack(covariances))
        return _Components(weights, torch.stack(powers), torch.stack(offsets), axes, variances).to(like)


@dataclass(frozen=True)
class _Components:
    """Distributions after k steps, ``N(powers_k m + offsets_k, axes_k variances_k axes_k^T)`` for a first mean m."""

    weights: Tensor
    powers: Tensor
    offsets: Tensor
    axes: Tensor
    variances: Tensor

    def to(self, like: Tensor) -> "_Components":
        """The same, of the type and on the device of ``like``."""
        return _Components(*(part.to(like) for part in vars(self).values()))

    def mixture(self, first: Tensor) -> FullGaussianMixture:
        """Mixtures for first means of shape (*batch, S)."""
        means = torch.einsum("kij,...j->...ki", self.powers, first) + self.offsets
        return FullGaussianMixture(self.weights, means, self.axes, self.variances)


def _count_terms(closed: Tensor, discount: float) -> int:
    """Components after which neither the remaining weight nor the change of the distribution can matter."""
    growth = float(torch.linalg.eigvals(closed).abs().max())
    if discount * growth >= 1.0:
        raise UserError(
            f"the process under the policy must grow by less than 1 / discount per step, got a growth of {growth:.4g} "
            f"per step at the discount {discount}"
        )
    power, weight, number = torch.eye(len(closed)).to(closed), discount, 1
    while weight * float(torch.linalg.matrix_norm(power)) > _TOLERANCE:
        power, weight, number = closed @ power, weight * discount, number + 1
    return number
