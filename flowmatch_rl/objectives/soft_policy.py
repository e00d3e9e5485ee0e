"""The loss of a reparameterised policy under a maximum-entropy objective."""

from torch import Tensor

from flowmatch_rl.shapes import check_same_shape


def soft_policy_loss(log_prob: Tensor, action: Tensor, action_gradient: Tensor, temperature: Tensor | float) -> Tensor:
    """Loss whose gradient is that of ``temperature log_prob - Q(action)``.

    The gradient of Q is given, so that no pass through the critics is kept for it.

    Args:
        log_prob: Log-density of the actions, with gradient, nats, shape (B,).
        action: Actions, with gradient, shape (B, A).
        action_gradient: Gradient of the action value at the actions, detached, shape (B, A).
        temperature: Temperature, units of the return.

    Returns:
        Loss per sample, shape (B,); its gradient means something, its value doesn't.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Haarnoja et al., arXiv:1812.05905.
    """
    check_same_shape(action=action, action_gradient=action_gradient)
    check_same_shape(log_prob=log_prob, actions=action[:, 0])
    return temperature * log_prob - (action_gradient * action).sum(-1)
