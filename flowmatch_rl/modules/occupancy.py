"""A generative model of the discounted future states of a policy, learned from transitions."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from flowmatch_rl.batches import CONDITION, SAMPLE, Segment, SegmentNeeds, read_rollouts, read_segment
from flowmatch_rl.checks import RunError
from flowmatch_rl.evaluation.occupancy import FutureTests
from flowmatch_rl.models.occupancy_flow import OccupancyFlow
from flowmatch_rl.models.occupancy_inputs import OccupancyInputs
from flowmatch_rl.modules.occupancy_backups import BackupMaker, discounts_between
from flowmatch_rl.modules.occupancy_checks import (
    check_discounts,
    check_policy,
    check_rewards,
    check_same,
    check_sampler,
)
from flowmatch_rl.modules.quick_hooks import QuickHooks
from flowmatch_rl.modules.running_means import RunningMeans
from flowmatch_rl.nets import Architecture, FilmUNetArchitecture, ema_copy, update_ema
from flowmatch_rl.objectives import (
    TD2CFM,
    BackupNoise,
    FirstState,
    OccupancyObjective,
)
from flowmatch_rl.paths import AffinePath, TimeDistribution, UniformTime
from flowmatch_rl.samplers import OdeSampler, Sampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import Divergence, ExactDivergence, Midpoint, Solver
from flowmatch_rl.types import Policy, Reward

_ADVICE = "lower the learning rate"


class OccupancyModule(QuickHooks, LightningModule):
    """Where a policy will be: a flow from noise to its discounted future states, given a state and an action.

    The state after k + 1 steps weighs ``(1 - discount) discount^k``. Trained by temporal differences on transitions of
    any policy; sampling, likelihood and evaluation use a lagging copy of the weights.

    Args:
        schema: Names and units of the state's entries; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        embedding_dim: Dimension Z of the embeddings in the data; taken from the data.
        action_low: Lower bounds of the action in the environment's unit; taken from the data.
        action_high: Upper bounds.
        policy: Policy, or family of policies, to model; None for the one that made the data, whose next actions the
            data must then hold.
        objective: How the occupancy is learned.
        path: Path from noise to states.
        network: Shape of the network.
        discount: Discount per environment step, in [0, 1); where ``min_discount`` is given, the highest one.
        min_discount: Lowest discount of a model of many horizons, which are drawn evenly in the logarithm of the
            horizon 1 / (1 - discount); None for a single discount.
        horizon_consistency: Share of each batch that bootstraps through a shorter horizon, in [0, 1].
        first_state: First state that the occupancy counts: the ``arrival`` state, or the ``current`` one.
        num_steps: Steps n of the direct term, at least 1; more than 1 needs data of the modelled policy itself, which
            name the member of a family that acted.
        columns: Entries of the state to model; all if None.
        time_distribution: Law of the flow times.
        t_min: Flow times lie in [t_min, 1 - t_min]; in [0, 0.5).
        sampler: How future states are made, deterministic.
        likelihood_solver: Solver for the log-likelihood.
        divergence: How its divergence is computed.
        rewards: Rewards, by name, that a test evaluates the policy under.
        tests: What evaluations measure.
        learning_rate: AdamW's learning rate, positive.
        learning_rate_decay: ``cosine`` lets it fall to zero over the run.
        weight_decay: AdamW's weight decay, at least 0.
        adam_epsilon: AdamW's epsilon, positive.
        ema_decay: Rate per update of the lagging copy, in [0, 1). It sets the clock of learning: the error falls like
            ``exp(-(1 - ema_decay) (1 - discount) updates)``.

    Raises:
        ValueError: If a number is out of its range, or parts do not go together.

    Reference:
        Farebrother et al., Temporal Difference Flows, arXiv:2503.09817.
    """

    progress_metrics = (("loss", "train/loss"), ("distance", "val/wasserstein"))

    def __init__(
        self,
        schema: TableSchema | None,
        action_dim: int,
        embedding_dim: int = 0,
        action_low: list[float] | None = None,
        action_high: list[float] | None = None,
        policy: Policy | None = None,
        objective: OccupancyObjective = TD2CFM(),
        path: AffinePath = AffinePath(),
        network: Architecture = FilmUNetArchitecture(),
        discount: float = 0.99,
        min_discount: float | None = None,
        horizon_consistency: float = 0.0,
        first_state: FirstState = "arrival",
        num_steps: int = 1,
        columns: list[str] | None = None,
        time_distribution: TimeDistribution = UniformTime(),
        t_min: float = 0.0,
        sampler: Sampler = OdeSampler(Midpoint(num_steps=10)),
        likelihood_solver: Solver = Midpoint(num_steps=20),
        divergence: Divergence = ExactDivergence(),
        rewards: dict[str, Reward] | None = None,
        tests: FutureTests = FutureTests(),
        learning_rate: float = 1e-4,
        learning_rate_decay: Literal["constant", "cosine"] = "constant",
        weight_decay: float = 1e-3,
        adam_epsilon: float = 1e-4,
        ema_decay: float = 0.999,
    ) -> None:
        super().__init__()
        if schema is None:  # an option of a dataclass type alone would be asked for field by field
            raise ValueError("expected the schema of the data, got None")
        _check(0.0 <= discount < 1.0, f"discount must lie in [0, 1), got {discount}")
        _check(
            min_discount is None or 0.0 <= min_discount <= discount,
            f"min_discount must lie in [0, {discount}], got {min_discount}",
        )
        _check(0.0 <= horizon_consistency <= 1.0, f"horizon_consistency must lie in [0, 1], got {horizon_consistency}")
        _check(num_steps >= 1, f"num_steps must be at least 1, got {num_steps}")
        _check(0.0 <= t_min < 0.5, f"t_min must lie in [0, 0.5), got {t_min}")
        _check(learning_rate > 0.0, f"learning_rate must be positive, got {learning_rate}")
        _check(weight_decay >= 0.0, f"weight_decay must be at least 0, got {weight_decay}")
        _check(adam_epsilon > 0.0, f"adam_epsilon must be positive, got {adam_epsilon}")
        _check(0.0 <= ema_decay < 1.0, f"ema_decay must lie in [0, 1), got {ema_decay}")
        self.save_hyperparameters()
        self.policy, self.objective, self.sampler = policy, objective, sampler
        embedding_dim = embedding_dim if policy is None else policy.embedding_dim
        self.inputs = OccupancyInputs(schema, action_dim, embedding_dim, discount, min_discount, columns)
        self.horizon_consistency, self.num_steps = horizon_consistency, num_steps
        self.first_state: FirstState = first_state
        self.time_distribution = time_distribution
        self.likelihood_solver, self.divergence = likelihood_solver, divergence
        self.rewards, self.tests = rewards or {}, tests
        self.learning_rate, self.weight_decay, self.adam_epsilon = learning_rate, weight_decay, adam_epsilon
        self.decays, self.ema_decay = learning_rate_decay == "cosine", ema_decay
        self.network = network.build(self.inputs.sample_dim, self.inputs.condition_dim)
        self.network_ema = ema_copy(self.network)
        self._learner = OccupancyFlow(self.network, path, objective.prediction, t_min)
        self.flow = OccupancyFlow(self.network_ema, path, objective.prediction, t_min)
        self._backups = BackupMaker(
            self.inputs, policy, objective.bootstraps, first_state, self.flow, sampler, horizon_consistency
        )
        self._means = RunningMeans()
        self._check_parts()

    @property
    def monitor(self) -> tuple[str, str] | None:
        """Metric that tells the best checkpoint; None where there are no trajectories to compare with."""
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        return ("val/wasserstein", "min") if getattr(data, "has_trajectories", True) else None

    @property
    def schema(self) -> TableSchema:
        """Modelled entries of the state, given the whole state, the action and the embedding."""
        return self.inputs.sample_schema

    @property
    def segment_needs(self) -> SegmentNeeds:
        """What the training data must hold."""
        futures = None if self.objective.bootstraps else self.draw_discounts
        wants_actions = self.policy is None and self.objective.bootstraps
        return SegmentNeeds(self.num_steps, wants_actions, futures)

    def draw_discounts(self, uniform: Tensor) -> Tensor:
        """Discounts of training samples, shape (B,), for uniform noise (B,)."""
        lowest, highest = self.inputs.min_discount, torch.full_like(uniform, self.inputs.discount)
        return highest if lowest is None else discounts_between(lowest, highest, uniform)

    def sample(
        self,
        noise: Tensor,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None = None,
        discount: Tensor | float | None = None,
    ) -> Tensor:
        """Future states by the lagging copy.

        Args:
            noise: Standard normal, shape (*batch, D).
            observation: States in the units of the environment, shape (*batch, S), where a size of 1 is shared.
            action: Actions in [-1, 1], shape (*batch, A), sizes as those of the observation.
            embedding: Members of the family of policies, shape (*batch, Z); None for a single policy.
            discount: Discount, shape (*batch) or a number; the model's highest if None.

        Returns:
            Modelled entries of future states in the units of the environment, float32, shape (*batch, D).

        Raises:
            ValueError: If a dimension does not fit, or the model has another discount.
        """
        self.inputs.check(noise, discount)
        condition = self.inputs.condition(observation, action, embedding, discount)
        with torch.autocast(self.device.type, enabled=False):
            return self.inputs.restore(self.flow.sample(self.sampler, noise, condition))

    def log_prob(
        self,
        state: Tensor,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None = None,
        discount: Tensor | float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Log-density of future states by the lagging copy.

        Args:
            state: Modelled entries in the units of the environment, shape (B, D).
            observation: States, shape (B, S).
            action: Actions in [-1, 1], shape (B, A).
            embedding: Members of the family of policies, shape (B, Z), or None.
            discount: Discount, shape (B,) or a number; the model's highest if None.
            generator: Noise of random probes; the global one if None.

        Returns:
            Log-density in nats, in the units of the environment, shape (B,).

        Raises:
            ValueError: If a dimension does not fit, or the model has another discount.
        """
        self.inputs.check(state, discount)
        probes = self.divergence.needed_probes
        noise = self.draw_normal((len(state), probes, state.shape[-1]), generator) if probes else None
        condition = self.inputs.condition(observation, action, embedding, discount)
        sample = (state - self.inputs.shift) / self.inputs.scale
        with torch.autocast(self.device.type, enabled=False):
            value = self.flow.log_prob(sample, condition, self.likelihood_solver, self.divergence, noise)
        return value - self.schema.log_volume

    def draw_normal(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise on the module's device; the generator may be on the CPU."""
        device = self.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device).to(self.device)

    def on_fit_start(self) -> None:
        """Give each process noise of its own; weights were built from the common seed."""
        torch.manual_seed((torch.initial_seed() + self.global_rank) % 2**63)

    def on_train_start(self) -> None:
        """Give a run that goes on other noise than it began with."""
        if self.global_step:
            torch.manual_seed((torch.initial_seed() + 1_000_000 * self.global_step) % 2**63)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of a batch."""
        direct, bootstrap = self.loss(read_segment(batch), batch.get("discount"))
        loss = (direct + bootstrap).mean()
        self._means.add(
            {"train/loss": loss, "train/loss/direct": direct.mean(), "train/loss/bootstrap": bootstrap.mean()}
        )
        return loss

    def loss(self, segment: Segment, discount: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Direct and bootstrapped term of the loss, each of shape (B,).

        Args:
            segment: Segments.
            discount: Discounts that their futures were drawn for, shape (B,); drawn here if None.
        """
        size = len(segment.observation)
        if discount is None:
            discount = self.draw_discounts(torch.rand(size, device=self.device))
        embedding = segment.embedding
        # States after the first step belong to the member that made the data.
        if self.policy is not None and self.objective.bootstraps and self.num_steps == 1:
            embedding = self.policy.embeddings(torch.rand(size, self.policy.embedding_dim, device=self.device))
        backup = self._backups.make(segment, embedding, discount)
        return self.objective.loss(
            self._learner.field, self.flow.field, backup, self._draw(backup.state), self._learner.ends
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of this update."""
        if self.decays:
            share = min(1.0, self.global_step / self.trainer.estimated_stepping_batches)
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the lagging copy, and log at the logging interval."""
        update_ema(self.network_ema, self.network, self.ema_decay)
        interval: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if self.global_step % interval == 0:
            means = self._means.take()
            if not bool(torch.isfinite(means["train/loss"])):
                raise RunError(f"the loss is not finite after {self.global_step} updates; {_ADVICE}")
            self.log_dict(means, prog_bar=True)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log distances between modelled and real future states."""
        metrics = self.tests.validate(self, read_rollouts(batch), torch.Generator().manual_seed(0))
        self.log_dict({f"val/{name}": value for name, value in metrics.items()}, batch_size=1, sync_dist=True)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log distances, likelihood and values under the configured rewards."""
        metrics = self.tests.test(self, read_rollouts(batch), torch.Generator().manual_seed(1))
        self.log_dict({f"test/{name}": value for name, value in metrics.items()}, batch_size=1, sync_dist=True)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Future states in the units of the environment, with the states, actions and embeddings they follow."""
        rollouts, number = read_rollouts(batch), self.tests.predict_samples
        generator = torch.Generator().manual_seed((torch.initial_seed() + batch_idx) % 2**63)
        source = [rollouts.observation, rollouts.action, rollouts.embedding]
        rows = [part.repeat_interleave(number, 0) for part in source]
        noise = self.draw_normal((len(rows[0]), self.inputs.sample_dim), generator)
        sample = self.sample(noise, *rows)
        known = torch.cat([(rows[0] - self.inputs.state_shift) / self.inputs.state_scale, *rows[1:]], dim=1)
        return {SAMPLE: sample, CONDITION: known}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the network."""
        return torch.optim.AdamW(
            self.network.parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=self.adam_epsilon,
            fused=True,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the units of the checkpoint; refuse one of other columns or another occupancy, in one line."""
        saved: TableSchema = checkpoint["hyper_parameters"]["schema"]
        if saved.columns != self.inputs.schema.columns:
            raise ValueError(
                f"the checkpoint was trained on states ({', '.join(saved.columns)}), "
                f"this data set has ({', '.join(self.inputs.schema.columns)})"
            )
        check_same(checkpoint["hyper_parameters"], self.hparams)
        self.inputs.use(saved)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the units in use, which may be those of an earlier checkpoint."""
        checkpoint["hyper_parameters"]["schema"] = self.inputs.schema

    def result_lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test found, one line each.

        Args:
            metrics: Metrics by name.
        """
        return self.tests.lines(metrics, tuple(self.rewards))

    def _draw(self, state: Tensor) -> BackupNoise:
        direct, start, fresh = torch.randn(3, *state.shape, device=state.device)
        uniform = torch.rand(3, len(state), device=state.device)
        start_time, end_time = self._learner.ends
        times = start_time + (end_time - start_time) * self.time_distribution.quantile(uniform[:2])
        return BackupNoise(direct, start, fresh, times[0], times[1], uniform[2])

    def _check_parts(self) -> None:
        """Raise where parts do not go together."""
        prediction, path = self.objective.prediction, self.flow.path
        times = torch.tensor(self.flow.ends)
        needed = [*path.conversion(times, prediction, "velocity"), path.schedule.d_sigma(times)]
        _check(
            all(bool(torch.isfinite(values).all()) for values in needed),
            f"the prediction {prediction} leaves the velocity undefined at an end of {path.schedule}; "
            f"t_min must be above {self.flow.t_min}, such as 0.001",
        )
        if self.horizon_consistency > 0.0:
            whole = self.inputs.modelled == list(range(self.inputs.schema.sample_dim))
            _check(self.inputs.min_discount is not None, "horizon_consistency needs min_discount, got None")
            _check(self.policy is not None, "horizon_consistency needs a policy that acts in modelled states, got None")
            _check(whole, "horizon_consistency needs a model of the whole state, got columns")
            _check(
                self.objective.bootstraps,
                f"horizon_consistency needs an objective that bootstraps, got {self.objective}",
            )
            _check(self.first_state == "arrival", "horizon_consistency needs first_state 'arrival', got 'current'")
        inputs = self.inputs
        if self.policy is not None:
            check_policy(self.policy, inputs.state_shift[None], inputs.schema.columns, inputs.action_dim)
        check_rewards(self.rewards, inputs.shift[None], self.schema.columns)
        check_sampler(self.sampler)
        check_discounts(self.tests.discounts, self.inputs)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
