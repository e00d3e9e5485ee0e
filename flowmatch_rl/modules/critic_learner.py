"""Bellman loss of an ensemble of critics, shared by the actor-critics."""

import torch
from torch import Tensor

from flowmatch_rl.batches import Transition
from flowmatch_rl.nets import CriticEnsemble
from flowmatch_rl.objectives import ValueReduction, bellman_map, reduced_law
from flowmatch_rl.shapes import check_shape


class CriticLearner:
    """Compares critics with the Bellman target that their lagging copies give.

    It owns no weights: a plain object, so that a module which holds the networks may hold it as well.

    Args:
        critic: The learned critics.
        critic_ema: Their lagging copies, of the same shape.
        discount: Discount per environment step, in [0, 1).
        value_reduction: Which law of the next return is the target: that of the member of smallest value, or the mean
            of the members'.
        subset_size: Members that the target is made of, drawn anew for each loss, in 1, ..., M; all if None.

    Raises:
        ValueError: If a number is out of its range.

    Reference:
        Chen et al., arXiv:2101.05982, for the minimum over a random subset.
    """

    def __init__(
        self,
        critic: CriticEnsemble,
        critic_ema: CriticEnsemble,
        discount: float,
        value_reduction: ValueReduction = "min",
        subset_size: int | None = None,
    ) -> None:
        if not 0.0 <= discount < 1.0:
            raise ValueError(f"discount must lie in [0, 1), got {discount}")
        if value_reduction not in ("min", "mean"):
            raise ValueError(f"value_reduction must be min or mean, got {value_reduction!r}")
        if subset_size is not None and not 1 <= subset_size <= critic.num_members:
            raise ValueError(f"subset_size must lie in 1, ..., {critic.num_members}, got {subset_size}")
        self.critic, self.critic_ema = critic, critic_ema
        self.discount = discount
        self.value_reduction: ValueReduction = value_reduction
        self.subset_size = subset_size
        self.metrics: dict[str, Tensor] = {}
        """Scalars of the last loss by name: mean value, and mean reward of a step."""

    def choose_members(self, uniform: Tensor) -> Tensor | None:
        """A random subset of the members.

        Args:
            uniform: Noise, uniform on [0, 1), shape (M,).

        Returns:
            Indices, every subset equally likely, shape (subset_size,); None for all members.

        Raises:
            ValueError: If there is not one number per member.
        """
        check_shape("uniform", uniform, (self.critic.num_members,))
        return None if self.subset_size is None else uniform.argsort()[: self.subset_size]

    def loss(
        self,
        transition: Transition,
        next_action: Tensor,
        bonus: Tensor | None = None,
        members: Tensor | None = None,
    ) -> Tensor:
        """Distance of each critic's law of the return from the Bellman target.

        Args:
            transition: Transitions of one or several steps.
            next_action: Action in the state arrived at, shape (B, A).
            bonus: Added to the value of the state arrived at, units of the return, shape (B,), such as
                ``-temperature * log_prob``; nothing if None.
            members: Members of the target, from ``choose_members``; None exactly if ``subset_size`` is.

        Returns:
            Loss per sample, mean over the critics, shape (B,). Gradient reaches the learned critics alone.

        Raises:
            ValueError: If the shapes do not fit.
        """
        wanted = None if self.subset_size is None else (self.subset_size,)
        if (None if members is None else tuple(members.shape)) != wanted:
            got = None if members is None else tuple(members.shape)
            raise ValueError(f"expected members of shape {wanted}, got {got}")
        with torch.no_grad():
            head = self.critic_ema.head
            next_outputs = self.critic_ema.outputs(transition.next_observation, next_action, members)
            next_law = reduced_law(head.values(next_outputs), head.law(next_outputs), self.value_reduction)
            shift, scale = bellman_map(transition.rewards, transition.length, transition.terminated, self.discount)
            if bonus is not None:
                check_shape("bonus", bonus, tuple(scale.shape))
                shift = shift + scale * bonus.masked_fill(transition.terminated, 0.0)
        outputs = self.critic.outputs(transition.observation, transition.action)
        with torch.no_grad():
            values = self.critic.head.values(outputs)
            self.metrics = {"train/value": values.mean(), "train/reward": transition.reward.mean()}
        return self.critic.head.loss(outputs, next_law, shift, scale)
