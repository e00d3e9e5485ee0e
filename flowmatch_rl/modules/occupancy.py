"""Training of the occupancy of a policy, from transitions."""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
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
from flowmatch_rl.checks import UserError
from flowmatch_rl.evaluation import (
    ExpansionSample,
    FutureTests,
    RolloutErrors,
    dynamics_lines,
    rollout_errors,
    with_members,
)
from flowmatch_rl.models import Flow, Horizon, Intentions, Likelihood, Occupancy, OccupancyInputs
from flowmatch_rl.modules.flow_training import FlowTraining
from flowmatch_rl.modules.occupancy_backups import BackupMaker
from flowmatch_rl.modules.occupancy_checks import check_parts, check_rewards, check_same_occupancy
from flowmatch_rl.modules.occupancy_intentions import infer_latents
from flowmatch_rl.modules.segments import AsObserved, ObservedSteps, SegmentMaker, Segments
from flowmatch_rl.modules.settings import FlowOptimizer
from flowmatch_rl.modules.watched import Carried
from flowmatch_rl.nets import Architecture, EmaSettings, FilmUNetArchitecture, ema_copy
from flowmatch_rl.objectives import TD2CFM, BackupNoise, OccupancyObjective, time_constants
from flowmatch_rl.paths import AffinePath
from flowmatch_rl.samplers import OdeSampler, Sampler
from flowmatch_rl.schema import ActionBounds, TableSchema
from flowmatch_rl.seeds import process_seed
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.types import Policy, Reward

MOST_STRAYS = 0.01
"""Fraction of modelled states outside the range of the data above which a run warns."""

FEWEST_TIME_CONSTANTS = 3.0
"""Time constants of bootstrapping below which a run warns; an error of 5 % remains after three."""


class OccupancyModule(FlowTraining[Occupancy]):
    """Where a policy will be: a flow from noise to its discounted future states, given a state and an action.

    The state after k + 1 steps has the weight ``(1 - discount) discount^k``. Trained by temporal differences on
    transitions of any policy; sampling, likelihood and evaluation use the EMA flow. What is bootstrapped from begins
    with the distribution of the noise, since the last layer of the network begins at zero: samples that a first field
    throws far out of the data would be learned again and again. A network of another prediction than velocities
    predicts the deviation from what is exact for standard normal states; by itself, a noise of zero would stand for
    samples that are the noise divided by a small number.

    Args:
        schema: Names and units of the state's entries; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        embedding_dim: Dimension Z of the embeddings in the data; taken from the data.
        action_bounds: Bounds of the action in the environment's unit; taken from the data.
        policy: Policy, or family of policies, to model; None for the one that made the data, whose next actions the
            data must then hold.
        intentions: How the policies behind the data are told apart, for data of several; None for one policy. The
            embeddings of the data are then not used.
        objective: How the occupancy is learned.
        path: Path from noise to states.
        network: Shape of the network.
        horizon: How far ahead it looks.
        segments: How transitions become segments of several steps of the modelled policy, whose states the direct term
            counts.
        columns: Entries of the state to model; all if None.
        t_min: Flow times lie in [t_min, 1 - t_min]; in [0, 0.5).
        sampler: How future states are made, deterministic.
        likelihood: How the log-likelihood is computed.
        rewards: Rewards, by name, that a test evaluates the policy under.
        tests: What evaluations measure.
        optimizer: Optimizer.
        ema: How the EMA flow, which is bootstrapped from, follows.

    Raises:
        UserError: If a number is out of its range, or parts do not go together.

    Reference:
        Farebrother et al., Temporal Difference Flows, arXiv:2503.09817.
    """

    loss_names: ClassVar = {
        "flow": "train/loss",
        "classifier of terminal states": "train/loss/termination",
        "encoder of intentions": "train/loss/intentions",
    }
    progress_metrics = (("loss", "train/loss"), ("distance", "val/wasserstein"))

    def __init__(
        self,
        schema: TableSchema | None,
        action_dim: int,
        embedding_dim: int = 0,
        action_bounds: ActionBounds | None = None,
        policy: Policy | None = None,
        intentions: Intentions | None = None,
        objective: OccupancyObjective = TD2CFM(),
        path: AffinePath = AffinePath(),
        network: Architecture = FilmUNetArchitecture(),
        horizon: Horizon = Horizon(),
        segments: Segments = ObservedSteps(),
        columns: list[str] | None = None,
        t_min: float = 0.0,
        sampler: Sampler = OdeSampler(Midpoint(num_steps=10)),
        likelihood: Likelihood = Likelihood(Midpoint(num_steps=20)),
        rewards: dict[str, Reward] | None = None,
        tests: FutureTests = FutureTests(),
        optimizer: FlowOptimizer = FlowOptimizer(1e-4, "constant", weight_decay=1e-3, epsilon=1e-4),
        ema: EmaSettings = EmaSettings(),
    ) -> None:
        super().__init__()
        if schema is None:  # an option of a dataclass type alone would be asked for field by field
            raise UserError("expected the schema of the data, got None")
        self.save_hyperparameters()
        self.objective, self.segments = objective, segments
        self.intentions = intentions
        self.rewards, self.tests, self.optimizer, self.ema = rewards or {}, tests, optimizer, ema
        embedding_dim = embedding_dim if policy is None else policy.embedding_dim
        embedding_dim = embedding_dim if intentions is None else intentions.latent_dim
        inputs = OccupancyInputs(schema, action_dim, embedding_dim, horizon, columns)
        self.flow = Flow(
            network.build(inputs.sample_dim, inputs.condition_dim),
            path,
            prediction=objective.prediction,
            t_min=t_min,
            guesses=objective.prediction != "velocity",
        )
        if objective.bootstraps:
            # States that the first field throws far out are forgotten at the rate of the clock alone.
            self.flow.network.begin_at_zero()
        self.model = Occupancy(ema_copy(self.flow), inputs, sampler, likelihood, policy, intentions)
        latent_term = "bootstrap" if intentions is None else intentions.term
        self._backups = BackupMaker(self.model, objective.bootstraps, latent_term)
        self.dynamics = segments.build_dynamics(schema, action_dim)
        self._maker: SegmentMaker = AsObserved()
        self._warned = False
        self._clock: float | None = None
        check_parts(self.model, objective, segments, self.tests)
        self.check_rewards(needed=False)

    def start_training(self) -> None:
        """Warn of a run that is too short, and train the one-step model unless a checkpoint holds it.

        Here, since an interruption is handled from now on.
        """
        super().start_training()
        self._check_clock()
        self.load_dynamics()
        seed = process_seed(torch.initial_seed(), self.global_rank, self.global_step)
        self._maker = self.segments.start(self.dynamics, self.policy, self._transitions, seed)

    def load_dynamics(self) -> None:
        """Take the one-step model of the checkpoint that the segments name, if they do and none is trained yet.

        Raises:
            MissingFileError: If there is no such checkpoint.
            UserError: If it is of another kind, or of other states or actions.
        """
        if self.dynamics is None or self.dynamics.trained:
            return
        inputs = self.model.inputs
        loaded = self.segments.load_dynamics(inputs.schema, inputs.action_dim, self.hparams["action_bounds"])
        self.dynamics = self.dynamics if loaded is None else loaded.to(self.device)

    def _transitions(self, batch_size: int) -> Iterator[Segment]:
        """Batches of transitions without end."""
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        for batch in data.transitions(batch_size):
            yield read_segment({name: value.to(self.device) for name, value in batch.items()})

    def _check_clock(self) -> None:
        """Warn of a run that is too short for what it bootstraps from."""
        if not self.objective.bootstraps:
            return
        updates = self.trainer.estimated_stepping_batches
        self._clock = time_constants(self.ema.decay, self.model.horizon.discount, updates, self.segments.longest)
        if self._clock < FEWEST_TIME_CONSTANTS:
            rank_zero_warn(
                f"{updates:.0f} updates are {self._clock:.2g} time constants of bootstrapping, at least "
                f"{FEWEST_TIME_CONSTANTS:g} are wanted: about {math.exp(-self._clock):.0%} of the first error "
                f"remains; lower ema.decay from {self.ema.decay:g}, raise num_updates, or expand transitions"
            )

    @property
    def carried(self) -> Mapping[str, Carried]:
        """As of any module, and the pool that segments are drawn from."""
        return {**super().carried, "segments": self._maker}

    @property
    def policy(self) -> Policy | None:
        """The modelled policy."""
        return self.model.policy

    @property
    def expansions(self) -> ExpansionSample | None:
        """The last transitions that were expanded; None if none were."""
        return self._maker.expansions

    @property
    def monitor(self) -> tuple[str, str] | None:
        """Metric that picks the best checkpoint; None where there are no trajectories to compare with."""
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        return ("val/wasserstein", "min") if getattr(data, "has_trajectories", True) else None

    @property
    def segment_needs(self) -> SegmentNeeds:
        """What the training data must hold."""
        bootstraps = self.objective.bootstraps
        futures = None if bootstraps else self.model.horizon.draw
        next_action = self.intentions is not None or (self.policy is None and bootstraps)
        return SegmentNeeds(self.segments.observed_steps, next_action, futures)

    @property
    def action_trials(self) -> ActionTrials:
        """Actions that a test tries in its source states."""
        return self.tests.trials(self.model.horizon)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of a batch."""
        segment, divergence = read_segment(batch), None
        if self.model.encoder is not None:
            segment, divergence = infer_latents(self.model, segment)
        direct, bootstrap = self.loss(segment, batch.get("discount"))
        loss = (direct + bootstrap).mean()
        losses = {"train/loss": loss, "train/loss/direct": direct.mean(), "train/loss/bootstrap": bootstrap.mean()}
        self.means.add({**losses, **self._maker.metrics})
        if self.intentions is not None and divergence is not None:
            self.means.add({"train/loss/intentions": divergence.mean()})
            loss = loss + self.intentions.kl_weight * divergence.mean()
        if self.model.termination is None:
            return loss
        arrival = self.model.inputs.standardise(segment.arrivals[:, 0])
        termination = self.model.termination.loss(arrival, segment.terminated[:, 0]).mean()
        self.means.add({"train/loss/termination": termination})
        return loss + termination

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the flow's network, the classifier of terminal states and the encoder, where there are these."""
        others = [part for part in (self.model.termination, self.model.encoder) if part is not None]
        return self.optimizer.build([weight for part in (self.flow, *others) for weight in part.parameters()])

    def loss(self, segment: Segment, discount: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Direct and bootstrapped term of the loss, each of shape (B,).

        Args:
            segment: Segments; for a model with intentions with their latents as embeddings.
            discount: Discounts that their futures were drawn for, shape (B,); drawn here if None.
        """
        size, policy = len(segment.observation), self.policy
        if discount is None:
            discount = self.model.horizon.draw(torch.rand(size, device=self.device))
        embedding = segment.embedding
        # States after the first step belong to the member that made the data.
        if policy is not None and self.objective.bootstraps and self.segments.observed_steps == 1:
            embedding = policy.embeddings(torch.rand(size, policy.embedding_dim, device=self.device))
        segment = self._maker.take(replace(segment, embedding=embedding))
        backup = self._backups.make(segment, discount)
        noise = self.draw_backup_noise(backup.state)
        return self.objective.loss(self.flow.field(), self.flow_ema.field(), backup, noise, self.flow.interval)

    def draw_backup_noise(self, state: Tensor) -> BackupNoise:
        """Noise and flow times of an update on standardised states of shape (B, D)."""
        direct, start, fresh = torch.randn(3, *state.shape, device=state.device)
        uniform = torch.rand(3, len(state), device=state.device)
        first, last = self.flow.interval
        times = first + (last - first) * self.objective.time_distribution.quantile(uniform[:2])
        return BackupNoise(direct, start, fresh, times[0], times[1], uniform[2])

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log distances between modelled and real future states, and warn of states outside the range of the data."""
        rollouts = with_members(self.model, read_rollouts(batch))
        metrics = self.tests.validate(self.model, rollouts, torch.Generator().manual_seed(0))
        metrics |= self._dynamics_errors(rollouts)
        self.log_dict({f"val/{name}": value for name, value in metrics.items()}, batch_size=1, sync_dist=True)
        strays = float(metrics.get("strays", 0.0))
        if strays > MOST_STRAYS and not self._warned and self.trainer.is_global_zero:
            self._warned = True
            warnings.warn(
                f"{strays:.1%} of the modelled states lie outside the range of the data after {self.global_step} "
                "updates; where val/strays does not fall soon, lower horizon.discount or the learning rate",
                stacklevel=2,
            )

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log distances, likelihood and values under the configured rewards."""
        generator = torch.Generator().manual_seed(1)
        rollouts = with_members(self.model, read_rollouts(batch))
        metrics = self.tests.test(self.model, rollouts, self.rewards, generator, self._gather)
        metrics |= self._dynamics_errors(rollouts)
        self.log_dict({f"test/{name}": value for name, value in metrics.items()}, batch_size=1, sync_dist=True)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Future states in the units of the environment, with the states, actions and embeddings they follow."""
        rollouts, number = with_members(self.model, read_rollouts(batch)), self.tests.predict_samples
        generator = torch.Generator().manual_seed((torch.initial_seed() + batch_idx) % 2**63)
        source = [rollouts.observation, rollouts.action, rollouts.embedding]
        rows = [part.repeat_interleave(number, 0) for part in source]
        sample = self.model.sample(self.model.draw_noise(len(rows[0]), generator=generator), *rows)
        inputs = self.model.inputs
        known = torch.cat([(rows[0] - inputs.state_shift) / inputs.state_scale, *rows[1:]], dim=1)
        return {SAMPLE: sample, CONDITION: known}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the units of the checkpoint; refuse one of other columns or another occupancy, in one line."""
        super().on_load_checkpoint(checkpoint)
        saved: TableSchema = checkpoint["hyper_parameters"]["schema"]
        here = self.model.inputs.schema
        check_same_occupancy(checkpoint, here.columns, self._identity)
        self.model.inputs.use(saved)
        termination = self.model.termination
        if termination is not None and "model.termination.seen" not in checkpoint["state_dict"]:
            # Models of many horizons of version 0.2.0 took no state for terminal, as an untrained classifier does.
            weights = {f"model.termination.{name}": value for name, value in termination.state_dict().items()}
            checkpoint["state_dict"].update(weights)
        if "dynamics" in checkpoint:
            trained = checkpoint["dynamics"]
            self.dynamics = self.segments.build_dynamics(here, self.model.inputs.action_dim, trained)
            if self.dynamics is not None:
                self.dynamics.settings.check_trained(trained, "segments.dynamics")
        self._fit_dynamics(checkpoint["state_dict"])

    def _fit_dynamics(self, weights: dict[str, Tensor]) -> None:
        """Leave out the one-step model of a checkpoint that this run does not use, or begin one that it lacks."""
        held = [name for name in weights if name.startswith("dynamics.")]
        if self.dynamics is None:
            for name in held:
                del weights[name]
        elif not held:
            weights.update({f"dynamics.{name}": value for name, value in self.dynamics.state_dict().items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the units in use, which may be those of an earlier checkpoint, and what occupancy it is.

        Raises:
            RunError: If the flow has diverged.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["schema"] = self.model.inputs.schema
        checkpoint["occupancy"] = self._identity
        if self.dynamics is not None:
            checkpoint["dynamics"] = self.dynamics.settings

    def result_lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test measured, one line each.

        Args:
            metrics: Metrics by name.
        """
        lines = self.tests.lines(metrics, tuple(self.rewards))
        if self._clock is not None:
            lines.append(f"{'clock':<12} {self._clock:.3g} time constants of bootstrapping")
        return lines + dynamics_lines(metrics)

    def _gather(self, values: Tensor) -> Tensor:
        """Numbers of all processes, shape (P N,), for those of one, shape (N,)."""
        return torch.as_tensor(self.all_gather(values)).flatten()

    def _dynamics_errors(self, rollouts: Rollouts) -> dict[str, Tensor]:
        if self.dynamics is None or self.policy is None:
            return {}
        return self.known_to_all(rollout_errors(self.dynamics, self.policy, rollouts).metrics(), RolloutErrors.NAMES)

    def check_rewards(self, needed: bool = True) -> None:
        """Raise unless the rewards are defined for the modelled entries of the state.

        Args:
            needed: Whether those that a checkpoint names, and that may not be imported, are an error.

        Raises:
            UserError: If one is not.
        """
        check_rewards(self.rewards, self.model.inputs.shift[None], self.schema.columns, needed)

    @property
    def _identity(self) -> dict[str, Any]:
        """What the weights stand for."""
        horizon = self.model.horizon
        return {
            "discount": horizon.discount,
            "min_discount": horizon.min_discount,
            "first_state": horizon.first_state,
            "columns": self.hparams["columns"],
            "latent_dim": None if self.intentions is None else self.intentions.latent_dim,
        }
