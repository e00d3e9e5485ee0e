"""Losses of forward-backward representations of successor measures.

The successor measure of a policy weights the states that follow by the discount,
``M(s, a, X) = sum_{k >= 0} discount^k P(s_{k+1} in X | s, a)``: the state after the first step has weight 1, and all
weights add up to ``1 / (1 - discount)``. Relative to the distribution rho of the states arrived in in the data its
density is represented as ``M(s, a, ds') = F(s, a, z)^T B(s') rho(ds')``, for the policy of every embedding z. Then
``F(s, a, z)^T z`` with ``z = E_rho[r(s') B(s')]`` is the action value of the reward r, and the policy of z is to be
greedy for it.
"""

import torch
from torch import Tensor

from flowmatch_rl.checks import check_word
from flowmatch_rl.objectives.bellman import ValueReduction
from flowmatch_rl.shapes import check_shape


def successor_density(forward: Tensor, backward: Tensor) -> Tensor:
    """Density of the successor measure relative to the data, ``F^T B``.

    Args:
        forward: Forward representations F, shape (*members, B, d).
        backward: Backward representations B of N states, shape (N, d).

    Returns:
        Density of every state of the N after every pair of the B, shape (*members, B, N).
    """
    return forward @ backward.transpose(-1, -2)


def reduced_members(values: Tensor, reduction: ValueReduction) -> Tensor:
    """Minimum or mean over the members, shape (*batch).

    Args:
        values: Shape (M, *batch).
        reduction: Which of both.
    """
    check_word(("min", "mean"), reduction=reduction)
    return values.amin(0) if reduction == "min" else values.mean(0)


def forward_backward_loss(forward: Tensor, backward: Tensor, target: Tensor) -> Tensor:
    """Squared Bellman error of the successor measure in the norm of the data, up to a constant.

    The states arrived in by the other transitions of the batch are samples of rho that are independent of a
    transition's own: ``E_{s'~rho} (F^T B(s') - discount F_target^T B_target(s'))^2 - 2 F^T B(arrival)``.

    Args:
        forward: Forward representations of the transitions, with gradient, shape (M, B, d).
        backward: Backward representations of the states they arrive in, with gradient, shape (B, d).
        target: Density of the successor measure from these states on times the discount, 0 after terminal ones,
            detached, shape (B, B): column j is for the state that transition j arrives in.

    Returns:
        Loss per transition, mean over the members, shape (B,); it may be negative.

    Raises:
        ValueError: If the shapes do not fit, or there is a single transition.

    Reference:
        Touati and Ollivier, arXiv:2103.07945; Touati et al., arXiv:2209.14935.
    """
    size = _batch_size(backward)
    check_shape("forward", forward, (len(forward), *backward.shape))
    check_shape("target", target, (size, size))
    density = successor_density(forward, backward)  # (M, B, B)
    own = density.diagonal(dim1=-2, dim2=-1)
    errors = (density - target).square()
    others = (errors.sum(-1) - errors.diagonal(dim1=-2, dim2=-1)) / (size - 1)
    return (others - 2.0 * own).mean(0)


def orthonormality_loss(backward: Tensor) -> Tensor:
    """Squared distance of the second moment of B from the identity, ``|E[B B^T] - 1|^2``.

    F and B are known up to a linear map only, which this fixes up to a rotation.

    Args:
        backward: Backward representations of independent states of the data, with gradient, shape (B, d).

    Returns:
        Loss per state, shape (B,), an unbiased estimate that may be negative.

    Raises:
        ValueError: If there is a single state.

    Reference:
        Touati and Ollivier, arXiv:2103.07945.
    """
    size, dimension = _batch_size(backward), backward.shape[-1]
    products = backward @ backward.T
    own = products.diagonal()
    others = (products.square().sum(-1) - own.square()) / (size - 1)
    return others - 2.0 * own + dimension


def on_sphere(embedding: Tensor) -> Tensor:
    """Embeddings of norm ``sqrt(d)`` in the same direction, shape (*batch, d); zero stays zero.

    Policies are the same for all positive multiples of a reward.

    Args:
        embedding: Shape (*batch, d).
    """
    return embedding.shape[-1] ** 0.5 * torch.nn.functional.normalize(embedding, dim=-1)


def reward_embedding(reward: Tensor, backward: Tensor) -> Tensor:
    """Embedding of a reward, ``z = E_rho[r(s') B(s')]``, shape (d,), for ``F^T z`` to be its action value.

    Args:
        reward: Rewards of N states of the data, shape (N,).
        backward: Their backward representations, shape (N, d).

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shape("reward", reward, (len(backward),))
    return reward @ backward / len(backward)


def _batch_size(backward: Tensor) -> int:
    check_shape("backward", backward, tuple(backward.shape[:2]))
    if len(backward) < 2:
        raise ValueError(f"expected at least 2 transitions, got {len(backward)}")
    return len(backward)
