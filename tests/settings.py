"""Lists of environments and tiny sizes that tests of the upper floors share."""

from flowmatch_rl.data import DMControlEnvironment, Environment, GymnasiumEnvironment

ENVIRONMENTS: list[tuple[Environment, int, int]] = [
    (GymnasiumEnvironment("Pendulum-v1"), 3, 1),
    (GymnasiumEnvironment("HalfCheetah-v5"), 17, 6),
    (GymnasiumEnvironment("Hopper-v5"), 11, 3),
    (DMControlEnvironment("walker", "run"), 24, 6),
    (DMControlEnvironment("fish", "upright"), 21, 5),
    (DMControlEnvironment("finger", "turn_hard"), 12, 2),
]
"""Environments with the dimensions of their observation and action."""
