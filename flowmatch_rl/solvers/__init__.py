from flowmatch_rl.solvers.fixed_step import RK4, Euler, Heun, Midpoint, Solver

__all__ = ["RK4", "Euler", "Heun", "Midpoint", "Solver"]
