from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.figures.episodes import draw_episodes
    from flowmatch_rl.figures.flow import draw_path, draw_samples, draw_trajectories
    from flowmatch_rl.figures.flow_grids import density_on_grid, field_on_grid
    from flowmatch_rl.figures.flow_maps import draw_density, draw_field, draw_steps
    from flowmatch_rl.figures.flow_sample import FlowModel, FlowSample, num_steps, sample_flow
    from flowmatch_rl.figures.flow_steps import distance_by_steps
    from flowmatch_rl.figures.frames import flow_frames
    from flowmatch_rl.figures.laboratory import ErrorCurve, LawPanels, draw_estimator_errors, draw_law_samples
    from flowmatch_rl.figures.learning import Evaluation, Point, draw_learning_curve, write_table
    from flowmatch_rl.figures.loss import LossPoint, draw_loss_curve
    from flowmatch_rl.figures.occupancy_marginals import draw_future_marginals
    from flowmatch_rl.figures.occupancy_parts import escape, horizon, subject
    from flowmatch_rl.figures.occupancy_plane import draw_future_states, plane_of
    from flowmatch_rl.figures.occupancy_sample import sample_futures, sample_values
    from flowmatch_rl.figures.occupancy_values import draw_values
    from flowmatch_rl.figures.policy import draw_policy
    from flowmatch_rl.figures.posterior import TimeProfile, draw_posterior
    from flowmatch_rl.figures.sample import PolicySample, differing_states, sample_policy
    from flowmatch_rl.figures.style import save_figure
    from flowmatch_rl.figures.view import describe_condition
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ErrorCurve",
    "Evaluation",
    "FlowModel",
    "FlowSample",
    "LawPanels",
    "LossPoint",
    "Point",
    "PolicySample",
    "TimeProfile",
    "density_on_grid",
    "describe_condition",
    "differing_states",
    "distance_by_steps",
    "draw_density",
    "draw_episodes",
    "draw_estimator_errors",
    "draw_field",
    "draw_future_marginals",
    "draw_future_states",
    "draw_law_samples",
    "draw_learning_curve",
    "draw_loss_curve",
    "draw_path",
    "draw_policy",
    "draw_posterior",
    "draw_samples",
    "draw_steps",
    "draw_trajectories",
    "draw_values",
    "escape",
    "field_on_grid",
    "flow_frames",
    "horizon",
    "num_steps",
    "plane_of",
    "sample_flow",
    "sample_futures",
    "sample_policy",
    "sample_values",
    "save_figure",
    "subject",
    "write_table",
]
