"""An occupancy as a module: its updates, its runs, its checkpoints, and the parts it refuses."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from flowmatch_rl.batches import read_segment
from flowmatch_rl.checks import RunError
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.models import Horizon, Likelihood
from flowmatch_rl.modules import FlowOptimizer, ObservedSteps, OccupancyModule
from flowmatch_rl.nets import Architecture, EmaSettings, FilmUNetArchitecture, update_ema
from flowmatch_rl.objectives import TD2CFM, TD2DD, TDCFM, TDDD, CoupledTDCFM, MonteCarloCFM, OccupancyObjective
from flowmatch_rl.paths import AffinePath, CosineSchedule, LogitNormalTime, VariancePreservingSchedule
from flowmatch_rl.samplers import DdimSampler, OdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import (
    ConstantPolicy,
    LinearGaussianProcess,
    LinearPolicy,
    LinearReward,
    RandomPolicy,
    SpeedReward,
    SumReward,
)
from tests.combinations import one_test
from tests.data.toy_trajectories import End, trajectory_store
from tests.families import ARCHITECTURES
from tests.modules.occupancy_toys import PLANE, PLANE_POLICY, SMALL, attach, occupancy, segments

FEW = Midpoint(num_steps=2)
DIFFUSION: dict[str, Any] = {
    "path": AffinePath(VariancePreservingSchedule()),
    "sampler": DdimSampler(num_steps=3),
    "t_min": 0.2,  # nearer to 0 an untrained network leads samples hundreds of units away
}
VARIANTS: dict[str, dict[str, Any]] = {
    "squared": {"objective": TD2CFM(solver=FEW)},
    "temporal difference": {"objective": TDCFM(solver=FEW)},
    "coupled": {"objective": CoupledTDCFM(solver=FEW)},
    "bernoulli": {"objective": TD2CFM(mixing="bernoulli", reduction="mean", solver=FEW)},
    "diffusion": {"objective": TDDD(sampler=DdimSampler(num_steps=3)), **DIFFUSION},
    "squared diffusion": {"objective": TD2DD(sampler=DdimSampler(num_steps=3)), **DIFFUSION},
    "Monte Carlo": {"objective": MonteCarloCFM(), "horizon": Horizon(0.9, first_state="current")},
    "many horizons": {"objective": TD2CFM(solver=FEW), "horizon": Horizon(0.9, 0.5, consistency=0.5)},
    "several steps": {
        "objective": TD2CFM(solver=FEW),
        "segments": ObservedSteps(3),
        "horizon": Horizon(0.9, first_state="current"),
    },
    "columns": {"objective": TD2CFM(solver=FEW, time_distribution=LogitNormalTime()), "columns": ["speed", "x"]},
    "film": {
        "objective": TD2CFM(solver=FEW),
        "network": FilmUNetArchitecture(
            block_dims=(16, 16), time_features=8, time_dims=(8,), condition_dims=(12,), activation="silu"
        ),
        "path": AffinePath(CosineSchedule()),
    },
}


def batch_for(options: dict[str, Any], size: int = 24) -> dict[str, Tensor]:
    return segments(
        size, options.get("segments", ObservedSteps()).observed_steps, future=segments(size)["arrivals"][:, 0]
    )


def loss_of(module: OccupancyModule, batch: dict[str, Tensor]) -> Tensor:
    direct, bootstrap = module.loss(read_segment(batch), batch.get("discount"))
    assert direct.shape == bootstrap.shape == (len(batch["observation"]),)
    return (direct + bootstrap).mean()


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_loss_falls_on_a_fixed_batch(options: dict[str, Any]) -> None:
    module = occupancy(**options)
    batch = batch_for(options)
    # One point to learn, so that the target has little noise of its own.
    batch["arrivals"] = batch["arrivals"] * 0.0 + torch.tensor([4.0, -1.1, 40.0])
    batch["observation"], batch["future"] = batch["arrivals"][:, 0], batch["arrivals"][:, 0]

    def now() -> float:
        torch.manual_seed(9)
        with torch.no_grad():
            return sum(loss_of(module, batch).item() for _ in range(8))

    before = now()
    optimizer = torch.optim.Adam(module.flow.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(module, batch).backward()
        optimizer.step()
    assert now() < 0.9 * before


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_weight_learns_and_the_ema_flow_does_not(options: dict[str, Any]) -> None:
    module = occupancy(**options)
    optimizer = torch.optim.Adam(module.flow.parameters(), lr=1e-3)
    gradients: dict[str, Tensor] = {}
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(module, batch_for(options)).backward()
        for name, weight in module.flow.named_parameters():
            assert weight.grad is not None, name
            gradients[name] = gradients.get(name, torch.zeros(())) + weight.grad.abs()
        optimizer.step()
    assert all(bool(gradient.any()) for gradient in gradients.values())
    assert all(weight.grad is None and not weight.requires_grad for weight in module.flow_ema.parameters())
    assert not module.flow_ema.training


def test_the_two_terms_are_logged_apart_and_add_up() -> None:
    module = attach(occupancy(objective=TD2CFM(solver=FEW)))
    torch.manual_seed(2)
    loss = module.training_step(segments(), 0)
    means = module.means.take()
    assert means.keys() == {"train/loss", "train/loss/direct", "train/loss/bootstrap"}
    torch.testing.assert_close(means["train/loss"], loss.detach())
    torch.testing.assert_close(means["train/loss/direct"] + means["train/loss/bootstrap"], loss.detach())


def test_the_ema_flow_follows_at_its_rate() -> None:
    module = attach(occupancy(ema=EmaSettings(0.75)))
    with torch.no_grad():
        for weight in module.flow.parameters():
            weight.add_(torch.randn_like(weight))
    wanted = [0.75 * copy + 0.25 * weight for copy, weight in pairs(module)]
    module.on_train_batch_end(None, None, 0)
    for copy, expected in zip(module.flow_ema.parameters(), wanted, strict=True):
        torch.testing.assert_close(copy, expected)


def pairs(module: OccupancyModule) -> list[tuple[Tensor, Tensor]]:
    return list(zip(module.flow_ema.parameters(), module.flow.parameters(), strict=True))


def test_samples_and_densities_are_of_the_ema_flow() -> None:
    module = occupancy()
    batch = segments(4)
    state, action = batch["observation"], batch["action"]
    model = module.model
    before = model.sample(torch.zeros(4, 3), state, action), model.log_prob(state, state, action)
    with torch.no_grad():
        for weight in module.flow.parameters():
            weight.add_(1.0)
    assert torch.equal(model.sample(torch.zeros(4, 3), state, action), before[0])
    assert torch.equal(model.log_prob(state, state, action), before[1])
    update_ema(module.flow_ema, module.flow, 0.0)
    assert not torch.equal(model.sample(torch.zeros(4, 3), state, action), before[0])


LINEAR_STORE: list[tuple[int, End]] = [(6, "truncated"), (4, "terminated"), (9, "truncated"), (5, "terminated")] * 2
TIME = LinearReward(columns=("time",), weights=(1.0,), bias=0.5)
TINY: dict[str, Any] = {
    "network": SMALL,
    "sampler": OdeSampler(FEW),
    "likelihood": Likelihood(FEW),
    "objective": TD2CFM(solver=FEW),
    "horizon": Horizon(0.5),
    "tests": FutureTests(val_samples=8, test_samples=8, value_samples=9, likelihood_samples=10, predict_samples=3),
}


def tiny_data(folder: Path, **options: Any) -> OfflineData:
    if not (folder / "set").is_dir():
        trajectory_store(folder / "set", LINEAR_STORE, **options.pop("store", {}))
    sizes: dict[str, Any] = {"batch_size": 16, "num_updates": 6, "epoch_updates": 3, "eval_steps": 8}
    return OfflineData(str(folder / "set"), **(sizes | options))


def model_of(data: OfflineData, **options: Any) -> OccupancyModule:
    return OccupancyModule(**data.dimensions, **(TINY | options))


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 2,
        "default_root_dir": folder,
    }
    return Trainer(**(quiet | options))


PARTS: dict[str, dict[str, Any]] = {
    "plain": {"policy": ConstantPolicy([0.5])},
    "rich": {
        "policy": LinearPolicy(gain=[[0.01, -0.02]], bias=[0.1]),
        "rewards": {"late": TIME, "both": SumReward((TIME, SpeedReward(columns=("time", "trajectory"))), (1.0, 2.0))},
        "horizon": Horizon(0.5, 0.25, consistency=0.25),
        "tests": FutureTests(
            val_samples=8, test_samples=8, value_samples=9, likelihood_samples=10, discounts=(0.25, 0.5)
        ),
        "path": AffinePath(CosineSchedule()),
        "optimizer": FlowOptimizer(1e-4, "cosine"),
    },
    "diffusion": {
        "policy": RandomPolicy(1),
        "columns": ["time"],
        "objective": TD2DD(sampler=DdimSampler(num_steps=3)),
        **DIFFUSION,
    },
    "several steps": {"segments": ObservedSteps(3), "horizon": Horizon(0.5, first_state="current")},
    "Monte Carlo": {"objective": MonteCarloCFM(), "policy": ConstantPolicy([0.5])},
}


@pytest.mark.parametrize("options", PARTS.values(), ids=PARTS)
def test_a_checkpoint_round_trip_keeps_samples_units_and_parts(options: dict[str, Any], tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    module = model_of(data, **options)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    assert run.global_step == 6
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = OccupancyModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert again.schema == module.schema
    models = module.model, again.model
    assert again.model.inputs.schema == data.dimensions["schema"]
    assert (again.rewards, again.tests, again.objective) == (module.rewards, module.tests, module.objective)
    for name in ("policy", "sampler", "horizon"):
        assert getattr(models[0], name) == getattr(models[1], name)
    assert again.flow.path == module.flow.path
    noise = models[0].draw_noise(5)
    state, action = torch.randn(5, 2), torch.zeros(5, 1)
    for answers in (
        [m.sample(noise, state, action) for m in models],
        [m.log_prob(noise, state, action) for m in models],
    ):
        assert torch.equal(*answers)
    batch = next(iter(data.train_dataloader()))
    for one, other in zip(module.flow.parameters(), again.flow.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.manual_seed(4)
    first = loss_of(module, batch)
    torch.manual_seed(4)
    assert torch.equal(first, loss_of(again, batch))


def test_a_run_without_a_policy_is_validated_and_tested_on_trajectories_left_out(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    module = model_of(data, rewards={"late": TIME})
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    assert bool(torch.isfinite(run.callback_metrics["val/wasserstein"]))
    (metrics,) = run.test(module, datamodule=data, verbose=False)
    names = {"wasserstein", "squared_wasserstein", "wasserstein_floor", "nll_per_dim"}
    names |= {f"{name}/late" for name in ("value", "value_standard_error", "value_real", "value_error")}
    names |= {"action_information"}  # of the model alone: trajectories of the data have one action in a state
    assert metrics.keys() == {f"test/{name}" for name in names}
    assert len(module.result_lines(metrics)) == 5


def test_a_run_with_an_environment_compares_with_the_policy_in_it(tmp_path: Path) -> None:
    process = LinearGaussianProcess()
    policy = LinearPolicy(gain=[[0.1, -0.2]])
    data = tiny_data(tmp_path, environment=ProcessEnvironment(process), eval_states=3, eval_copies=4)
    module = model_of(data, policy=policy)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    assert bool(torch.isfinite(run.callback_metrics["val/wasserstein"]))
    (metrics,) = run.test(module, datamodule=data, verbose=False)
    # Six updates teach it nothing of the action, which decides a part of the next states.
    assert metrics["test/action_information"] < 0.1 * metrics["test/action_information_real"]
    assert any(line.startswith("warning ") for line in module.result_lines(metrics))
    (made,) = cast(list[dict[str, Tensor]], run.predict(module, datamodule=data))
    assert made["sample"].shape == (64 * 3, 2)
    assert made["condition"].shape == (64 * 3, 3)
    known = data.trajectories(data.test_states, data.eval_seed + 1_000_000)
    source = torch.cat([known["observation"], known["action"]], 1).repeat_interleave(3, 0)
    schema = module.model.inputs.schema
    units = torch.tensor((*schema.shift, 0.0)), torch.tensor((*schema.scale, 1.0))
    torch.testing.assert_close(made["condition"], (source - units[0]) / units[1])


@pytest.mark.parametrize(("options", "constants"), [({}, "0.3"), ({"segments": ObservedSteps(3)}, "0.52")])
def test_a_run_says_how_many_time_constants_it_has_and_warns_of_few(options, constants, tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    module = model_of(data, ema=EmaSettings(0.9), **options)
    with pytest.warns(UserWarning, match=rf"6 updates are {constants} time constants .* lower ema\.decay from 0\.9"):
        trainer(tmp_path).fit(module, datamodule=data)
    assert module.result_lines({})[-1].startswith(f"clock        {constants}")
    enough = model_of(data, ema=EmaSettings(0.0), **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* time constants")
        trainer(tmp_path).fit(enough, datamodule=data)


def test_validation_leaves_the_training_noise_alone(tmp_path: Path) -> None:
    ends = []
    for limit in ({}, {"limit_val_batches": 0}):
        torch.manual_seed(7)
        data = tiny_data(tmp_path, test_states=1)
        module = model_of(data)
        trainer(tmp_path, **limit).fit(module, datamodule=data)
        ends.append(torch.nn.utils.parameters_to_vector(module.flow.parameters()))
    assert torch.equal(*ends)


def test_a_test_uses_the_units_of_the_checkpoint(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    module = model_of(data, policy=ConstantPolicy([0.5]))
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    options: dict[str, Any] = TINY | {"policy": ConstantPolicy([0.5])}
    other = OccupancyModule(PLANE_OF_OTHER_UNITS, 1, **options)
    trainer(tmp_path).test(other, datamodule=data, ckpt_path=tmp_path / "model.ckpt", verbose=False, weights_only=True)
    assert other.model.inputs.schema == data.dimensions["schema"] != PLANE_OF_OTHER_UNITS
    state = torch.randn(3, 2)
    torch.testing.assert_close(other.model.inputs.standardise(state), module.model.inputs.standardise(state))


PLANE_OF_OTHER_UNITS = TableSchema(("trajectory", "time"), (0.0, 0.0), (1.0, 1.0))


def test_a_resumed_run_writes_the_units_it_began_with() -> None:
    module, begun = occupancy(), dataclasses.replace(PLANE, shift=(0.0, 1.0, 2.0), scale=(3.0, 4.0, 5.0))
    module.on_load_checkpoint(checkpoint_of(occupancy(begun)))
    saved = checkpoint_of(occupancy())
    module.on_save_checkpoint(saved)
    assert saved["hyper_parameters"]["schema"] == begun


def checkpoint_of(module: OccupancyModule) -> dict[str, Any]:
    checkpoint = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def test_an_earlier_checkpoint_of_many_horizons_takes_no_state_for_terminal() -> None:
    options: dict[str, Any] = {"horizon": Horizon(0.9, 0.5)}
    module, again = occupancy(**options), occupancy(**options)
    saved = checkpoint_of(module)
    saved["state_dict"] = {name: value for name, value in saved["state_dict"].items() if "termination" not in name}
    again.on_load_checkpoint(saved)
    again.load_state_dict(saved["state_dict"])
    assert not again.model.terminal_probability(torch.randn(5, 3), 0.9).any()


def test_a_model_of_one_horizon_does_not_know_terminal_states() -> None:
    with pytest.raises(ValueError, match="a model of a single horizon does not know which states are terminal"):
        occupancy().model.terminal_probability(torch.randn(5, 3), 0.9)


def test_a_checkpoint_of_other_columns_is_refused_by_name() -> None:
    other = dataclasses.replace(PLANE, columns=("x", "y", "height"))
    with pytest.raises(ValueError, match=r"trained on states \(x, y, height\), this data set has \(x, y, speed\)"):
        occupancy().on_load_checkpoint({"hyper_parameters": {"schema": other}})


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    module = model_of(data)
    with torch.no_grad():
        next(iter(module.flow.parameters())).fill_(torch.nan)
    with pytest.raises(RunError, match="the loss of the flow is not finite since update 1; lower the learning rate"):
        trainer(tmp_path).fit(module, datamodule=data)


def test_the_learning_rate_falls_along_half_a_cosine() -> None:
    module = occupancy(optimizer=FlowOptimizer(0.5, "cosine"))
    optimizer = module.configure_optimizers()
    rates = []
    for step in (0, 25, 50, 100, 130):
        attach(module, global_step=step, estimated_stepping_batches=100, optimizers=[optimizer])
        module.on_train_batch_start(None, 0)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.5, 0.25 * (1.0 + 0.5**0.5), 0.25, 0.0, 0.0])


HEIGHT = LinearReward(columns=("x", "height"), weights=(1.0, 1.0))
SHORT: dict[str, Any] = {"horizon": Horizon(0.9, 0.5, consistency=0.5)}


@one_test
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_min": 0.5}, r"t_min must lie in \[0, 0.5\), got 0.5"),
        ({"schema": None}, "expected the schema of the data, got None"),
        (SHORT | {"policy": None}, "consistency of horizons needs a policy that acts in modelled states, got None"),
        (SHORT | {"columns": ["x", "y"]}, "consistency of horizons needs a model of the whole state, got columns"),
        (SHORT | {"columns": ["y", "x", "speed"]}, "consistency of horizons needs a model of the whole state"),
        (SHORT | {"objective": MonteCarloCFM()}, "consistency of horizons needs an objective that bootstraps"),
        ({"rewards": {"high": HEIGHT}}, "the reward 'high' needs 'height', but the model holds x, y, speed"),
        ({"rewards": {"fast": SpeedReward(columns=("speed",))}, "columns": ["x"]}, "'fast' needs 'speed', .* holds x"),
        ({"objective": TD2DD()}, "noise leaves the velocity undefined .* t_min must be above 0.0"),
        ({"path": AffinePath(VariancePreservingSchedule())}, "t_min must be above 0.0, such as 0.001"),
    ],
    ids=str,
)
def test_parts_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        occupancy(**options)
    assert "\n" not in str(caught.value)


def test_a_policy_gives_the_dimension_of_its_members() -> None:
    assert occupancy(embedding_dim=3).model.inputs.embedding_dim == 0
    assert occupancy(embedding_dim=3, policy=None).model.inputs.embedding_dim == 3
    assert occupancy(policy=PLANE_POLICY).model.inputs.condition_dim == 5


@pytest.mark.parametrize("objective", [TD2CFM(), MonteCarloCFM()], ids=["bootstrap", "Monte Carlo"])
def test_noise_is_drawn_at_times_within_the_interval(objective: OccupancyObjective) -> None:
    module = occupancy(objective=objective, t_min=0.2)
    noise = module.draw_backup_noise(torch.zeros(500, 3))
    assert noise.direct.shape == noise.start.shape == noise.fresh.shape == (500, 3)
    for times in (noise.t_direct, noise.t_bootstrap):
        assert times.shape == (500,)
        assert 0.2 <= float(times.min()) < 0.21
        assert 0.79 < float(times.max()) <= 0.8
    assert not torch.equal(noise.t_direct, noise.t_bootstrap)
    assert not torch.equal(noise.direct, noise.start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.0}, r"discount must lie in \[0, 1\), got 1.0"),
        ({"discount": -0.1}, r"discount must lie in \[0, 1\), got -0.1"),
        ({"discount": 0.9, "min_discount": 0.95}, r"min_discount must lie in \[0, 0.9\], got 0.95"),
        ({"consistency": 1.5, "min_discount": 0.5}, r"consistency must lie in \[0, 1\], got 1.5"),
        ({"consistency": 0.5}, "consistency of horizons needs min_discount, got None"),
        ({"consistency": 0.5, "min_discount": 0.5, "first_state": "current"}, "needs first_state 'arrival', got 'cur"),
    ],
)
def test_horizons_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Horizon(**options)


@pytest.mark.parametrize("late", [0.0, 1e3])
def test_a_run_warns_once_of_states_outside_the_range_of_the_data(tmp_path: Path, late: float) -> None:
    data = tiny_data(tmp_path)
    module = model_of(data)
    with torch.no_grad():
        module.flow.network.to_velocity.bias.fill_(late)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(tmp_path)
        run.fit(module, datamodule=data)
    said = [str(warning.message) for warning in caught if "outside the range of the data" in str(warning.message)]
    strays = float(run.callback_metrics["val/strays"])
    assert (strays > 0.9) == (late > 0.0)
    assert len(said) == int(strays > 0.01)
    assert all("of the modelled states lie outside" in line for line in said)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=repr)
@pytest.mark.parametrize("objective", [TD2CFM(), TD2DD()], ids=["velocity", "noise"])
def test_what_is_bootstrapped_begins_with_the_distribution_of_the_noise(
    objective: OccupancyObjective, architecture: Architecture
) -> None:
    torch.manual_seed(0)
    parts: dict[str, Any] = {"objective": objective, "network": architecture, "sampler": OdeSampler(Midpoint(40))}
    module = OccupancyModule(PLANE, 2, t_min=1e-3, **parts)
    noise = module.model.draw_noise(50)
    state, action = torch.randn(50, 3), torch.zeros(50, 2)
    made = module.model.inputs.standardise(module.model.sample(noise, state, action))
    torch.testing.assert_close(made.std(0), noise.std(0), rtol=0.05, atol=0.0)
    assert (made - noise).abs().max() < (0.01 if objective.prediction == "velocity" else 0.3)
