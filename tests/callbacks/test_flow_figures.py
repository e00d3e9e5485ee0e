from pathlib import Path
from typing import Any

import pytest
import torch

from flowmatch_rl.callbacks.flow_figures import FlowFigures
from flowmatch_rl.modules import FlowMatchingModel
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.types import TableSchema
from tests.callbacks.stand_ins import stand_in_trainer
from tests.callbacks.test_figures import is_drawn

TINY = VelocityArchitecture(hidden_dim=16, num_blocks=1, time_features=8)


def tiny_flow(schema: TableSchema, **changes: Any) -> FlowMatchingModel:
    return FlowMatchingModel(schema, velocity=TINY, likelihood_solver=Midpoint(4), **changes)


def test_a_planar_flow_is_drawn(tmp_path: Path) -> None:
    schema = TableSchema(("x", "y"), (0.0, 0.0), (1.0, 1.0))
    batch: dict[str, Any] = {"sample": torch.randn(300, 2, generator=torch.Generator().manual_seed(0))}
    FlowFigures(density_grid=16, video="none").on_test_batch_end(
        stand_in_trainer(tmp_path), tiny_flow(schema), None, batch, 0
    )
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"samples.png", "path.png", "trajectories.png", "steps.png", "field.png", "density.png"}
    assert all(is_drawn(tmp_path / "figures" / name) for name in names)


@pytest.mark.parametrize("name", ["num_samples", "density_grid", "max_side"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        FlowFigures(**{name: 1})
