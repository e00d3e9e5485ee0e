from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flowmatch_rl.figures.bandits import BanditPanels, draw_bandit_samples, draw_estimator_errors
    from flowmatch_rl.figures.calibration import draw_calibration
    from flowmatch_rl.figures.dynamics import draw_rollout_errors
    from flowmatch_rl.figures.episodes import draw_episodes
    from flowmatch_rl.figures.flow import draw_path, draw_samples, draw_trajectories
    from flowmatch_rl.figures.flow_maps import draw_density, draw_field, draw_steps
    from flowmatch_rl.figures.frames import flow_frames
    from flowmatch_rl.figures.learning import draw_learning_curve, draw_loss_curve
    from flowmatch_rl.figures.occupancy_expansion import draw_expansion
    from flowmatch_rl.figures.occupancy_marginals import draw_future_marginals
    from flowmatch_rl.figures.occupancy_parts import horizon, subject
    from flowmatch_rl.figures.occupancy_plane import draw_future_states, plane_among, plane_of
    from flowmatch_rl.figures.occupancy_values import draw_values
    from flowmatch_rl.figures.policy import draw_policy
    from flowmatch_rl.figures.posterior import draw_posterior
    from flowmatch_rl.figures.style import save_figure
    from flowmatch_rl.figures.value_map import draw_value_map
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "BanditPanels",
    "Figure",
    "draw_bandit_samples",
    "draw_calibration",
    "draw_density",
    "draw_episodes",
    "draw_estimator_errors",
    "draw_expansion",
    "draw_field",
    "draw_future_marginals",
    "draw_future_states",
    "draw_learning_curve",
    "draw_loss_curve",
    "draw_path",
    "draw_policy",
    "draw_posterior",
    "draw_rollout_errors",
    "draw_samples",
    "draw_steps",
    "draw_trajectories",
    "draw_value_map",
    "draw_values",
    "flow_frames",
    "horizon",
    "plane_among",
    "plane_of",
    "save_figure",
    "subject",
]
