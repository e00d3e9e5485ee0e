from flowmatch_rl.callbacks.drawing.episodes import draw_episodes
from flowmatch_rl.callbacks.drawing.learning import Evaluation, draw_learning_curve, write_table
from flowmatch_rl.callbacks.drawing.policy import draw_policy
from flowmatch_rl.callbacks.drawing.sample import PolicySample, differing_states, sample_policy
from flowmatch_rl.callbacks.drawing.style import save_figure

__all__ = [
    "Evaluation",
    "PolicySample",
    "differing_states",
    "draw_episodes",
    "draw_learning_curve",
    "draw_policy",
    "sample_policy",
    "save_figure",
    "write_table",
]
