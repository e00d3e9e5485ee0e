from flowmatch_rl.testbeds.policies.maze import MazeGoalPolicy, MazeLoopPolicy, MazeReachPolicy, Room
from flowmatch_rl.testbeds.policies.simple import ConstantPolicy, LinearPolicy, RandomPolicy

__all__ = [
    "ConstantPolicy",
    "LinearPolicy",
    "MazeGoalPolicy",
    "MazeLoopPolicy",
    "MazeReachPolicy",
    "RandomPolicy",
    "Room",
]
