"""Remarks on the targets of a policy: when they are made, and when not."""

from typing import Any

import pytest

from flowmatch_rl.estimators import LikelihoodProposal, PosteriorMeanEstimator, ProductProposal
from flowmatch_rl.evaluation import PosteriorProfile
from flowmatch_rl.modules import ReverseFlowActorCritic
from flowmatch_rl.modules.remarks import target_remarks
from flowmatch_rl.modules.trial_update import trial_update
from tests.callbacks.stand_ins import tiny_module

NAN = float("nan")
PLAIN, PRODUCT = (PosteriorMeanEstimator(16, proposal) for proposal in (LikelihoodProposal(), ProductProposal()))


def profile(**means: list[float]) -> PosteriorProfile:
    return PosteriorProfile(0, range(len(next(iter(means.values())))), means)


def test_few_effective_samples_are_named_with_the_fraction_of_flow_times() -> None:
    few, many = 1.9 / 16, 2.1 / 16
    remarks = target_remarks(profile(effective_sample_fraction=[few, few, few, many, NAN]), PRODUCT)
    assert "ProductProposal" not in remarks["effective samples"]
    assert "(ProductProposal)" in target_remarks(profile(effective_sample_fraction=[few]), PLAIN)["effective samples"]
    assert remarks["effective samples"].startswith("effective sample size under 2 of 16 at 75% of flow times: raise")
    assert target_remarks(profile(effective_sample_fraction=[few, many, many, NAN]), PRODUCT) == {}
    assert target_remarks(profile(effective_sample_fraction=[NAN]), PRODUCT) == {}
    assert target_remarks(profile(eta=[0.0]), PRODUCT) == {}


@pytest.mark.parametrize(("values", "expected"), [([0.95, 0.93], {"saturated"}), ([0.95, 0.8], set())])
def test_actions_at_their_bounds_are_named(values: list[float], expected: set[str]) -> None:
    assert set(target_remarks(profile(saturated=values), PRODUCT)) == expected


def test_a_module_remarks_on_the_targets_since_the_last_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = tiny_module()
    assert isinstance(module, ReverseFlowActorCritic)
    assert module.remarks() == {}
    module.temperature.fill_(1e-6)  # so that a single sample has all the weight
    trial_update(module, 64)()
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(module, "all_gather", lambda sums: sums)
    module.on_validation_epoch_end()
    assert "effective sample size under 2 of 4 at 100% of flow times" in module.remarks()["effective samples"]
