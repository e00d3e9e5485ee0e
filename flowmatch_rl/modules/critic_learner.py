"""Critics of an actor-critic: their architecture, their Bellman loss, and their target networks."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from flowmatch_rl.batches import Transition
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.modules.settings import Critics, WeightCritics
from flowmatch_rl.nets import CriticEnsemble, ema_copy, without_autocast
from flowmatch_rl.objectives import bellman_map, reduced_distribution
from flowmatch_rl.shapes import check_shape


class CriticLearner(nn.Module):
    """Critics with their target networks, and the loss of one against the Bellman target of the other.

    With ``critics.joint_batch`` the target networks are the critics themselves.

    Args:
        critics: Shape and rule of the targets.
        observation_dim: Dimension S of the observation.
        action_dim: Dimension A of the action.
        discount: Discount per environment step, in [0, 1).

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(self, critics: Critics, observation_dim: int, action_dim: int, discount: float) -> None:
        super().__init__()
        check_range("[0, 1)", discount=discount)
        self.critics, self.discount = critics, discount
        self.online: CriticEnsemble = critics.architecture.build(observation_dim, action_dim)
        self.target: CriticEnsemble = self.online if critics.joint_batch else ema_copy(self.online)
        size, most = critics.subset_size, self.online.num_members
        if size is not None and size > most:
            raise UserError(f"subset_size must lie in [1, {most}], got {size}")
        self.metrics: dict[str, Tensor] = {}
        """Scalars of the last loss by name: mean value, and mean reward of a step."""
        self._last: tuple[Transition, Tensor] | None = None  # batch and values of the last loss

    def values(self, observation: Tensor, actions: Tensor) -> Tensor:
        """Values of the online critics, reduced to one.

        Args:
            observation: Shape (B, S).
            actions: Shape (B, N, A).

        Returns:
            Values in units of the return, shape (B, N).
        """
        return self.online.action_values(observation, actions, self.critics.reduction)

    def weight_values(
        self, weights: WeightCritics, observation: Tensor, actions: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        """Values of the critics in importance weights, and their gradients with respect to the actions.

        Args:
            weights: Which critics, and how.
            observation: Shape (B, S).
            actions: Shape (B, N, A).
            with_gradient: Whether the gradients are needed.

        Returns:
            Values in units of the return, shape (B, N), and gradients, shape (B, N, A): zeros if not needed.
        """
        critic = self.target if weights.network == "target" else self.online
        with without_autocast(actions) if weights.full_precision else nullcontext():
            if with_gradient:
                return critic.action_values_and_gradients(observation, actions, weights.reduction)
            return critic.action_values(observation, actions, weights.reduction), torch.zeros_like(actions)

    def choose_members(self, uniform: Tensor) -> Tensor | None:
        """A random subset of the members.

        Args:
            uniform: Noise, uniform on [0, 1), shape (M,).

        Returns:
            Indices, every subset equally likely, shape (subset_size,); None for all members.

        Raises:
            ValueError: If there is not one number per member.
        """
        check_shape("uniform", uniform, (self.online.num_members,))
        return None if self.critics.subset_size is None else uniform.argsort()[: self.critics.subset_size]

    def loss(
        self,
        transition: Transition,
        next_action: Tensor,
        bonus: Tensor | None = None,
        members: Tensor | None = None,
    ) -> Tensor:
        """Distance of each critic's distribution of the return from the Bellman target; draws the head's noise.

        Args:
            transition: Transitions of one or several steps.
            next_action: Action in the arrival state, shape (B, A).
            bonus: Added to the value of the arrival state, units of the return, shape (B,), such as
                ``-temperature * log_prob``; nothing if None.
            members: Members of the target, from ``choose_members``; None exactly if ``subset_size`` is.

        Returns:
            Loss per sample in the unit of the critics, mean over them, shape (B,). Gradient reaches the online critics
            alone.

        Raises:
            ValueError: If the shapes do not fit.
        """
        size = self.critics.subset_size
        wanted, got = None if size is None else (size,), None if members is None else tuple(members.shape)
        if got != wanted:
            raise ValueError(f"expected members of shape {wanted}, got {got}")
        outputs, next_outputs = self._outputs(transition, next_action, members)
        with torch.no_grad():
            head = self.target.head
            next_return = reduced_distribution(
                head.values(next_outputs), head.distribution(next_outputs), self.critics.reduction
            )
            shift, scale = bellman_map(
                transition.rewards, transition.length, transition.terminated, self.discount, bonus
            )
            shift = self.online.in_own_unit(shift)
            self._note(transition, self.online.in_unit_of_return(self.online.head.values(outputs)))
        return self._distance(outputs, next_return, shift, scale)

    def loss_of_value(self, transition: Transition, next_value: Tensor) -> Tensor:
        """Distance of each critic's distribution of the return from a target without spread; draws the head's noise.

        Args:
            transition: Transitions of one or several steps.
            next_value: Value of the arrival state, detached, units of the return, shape (B,).

        Returns:
            Loss per sample in the unit of the critics, mean over them, shape (B,). Gradient reaches the online critics
            alone.

        Raises:
            ValueError: If the shapes do not fit.
        """
        outputs = self.online.outputs(transition.observation, transition.action)
        with torch.no_grad():
            shift, _ = bellman_map(
                transition.rewards, transition.length, transition.terminated, self.discount, next_value
            )
            shift = self.online.in_own_unit(shift)
            # With scale 0 the distribution of the next return does not matter: all of its mass is moved to the shift.
            any_return = self.online.head.distribution(outputs)[0]
            self._note(transition, self.online.in_unit_of_return(self.online.head.values(outputs)))
        return self._distance(outputs, any_return, shift, torch.zeros_like(shift))

    def constant_members(self) -> list[tuple[int, float]]:
        """Critics that gave all transitions of the last loss the same value. Waits for the device.

        Returns:
            Index and value of each; none where all transitions had the same observation and action.
        """
        if self._last is None:
            return []
        transition, values = self._last
        same = (values == values[:, :1]).all(1).tolist()
        if not any(same) or not any(
            bool((given != given[:1]).any()) for given in (transition.observation, transition.action)
        ):
            return []
        return [(index, float(values[index, 0])) for index, constant in enumerate(same) if constant]

    def largest_inputs(self) -> str:
        """Words on the largest observation and reward of the last loss. Waits for the device."""
        if self._last is None:
            return ""
        observation, reward = (float(x.abs().max()) for x in (self._last[0].observation, self._last[0].reward))
        return f" (the largest of the last batch are {observation:.3g} and {reward:.3g})"

    def compile_evaluation(self) -> None:
        """Compile the evaluation of both networks."""
        self.online.compile_evaluation()
        self.target.compile_evaluation()

    def _outputs(self, transition: Transition, next_action: Tensor, members: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs (M, B, O) at the current pairs, and those at the next pairs that targets are made of, detached."""
        pairs = transition.observation, transition.action
        if self.critics.joint_batch:
            outputs, next_outputs = self.online.joint_outputs(*pairs, transition.next_observation, next_action.detach())
            return outputs, (next_outputs if members is None else next_outputs[members]).detach()
        with torch.no_grad():
            next_outputs = self.target.outputs(transition.next_observation, next_action, members)
        return self.online.outputs(*pairs), next_outputs

    def _distance(self, outputs: Tensor, next_return: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Loss (B,) of the head against the distribution of ``shift + scale Z``; draws its noise."""
        head = self.online.head
        uniform = torch.rand(len(shift), head.num_uniforms, device=shift.device, dtype=shift.dtype)
        return head.loss(outputs, next_return, shift, scale, uniform)

    def _note(self, transition: Transition, values: Tensor) -> None:
        """Keep what diagnostics need of a loss."""
        self._last = transition, values.detach()
        self.metrics = {"train/value": values.mean(), "train/reward": transition.reward.mean()}
