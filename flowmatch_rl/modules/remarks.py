"""What the targets of a policy say about its settings, in words."""

import math
from collections.abc import Sequence

from flowmatch_rl.estimators import EndpointEstimator, PosteriorMeanEstimator, ProductProposal
from flowmatch_rl.evaluation import PosteriorProfile

_FEW, _OFTEN, _AT_BOUNDS = 2.0, 0.5, 0.9
"""Effective samples that are too few, the fraction of flow times at which they must be, and entries at their bounds."""


def target_remarks(profile: PosteriorProfile, estimator: EndpointEstimator) -> dict[str, str]:
    """Remarks on targets that a policy learns little or nothing good from.

    Args:
        profile: What the targets were like, by flow time.
        estimator: What made them.

    Returns:
        One line each by what it is about.
    """
    remarks, num_samples = {}, estimator.num_samples
    few = _fraction([num_samples * value < _FEW for value in _known(profile, "effective_sample_fraction")])
    if few >= _OFTEN:
        remarks["effective samples"] = (
            f"effective sample size under {_FEW:g} of {num_samples} at {few:.0%} of flow times: {_more(estimator)}"
        )
    saturated = _known(profile, "saturated")
    if saturated and (mean := sum(saturated) / len(saturated)) > _AT_BOUNDS:
        remarks["saturated"] = (
            f"{mean:.0%} of the entries of the actions that the policy learns from are at their bounds: raise the "
            "temperature, or widen the bounds of actions"
        )
    return remarks


def _more(estimator: EndpointEstimator) -> str:
    """What brings more effective samples."""
    if isinstance(estimator, PosteriorMeanEstimator) and not isinstance(estimator.proposal, ProductProposal):
        return "raise the temperature, draw more samples, or use the product proposal (ProductProposal)"
    return "raise the temperature, or draw more samples"


def _known(profile: PosteriorProfile, name: str) -> list[float]:
    return [value for value in profile.means.get(name, ()) if not math.isnan(value)]


def _fraction(holds: Sequence[bool]) -> float:
    return sum(holds) / len(holds) if holds else 0.0
