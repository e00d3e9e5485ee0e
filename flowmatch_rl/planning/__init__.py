from flowmatch_rl.planning.candidates import Plan
from flowmatch_rl.planning.discounts import discounts_between, terminal_fraction
from flowmatch_rl.planning.improvement import Choice, best_single, improve
from flowmatch_rl.planning.proposals import on_sphere, perturb
from flowmatch_rl.planning.switching import (
    improve_by_switching,
    switching_discounts,
    switching_value,
    switching_weights,
)
from flowmatch_rl.planning.values import (
    Act,
    Futures,
    MonteCarloValue,
    RewardOfState,
    TerminalProbability,
    ValueEstimate,
    estimate_from_rewards,
    estimate_value,
    monte_carlo_value,
)

__all__ = [
    "Act",
    "Choice",
    "Futures",
    "MonteCarloValue",
    "Plan",
    "RewardOfState",
    "TerminalProbability",
    "ValueEstimate",
    "best_single",
    "discounts_between",
    "estimate_from_rewards",
    "estimate_value",
    "improve",
    "improve_by_switching",
    "monte_carlo_value",
    "on_sphere",
    "perturb",
    "switching_discounts",
    "switching_value",
    "switching_weights",
    "terminal_fraction",
]
