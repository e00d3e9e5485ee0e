"""Training of a generative model of vectors: flow matching, diffusion, mean flow, rectified flow."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.batches import CONDITION, SAMPLE, Samples, read_samples
from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.couplings import Coupling, IndependentCoupling
from flowmatch_rl.evaluation import FlowTests
from flowmatch_rl.models import Flow, GenerativeModel, Likelihood
from flowmatch_rl.modules.flow_training import FlowTraining
from flowmatch_rl.modules.reflow import Reflow
from flowmatch_rl.modules.settings import FlowOptimizer
from flowmatch_rl.nets import EmaSettings, VelocityArchitecture, ema_copy
from flowmatch_rl.objectives import ConditionalFlowMatching, FlowObjective
from flowmatch_rl.paths import AffinePath, GaussianSource, Source, stratify
from flowmatch_rl.samplers import OdeSampler, Sampler
from flowmatch_rl.schema import TableSchema


class FlowMatchingModel(FlowTraining[GenerativeModel]):
    """A flow from a source to data, conditional or not.

    Batches hold standardised samples. Sampling, likelihood and evaluation use the EMA flow.

    Args:
        schema: Columns and units of the data; taken from the data.
        path: Path from noise to data.
        source: Distribution of the noise, in units of the standardised data.
        coupling: Joint distribution of noise and data within a batch.
        objective: What the network predicts and how it learns it.
        sampler: How samples are made.
        network: Shape of the network.
        t_min: Flow times lie in [t_min, 1 - t_min]; in [0, 0.5). Some predictions are undefined at the limits of some
            paths, such as data at t = 1; they need a value above 0.
        normalise: Whether the network takes x_t scaled to unit variance and returns units of the typical size of what
            it predicts; variance-exploding paths and scores need it.
        stratified_times: Whether the flow times of a batch are spread evenly.
        condition_dropout: Fraction of the training samples that hide their condition, in [0, 1); guidance needs some.
        guidance: Weight of the condition in sampling: 1 for the plain conditional distribution, above 1 to exaggerate.
        likelihood: How the log-likelihood is computed.
        tests: What evaluations measure.
        optimizer: Optimizer.
        ema: How the EMA flow follows.
        reflow: Second stage on the couplings of a trained model, or None.

    Raises:
        UserError: If a number is out of its range, or parts do not go together.

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
        network: VelocityArchitecture = VelocityArchitecture(max_frequency=10.0, balanced_inputs=True),
        t_min: float = 0.0,
        normalise: bool = False,
        stratified_times: bool = False,
        condition_dropout: float = 0.0,
        guidance: float = 1.0,
        likelihood: Likelihood = Likelihood(),
        tests: FlowTests = FlowTests(),
        optimizer: FlowOptimizer = FlowOptimizer(),
        ema: EmaSettings = EmaSettings(interval=10, warm_up=True),
        reflow: Reflow | None = None,
    ) -> None:
        super().__init__()
        if schema is None:  # an option of a dataclass type alone would be asked for field by field
            raise UserError("expected the schema of the data, got None")
        check_range("[0, 1)", condition_dropout=condition_dropout)
        self.save_hyperparameters()
        self.coupling, self.objective, self.tests, self.reflow = coupling, objective, tests, reflow
        self.condition_dropout, self.stratified_times = condition_dropout, stratified_times
        self.optimizer, self.ema = optimizer, ema
        marks_absence = condition_dropout > 0.0 and schema.condition_dim > 0
        self.flow = Flow(
            network.build(schema.sample_dim, schema.condition_dim + marks_absence, objective.uses_duration),
            path,
            source,
            objective.prediction,
            t_min,
            scales=normalise,
            averages=objective.uses_duration,
            marks_absence=marks_absence,
        )
        self.model = GenerativeModel(ema_copy(self.flow), schema, sampler, guidance, likelihood)

    def training_samples(self, samples: Samples) -> Samples:
        """What to train on in place of the data: the data, or for a second stage the couplings of the first one.

        Args:
            samples: The whole training set, standardised.
        """
        if self.reflow is None:
            return samples
        return self.reflow.pairs(self.reflow.load(type(self), self).model.to(self.device), samples)

    def setup(self, stage: str) -> None:
        """Load the teacher of a second stage, and begin with its weights."""
        if self.reflow is not None and stage == "fit":
            teacher = self.reflow.load(type(self), self)
            self.model.schema = teacher.schema
            for flow in (self.flow, self.flow_ema):
                flow.load_state_dict(teacher.flow_ema.state_dict())

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of a batch."""
        loss = self.loss(read_samples(batch)).mean()
        self.means.add({"train/loss": loss})
        return loss

    def loss(self, samples: Samples, flow: Flow | None = None) -> Tensor:
        """Loss per sample, shape (B,).

        Args:
            samples: Standardised samples.
            flow: Flow that is evaluated; the one that is trained if None.
        """
        flow, x_1, condition = flow or self.flow, samples.sample, samples.condition
        x_0 = samples.source
        if x_0 is None:
            x_0 = flow.source.transform(self.model.draw_noise(len(x_1)))
            if not self.coupling.is_independent:
                x_0 = x_0[self.coupling.pair(x_0, x_1, torch.rand(len(x_1), device=x_1.device), condition)]
        uniform = torch.rand(self.objective.num_uniforms, len(x_1), device=x_1.device)
        if self.stratified_times:
            uniform = torch.stack([stratify(row) for row in uniform])
        present = torch.rand(len(x_1), device=x_1.device) >= self.condition_dropout if flow.marks_absence else True
        points = self.objective.points(flow.path, x_0, x_1, uniform, flow.t_min)
        return flow.loss(self.objective, points, flow.mark(condition, present))

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the loss on held-out samples and the energy distance of as many generated ones."""
        samples = read_samples(batch)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            loss = self.loss(samples, self.flow_ema).mean()
        if not bool(torch.isfinite(loss)):
            raise RunError(
                f"the loss on held-out data is not finite after {self.global_step} updates; lower the learning rate"
            )
        distance = self.tests.validate(self.model, samples, torch.Generator().manual_seed(0))
        self.log_dict({"val/loss": loss, "val/energy_distance": distance}, batch_size=1, sync_dist=True)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log distances between generated and held-out samples, and the likelihood of the latter."""
        result = self.tests.test(self.model, batch, torch.Generator().manual_seed(1))
        self.log_dict({f"test/{name}": v for name, v in result.metrics().items()}, batch_size=1, sync_dist=True)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Samples in the units of the data, float64, with their conditions."""
        condition = batch.get(CONDITION)
        generator = torch.Generator().manual_seed((torch.initial_seed() + int(batch["row"][0])) % 2**63)
        sample = self.model.sample(self.model.draw_noise(len(batch["row"]), generator), condition, generator)
        return {SAMPLE: self.schema.restore(sample), **({} if condition is None else {CONDITION: condition})}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the units of the checkpoint, and the integers of either; refuse one of other columns, in one line."""
        super().on_load_checkpoint(checkpoint)
        saved: TableSchema = checkpoint["hyper_parameters"]["schema"]
        for kind in ("columns", "condition_columns", "class_columns"):
            trained, here = getattr(saved, kind), getattr(self.schema, kind)
            missing = [name for name in trained if name not in here]
            if missing or len(trained) != len(here):
                problem = f"lacks {missing[0]!r}" if missing else f"has {', '.join(here)}"
                raise UserError(f"the checkpoint was trained with {kind} {', '.join(trained)}; this table {problem}")
        here = dict(zip(self.schema.class_columns, self.schema.classes, strict=True))
        for name, levels in zip(saved.class_columns, saved.classes, strict=True):
            if set(here[name]) != set(levels):
                raise UserError(
                    f"the checkpoint was trained with the classes {', '.join(levels)} of {name!r}; "
                    f"this table has {', '.join(here[name])}"
                )
        integers = tuple(dict.fromkeys((*saved.integers, *self.schema.integers)))
        self.model.schema = dataclasses.replace(saved, integers=integers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the units in use, which may be those of an earlier checkpoint or a teacher; nothing that diverged."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"]["schema"] = self.schema

    def result_lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test measured, one line each.

        Args:
            metrics: Metrics by name.
        """
        return self.tests.lines(metrics)
