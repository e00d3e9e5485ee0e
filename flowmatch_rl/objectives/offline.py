"""Losses of policies and values that learn from a data set."""

import math

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.shapes import check_same_shape, check_shape


def expectile_loss(values: Tensor, target: Tensor, expectile: float) -> Tensor:
    """Asymmetric squared error, whose minimiser is an expectile of the target.

    Args:
        values: Values, with gradient, shape (*batch).
        target: Samples of what they estimate, detached, same shape.
        expectile: Weight of errors from below, in (0, 1): 0.5 gives the mean, 1 would give the maximum.

    Returns:
        Loss, same shape.

    Raises:
        ValueError: If the shapes differ, or ``expectile`` is out of its range.

    Reference:
        Kostrikov et al., arXiv:2110.06169 (implicit Q-learning).
    """
    check_range("(0, 1)", expectile=expectile)
    check_same_shape(values=values, target=target)
    error = target - values
    return torch.where(error > 0.0, expectile, 1.0 - expectile) * error.square()


def distilled_policy_loss(
    latent: Tensor,
    action: Tensor,
    action_gradient: Tensor,
    behavior_action: Tensor,
    alpha: float,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """Loss of a one-step policy: its gradient is that of ``alpha |latent - behavior_action|^2 - Q(action) / scale``.

    The distance is a mean over the entries of the action. The gradient of Q is given, so that no pass through the
    critics is kept for it.

    Args:
        latent: Actions before they are clipped, with gradient, shape (B, A).
        action: Actions, with gradient, shape (B, A).
        action_gradient: Gradient of the action value at the actions, detached, shape (B, A).
        behavior_action: Actions to stay near, such as those of the behaviour flow from the same noise, detached, shape
            (B, A).
        alpha: Weight of the distance, in units of the return over ``scale``, at least 0.
        scale: What values are divided by, shape (), or 1.

    Returns:
        Loss per sample, shape (B,); its gradient means something, its value does not.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Park et al., arXiv:2502.02538 (flow Q-learning).
    """
    check_same_shape(latent=latent, action=action, action_gradient=action_gradient, behavior_action=behavior_action)
    return alpha * (latent - behavior_action).square().mean(-1) - (action_gradient * action).sum(-1) / scale


def tilt_divergence(log_weights: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a tilted distribution from the one that K samples were drawn of.

    For samples of b and ``log_weights`` f the estimate of ``KL(b exp(f) / Z, b)``; at most log K, and too low where K
    is small: of 16 samples, .42 for .5 nats of a tilted normal distribution, .73 for 1 and .95 for 1.5.

    Args:
        log_weights: Logarithm of the tilt at the samples, up to a constant, shape (*batch, K).

    Returns:
        Divergence in nats, shape (*batch).
    """
    log_normalised = log_weights.log_softmax(-1)
    return (log_normalised.exp() * log_normalised).sum(-1) + math.log(log_weights.shape[-1])


def tilted_actions(actions: Tensor, log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Actions drawn with replacement by weights ``softmax(log_weights)``.

    Args:
        actions: M actions of each state, shape (B, M, A).
        log_weights: Logarithm of their weights, up to a constant per state, shape (B, M).
        uniform: Uniform noise in [0, 1), shape (B, K).

    Returns:
        Actions, shape (B, K, A).

    Raises:
        ValueError: If the shapes do not fit.
    """
    size, members, width = actions.shape
    check_shape("log_weights", log_weights, (size, members))
    check_shape("uniform", uniform, (size, uniform.shape[-1]))
    cumulative = log_weights.softmax(-1).cumsum(-1)
    # Rounding may leave the sum below 1, and noise above the sum would draw the last action, whatever its weight.
    place = uniform * cumulative[:, -1:]
    index = torch.searchsorted(cumulative.to(place.dtype), place, right=True)
    index = index.clamp(max=members - 1)  # of weights that are not finite, whose run ends with a message elsewhere
    return actions.gather(1, index[..., None].expand(-1, -1, width))
