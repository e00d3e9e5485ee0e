"""Choice among the members of a family of policies by the value of each."""

from dataclasses import dataclass

from torch import Tensor

from flowmatch_rl.planning.candidates import Evaluate, Plan, best_of, best_plan, evaluate_candidates
from flowmatch_rl.planning.values import (
    Act,
    Futures,
    RewardOfState,
    check_discount,
    draw_futures,
    estimate_from_rewards,
    reward_of,
)


@dataclass(frozen=True)
class Choice:
    """The best candidate over all start states, and the estimates that the choice rests on.

    Attributes:
        index: Index of the best candidate, the first of equals, shape ().
        values: Mean value of each candidate over the start states, in units of the return, shape (W,).
        standard_error: Standard error of each over the draws, for fixed start states, shape (W,); NaN for a single
            draw.
    """

    index: Tensor
    values: Tensor
    standard_error: Tensor


def improve(
    futures: Futures,
    act: Act,
    states: Tensor,
    candidates: Tensor,
    noise: Tensor,
    reward: RewardOfState,
    discount: float,
    max_rows: int | None = None,
) -> Plan:
    """Generalised policy improvement: at each state, the member of a family with the highest value.

    A policy that repeats this choice at every step has at every state at least the value of each candidate, if the
    model is exact. All candidates at all states share their noise. The model is called once, with noise of shape
    (B * W, K, D), or as few times as ``max_rows`` allows.

    Args:
        futures: Model of the futures of the members, the current state excluded.
        act: The members; they choose the first action.
        states: States, shape (B, S).
        candidates: Embeddings of the members, shape (W, Z) or, if they differ between states, (B, W, Z).
        noise: Noise of the futures, shape (K, D).
        reward: Reward of states, paid on arrival.
        discount: Discount per step, in [0, 1).
        max_rows: Largest number of futures in one call, at least K; None for no limit.

    Returns:
        The best candidate at each state.

    Raises:
        ValueError: If the shapes do not fit, the discount is outside [0, 1), ``max_rows`` is below K, or a value is
            not finite.

    Reference:
        Farebrother et al., arXiv:2503.09817, equation 15; the shared noise is not theirs.
    """
    evaluate = _own_futures(futures, act, noise, reward, discount)
    actions, rewards = evaluate_candidates(evaluate, states, candidates, 1, len(noise), max_rows)
    return best_plan(actions, rewards, discount)


def best_single(
    futures: Futures,
    act: Act,
    states: Tensor,
    candidates: Tensor,
    noise: Tensor,
    reward: RewardOfState,
    discount: float,
    max_rows: int | None = None,
) -> Choice:
    """The single member of a family with the highest mean value over start states.

    Args:
        futures: Model of the futures of the members, the current state excluded.
        act: The members; they choose the first action.
        states: Start states, shape (B, S).
        candidates: Embeddings of the members, shape (W, Z).
        noise: Noise of the futures, shared by all states and candidates, shape (K, D).
        reward: Reward of states, paid on arrival.
        discount: Discount per step, in [0, 1).
        max_rows: Largest number of futures in one call, at least K; None for no limit.

    Returns:
        The best candidate.

    Raises:
        ValueError: If the shapes do not fit, the discount is outside [0, 1), ``max_rows`` is below K, or a value is
            not finite.
    """
    if candidates.dim() != 2:
        raise ValueError(f"expected candidates of shape (W, Z), the same at every state, got {tuple(candidates.shape)}")
    evaluate = _own_futures(futures, act, noise, reward, discount)
    _, rewards = evaluate_candidates(evaluate, states, candidates, 1, len(noise), max_rows)
    # The states share their noise: only the draws, each averaged over the states, are independent.
    estimate = estimate_from_rewards(rewards.mean(0), discount)
    return Choice(best_of(estimate), estimate.value, estimate.standard_error)


def _own_futures(futures: Futures, act: Act, noise: Tensor, reward: RewardOfState, discount: float) -> Evaluate:
    """Evaluation of members by the rewards of their own futures."""
    check_discount(discount)
    if noise.dim() != 2:
        raise ValueError(f"expected noise of shape (K, D), got {tuple(noise.shape)}")

    def evaluate(state: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        action = act(state, embedding)
        drawn = draw_futures(futures, noise.expand(len(state), -1, -1), state, action, embedding, discount)
        return action, reward_of(reward, drawn)

    return evaluate
