"""A generative model of vectors: flow matching, diffusion, mean flow, rectified flow."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from flowmatch_rl.batches import CONDITION, EXACT_LOG_PROB, SAMPLE, Samples, read_samples
from flowmatch_rl.checks import RunError
from flowmatch_rl.couplings import Coupling, IndependentCoupling
from flowmatch_rl.metrics import (
    energy_distance,
    maximum_mean_discrepancy,
    sliced_wasserstein_distance,
    squared_wasserstein_distance,
    wasserstein_distance,
)
from flowmatch_rl.models import Flow, Likelihood
from flowmatch_rl.modules.quick_hooks import QuickHooks
from flowmatch_rl.modules.reflow import Reflow
from flowmatch_rl.modules.running_means import RunningMeans
from flowmatch_rl.nets import VelocityArchitecture, ema_copy, update_ema
from flowmatch_rl.objectives import ConditionalFlowMatching, FlowObjective
from flowmatch_rl.paths import AffinePath, GaussianSource, Source, stratify
from flowmatch_rl.samplers import OdeSampler, Sampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import Divergence, ExactDivergence, Midpoint, Solver

_ADVICE = "lower the learning rate"


class FlowMatchingModel(QuickHooks, LightningModule):
    """A flow from a source to data, perhaps given conditions.

    Batches hold standardised samples. Sampling, likelihood and evaluation use a lagging copy of the weights.

    Args:
        schema: Columns and units of the data; taken from the data.
        path: Path from noise to data.
        source: Law of the noise, in units of the standardised data.
        coupling: Joint law of noise and data within a batch.
        objective: What the network predicts and how it learns it.
        sampler: How samples are made.
        velocity: Shape of the network.
        t_min: Flow times lie in [t_min, 1 - t_min]; in [0, 0.5). Some predictions cannot be had at the ends of some
            paths, such as data at t = 1; they need a value above 0.
        normalise: Whether the network sees x_t scaled to unit variance and answers in units of the typical size of what
            it predicts; variance-exploding paths and scores need it.
        stratified_times: Whether the flow times of a batch are spread evenly.
        condition_dropout: Share of the training samples that hide their condition, in [0, 1); guidance needs some.
        guidance: Weight of the condition in sampling: 1 for the plain conditional law, above 1 to exaggerate.
        likelihood_solver: Solver for the log-likelihood.
        divergence: How its divergence is computed.
        likelihood_samples: Samples whose log-likelihood a test measures, 0 for none or at least 2.
        transport_samples: Samples that a test measures exact transport distances on, at least 2.
        learning_rate: AdamW's learning rate, positive.
        learning_rate_decay: ``cosine`` lets it fall to zero over the run.
        weight_decay: AdamW's weight decay, at least 0.
        ema_decay: Rate per update of the lagging copy, in [0, 1).
        ema_interval: Updates between two moves of the lagging copy, at least 1, which make up for all of them; it also
            moves before an evaluation.
        reflow: Second stage on the couplings of a trained model, or None.

    Raises:
        ValueError: If a number is out of its range, or parts do not go together.

    Reference:
        Lipman et al., arXiv:2210.02747.
    """

    monitor = ("val/energy_distance", "min")
    progress_metrics = (("loss", "train/loss"), ("distance", "val/energy_distance"))

    def __init__(
        self,
        schema: TableSchema | None,
        path: AffinePath = AffinePath(),
        source: Source = GaussianSource(),
        coupling: Coupling = IndependentCoupling(),
        objective: FlowObjective = ConditionalFlowMatching(),
        sampler: Sampler = OdeSampler(),
        velocity: VelocityArchitecture = VelocityArchitecture(max_frequency=10.0, balanced_inputs=True),
        t_min: float = 0.0,
        normalise: bool = False,
        stratified_times: bool = False,
        condition_dropout: float = 0.0,
        guidance: float = 1.0,
        likelihood_solver: Solver = Midpoint(num_steps=50),
        divergence: Divergence = ExactDivergence(),
        likelihood_samples: int = 1_000,
        transport_samples: int = 2_000,
        learning_rate: float = 1e-3,
        learning_rate_decay: Literal["constant", "cosine"] = "cosine",
        weight_decay: float = 0.0,
        ema_decay: float = 0.999,
        ema_interval: int = 10,
        reflow: Reflow | None = None,
    ) -> None:
        super().__init__()
        if schema is None:  # an option of a dataclass type alone would be asked for field by field
            raise ValueError("expected the schema of the data, got None")
        _check_number("t_min", t_min, 0.0 <= t_min < 0.5, "in [0, 0.5)")
        _check_number("condition_dropout", condition_dropout, 0.0 <= condition_dropout < 1.0, "in [0, 1)")
        _check_number(
            "likelihood_samples",
            likelihood_samples,
            likelihood_samples == 0 or likelihood_samples > 1,
            "0 or at least 2",
        )
        _check_number("transport_samples", transport_samples, transport_samples >= 2, "at least 2")
        _check_number("learning_rate", learning_rate, learning_rate > 0.0, "positive")
        _check_number("weight_decay", weight_decay, weight_decay >= 0.0, "at least 0")
        _check_number("ema_decay", ema_decay, 0.0 <= ema_decay < 1.0, "in [0, 1)")
        _check_number("ema_interval", ema_interval, ema_interval >= 1, "at least 1")
        self.save_hyperparameters()
        self.schema = schema
        self.source, self.coupling, self.objective, self.sampler = source, coupling, objective, sampler
        self.guidance, self.condition_dropout = guidance, condition_dropout
        self.stratified_times = stratified_times
        self.likelihood_solver, self.divergence = likelihood_solver, divergence
        self.likelihood_samples, self.transport_samples = likelihood_samples, transport_samples
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.decays = learning_rate_decay == "cosine"
        self.ema_decay, self.ema_interval, self.reflow = ema_decay, ema_interval, reflow
        marks_absence = condition_dropout > 0.0 and schema.condition_dim > 0
        network = velocity.build(
            schema.sample_dim, schema.condition_dim + marks_absence, takes_duration=objective.uses_duration
        )
        self.velocity = network
        self.velocity_ema = ema_copy(network)
        parts = (path, source, objective.prediction, t_min, normalise, False, objective.uses_duration, marks_absence)
        self._learner = Flow(network, *parts)
        self.flow = Flow(self.velocity_ema, *parts)
        self._means = RunningMeans()
        self._ema_step = 0  # of its last move
        self._check_parts()

    def sample(
        self, noise: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples of the lagging copy by the model's sampler and guidance.

        Args:
            noise: Standard normal, shape (B, noise_dim); ``draw_noise`` makes it.
            condition: Conditions, shape (B, C), or None.
            generator: Noise of stochastic samplers; the global one if None.

        Returns:
            Standardised samples, float32, shape (B, D).
        """

        def draw(like: Tensor) -> Tensor:
            return self._normal(like.shape, generator)

        with torch.autocast(self.device.type, enabled=False):
            return self.flow.sample(noise, self.sampler, condition, self.guidance, draw)

    def log_prob(
        self, sample: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Log-density of standardised samples in nats, in units of the data, by the lagging copy.

        Args:
            sample: Standardised samples, shape (B, D).
            condition: Conditions, shape (B, C), or None; guidance plays no part.
            generator: Noise of random probes; the global one if None.

        Returns:
            Log-density, shape (B,).
        """
        probes = self.divergence.needed_probes
        noise = self._normal((len(sample), probes, sample.shape[1]), generator) if probes else None
        with torch.autocast(self.device.type, enabled=False):
            value = self.flow.log_prob(sample, Likelihood(self.likelihood_solver, self.divergence), condition, noise)
        return value - self.schema.log_volume

    def draw_noise(self, number: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise for ``number`` samples, shape (number, noise_dim).

        Args:
            number: How many.
            generator: A generator on the CPU; the global one if None.
        """
        return self._normal((number, self.source.noise_dim(self.schema.sample_dim)), generator)

    def training_samples(self, samples: Samples) -> Samples:
        """What to train on in place of the data: the data, or for a second stage the first one's couplings.

        Args:
            samples: The whole training set, standardised.
        """
        if self.reflow is None:
            return samples
        return self.reflow.pairs(self.reflow.load(type(self), self), samples, self.device)

    def setup(self, stage: str) -> None:
        """Load the teacher of a second stage, and begin with its weights."""
        if self.reflow is not None and stage == "fit":
            teacher = self.reflow.load(type(self), self)
            self.schema = teacher.schema
            for network in (self.velocity, self.velocity_ema):
                network.load_state_dict(teacher.velocity_ema.state_dict())

    def on_fit_start(self) -> None:
        """Give each process noise of its own; weights were built from the common seed."""
        torch.manual_seed((torch.initial_seed() + self.global_rank) % 2**63)

    def on_train_start(self) -> None:
        """Note where a run goes on, and give it other noise than it began with."""
        self._ema_step = self.global_step
        if self.global_step:
            torch.manual_seed((torch.initial_seed() + 1_000_000 * self.global_step) % 2**63)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of a batch."""
        loss = self._loss(self._learner, read_samples(batch)).mean()
        self._means.add({"train/loss": loss})
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of this update."""
        if self.decays:
            share = min(1.0, self.global_step / self.trainer.estimated_stepping_batches)
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the lagging copy, and log at the logging interval."""
        ends = self.trainer.is_last_batch or self.global_step == self.trainer.max_steps
        if self.global_step % self.ema_interval == 0 or ends:  # before an evaluation
            # Early on the copy follows faster, or it would keep its random weights for a thousand updates.
            decay = min(self.ema_decay, (1.0 + self.global_step) / (10.0 + self.global_step))
            update_ema(self.velocity_ema, self.velocity, decay ** (self.global_step - self._ema_step))
            self._ema_step = self.global_step
        interval: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if self.global_step % interval == 0:
            means = self._means.take()
            if not bool(torch.isfinite(means["train/loss"])):
                raise RunError(f"the loss is not finite after {self.global_step} updates; {_ADVICE}")
            self.log_dict(means, prog_bar=True)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the loss on held-out samples and the energy distance of as many generated ones."""
        samples, generator = read_samples(batch), torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            loss = self._loss(self.flow, samples).mean()
        if not bool(torch.isfinite(loss)):
            raise RunError(f"the loss on held-out data is not finite after {self.global_step} updates; {_ADVICE}")
        generated = self.sample(self.draw_noise(len(samples.sample), generator), samples.condition, generator)
        distance = energy_distance(*self._joint(generated, samples))
        self.log_dict({"val/loss": loss, "val/energy_distance": distance}, batch_size=1, sync_dist=True)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log distances between generated and held-out samples, and the likelihood of the latter."""
        samples, generator = read_samples(batch), torch.Generator().manual_seed(1)
        generated = self.sample(self.draw_noise(len(samples.sample), generator), samples.condition, generator)
        bad = int((~torch.isfinite(generated)).any(1).sum())
        if bad:
            raise RunError(f"{bad} of {len(generated)} generated samples are not finite; {_ADVICE}")
        self.log_dict(self._distances(generated, samples, generator), batch_size=1, sync_dist=True)
        if self.likelihood_samples:
            self.log_dict(self._likelihoods(batch, generator), batch_size=1, sync_dist=True)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Samples in the units of the data, float64, with their conditions."""
        condition = batch.get(CONDITION)
        generator = torch.Generator().manual_seed((torch.initial_seed() + int(batch["row"][0])) % 2**63)
        sample = self.sample(self.draw_noise(len(batch["row"]), generator), condition, generator)
        return {SAMPLE: self.schema.restore(sample), **({} if condition is None else {CONDITION: condition})}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the network."""
        return torch.optim.AdamW(
            self.velocity.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the units of the checkpoint; refuse one of other columns, in one line."""
        saved: TableSchema = checkpoint["hyper_parameters"]["schema"]
        for kind in ("columns", "condition_columns", "class_columns"):
            trained, here = getattr(saved, kind), getattr(self.schema, kind)
            missing = [name for name in trained if name not in here]
            if missing or len(trained) != len(here):
                problem = f"lacks {missing[0]!r}" if missing else f"has {', '.join(here)}"
                raise ValueError(f"the checkpoint was trained with {kind} {', '.join(trained)}; this table {problem}")
        here = dict(zip(self.schema.class_columns, self.schema.classes, strict=True))
        for name, levels in zip(saved.class_columns, saved.classes, strict=True):
            if set(here[name]) != set(levels):
                raise ValueError(
                    f"the checkpoint was trained with the classes {', '.join(levels)} of {name!r}; "
                    f"this table has {', '.join(here[name])}"
                )
        self.schema = saved

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the units in use, which may be those of an earlier checkpoint or a teacher."""
        checkpoint["hyper_parameters"]["schema"] = self.schema

    def result_lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test found, one line each.

        Args:
            metrics: Metrics by name.
        """
        lines = [
            f"distance     energy {metrics['test/energy_distance']:.3g}, sliced Wasserstein "
            f"{metrics['test/sliced_wasserstein']:.3g}, Wasserstein {metrics['test/wasserstein']:.3g} (standardised)"
        ]
        if "test/nll" in metrics:
            exact = f", of the true law {metrics['test/nll_exact']:.3f}" if "test/nll_exact" in metrics else ""
            lines.append(
                f"likelihood   -log p {metrics['test/nll']:.3f} nats, {metrics['test/nll_per_dim']:.3f} per dimension"
                f"{exact} (units of the data)"
            )
        return lines

    def _loss(self, flow: Flow, samples: Samples) -> Tensor:
        x_1, condition = samples.sample, samples.condition
        x_0 = samples.source
        if x_0 is None:
            x_0 = self.source.transform(self.draw_noise(len(x_1)))
            if not self.coupling.is_independent:
                x_0 = x_0[self.coupling.pair(x_0, x_1, torch.rand(len(x_1), device=x_1.device), condition)]
        uniform = torch.rand(self.objective.num_uniforms, len(x_1), device=x_1.device)
        if self.stratified_times:
            uniform = torch.stack([stratify(row) for row in uniform])
        present = torch.rand(len(x_1), device=x_1.device) >= self.condition_dropout if flow.marks_absence else True
        points = self.objective.points(flow.path, x_0, x_1, uniform, flow.t_min)
        return flow.loss(self.objective, points, flow.mark(condition, present))

    def _joint(self, generated: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """Generated and held-out samples, of conditional models each beside its condition.

        Two samples that share their conditions are not independent: those come from different halves of the batch.
        """
        if samples.condition is None:
            return generated, samples.sample
        half = len(generated) // 2
        made = torch.cat([generated, samples.condition], dim=1)[:half]
        return made, torch.cat([samples.sample, samples.condition], dim=1)[half:]

    def _distances(self, generated: Tensor, samples: Samples, generator: torch.Generator) -> dict[str, Tensor]:
        x, y = self._joint(generated, samples)
        directions = self._normal((200, x.shape[1]), generator)
        some = slice(0, self.transport_samples)
        return {
            "test/energy_distance": energy_distance(x, y),
            "test/sliced_wasserstein": sliced_wasserstein_distance(x, y, directions),
            "test/maximum_mean_discrepancy": maximum_mean_discrepancy(x[some], y[some]),
            "test/wasserstein": wasserstein_distance(x[some], y[some]),
            "test/squared_wasserstein": squared_wasserstein_distance(x[some], y[some]),
        }

    def _likelihoods(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        some = slice(0, self.likelihood_samples)
        samples = read_samples(batch)
        condition = None if samples.condition is None else samples.condition[some]
        value = self.log_prob(samples.sample[some], condition, generator)
        metrics = {
            "test/nll": -value.mean(),
            "test/nll_per_dim": -value.mean() / self.schema.sample_dim,
            "test/nll_standard_error": value.std() / len(value) ** 0.5,
        }
        return metrics | ({"test/nll_exact": -batch[EXACT_LOG_PROB][some].mean()} if EXACT_LOG_PROB in batch else {})

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        device = self.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device).to(self.device)

    def _check_parts(self) -> None:
        """Raise where parts do not go together."""
        self.source.noise_dim(self.schema.sample_dim)
        self.flow.field(self.guidance)
        prediction, times = self.objective.prediction, torch.tensor([self.flow.t_min, 1.0 - self.flow.t_min])
        path = self.flow.path
        if (prediction == "score" or self.sampler.needs_normal_source) and not self.source.is_standard_normal:
            raise ValueError(f"a score needs the source N(0, I), got {self.source}")
        if self.sampler.needs_average_velocity and not self.objective.uses_duration:
            raise ValueError(f"{self.sampler} needs the objective MeanFlow, got {self.objective}")
        needed = [*path.conversion(times, prediction, "velocity"), path.schedule.d_sigma(times)]
        if not all(bool(torch.isfinite(values).all()) for values in needed):
            raise ValueError(
                f"the prediction {prediction} leaves the velocity undefined at an end of {path.schedule}; "
                f"t_min must be above {self.flow.t_min}, such as 0.001"
            )


def _check_number(name: str, value: float, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {value}")
