import inspect
import math

import pytest

from flowmatch_rl.couplings import Coupling
from flowmatch_rl.estimators import ControlVariate, EndpointEstimator, PriorProposal, Proposal
from flowmatch_rl.inference import CheckpointPolicy
from flowmatch_rl.models import DynamicsSettings, Selection
from flowmatch_rl.nets import Architecture, CriticLayers, DynamicsArchitecture, ObservationFeatures, ValueHead
from flowmatch_rl.objectives import FlowObjective, OccupancyObjective, Temperature, TimeWeight
from flowmatch_rl.paths import AffinePath, Schedule, Source, Squash, TimeDistribution
from flowmatch_rl.samplers import Sampler
from flowmatch_rl.solvers import Divergence, Solver
from flowmatch_rl.testbeds import Bandit, Process
from flowmatch_rl.types import Policy, Reward
from tests import families
from tests.combinations import one_test

FAMILIES = [
    (Schedule, families.SCHEDULES),
    (Solver, [*(solver for solver, _ in families.SOLVERS), *families.ADAPTIVE_SOLVERS]),
    (Divergence, families.DIVERGENCES),
    (Sampler, families.SAMPLERS),
    (Proposal, families.PROPOSALS),
    (ControlVariate, families.CONTROL_VARIATES),
    (EndpointEstimator, families.ESTIMATORS),
    (PriorProposal, families.PRIOR_PROPOSALS),
    (Selection, families.SELECTIONS),
    (Architecture, families.ARCHITECTURES),
    (DynamicsSettings, families.DYNAMICS),
    (CriticLayers, families.CRITIC_LAYERS),
    (ValueHead, families.VALUE_HEADS),
    (TimeWeight, families.TIME_WEIGHTS),
    (FlowObjective, families.OBJECTIVES),
    (Temperature, families.TEMPERATURES),
    (OccupancyObjective, families.OCCUPANCY_OBJECTIVES),
    (TimeDistribution, families.TIME_DISTRIBUTIONS),
    (Squash, families.SQUASHES),
    (Source, families.SOURCES),
    (Coupling, families.COUPLINGS),
    (Process, families.PROCESSES),
    (Bandit, [*families.BANDITS, *families.DEPENDENT_BANDITS]),
    (Policy, [*families.POLICIES, CheckpointPolicy]),
    (Reward, families.REWARDS),
]

TYPES = {m if isinstance(m, type) else type(m) for _, members in FAMILIES for m in members}


def descendants(base: type) -> set[type]:
    """All classes of the package below ``base``."""
    children = {c for c in base.__subclasses__() if c.__module__.startswith("flowmatch_rl.")}
    return children.union(*map(descendants, children))


every_family = pytest.mark.parametrize(("base", "members"), FAMILIES, ids=[base.__name__ for base, _ in FAMILIES])


@one_test
@every_family
def test_every_concrete_member_of_a_family_is_listed_and_abstract_or_final(base: type, members: list) -> None:
    listed = {member if isinstance(member, type) else type(member) for member in members}
    assert listed == {c for c in descendants(base) if not inspect.isabstract(c)}
    assert inspect.isabstract(base)
    for member in descendants(base):
        assert inspect.isabstract(member) or not descendants(member)


@one_test
@every_family
def test_members_compare_by_value_and_cannot_change(base: type, members: list) -> None:
    names = {kind.__name__: kind for kind in (*TYPES, AffinePath, DynamicsArchitecture, ObservationFeatures)} | {
        "inf": math.inf
    }
    for member in (member for member in members if not isinstance(member, type)):
        assert eval(repr(member), names) == member
        with pytest.raises(AttributeError):
            member.anything = 1
