"""Policies that follow one member of a family after another, evaluated by chaining models of different discounts.

A geometric switching policy takes an action, follows its first member, and after each step switches to the next member
with a given probability; it never leaves the last. Until the switch its futures are those of the member with a shorter
horizon, and the state at the switch is again a draw from them, from which the next member continues.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.planning.candidates import Plan, best_plan, evaluate_candidates
from flowmatch_rl.planning.values import (
    Act,
    Futures,
    RewardOfState,
    TerminalProbability,
    ValueEstimate,
    check_discount,
    draw_futures,
    estimate_from_rewards,
    reward_of,
)
from flowmatch_rl.shapes import check_shape


def switching_discounts(discount: float, switch_probabilities: Sequence[float]) -> tuple[float, ...]:
    """Discounts of the models to chain, ``discount * (1 - probability)``.

    Args:
        discount: Discount per step of the return, in [0, 1).
        switch_probabilities: Probability of leaving each member after a step, in [0, 1]; the last is 0.

    Returns:
        A discount per member; the last is that of the return.

    Raises:
        UserError: If a number is out of range, or the last probability is not 0.
    """
    check_discount(discount)
    if not all(0.0 <= probability <= 1.0 for probability in switch_probabilities):
        raise UserError(f"switch_probabilities must lie in [0, 1], got {tuple(switch_probabilities)}")
    if len(switch_probabilities) == 0 or switch_probabilities[-1] != 0.0:
        raise UserError(f"the last of switch_probabilities must be 0, got {tuple(switch_probabilities)}")
    return tuple(discount * (1.0 - probability) for probability in switch_probabilities)


def switching_weights(discount: float, betas: Sequence[float]) -> tuple[float, ...]:
    """Weights of the members of a chain in the futures of the policy that switches between them.

    ``w_k = (1 - discount) / (1 - beta_k) * prod_{i < k} (discount - beta_i) / (1 - beta_i)``; they sum to 1.

    Args:
        discount: Discount per step of the return, in [0, 1).
        betas: Discount of each model of the chain, in [0, discount]; the last is that of the return.

    Returns:
        A weight per member.

    Raises:
        UserError: If a number is out of range, or the last discount is not that of the return.

    Reference:
        Farebrother et al., arXiv:2602.19634.
    """
    check_discount(discount)
    if not all(0.0 <= beta <= discount for beta in betas):
        raise UserError(f"betas must lie in [0, {discount}], got {tuple(betas)}")
    if len(betas) == 0 or betas[-1] != discount:
        raise UserError(f"the last of betas must be the discount {discount}, got {tuple(betas)}")
    weights, reached = [], 1.0
    for beta in betas:
        weights.append(reached * (1.0 - discount) / (1.0 - beta))
        reached *= (discount - beta) / (1.0 - beta)
    return tuple(weights)


def switching_value(
    futures: Futures,
    act: Act,
    state: Tensor,
    action: Tensor,
    sequence: Tensor,
    noise: Tensor,
    reward: RewardOfState,
    discount: float,
    betas: Sequence[float],
    terminal: TerminalProbability | None = None,
) -> ValueEstimate:
    """Value of an action followed by a geometric switching policy.

    Args:
        futures: Model of the futures of the members at every discount of the chain, the current state excluded; its
            futures are whole states.
        act: The members.
        state: States, shape (*batch, S).
        action: Actions taken first, shape (*batch, A).
        sequence: Embeddings of the n members in turn, shape (*batch, n, Z).
        noise: Noise of K chains, shape (n, K, S), shared by the batch.
        reward: Reward of states, paid on arrival.
        discount: Discount per step of the return, in [0, 1).
        betas: Discount of each model of the chain, in [0, discount]; the last is that of the return.
        terminal: Probability that futures are terminal; None if no state is.

    Returns:
        Estimates, shape (*batch).

    Raises:
        ValueError: If the shapes do not fit, or the discounts do not form a chain.

    Reference:
        Farebrother et al., arXiv:2602.19634.
    """
    rewards = _chain_rewards(futures, act, state, action, sequence, noise, reward, discount, betas, terminal)
    return estimate_from_rewards(rewards, discount)


def improve_by_switching(
    futures: Futures,
    act: Act,
    states: Tensor,
    sequences: Tensor,
    noise: Tensor,
    reward: RewardOfState,
    discount: float,
    betas: Sequence[float],
    max_rows: int | None = None,
    terminal: TerminalProbability | None = None,
) -> Plan:
    """At each state, the sequence of members whose switching policy has the highest value.

    With sequences of one member it is generalised policy improvement. All sequences at all states share their noise.

    Args:
        futures: Model of the futures of the members at every discount of the chain, the current state excluded; its
            futures are whole states.
        act: The members; the first one chooses the first action.
        states: States, shape (B, S).
        sequences: Embeddings of the n members in turn, shape (W, n, Z) or, if they differ between states, (B, W, n, Z).
        noise: Noise of K chains, shape (n, K, S).
        reward: Reward of states, paid on arrival.
        discount: Discount per step of the return, in [0, 1).
        betas: Discount of each model of the chain, in [0, discount]; the last is that of the return.
        max_rows: Largest number of futures in one call, at least K; None for no limit.
        terminal: Probability that futures are terminal; None if no state is.

    Returns:
        The best sequence at each state.

    Raises:
        ValueError: If the shapes do not fit, the discounts do not form a chain, ``max_rows`` is below K, or a value is
            not finite.
    """
    _check_chain_noise(noise, len(betas))

    def evaluate(state: Tensor, sequence: Tensor) -> tuple[Tensor, Tensor]:
        action = act(state, sequence[:, 0])
        return action, _chain_rewards(futures, act, state, action, sequence, noise, reward, discount, betas, terminal)

    actions, rewards = evaluate_candidates(evaluate, states, sequences, 2, noise.shape[1], max_rows)
    return best_plan(actions, rewards, discount)


def _chain_rewards(
    futures: Futures,
    act: Act,
    state: Tensor,
    action: Tensor,
    sequence: Tensor,
    noise: Tensor,
    reward: RewardOfState,
    discount: float,
    betas: Sequence[float],
    terminal: TerminalProbability | None,
) -> Tensor:
    """Rewards of K independent chains, each the weighted sum of those of its members, shape (*batch, K).

    A chain that may have ended counts for both cases, each with its probability.
    """
    weights, batch = switching_weights(discount, betas), tuple(state.shape[:-1])
    _check_chain_noise(noise, len(betas))
    check_shape("noise", noise, (*noise.shape[:2], state.shape[-1]))
    check_shape("sequence", sequence, (*batch, len(betas), sequence.shape[-1]))
    rows = noise.expand(*batch, *noise.shape).movedim(-3, 0)  # (n, *batch, K, S)
    members = sequence[..., None, :, :].expand(*batch, noise.shape[1], *sequence.shape[-2:]).movedim(-2, 0)
    # The first link draws K futures of one state, the later ones a single future of each of the K.
    reached = draw_futures(futures, rows[0], state, action, sequence[..., 0, :], betas[0])
    earned = reward_of(reward, reached)
    total, going, left = weights[0] * earned, 1.0, 1.0 - weights[0]
    for row, member, (last_beta, beta), weight in zip(rows[1:], members[1:], pairwise(betas), weights[1:], strict=True):
        if terminal is not None:
            ended = going * terminal(reached, last_beta)
            total, going = total + ended * left * earned, going - ended
        action = act(reached, member)
        reached = draw_futures(futures, row[..., None, :], reached, action, member, beta)[..., 0, :]
        earned = reward_of(reward, reached)
        total, left = total + going * weight * earned, left - weight
    return total


def _check_chain_noise(noise: Tensor, num_members: int) -> None:
    if noise.dim() != 3 or len(noise) != num_members:
        raise ValueError(f"expected noise of shape ({num_members}, K, S), one row per model, got {tuple(noise.shape)}")
