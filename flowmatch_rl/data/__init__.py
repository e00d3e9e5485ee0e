from flowmatch_rl.data.envs import DMControlEnvironment, Environment, GymnasiumEnvironment, Spaces, build_environment
from flowmatch_rl.data.online import OnlineData
from flowmatch_rl.data.rollouts import roll_out_episodes

__all__ = [
    "DMControlEnvironment",
    "Environment",
    "GymnasiumEnvironment",
    "OnlineData",
    "Spaces",
    "build_environment",
    "roll_out_episodes",
]
