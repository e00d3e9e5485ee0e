import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from flowmatch_rl.batches import Samples
from flowmatch_rl.checks import RunError
from flowmatch_rl.couplings import ExactCoupling
from flowmatch_rl.data import DensityTable, SampleData
from flowmatch_rl.evaluation import FlowTests
from flowmatch_rl.inference import load_flow
from flowmatch_rl.models import Flow, Likelihood
from flowmatch_rl.modules import FlowMatchingModel, FlowOptimizer, Reflow
from flowmatch_rl.nets import EmaSettings, VelocityArchitecture
from flowmatch_rl.objectives import ConditionalFlowMatching, FlowObjective, MeanFlow
from flowmatch_rl.paths import (
    AffinePath,
    CosineSchedule,
    GaussianSource,
    MixtureSource,
    PathPoints,
    Source,
    UniformSource,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from flowmatch_rl.samplers import AverageVelocitySampler, DdimSampler, OdeSampler, Sampler, SdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import AdaptiveSolver, Euler, HutchinsonDivergence, Midpoint
from flowmatch_rl.testbeds import EightGaussians, TwoMoons
from tests.combinations import one_test

PLANE = TableSchema(("x", "y"), (3.0, -1.0), (2.0, 0.2))
GIVEN = TableSchema(("x", "y"), (0.0, 0.0), (1.0, 1.0), ("angle",), (1.0,), (2.0,), ("part",), (("left", "right"),))
SMALL = VelocityArchitecture(hidden_dim=16, num_blocks=1, time_features=8)

VARIANTS: dict[str, dict[str, Any]] = {
    "velocity": {},
    "optimal transport": {"coupling": ExactCoupling()},
    "stratified": {"stratified_times": True},
    "uniform source": {"source": UniformSource()},
    "data on cosine": {
        "path": AffinePath(CosineSchedule()),
        "objective": ConditionalFlowMatching("data"),
        "t_min": 1e-3,
    },
    "noise": {
        "path": AffinePath(VariancePreservingSchedule()),
        "objective": ConditionalFlowMatching("noise"),
        "sampler": DdimSampler(5),
        "t_min": 1e-3,
    },
    "score": {
        "path": AffinePath(VarianceExplodingSchedule()),
        "objective": ConditionalFlowMatching("score"),
        "sampler": SdeSampler(5),
        "normalise": True,
    },
    "stochastic": {"sampler": SdeSampler(5)},
    "mean flow": {"objective": MeanFlow(), "sampler": AverageVelocitySampler()},
    "adaptive": {
        "sampler": OdeSampler(AdaptiveSolver()),
        "likelihood": Likelihood(Midpoint(3), HutchinsonDivergence(num_probes=2)),
    },
}


def model(schema: TableSchema = PLANE, **options: Any) -> FlowMatchingModel:
    torch.manual_seed(0)
    return FlowMatchingModel(schema, **{"network": SMALL, **options})


def batch(size: int = 12, schema: TableSchema = PLANE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = {"sample": torch.randn(size, schema.sample_dim, generator=generator)}
    if schema.condition_dim:
        made["condition"] = torch.randn(size, schema.condition_dim, generator=generator)
    return made


def tiny_data(**options: Any) -> SampleData:
    sizes = {"batch_size": 16, "num_updates": 6, "epoch_updates": 3, "eval_samples": 40, "predict_samples": 7}
    return SampleData(**{"dataset": DensityTable(num_samples=300), **sizes, **options})


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 2,
            "default_root_dir": folder,
            **options,
        }
    )


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_loss_falls_on_a_fixed_batch(options: dict[str, Any]) -> None:
    module = model(**options)
    samples = Samples(batch(64)["sample"] * 0.1 + 1.0)
    optimizer = torch.optim.Adam(module.flow.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        loss = module.loss(samples).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_weight_learns_and_the_ema_flow_does_not(options: dict[str, Any]) -> None:
    module = model(GIVEN, **options)
    samples = batch(schema=GIVEN)
    module.loss(Samples(samples["sample"], samples["condition"])).mean().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in module.flow.parameters())
    assert all(weight.grad is None and not weight.requires_grad for weight in module.flow_ema.parameters())


@one_test
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("schema", [PLANE, GIVEN], ids=["plain", "conditional"])
def test_samples_and_densities_have_the_shapes_of_the_batch(options: dict[str, Any], schema: TableSchema) -> None:
    module = model(schema, **({"likelihood": Likelihood(Midpoint(3))} | options)).model
    made = batch(5, schema)
    noise = module.draw_noise(5)
    drawn = module.sample(noise, made.get("condition"))
    assert drawn.shape == (5, 2)
    assert bool(torch.isfinite(drawn).all())
    assert module.log_prob(made["sample"], made.get("condition")).shape == (5,)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_checkpoint_round_trip_keeps_samples_and_units(options: dict[str, Any], tmp_path: Path) -> None:
    data = tiny_data()
    module = FlowMatchingModel(data.schema, network=SMALL, **options)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = FlowMatchingModel.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert again.schema == data.schema
    assert again.flow.path == module.flow.path
    assert again.objective == module.objective
    noise = module.model.draw_noise(4)
    for seed in (3, 4):
        drawn = [m.model.sample(noise, None, torch.Generator().manual_seed(seed)) for m in (module, again)]
        torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)


def test_the_ema_flow_follows_at_its_rate(tmp_path: Path) -> None:
    data = tiny_data(num_updates=1, epoch_updates=1)
    module = FlowMatchingModel(data.schema, network=SMALL, ema=EmaSettings(0.05, warm_up=True))
    before = [weight.clone() for weight in module.flow.parameters()]
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, datamodule=data)
    parts = zip(before, module.flow.parameters(), module.flow_ema.parameters(), strict=True)
    for start, weight, copy in parts:
        torch.testing.assert_close(copy, 0.05 * start + 0.95 * weight)


@pytest.mark.parametrize(("batches_per_update", "longer"), [(1, 0), (2, 0), (1, 5)])
def test_the_ema_flow_makes_up_for_updates_between_its_moves(
    tmp_path: Path, batches_per_update: int, longer: int
) -> None:
    number = 8 * batches_per_update + longer
    data = tiny_data(num_updates=number, epoch_updates=number)
    module = FlowMatchingModel(data.schema, network=SMALL, ema=EmaSettings(0.9, interval=5, warm_up=True))
    wanted = torch.nn.utils.parameters_to_vector(module.flow_ema.parameters())
    weights: dict[int, Tensor] = {}

    class Look(Callback):
        def on_train_batch_end(self, run: Trainer, *_: Any) -> None:
            weights[run.global_step] = torch.nn.utils.parameters_to_vector(module.flow.parameters())

    options = {"limit_val_batches": 0, "accumulate_grad_batches": batches_per_update}
    trainer(tmp_path, max_epochs=1, max_steps=8, callbacks=[Look()], **options).fit(module, datamodule=data)
    wanted = torch.lerp(weights[5], wanted, (6 / 15) ** 5)
    wanted = torch.lerp(weights[8], wanted, (9 / 18) ** 3)
    torch.testing.assert_close(torch.nn.utils.parameters_to_vector(module.flow_ema.parameters()), wanted)


def test_the_learning_rate_falls_to_zero_along_a_cosine(tmp_path: Path) -> None:
    data = tiny_data(num_updates=8, epoch_updates=8)
    module = FlowMatchingModel(data.schema, network=SMALL, optimizer=FlowOptimizer(1e-2))
    rates: list[float] = []
    step = module.optimizer_step

    def noting(*args: Any, **kwargs: Any) -> None:
        rates.append(module.trainer.optimizers[0].param_groups[0]["lr"])
        step(*args, **kwargs)

    module.optimizer_step = noting  # pyright: ignore
    trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, datamodule=data)
    wanted = 5e-3 * (1.0 + torch.cos(torch.pi * torch.arange(8) / 8))
    torch.testing.assert_close(torch.tensor(rates), wanted)


def test_log_densities_are_those_of_the_data_in_its_own_units() -> None:
    likelihood = Likelihood(Midpoint(20))
    module = model(likelihood=likelihood)
    plain = model(dataclasses.replace(PLANE, shift=(0.0, 0.0), scale=(1.0, 1.0)), likelihood=likelihood)
    points = batch()["sample"]
    difference = module.model.log_prob(points) - plain.model.log_prob(points)
    torch.testing.assert_close(difference, torch.full((12,), -math.log(2.0 * 0.2)))


def test_an_untrained_flow_of_no_velocity_has_the_density_of_its_source() -> None:
    module = model()
    torch.nn.init.zeros_(module.flow_ema.network.to_velocity.weight)
    points = batch()["sample"]
    torch.testing.assert_close(module.model.log_prob(points), GaussianSource().log_prob(points) - PLANE.log_volume)


def test_guidance_extrapolates_from_the_unconditional_prediction() -> None:
    module = model(GIVEN, condition_dropout=0.5)
    made = batch(schema=GIVEN)
    x, condition, t = made["sample"], made["condition"], torch.full((12,), 0.4)
    fields = {w: module.flow_ema.field(w).velocity(x, t, condition) for w in (0.0, 1.0, 3.0)}
    torch.testing.assert_close(fields[3.0], fields[0.0] + 3.0 * (fields[1.0] - fields[0.0]))
    assert not torch.allclose(fields[0.0], fields[1.0])
    other = module.flow_ema.field(0.0).velocity(x, t, condition + 1.0)
    torch.testing.assert_close(other, fields[0.0], rtol=0, atol=0)


def test_condition_dropout_hides_the_stated_share(monkeypatch: pytest.MonkeyPatch) -> None:
    module = model(GIVEN, condition_dropout=0.3)
    seen: list[Tensor] = []
    forward = Flow.forward

    def noting(flow: Any, x: Tensor, t: Tensor, condition: Tensor, duration: Tensor | None = None) -> Tensor:
        seen.append(condition)
        return forward(flow, x, t, condition, duration)

    monkeypatch.setattr(Flow, "forward", noting)
    made = batch(4000, GIVEN)
    module.loss(Samples(made["sample"], made["condition"]))
    hidden = seen[0][:, -1] == 0.0
    assert abs(hidden.float().mean().item() - 0.3) < 0.03
    assert not seen[0][hidden].any()
    torch.testing.assert_close(seen[0][~hidden][:, :-1], made["condition"][~hidden])


def test_pairs_that_the_batch_brings_are_used_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    module = model()
    sources: list[Tensor] = []

    def noting(self: FlowObjective, network: Any, path: Any, points: PathPoints, *_: Any) -> Tensor:
        sources.append(points.x_0)
        return points.x_0.sum(1)

    monkeypatch.setattr(ConditionalFlowMatching, "loss", noting)
    given = torch.ones(12, 2)
    module.loss(Samples(batch()["sample"], None, given))
    assert sources[0] is given


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_evaluation_leaves_the_training_noise_alone(tmp_path: Path, accelerator: str) -> None:
    data = tiny_data()
    ends = []
    for epochs_without in (0, 2):
        torch.manual_seed(7)
        module = FlowMatchingModel(data.schema, network=SMALL)
        limit = {"limit_val_batches": 0} if epochs_without else {}
        trainer(tmp_path, accelerator=accelerator, **limit).fit(module, datamodule=tiny_data())
        ends.append(torch.nn.utils.parameters_to_vector(module.flow.parameters()))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does_in_length(tmp_path: Path) -> None:
    data = tiny_data()
    whole = trainer(tmp_path)
    whole.fit(FlowMatchingModel(data.schema, network=SMALL), datamodule=data)
    half = trainer(tmp_path, max_epochs=1)
    half.fit(FlowMatchingModel(data.schema, network=SMALL), datamodule=tiny_data())
    half.save_checkpoint(tmp_path / "half.ckpt")
    rest = trainer(tmp_path)
    rest.fit(FlowMatchingModel(data.schema, network=SMALL), datamodule=tiny_data(), ckpt_path=tmp_path / "half.ckpt")
    assert rest.global_step == whole.global_step == 6


def test_a_resumed_run_decays_weights_as_it_states(tmp_path: Path) -> None:
    data = tiny_data()
    half = trainer(tmp_path, max_epochs=1)
    half.fit(FlowMatchingModel(data.schema, network=SMALL), datamodule=tiny_data())
    half.save_checkpoint(tmp_path / "half.ckpt")
    rest = trainer(tmp_path)
    decaying = FlowMatchingModel(data.schema, network=SMALL, optimizer=FlowOptimizer(weight_decay=0.25))
    rest.fit(decaying, datamodule=tiny_data(), ckpt_path=tmp_path / "half.ckpt")
    assert rest.optimizers[0].param_groups[0]["weight_decay"] == 0.25


def test_a_resumed_run_draws_other_noise_than_it_began_with(tmp_path: Path) -> None:
    draws = []

    class Draws(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            draws.append(tuple(torch.get_rng_state().tolist()))

    path = None
    for epochs in (1, 2):
        torch.manual_seed(7)
        run = trainer(tmp_path, max_epochs=epochs, callbacks=[Draws()])
        run.fit(FlowMatchingModel(tiny_data().schema, network=SMALL), datamodule=tiny_data(), ckpt_path=path)
        path = tmp_path / "half.ckpt"
        run.save_checkpoint(path)
    assert len(set(draws)) == len(draws) == 6


def test_a_test_of_weights_that_are_not_finite_breaks_off(tmp_path: Path) -> None:
    data = tiny_data()
    module = FlowMatchingModel(data.schema, network=SMALL)
    torch.nn.init.constant_(module.flow_ema.network.to_velocity.bias, float("nan"))
    with pytest.raises(RunError, match="weights of the model of the EMA flow are not finite"):
        trainer(tmp_path).test(module, datamodule=data, verbose=False)


def test_a_test_uses_the_units_of_the_checkpoint(tmp_path: Path) -> None:
    data = tiny_data()
    run = trainer(tmp_path)
    run.fit(FlowMatchingModel(data.schema, network=SMALL), datamodule=data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    other = tiny_data(dataset=DensityTable(TwoMoons(noise=0.8), num_samples=300))
    module = FlowMatchingModel(other.schema, network=SMALL, tests=FlowTests(likelihood_samples=0))
    trainer(tmp_path).test(module, datamodule=other, ckpt_path=tmp_path / "model.ckpt", verbose=False)
    assert module.schema == data.schema != other.schema


def test_a_checkpoint_of_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    module = model(TableSchema(("x", "height"), (0.0, 0.0), (1.0, 1.0)))
    with pytest.raises(ValueError, match="lacks 'height'"):
        model().on_load_checkpoint({"hyper_parameters": {"schema": module.schema}})


def test_a_checkpoint_of_other_classes_is_refused_by_name() -> None:
    module = model(dataclasses.replace(GIVEN, classes=(("left", "middle"),)))
    with pytest.raises(ValueError, match="left, middle of 'part'; this table has left, right"):
        model(GIVEN).on_load_checkpoint({"hyper_parameters": {"schema": module.schema}})


@pytest.mark.parametrize("conditional", [False, True])
def test_reflow_starts_from_its_teacher_and_learns_its_pairs(tmp_path: Path, conditional: bool) -> None:
    options = {"dataset": DensityTable(EightGaussians(), num_samples=300), "classes": ["part"]} if conditional else {}
    data = tiny_data(**options)
    run = trainer(tmp_path)
    run.fit(FlowMatchingModel(data.schema, network=SMALL), datamodule=data)
    run.save_checkpoint(tmp_path / "teacher.ckpt")
    teacher = FlowMatchingModel.load_from_checkpoint(tmp_path / "teacher.ckpt")

    again = tiny_data(**options)
    reflow = Reflow(str(tmp_path / "teacher.ckpt"), num_pairs=50, solver=Midpoint(7))
    student = FlowMatchingModel(
        again.schema, network=SMALL, optimizer=FlowOptimizer(1e-12), ema=EmaSettings(0.0), reflow=reflow
    )
    trainer(tmp_path).fit(student, datamodule=again)
    for taught, weight in zip(teacher.flow_ema.parameters(), student.flow.parameters(), strict=True):
        torch.testing.assert_close(weight, taught)
    samples = Samples(
        torch.zeros(20, 2), torch.eye(data.schema.condition_dim)[:1].expand(20, -1) if conditional else None
    )
    pairs = student.training_samples(samples)
    assert pairs.source is not None
    assert len(pairs.sample) == 50
    field = teacher.flow_ema.field().velocity
    with torch.no_grad():
        ends = Midpoint(7).integrate(field, pairs.source, 0.0, 1.0, pairs.condition)
    torch.testing.assert_close(pairs.sample, ends)


def test_a_student_that_differs_from_its_teacher_is_refused(tmp_path: Path) -> None:
    data = tiny_data()
    run = trainer(tmp_path)
    run.fit(FlowMatchingModel(data.schema, network=SMALL), datamodule=data)
    run.save_checkpoint(tmp_path / "teacher.ckpt")
    reflow = Reflow(str(tmp_path / "teacher.ckpt"))
    wider = FlowMatchingModel(data.schema, network=dataclasses.replace(SMALL, hidden_dim=32), reflow=reflow)
    with pytest.raises(ValueError, match="another shape"):
        wider.setup("fit")
    (tmp_path / "damaged.ckpt").write_bytes(b"no checkpoint")
    for path, schema, words in (
        (tmp_path / "damaged.ckpt", data.schema, r"teacher cannot be loaded: .*damaged\.ckpt is not a checkpoint"),
        (tmp_path / "teacher.ckpt", TableSchema(("x",), (0.0,), (1.0,)), "columns"),
        (tmp_path / "teacher.ckpt", dataclasses.replace(GIVEN, columns=("x", "y")), "condition_columns"),
    ):
        with pytest.raises(ValueError, match=words):
            model(schema, reflow=Reflow(str(path))).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.ckpt"):
        model(reflow=Reflow("nowhere.ckpt")).setup("fit")


def test_a_trained_flow_returns_arrays_in_the_units_of_the_data(tmp_path: Path) -> None:
    data = tiny_data(dataset=DensityTable(EightGaussians(), num_samples=300), classes=["part"])
    run = trainer(tmp_path)
    run.fit(FlowMatchingModel(data.schema, network=SMALL, likelihood=Likelihood(Midpoint(3))), datamodule=data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    flow = load_flow(tmp_path / "model.ckpt")
    part = data.schema.classes[0][0]
    drawn = flow.sample(6, {"part": [part] * 6})
    assert flow.columns == ("x", "y")
    assert drawn.shape == (6, 2)
    assert flow.log_prob(drawn, {"part": [part] * 6}).shape == (6,)
    with pytest.raises(KeyError, match="'part' is missing"):
        flow.sample(6)
    with pytest.raises(ValueError, match="holds the class 'nowhere'"):
        flow.sample(1, {"part": ["nowhere"]})
    with pytest.raises(ValueError, match="no condition 'colour'"):
        flow.sample(1, {"part": [part], "colour": [1.0]})
    with pytest.raises(ValueError, match="expected 2 values"):
        flow.sample(2, {"part": [part]})


@one_test
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_min": 0.5}, "t_min must lie in"),
        ({"condition_dropout": 1.0}, "condition_dropout must lie in"),
        ({"guidance": 2.0}, "guidance 2.0 needs"),
        ({"objective": ConditionalFlowMatching("noise")}, "t_min must be above"),
        ({"objective": ConditionalFlowMatching("data")}, "t_min must be above"),
        ({"path": AffinePath(VariancePreservingSchedule())}, "t_min must be above"),
        ({"sampler": AverageVelocitySampler()}, "by the objective MeanFlow"),
        ({"source": UniformSource(), "sampler": SdeSampler(), "t_min": 0.1}, "needs a standard normal source"),
        (
            {"source": GaussianSource(2.0), "objective": ConditionalFlowMatching("score"), "t_min": 0.1},
            "needs the source",
        ),
        ({"source": MixtureSource([[0.0, 1.0, 2.0]])}, "the source has 3 dimensions"),
    ],
    ids=str,
)
def test_parts_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**options)


@pytest.mark.parametrize(
    "source", [GaussianSource(), UniformSource(), MixtureSource([[1.0, 1.0], [-1.0, 0.0]])], ids=repr
)
@pytest.mark.parametrize("sampler", [OdeSampler(Euler(3))], ids=repr)
def test_sampling_starts_from_the_source(source: Source, sampler: Sampler) -> None:
    module = model(source=source, sampler=sampler).model
    noise = module.draw_noise(9)
    times, points = module.trajectory(noise)
    torch.testing.assert_close(points[0], source.transform(noise))
    assert times.tolist() == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    torch.testing.assert_close(points[-1], module.sample(noise))
