from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports
from flowmatch_rl.envs.rendering import choose_backend

choose_backend()  # here, since the first import of TorchRL imports MuJoCo

if TYPE_CHECKING:
    from flowmatch_rl.envs.building import Spaces, build_environment, examine, spaces_of
    from flowmatch_rl.envs.environments import DMControlEnvironment, Environment, GymnasiumEnvironment
    from flowmatch_rl.envs.multi_step import MultiStep
    from flowmatch_rl.envs.ogbench import OgbenchEnvironment
    from flowmatch_rl.envs.open_loop import OpenLoop
    from flowmatch_rl.envs.oracles import NavigateOracle, NoisyOracle, Oracle, PlayOracle
    from flowmatch_rl.envs.process import ProcessEnv, ProcessEnvironment, planar_process
    from flowmatch_rl.envs.rendered import RenderedEnvironment
    from flowmatch_rl.envs.rollouts import roll_out_episodes
    from flowmatch_rl.envs.vectors import VectorObservations
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "DMControlEnvironment",
    "Environment",
    "GymnasiumEnvironment",
    "MultiStep",
    "NavigateOracle",
    "NoisyOracle",
    "OgbenchEnvironment",
    "OpenLoop",
    "Oracle",
    "PlayOracle",
    "ProcessEnv",
    "ProcessEnvironment",
    "RenderedEnvironment",
    "Spaces",
    "VectorObservations",
    "build_environment",
    "examine",
    "planar_process",
    "roll_out_episodes",
    "spaces_of",
]
