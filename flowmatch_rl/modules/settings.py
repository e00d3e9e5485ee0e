"""Arguments of the modules that belong together, as configuration files state them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import nn

from flowmatch_rl.checks import UserError, check_range, check_word
from flowmatch_rl.modules.learning_rate import cosine_decay
from flowmatch_rl.nets import CriticArchitecture
from flowmatch_rl.objectives import ValueReduction

EndpointSource: TypeAlias = Literal["policy", "replay", "uniform"]
"""Where the endpoints x_1 of the paths come from that a policy is trained on."""


@dataclass(frozen=True)
class TrainingPoints:
    """Where along which paths a policy is trained.

    Args:
        x_1_source: Where the path ends: at a sample of the policy, at the action in the replay buffer, or at a uniform
            action.
        share_samples: Whether the policy is trained at the next observation, so that one sampling pass serves the
            Bellman target and x_1; halves the sampling. The first state of an episode is then seen only where another
            ends in it. Needs ``x_1_source: policy``.
        batch_size: States of each batch that the policy is trained at; all if None.

    Raises:
        UserError: If a value is out of its range.
    """

    x_1_source: EndpointSource = "policy"
    share_samples: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_word(("policy", "replay", "uniform"), x_1_source=self.x_1_source)
        if self.share_samples:
            check_word(("policy",), **{"x_1_source, with share_samples,": self.x_1_source})
        check_range("[1, inf)", batch_size=self.batch_size)


@dataclass(frozen=True)
class Critics:
    """The critics of an actor-critic, and how their targets are made.

    Args:
        architecture: Shape of the critics.
        reduction: How the critics are reduced to one value, in targets and choices: the target is the distribution of
            the return of the critic of smallest value, or the mean of all.
        subset_size: Critics, drawn at random for every update, that a target is reduced over, in 1, ..., M; all if
            None.
        ema_decay: Rate of the target networks, in [0, 1).
        joint_batch: Whether the critics are their own targets: current and next pairs go through them in one pass,
            whose batch norms see both. There are no target networks, so that ``ema_decay`` must be 0.

    Raises:
        UserError: If a number is out of its range, or the architecture needs a joint batch and there is none.

    Reference:
        Chen et al., arXiv:2101.05982, for the minimum over a random subset; Bhatt et al., arXiv:1902.05605, for the
        joint batch.
    """

    architecture: CriticArchitecture = CriticArchitecture()
    reduction: ValueReduction = "min"
    subset_size: int | None = None
    ema_decay: float = 0.995
    joint_batch: bool = False

    def __post_init__(self) -> None:
        check_word(("min", "mean"), reduction=self.reduction)
        check_range("[1, inf)", subset_size=self.subset_size)
        check_range("[0, 1)", ema_decay=self.ema_decay)
        if self.joint_batch and self.ema_decay:
            raise UserError(f"ema_decay must be 0 with joint_batch, without target networks, got {self.ema_decay}")
        layers = self.architecture.layers
        if layers is not None and layers.needs_joint_batch and not self.joint_batch:
            raise UserError(f"joint_batch must be true, with ema_decay 0, for {layers}")


@dataclass(frozen=True)
class Normalisation:
    """Units that are measured while an actor-critic trains, in place of units that a task has by itself.

    They are measured on the transitions that it trains on, or once on the whole of a data set, over all processes.
    Replay buffers and data sets keep the units of the environment, and so does what a policy is called with.

    Args:
        observations: Whether policy and critics see observations standardised: less their mean, divided by their
            standard deviation, and clipped to 10 of these.
        temperature: Whether the temperature is a multiple of the scale of the rewards, in place of the unit of the
            return: of the root mean square of the reward of a step, or 1 while all rewards are 0. So is ``alpha`` of
            ``FlowQLearning``. Rewards in another unit are then learned alike.
        values: Whether critics learn returns in a unit of their own, so that their outputs are of about the size 1: the
            power of two next to the scale of the rewards over ``1 - discount``. Where that has moved by more than a
            factor of 2 the unit changes, and the last layers with it, so that no value does. Values are stated in units
            of the return everywhere.
    """

    observations: bool = False
    temperature: bool = False
    values: bool = False


@dataclass(frozen=True)
class WeightCritics:
    """Critics in the importance weights of the posterior.

    Args:
        network: The online critics or their target networks.
        reduction: How they are reduced to one value.
        full_precision: Whether they are evaluated in the precision of their parameters where the trainer multiplies in
            a lower one, which rounds the exponent Q / temperature of the weights.

    Raises:
        UserError: If a word is unknown.
    """

    network: Literal["online", "target"] = "online"
    reduction: ValueReduction = "min"
    full_precision: bool = False

    def __post_init__(self) -> None:
        check_word(("online", "target"), network=self.network)
        check_word(("min", "mean"), reduction=self.reduction)


@dataclass(frozen=True)
class ActorCriticOptimizer:
    """Adam with a learning rate per network, and the clipping of their gradients.

    Args:
        actor_learning_rate: Learning rate of the policy.
        critic_learning_rate: Learning rate of the critics.
        temperature_learning_rate: Learning rate of the logarithm of a temperature that is tuned.
        max_gradient_norm: The gradient of each network is clipped to this norm; positive.
        reset_interval: Gradient steps after which all networks are initialised again and the optimizer forgets its
            state; never if None. These are the critics with their targets, the policy, and what is trained beside them:
            the behaviour flow of ``TiltedFlowActorCritic`` and ``FlowQLearning``, V of ``ImplicitFlowQLearning``. A
            temperature that is tuned stays.

    Raises:
        UserError: If a number is not positive.
    """

    actor_learning_rate: float = 3e-4
    critic_learning_rate: float = 1e-3
    temperature_learning_rate: float = 1e-3
    max_gradient_norm: float = 10.0
    reset_interval: int | None = None

    def __post_init__(self) -> None:
        check_range("[1, inf)", reset_interval=self.reset_interval)
        check_range("(0, inf)", **vars(self))


@dataclass(frozen=True)
class FlowOptimizer:
    """AdamW and its learning rate over a run, for the training of flows.

    Args:
        learning_rate: Learning rate, positive.
        decay: ``cosine`` lets the learning rate fall to zero over the run.
        weight_decay: Weight decay, at least 0.
        epsilon: Added to the root of the second moment, positive.

    Raises:
        UserError: If a number is out of its range.
    """

    learning_rate: float = 1e-3
    decay: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = 0.0
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        check_range("(0, inf)", learning_rate=self.learning_rate, epsilon=self.epsilon)
        check_range("[0, inf)", weight_decay=self.weight_decay)
        check_word(("constant", "cosine"), decay=self.decay)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of some parameters."""
        return torch.optim.AdamW(
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay, eps=self.epsilon, fused=True
        )

    def rate(self, step: int, num_steps: float) -> float:
        """Learning rate of the next update.

        Args:
            step: Gradient steps so far.
            num_steps: Gradient steps of the run.
        """
        return self.learning_rate if self.decay == "constant" else cosine_decay(self.learning_rate, step, num_steps)
