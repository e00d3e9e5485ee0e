from flowmatch_rl.solvers.adaptive import AdaptiveSolver
from flowmatch_rl.solvers.base import Solver, line_up_times
from flowmatch_rl.solvers.continuity import ContinuityTerms, continuity_terms
from flowmatch_rl.solvers.divergence import Divergence, ExactDivergence, HutchinsonDivergence
from flowmatch_rl.solvers.fixed_step import RK4, Euler, FixedStepSolver, Heun, Midpoint
from flowmatch_rl.solvers.likelihood import log_likelihood

__all__ = [
    "RK4",
    "AdaptiveSolver",
    "ContinuityTerms",
    "Divergence",
    "Euler",
    "ExactDivergence",
    "FixedStepSolver",
    "Heun",
    "HutchinsonDivergence",
    "Midpoint",
    "Solver",
    "continuity_terms",
    "line_up_times",
    "log_likelihood",
]
