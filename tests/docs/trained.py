"""Small models in place of those that the pages train before they load them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from flowmatch_rl.data import OfflineData, collect_transitions
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.models import FlowPolicyArchitecture, Intentions
from flowmatch_rl.modules import BehaviorCloning, DynamicsModule, ForwardBackward
from flowmatch_rl.nets import ForwardBackwardArchitecture, VelocityArchitecture
from flowmatch_rl.schema import ActionBounds, TableSchema
from flowmatch_rl.testbeds import MazeGoalPolicy, PointMassMaze
from tests.modules.occupancy_toys import occupancy

STATE = TableSchema(("x", "y", "vx", "vy"), (0.0, 0.0, 0.0, 0.0), (0.1, 0.1, 0.3, 0.3))
BOUNDS = ActionBounds((-1.0, -1.0), (1.0, 1.0))
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def data_set(path: Path) -> OfflineData:
    """A few steps of random forces in the maze."""
    environment = ProcessEnvironment(PointMassMaze(action_repeat=4), max_steps=5)
    collect_transitions(environment, str(path), 500, num_envs=50, block_steps=5, progress=False)
    return OfflineData(str(path), 32, 1, 1, eval_states=4, test_states=4)


def known(data: OfflineData) -> dict[str, Any]:
    """Dimensions of data of a single policy."""
    return {name: value for name, value in data.dimensions.items() if name != "embedding_dim"}


def goals(folder: Path) -> LightningModule:
    """The occupancies of the policies that go to a point."""
    return occupancy(STATE, policy=MazeGoalPolicy())


def intentions(folder: Path) -> LightningModule:
    """An occupancy of several policies that are known by data alone."""
    return occupancy(STATE, policy=None, intentions=Intentions(latent_dim=4))


def dynamics(folder: Path) -> LightningModule:
    """A one-step model."""
    return DynamicsModule(**known(data_set(folder / "steps")))


def family(folder: Path) -> LightningModule:
    """A policy for every goal, cloned from data."""
    schema = TableSchema(("x", "y"), (0.0, 0.0), (0.1, 0.1))
    policy = FlowPolicyArchitecture(network=VelocityArchitecture(hidden_dim=16, num_blocks=1))
    return BehaviorCloning(4, 2, BOUNDS, goal_schema=schema, policy=policy)


def forward_backward(folder: Path) -> LightningModule:
    """Policies for all rewards, after one update: the reference states come with the data."""
    data = data_set(folder / "rewardless")
    architecture = ForwardBackwardArchitecture(embedding_dim=6, hidden_dim=16)
    module = ForwardBackward(**known(data), architecture=architecture, num_references=64)
    Trainer(max_epochs=1, limit_val_batches=0, enable_model_summary=False, **QUIET).fit(module, datamodule=data)
    return module


MODELS: dict[str, Callable[[Path], LightningModule]] = {
    "goals": goals,
    "intentions": intentions,
    "dynamics": dynamics,
    "family": family,
    "forward_backward": forward_backward,
}


def save(name: str, folder: Path) -> str:
    """The checkpoint of a small model, made when it is first wanted."""
    path = folder / f"{name}.ckpt"
    if not path.exists():
        module = MODELS[name](folder)
        trainer = Trainer(max_steps=0, **QUIET)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(path, weights_only=True)
    return str(path)
