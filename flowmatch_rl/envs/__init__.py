from flowmatch_rl.envs.environments import (
    DMControlEnvironment,
    Environment,
    GymnasiumEnvironment,
    Spaces,
    build_environment,
    spaces_of,
)
from flowmatch_rl.envs.multi_step import MultiStep
from flowmatch_rl.envs.process import ProcessEnv, ProcessEnvironment
from flowmatch_rl.envs.rendered import RenderedEnvironment
from flowmatch_rl.envs.rollouts import roll_out_episodes

__all__ = [
    "DMControlEnvironment",
    "Environment",
    "GymnasiumEnvironment",
    "MultiStep",
    "ProcessEnv",
    "ProcessEnvironment",
    "RenderedEnvironment",
    "Spaces",
    "build_environment",
    "roll_out_episodes",
    "spaces_of",
]
