from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.evaluation.behavior import behavior_distance, score_actions
    from flowmatch_rl.evaluation.calibration import Calibration, calibrate
    from flowmatch_rl.evaluation.curves import (
        CurvePoint,
        LossPoint,
        MeanCurve,
        PolicyPoint,
        ReturnPoint,
        columns_of,
        names_of,
    )
    from flowmatch_rl.evaluation.dynamics import RolloutErrors, dynamics_lines, rollout_errors
    from flowmatch_rl.evaluation.episodes import Episodes, normalised_score
    from flowmatch_rl.evaluation.estimators import (
        EstimatorErrors,
        check_estimator,
        estimator_errors,
        exact_posterior_mean,
    )
    from flowmatch_rl.evaluation.expansion import ExpansionPoint, ExpansionSample
    from flowmatch_rl.evaluation.flow import FlowResult, FlowTests, StepErrors, distance_by_steps
    from flowmatch_rl.evaluation.flow_grids import DensityGrid, FieldGrid, density_on_grid, field_on_grid
    from flowmatch_rl.evaluation.flow_samples import FlowSample, sample_flow
    from flowmatch_rl.evaluation.futures import (
        FutureSample,
        ValueComparison,
        real_futures,
        sample_futures,
        sample_values,
    )
    from flowmatch_rl.evaluation.members import with_members
    from flowmatch_rl.evaluation.occupancy import FutureTests
    from flowmatch_rl.evaluation.policy import PolicySample, PosteriorProfile, sample_policy
    from flowmatch_rl.evaluation.value_map import ValueMap, map_values
    from flowmatch_rl.evaluation.view import describe_condition, differing_states
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Calibration",
    "CurvePoint",
    "DensityGrid",
    "Episodes",
    "EstimatorErrors",
    "ExpansionPoint",
    "ExpansionSample",
    "FieldGrid",
    "FlowResult",
    "FlowSample",
    "FlowTests",
    "FutureSample",
    "FutureTests",
    "LossPoint",
    "MeanCurve",
    "PolicyPoint",
    "PolicySample",
    "PosteriorProfile",
    "ReturnPoint",
    "RolloutErrors",
    "StepErrors",
    "ValueComparison",
    "ValueMap",
    "behavior_distance",
    "calibrate",
    "check_estimator",
    "columns_of",
    "density_on_grid",
    "describe_condition",
    "differing_states",
    "distance_by_steps",
    "dynamics_lines",
    "estimator_errors",
    "exact_posterior_mean",
    "field_on_grid",
    "map_values",
    "names_of",
    "normalised_score",
    "real_futures",
    "rollout_errors",
    "sample_flow",
    "sample_futures",
    "sample_policy",
    "sample_values",
    "score_actions",
    "with_members",
]
