"""Training of a one-step model of an environment, from transitions."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowmatch_rl.batches import (
    CONDITION,
    SAMPLE,
    ActionTrials,
    Rollouts,
    Segment,
    SegmentNeeds,
    read_rollouts,
    read_segment,
)
from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.evaluation import RolloutErrors, dynamics_lines, rollout_errors
from flowmatch_rl.models import DeterministicDynamics, Dynamics, DynamicsSettings
from flowmatch_rl.modules.loading import build_module
from flowmatch_rl.modules.occupancy_checks import check_policy
from flowmatch_rl.modules.settings import FlowOptimizer
from flowmatch_rl.modules.single_optimizer import SingleOptimizer
from flowmatch_rl.schema import ActionBounds, TableSchema
from flowmatch_rl.types import Policy

_MEASURED = 4_096
"""Transitions that the scale of the changes is taken from."""


class DynamicsModule(SingleOptimizer):
    """Where one step leads from a state under an action: a model that other runs expand transitions in.

    Evaluations compare it with real trajectories over many steps: of a policy in an environment, or of the data, whose
    recorded actions are then repeated in the model.

    Args:
        schema: Names and units of the state's entries; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_bounds: Bounds of the action in the environment's unit; taken from the data.
        policy: Policy that evaluations follow in the environment of the data; None to keep the last trajectories of the
            data for evaluation.
        dynamics: The model: deterministic, or drawing the state that follows.
        optimizer: Optimizer.
        predict_samples: Draws of the ``predict`` command for each source state, at least 1.

    Raises:
        UserError: If a number is out of its range, or the policy takes other states or actions.
    """

    loss_names: ClassVar = {"one-step model": "train/loss"}
    progress_metrics = (("loss", "train/loss"), ("held out", "val/loss"))

    def __init__(
        self,
        schema: TableSchema | None,
        action_dim: int,
        action_bounds: ActionBounds | None = None,
        policy: Policy | None = None,
        dynamics: DynamicsSettings = DeterministicDynamics(),
        optimizer: FlowOptimizer = FlowOptimizer(1e-2, "cosine", weight_decay=1e-2),
        predict_samples: int = 1,
    ) -> None:
        super().__init__()
        if schema is None:  # an option of a dataclass type alone would be asked for field by field
            raise UserError("expected the schema of the data, got None")
        check_range("[1, inf)", predict_samples=predict_samples)
        self.save_hyperparameters()
        self.state_schema, self.policy, self.optimizer = schema, policy, optimizer
        self.predict_samples = predict_samples
        self.dynamics = dynamics.build(schema, action_dim)
        if policy is not None:
            check_policy(policy, self.dynamics.state_shift[None], schema.columns, action_dim)

    @property
    def networks(self) -> Mapping[str, Iterable[Tensor]]:
        """The model."""
        return {"one-step model": self.dynamics.parameters()}

    @property
    def schema(self) -> TableSchema:
        """Columns of the states arrived in and of what they follow, with their units."""
        state, action_dim = self.state_schema, self.dynamics.action_dim
        return TableSchema(
            columns=state.columns,
            shift=state.shift,
            scale=state.scale,
            units=state.units,
            condition_columns=(
                *(f"source_{name}" for name in state.columns),
                *(f"action_{i}" for i in range(action_dim)),
            ),
            condition_shift=(*state.shift, *[0.0] * action_dim),
            condition_scale=(*state.scale, *[1.0] * action_dim),
        )

    @property
    def monitor(self) -> tuple[str, str] | None:
        """Metric that picks the best checkpoint; None where there are no trajectories to compare with."""
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        return ("val/loss", "min") if getattr(data, "has_trajectories", True) else None

    @property
    def segment_needs(self) -> SegmentNeeds:
        """Single transitions."""
        return SegmentNeeds()

    @property
    def action_trials(self) -> ActionTrials:
        """None: a test follows the policy, or what is recorded, alone."""
        return ActionTrials()

    def start_training(self) -> None:
        """Measure the changes of the state, unless a checkpoint holds their scale."""
        super().start_training()
        if not self.dynamics.trained:
            data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            first = read_segment({k: v.to(self.device) for k, v in next(data.transitions(_MEASURED)).items()})
            self.dynamics.measure(first.observation, first.arrivals[:, 0])

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of a batch."""
        loss = dynamics_loss(self.dynamics, read_segment(batch)).mean()
        self.means.add({"train/loss": loss})
        return loss

    def after_update(self) -> None:
        """From the first update on the model is one that has been trained."""
        self.dynamics.trained.fill_(True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the model."""
        return self.optimizer.build(self.dynamics.parameters())

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the loss of first steps and the departures from real trajectories."""
        self._evaluate("val", read_rollouts(batch), seed=0)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the loss of first steps and the departures from real trajectories."""
        self._evaluate("test", read_rollouts(batch), seed=1)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """States after one step in the units of the environment, with the states and actions they follow."""
        rollouts = read_rollouts(batch)
        generator = torch.Generator().manual_seed((torch.initial_seed() + batch_idx) % 2**63)
        state, action = (
            part.repeat_interleave(self.predict_samples, 0) for part in (rollouts.observation, rollouts.action)
        )
        arrival = self.dynamics.step(state, action, generator).arrival
        return {SAMPLE: arrival, CONDITION: torch.cat([self.dynamics.standardise(state), action], dim=1)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the units of the checkpoint; refuse one of other states, actions or another model, in one line."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["hyper_parameters"]
        check_spaces("the checkpoint", saved, self.state_schema, self.dynamics.action_dim, self._action_bounds)
        self.dynamics.settings.check_trained(checkpoint["dynamics"], "dynamics")
        self.state_schema = saved["schema"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the units in use, which may be those of an earlier checkpoint, and what kind of model it is.

        Raises:
            RunError: If the model has diverged.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["schema"] = self.state_schema
        checkpoint["dynamics"] = self.dynamics.settings

    def result_lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test measured, one line each.

        Args:
            metrics: Metrics by name.
        """
        loss = [f"{'loss':<12} {metrics['test/loss']:.4g} on held-out steps"] if "test/loss" in metrics else []
        nothing = f"{'measured':<12} nothing: the data have no trajectories to compare with"
        return loss + dynamics_lines(metrics) or [nothing]

    def _evaluate(self, stage: str, rollouts: Rollouts, seed: int) -> None:
        errors = rollout_errors(self.dynamics, self.policy, rollouts, seed=seed)
        metrics = self.known_to_all(errors.metrics(), RolloutErrors.NAMES)
        if rollouts.states is not None and rollouts.ended is not None:
            copies = rollouts.states.shape[1]
            state, action = (part.repeat_interleave(copies, 0) for part in (rollouts.observation, rollouts.action))
            arrival, ended = rollouts.states[:, :, 0].flatten(0, 1), rollouts.ended[:, :, 0].flatten()
            generator = torch.Generator().manual_seed(seed)
            metrics["loss"] = self.dynamics.loss(state, action, arrival, ended, generator).mean()
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, batch_size=1, sync_dist=True)

    @property
    def _action_bounds(self) -> ActionBounds | None:
        return self.hparams["action_bounds"]


def dynamics_loss(dynamics: Dynamics, batch: Segment, generator: torch.Generator | None = None) -> Tensor:
    """Loss of a one-step model on transitions, shape (B,), after a look at columns that have not changed before.

    Args:
        dynamics: The model.
        batch: Segments with n = 1.
        generator: Noise of models that are trained with some; the global one if None.
    """
    arrival, terminated = batch.arrivals[:, 0], batch.terminated[:, 0]
    dynamics.measure_unchanged(batch.observation, arrival)
    return dynamics.loss(batch.observation, batch.action, arrival, terminated, generator)


def load_dynamics(path: str, schema: TableSchema, action_dim: int, bounds: ActionBounds | None) -> Dynamics:
    """The one-step model of a checkpoint, for data of the same states and actions.

    Args:
        path: Path of a checkpoint of a ``DynamicsModule``.
        schema: Names of the entries of the state in the data; the model keeps its own units.
        action_dim: Dimension of the action in the data.
        bounds: Bounds of the action in the data.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is another checkpoint, or of other states or actions.
    """
    content = read_checkpoint(path)
    if "dynamics" not in content or "occupancy" in content:  # an occupancy keeps its own under the same name
        raise UserError(f"{path} is not a checkpoint of a one-step model, as DynamicsModule writes it")
    module = build_module(DynamicsModule, content, path)
    check_spaces(f"the one-step model in {path}", content["hyper_parameters"], schema, action_dim, bounds)
    return module.dynamics


def check_spaces(
    what: str, saved: Mapping[str, Any], schema: TableSchema, action_dim: int, bounds: ActionBounds | None
) -> None:
    """Raise unless a one-step model was trained on states and actions as those of the data.

    Args:
        what: What holds it, for the error.
        saved: Arguments of the module that trained it.
        schema: Names of the entries of the state in the data.
        action_dim: Dimension of the action in the data.
        bounds: Bounds of the action in the data; they are compared where both are known.

    Raises:
        UserError: If it was not.
    """
    trained: TableSchema = saved["schema"]
    if trained.columns != schema.columns:
        raise UserError(
            f"{what} was trained on states ({', '.join(trained.columns)}), "
            f"this data set has ({', '.join(schema.columns)})"
        )
    if saved["action_dim"] != action_dim:
        raise UserError(
            f"{what} was trained on actions of dimension {saved['action_dim']}, this data set has {action_dim}"
        )
    known = saved.get("action_bounds")
    if None not in (known, bounds) and known != bounds:
        raise UserError(f"{what} was trained on actions within {known}, those of this data set lie within {bounds}")
