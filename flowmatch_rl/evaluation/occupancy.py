"""Tests of an occupancy: distances, likelihood and values against real trajectories."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.batches import ActionTrials, Rollouts
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.evaluation.action_information import action_lines, modelled_effect, real_effect
from flowmatch_rl.evaluation.futures import Gather, compare_values, modelled_futures, real_futures, stray_fraction
from flowmatch_rl.metrics import squared_wasserstein_distance, wasserstein_distance
from flowmatch_rl.models import Horizon, Occupancy
from flowmatch_rl.types import Reward

_LITTLE = 0.01
"""Fraction of the discounted weight beyond the end of trajectories after tried actions."""


@dataclass(frozen=True)
class FutureTests:
    """Compares modelled future states with those of real trajectories at geometric times, one source state at a time.

    Distances are means over the source states, in the units of the environment: ``wasserstein`` with the Euclidean
    cost, ``squared_wasserstein`` with its square (no root taken). Beside them a test reports the distance between two
    real samples of the same size, below which none can fall. Values are compared with the discounted rewards of the
    trajectories.

    A test also tries actions in each source state, uniform on [-1, 1]^A with the member of a family held fixed, and
    measures the action information ``Var_a E[X | s, a] / E_a Var[X | s, a]`` of the model, in an environment that can
    be put back into a state beside that of trajectories after the same actions.

    Args:
        val_samples: Future states per source state during training, at least 2.
        test_samples: Future states per source state of a test, at least 2.
        value_samples: Future states per source state that values are estimated from, at least 2.
        likelihood_samples: Real future states whose log-likelihood a test measures, over all source states; 0 for none.
        num_actions: Actions tried in each source state of a test, at least 2; 0 for none.
        action_samples: Future states per source state and tried action, at least 2.
        predict_samples: Future states per source state that the ``predict`` command writes, at least 1.
        discounts: Discounts that a test compares at, for a model of many horizons; the model's highest if None.

    Raises:
        UserError: If a number is out of its range.
    """

    val_samples: int = 128
    test_samples: int = 512
    value_samples: int = 2_048
    likelihood_samples: int = 1_024
    num_actions: int = 8
    action_samples: int = 32
    predict_samples: int = 128
    discounts: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_range(
            "[2, inf)",
            val_samples=self.val_samples,
            test_samples=self.test_samples,
            value_samples=self.value_samples,
            action_samples=self.action_samples,
        )
        check_range("[0, inf)", num_actions=self.num_actions)
        if self.num_actions == 1:
            raise UserError("num_actions must be at least 2, or 0 for none, got 1")
        check_range("[0, inf)", likelihood_samples=self.likelihood_samples)
        check_range("[1, inf)", predict_samples=self.predict_samples)

    def trials(self, horizon: Horizon) -> ActionTrials:
        """Actions to try in each source state, and how long to follow: 99 % of the discounted weight is enough.

        Args:
            horizon: Discounts of the model.
        """
        log_discount = math.log(max(horizon.discount, _LITTLE))
        return ActionTrials(self.num_actions, math.ceil(math.log(_LITTLE) / log_discount))

    def validate(self, model: Occupancy, rollouts: Rollouts, generator: torch.Generator) -> dict[str, Tensor]:
        """Distance during training, and the fraction of modelled states outside the range of the data.

        Args:
            model: The model.
            rollouts: Source states with real trajectories.
            generator: Source of noise, on the CPU.

        Returns:
            Metrics by name: ``wasserstein`` where there are trajectories, ``strays`` where the range is known.

        Raises:
            RunError: If a modelled state is not finite.
        """
        discount = model.horizon.discount
        real = None
        if rollouts.states is not None:
            real = real_futures(model, rollouts, discount, self.val_samples, generator)
        made = modelled_futures(model, rollouts, discount, self.val_samples, generator)
        metrics = {"strays": stray_fraction(model.schema, made)}
        metrics["wasserstein"] = None if real is None else _mean_distance(made, real, squared=False)
        return {name: value for name, value in metrics.items() if value is not None}

    def test(
        self,
        model: Occupancy,
        rollouts: Rollouts,
        rewards: Mapping[str, Reward],
        generator: torch.Generator,
        gather: Gather | None = None,
    ) -> dict[str, Tensor]:
        """Distances, likelihood and values.

        Args:
            model: The model.
            rollouts: Source states, perhaps with real trajectories.
            rewards: Rewards by name.
            generator: Source of noise, on the CPU.
            gather: Joins the values of all processes; None if there is one.

        Returns:
            Metrics by name, in the units of the environment; those of another than the highest discount end in it.

        Raises:
            RunError: If a modelled state or its reward is not finite.
        """
        metrics: dict[str, Tensor] = {}
        for discount in self.discounts or (model.horizon.discount,):
            suffix = "" if discount == model.horizon.discount else f"@{discount:g}"
            found = self._at_discount(model, rollouts, rewards, discount, generator, gather)
            metrics |= {f"{name}{suffix}": value for name, value in found.items()}
        return metrics

    def lines(self, metrics: Mapping[str, float], rewards: tuple[str, ...]) -> list[str]:
        """What a test measured, one line each.

        Args:
            metrics: Metrics by name, which begin with ``test/``.
            rewards: Names of the rewards.
        """
        suffixes = ["", *(f"@{discount:g}" for discount in self.discounts or ())]
        return [line for suffix in suffixes for line in _lines(metrics, rewards, suffix)]

    def _at_discount(
        self,
        model: Occupancy,
        rollouts: Rollouts,
        rewards: Mapping[str, Reward],
        discount: float,
        generator: torch.Generator,
        gather: Gather | None,
    ) -> dict[str, Tensor]:
        number = max(self.test_samples, self.value_samples)
        made = modelled_futures(model, rollouts, discount, number, generator)
        metrics: dict[str, Tensor] = {}
        if rollouts.states is not None:
            real, other = (real_futures(model, rollouts, discount, self.test_samples, generator) for _ in range(2))
            some = made[:, : self.test_samples]
            metrics["wasserstein"] = _mean_distance(some, real, squared=False)
            metrics["squared_wasserstein"] = _mean_distance(some, real, squared=True)
            metrics["wasserstein_floor"] = _mean_distance(other, real, squared=False)
            if self.likelihood_samples:
                metrics["nll_per_dim"] = self._likelihood(model, rollouts, discount, real, generator)
        for value in compare_values(model, rollouts, rewards, made[:, : self.value_samples], discount):
            metrics |= value.metrics(gather)
        return metrics | self._action_information(model, rollouts, discount, gather)

    def _action_information(
        self, model: Occupancy, rollouts: Rollouts, discount: float, gather: Gather | None
    ) -> dict[str, Tensor]:
        """Of the model, and of trajectories; noise of its own leaves that of the other metrics alone."""
        if self.num_actions == 0:
            return {}
        generator, actions = torch.Generator().manual_seed(2), rollouts.tried_actions
        if actions is None:
            count, action_dim = rollouts.action.shape
            uniform = torch.rand(count, self.num_actions, action_dim, generator=generator)
            actions = (2.0 * uniform - 1.0).to(rollouts.action)
        made = modelled_effect(model, rollouts, actions, discount, self.action_samples, generator)
        real = real_effect(model, rollouts, discount)
        metrics = {"action_information": made.information(gather)}
        return metrics if real is None else metrics | {"action_information_real": real.information(gather)}

    def _likelihood(
        self, model: Occupancy, rollouts: Rollouts, discount: float, real: Tensor, generator: torch.Generator
    ) -> Tensor:
        count = min(real.shape[1], -(-self.likelihood_samples // len(real)))
        points = real[:, :count].flatten(0, 1)
        source = (rollouts.observation, rollouts.action, rollouts.embedding)
        rows = [part.repeat_interleave(count, 0) for part in source]
        value = model.log_prob(points, *rows, discount=discount, generator=generator)
        return -value.mean() / points.shape[-1]


def _lines(metrics: Mapping[str, float], rewards: tuple[str, ...], suffix: str) -> list[str]:
    """What a test measured at the discount of a suffix; nothing where it did not look at it."""
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
            if f"test/value_correlation/{name}" in found:
                real += f", correlation {found[f'test/value_correlation/{name}']:.3g}"
        lines.append(f"{f'value{suffix}':<12} {name}: {value}{real}")
    return lines + action_lines(found, suffix)


def _mean_distance(made: Tensor, real: Tensor, squared: bool) -> Tensor:
    distance = squared_wasserstein_distance if squared else wasserstein_distance
    return torch.stack([distance(x, y) for x, y in zip(made, real, strict=True)]).mean()
