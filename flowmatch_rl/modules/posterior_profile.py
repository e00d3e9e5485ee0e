"""What the targets of a policy are like, by flow time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.estimators import time_bin_sums
from flowmatch_rl.evaluation import PosteriorProfile
from flowmatch_rl.modules.policy_learner import Learned, PolicyLearner

_ROOTS = frozenset({"target_rms"})
"""Quantities that are means of squares until they are read."""


class PosteriorMeter:
    """Sums what a policy learns from by bin of flow time, on its device and without waiting for it.

    The quantities, each a mean over the states of a bin:

    - ``effective_sample_fraction``: effective sample size as a fraction of the samples drawn, in (0, 1]; left out for
      estimators that draw none.
    - ``eta``: coefficient of the control variate, mean over dimensions.
    - ``target_rms``: root mean square of what the network regresses on, in units of its prediction.
    - ``saturated``: fraction of the entries of the estimated endpoint x_1 whose action is above ``limit`` in magnitude.
    - ``log_density_spread``: standard deviation of ``log p_1`` over the samples of a state, nats.

    Args:
        learner: What the policy learns by.
        num_bins: Equal bins of the flow times that the policy is trained at, at least 1.
        interval: One update in so many is looked at, the first among them; at least 1. A look takes about 30 small
            operations, a fourteenth of those of a cheap update.
        limit: Magnitude above which an entry of an action counts as at its bound, in [0, 1).

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(self, learner: PolicyLearner, num_bins: int = 10, interval: int = 10, limit: float = 0.99) -> None:
        check_range("[1, inf)", num_bins=num_bins, interval=interval)
        check_range("[0, 1)", limit=limit)
        self._learner, self._num_bins, self._interval, self._limit = learner, num_bins, interval, limit
        self._updates = 0
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None  # a row per quantity, and one of counts

    @torch.no_grad()
    def add(self, learned: Learned) -> None:
        """Take in one update, if it is one of those that are looked at.

        Args:
            learned: What the policy has learned from.
        """
        due = self._updates % self._interval == 0
        self._updates += 1
        if not due:
            return
        sums, counts = time_bin_sums(
            self._quantities(learned), learned.points.t, self._num_bins, self._learner.policy.flow.t_min
        )
        self._names = tuple(sums)
        rows = torch.stack([*sums.values(), counts])
        self._sums = rows if self._sums is None else self._sums + rows

    def state_dict(self) -> dict[str, Any]:
        """What was taken in since the last ``take``."""
        return {"updates": self._updates, "names": self._names, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from what another object had taken in.

        Args:
            state: What its ``state_dict`` returned.
            device: Device of what will be taken in.
        """
        self._updates, self._names = state["updates"], tuple(state["names"])
        self._sums = None if state["sums"] is None else state["sums"].to(device)

    def take(self, step: int, gather: Callable[[Tensor], Tensor]) -> PosteriorProfile | None:
        """Means since the last call; starts afresh. Waits for the device.

        Args:
            step: Step that the profile is named by.
            gather: Returns the tensors of all processes, stacked along a new first dimension, or a tensor as it is
                where there is one process. All processes have to call this, after as many updates each.

        Returns:
            The profile of all processes, or None if there was no update.
        """
        if self._sums is None:
            return None
        sums = gather(self._sums).reshape(-1, *self._sums.shape).sum(0).double().cpu()
        means = dict(zip(self._names, sums[:-1] / sums[-1], strict=True))
        t_min, self._sums, self._updates = self._learner.policy.flow.t_min, None, 0
        width = (1.0 - 2.0 * t_min) / self._num_bins
        return PosteriorProfile(
            step,
            tuple(t_min + (index + 0.5) * width for index in range(self._num_bins)),
            {name: tuple((mean.sqrt() if name in _ROOTS else mean).tolist()) for name, mean in means.items()},
        )

    def _quantities(self, learned: Learned) -> dict[str, Tensor]:
        """Values per state, shape (B,) each."""
        learner, estimate, t = self._learner, learned.estimate, learned.points.t
        policy, num_samples = learner.policy, learner.estimator.num_samples
        target = policy.flow.path.target(learner.objective.prediction, estimate.x_0, estimate.x_1, t)
        saturated = policy.squash.action(estimate.x_1).abs() > self._limit
        fractions = {"effective_sample_fraction": estimate.effective_sample_size / num_samples} if num_samples else {}
        return fractions | {
            "eta": estimate.eta.mean(-1),
            "target_rms": target.square().mean(-1),
            "saturated": saturated.to(t.dtype).mean(-1),
            "log_density_spread": estimate.log_density_spread,
        }
