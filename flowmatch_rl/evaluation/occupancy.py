"""What evaluations of an occupancy measure against real trajectories."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowmatch_rl.batches import Rollouts
from flowmatch_rl.checks import RunError
from flowmatch_rl.metrics import squared_wasserstein_distance, wasserstein_distance
from flowmatch_rl.models.occupancy_inputs import OccupancyInputs
from flowmatch_rl.objectives import FirstState
from flowmatch_rl.planning import estimate_value, monte_carlo_value
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import geometric_steps
from flowmatch_rl.types import Reward

_ENDLESS = 2**31
"""Steps of a trajectory that stays in its terminal state."""


class FutureModel(Protocol):
    """What is measured: ``OccupancyModule``."""

    inputs: OccupancyInputs
    first_state: FirstState
    rewards: dict[str, Reward]

    @property
    def schema(self) -> TableSchema:
        """Modelled entries of the state."""
        ...

    def draw_normal(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Noise on the model's device."""
        ...

    def sample(
        self,
        noise: Tensor,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None = None,
        discount: Tensor | float | None = None,
    ) -> Tensor:
        """Future states."""
        ...

    def log_prob(
        self,
        state: Tensor,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None = None,
        discount: Tensor | float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log-density of future states."""
        ...


@dataclass(frozen=True)
class FutureTests:
    """Compares modelled future states with those of real trajectories at geometric times, one source state at a time.

    Distances are means over the source states, in the units of the environment: ``wasserstein`` with the Euclidean
    cost, ``squared_wasserstein`` with its square (no root taken). Beside them a test reports the distance between two
    real samples of the same size, below which none can fall. Values are compared with the discounted rewards of the
    trajectories.

    Args:
        val_samples: Future states per source state during training, at least 2.
        test_samples: Future states per source state of a test, at least 2.
        value_samples: Future states per source state that values are estimated from, at least 2.
        likelihood_samples: Real future states whose log-likelihood a test measures, over all source states; 0 for none.
        predict_samples: Future states per source state that the ``predict`` command writes, at least 1.
        discounts: Discounts that a test compares at, for a model of many horizons; the model's highest if None.

    Raises:
        ValueError: If a number is out of its range.
    """

    val_samples: int = 128
    test_samples: int = 512
    value_samples: int = 2_048
    likelihood_samples: int = 1_024
    predict_samples: int = 128
    discounts: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        least = {"val_samples": 2, "test_samples": 2, "value_samples": 2, "likelihood_samples": 0, "predict_samples": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")

    def validate(self, model: FutureModel, rollouts: Rollouts, generator: torch.Generator) -> dict[str, Tensor]:
        """Distance during training.

        Args:
            model: The model.
            rollouts: Source states with real trajectories.
            generator: Source of noise, on the CPU.

        Returns:
            Metrics by name; none without trajectories.

        Raises:
            RunError: If a modelled state is not finite.
        """
        if rollouts.states is None:
            self._sample(model, rollouts, model.inputs.discount, self.val_samples, generator)
            return {}
        real = real_futures(model, rollouts, model.inputs.discount, self.val_samples, generator)
        made = self._sample(model, rollouts, model.inputs.discount, self.val_samples, generator)
        return {"wasserstein": _mean_distance(made, real, squared=False)}

    def test(self, model: FutureModel, rollouts: Rollouts, generator: torch.Generator) -> dict[str, Tensor]:
        """Distances, likelihood and values.

        Args:
            model: The model.
            rollouts: Source states, perhaps with real trajectories.
            generator: Source of noise, on the CPU.

        Returns:
            Metrics by name, in the units of the environment; those of another than the highest discount end in it.
        """
        metrics: dict[str, Tensor] = {}
        for discount in self.discounts or (model.inputs.discount,):
            suffix = "" if discount == model.inputs.discount else f"@{discount:g}"
            found = self._at_discount(model, rollouts, discount, generator)
            metrics |= {f"{name}{suffix}": value for name, value in found.items()}
        return metrics

    def lines(self, metrics: Mapping[str, float], rewards: tuple[str, ...]) -> list[str]:
        """What a test found, one line each.

        Args:
            metrics: Metrics by name, which begin with ``test/``.
            rewards: Names of the rewards.
        """
        suffixes = ["", *(f"@{discount:g}" for discount in self.discounts or ())]
        return [line for suffix in suffixes for line in _lines(metrics, rewards, suffix)]

    def _at_discount(
        self, model: FutureModel, rollouts: Rollouts, discount: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        made = self._sample(model, rollouts, discount, max(self.test_samples, self.value_samples), generator)
        metrics: dict[str, Tensor] = {}
        if rollouts.states is not None:
            real, other = (real_futures(model, rollouts, discount, self.test_samples, generator) for _ in range(2))
            some = made[:, : self.test_samples]
            metrics["wasserstein"] = _mean_distance(some, real, squared=False)
            metrics["squared_wasserstein"] = _mean_distance(some, real, squared=True)
            metrics["wasserstein_floor"] = _mean_distance(other, real, squared=False)
            if self.likelihood_samples:
                metrics["nll_per_dim"] = self._likelihood(model, rollouts, discount, real, generator)
        for name, reward in model.rewards.items():
            metrics |= _values(model, rollouts, discount, name, reward, made[:, : self.value_samples])
        return metrics

    def _sample(
        self, model: FutureModel, rollouts: Rollouts, discount: float, number: int, generator: torch.Generator
    ) -> Tensor:
        """Modelled states, shape (N, number, D)."""
        noise = model.draw_normal((len(rollouts.observation), number, model.inputs.sample_dim), generator)
        source = [part[:, None] for part in (rollouts.observation, rollouts.action, rollouts.embedding)]
        made = model.sample(noise, *source, discount=discount)
        bad = int((~torch.isfinite(made)).any(-1).sum())
        if bad:
            raise RunError(f"{bad} of {made[..., 0].numel()} modelled states are not finite; lower the learning rate")
        return made

    def _likelihood(
        self, model: FutureModel, rollouts: Rollouts, discount: float, real: Tensor, generator: torch.Generator
    ) -> Tensor:
        count = min(real.shape[1], -(-self.likelihood_samples // len(real)))
        points = real[:, :count].flatten(0, 1)
        source = (rollouts.observation, rollouts.action, rollouts.embedding)
        rows = [part.repeat_interleave(count, 0) for part in source]
        value = model.log_prob(points, *rows, discount=discount, generator=generator)
        return -value.mean() / points.shape[-1]


def real_futures(
    model: FutureModel, rollouts: Rollouts, discount: float, number: int, generator: torch.Generator
) -> Tensor:
    """States of real trajectories at geometric times.

    Each is of a trajectory picked at random. A terminal state is never left: it is found at all later times. Where a
    trajectory stops without termination the law of its times is cut.

    Args:
        model: The model, which says what entries of the state it holds and what state it counts first.
        rollouts: Source states with trajectories.
        discount: Discount per environment step.
        number: States per source state.
        generator: Source of noise, on the CPU.

    Returns:
        Modelled entries of states, in the units of the environment, shape (N, number, D).

    Raises:
        ValueError: If there are no trajectories.
    """
    if rollouts.states is None or rollouts.length is None or rollouts.ended is None:
        raise ValueError("expected source states with trajectories, got states alone")
    count, copies = rollouts.length.shape
    uniform = torch.rand(2, count, number, generator=generator, dtype=torch.float64).to(rollouts.length.device)
    rows = torch.arange(count, device=uniform.device)[:, None]
    copy = (uniform[0] * copies).long()
    counts_now = model.first_state == "current"
    last = rollouts.length[rows, copy] + int(counts_now)
    seen = last.masked_fill(rollouts.ended[rows, copy, -1], _ENDLESS)
    time = torch.minimum(geometric_steps(uniform[1], discount, seen), last) - int(counts_now)
    states = rollouts.states[rows, copy, (time - 1).clamp_min(0)]
    states = torch.where((time == 0)[..., None], rollouts.observation[:, None], states)
    return states[..., model.inputs.modelled]


def _lines(metrics: Mapping[str, float], rewards: tuple[str, ...], suffix: str) -> list[str]:
    """What a test found at the discount of a suffix; nothing where it did not look at it."""
    found = {name[: len(name) - len(suffix)]: value for name, value in metrics.items() if name.endswith(suffix)}
    lines = []
    if "test/wasserstein" in found:
        lines.append(
            f"{f'distance{suffix}':<12} Wasserstein {found['test/wasserstein']:.4g} (two real samples "
            f"{found['test/wasserstein_floor']:.4g}), squared {found['test/squared_wasserstein']:.4g}"
        )
    if "test/nll_per_dim" in found:
        lines.append(f"{f'likelihood{suffix}':<12} -log p {found['test/nll_per_dim']:.3f} nats per dimension")
    for name in (name for name in rewards if f"test/value/{name}" in found):
        value = f"{found[f'test/value/{name}']:.4g} ± {found[f'test/value_standard_error/{name}']:.2g}"
        real = ""
        if f"test/value_real/{name}" in found:
            real = (
                f", roll-outs {found[f'test/value_real/{name}']:.4g}, "
                f"mean squared error {found[f'test/value_error/{name}']:.4g}"
            )
        lines.append(f"{f'value{suffix}':<12} {name}: {value}{real}")
    return lines


def _mean_distance(made: Tensor, real: Tensor, squared: bool) -> Tensor:
    distance = squared_wasserstein_distance if squared else wasserstein_distance
    return torch.stack([distance(x, y) for x, y in zip(made, real, strict=True)]).mean()


def _values(
    model: FutureModel, rollouts: Rollouts, discount: float, name: str, reward: Reward, made: Tensor
) -> dict[str, Tensor]:
    """Mean value over the source states, its standard error, and how it compares with the trajectories."""
    columns = model.schema.columns
    now = rollouts.observation[:, model.inputs.modelled] if model.first_state == "current" else None
    estimate = estimate_value(made, lambda states: reward.evaluate(states, columns), discount, now)
    bad = int((~torch.isfinite(estimate.value)).sum())
    if bad:
        raise RunError(f"the reward {name!r} is not finite in future states of {bad} of {len(made)} source states")
    metrics = {
        f"value/{name}": estimate.value.mean(),
        f"value_standard_error/{name}": estimate.standard_error.square().mean().sqrt() / len(made) ** 0.5,
    }
    if rollouts.states is not None and rollouts.ended is not None:
        earned = reward.evaluate(rollouts.states[..., model.inputs.modelled], columns).movedim(-1, 0)
        real = monte_carlo_value(earned, rollouts.ended.movedim(-1, 0), discount, rollouts.length).value.mean(-1)
        metrics[f"value_real/{name}"] = real.mean()
        metrics[f"value_error/{name}"] = (estimate.value - real).square().mean()
    return metrics
