"""Lists of environments and datasets, and tiny sizes that tests of the upper floors share."""

import importlib.util
from typing import Any

import pytest

from flowmatch_rl.envs import (
    DMControlEnvironment,
    GymnasiumEnvironment,
    OgbenchEnvironment,
    ProcessEnvironment,
)
from flowmatch_rl.testbeds import (
    Checkerboard,
    EightGaussians,
    PlanarDensity,
    PointMassMaze,
    RingProcess,
    Rings,
    Spirals,
    TwoMoons,
)

NEEDS_OGBENCH = pytest.mark.skipif(
    importlib.util.find_spec("ogbench") is None, reason="the extra ogbench is not installed"
)

ENVIRONMENTS: list[Any] = [
    (GymnasiumEnvironment("Pendulum-v1"), 3, 1),
    (GymnasiumEnvironment("HalfCheetah-v5"), 17, 6),
    (GymnasiumEnvironment("Hopper-v5"), 11, 3),
    (DMControlEnvironment("walker", "run"), 24, 6),
    (DMControlEnvironment("fish", "upright"), 21, 5),
    (DMControlEnvironment("finger", "turn_hard"), 12, 2),
    (ProcessEnvironment(RingProcess()), 2, 1),
    (ProcessEnvironment(PointMassMaze()), 4, 2),
    pytest.param(OgbenchEnvironment("pointmaze-medium-v0", 3), 2, 2, marks=NEEDS_OGBENCH),
]
"""Environments with the dimensions of their observation and action."""

DENSITIES: list[PlanarDensity] = [
    TwoMoons(),
    EightGaussians(),
    Checkerboard(),
    Checkerboard(half_width=1.5, squares_per_side=3),
    Rings(),
    Rings(num_rings=1, radius=0.5, noise=0.3),
    Spirals(),
    Spirals(num_arms=3, turns=0.5, noise=0.4),
]
