"""Occupancies trained on expanded transitions."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from flowmatch_rl.batches import Segment, read_segment
from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.models import DeterministicDynamics, Horizon, StochasticDynamics
from flowmatch_rl.modules import Expansion, ObservedSteps, OccupancyModule
from flowmatch_rl.modules.expansion import SegmentPool
from flowmatch_rl.nets import DynamicsArchitecture
from flowmatch_rl.objectives import TD2DD, TDCFM, TDDD, CoupledTDCFM, MonteCarloCFM
from flowmatch_rl.samplers import DdimSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import LinearPolicy, RandomPolicy
from tests.combinations import one_test
from tests.modules.occupancy_toys import PLANE, PLANE_POLICY, SMALL, occupancy, segments
from tests.modules.test_occupancy import DIFFUSION, FEW, model_of, tiny_data, trainer

TINY = DynamicsArchitecture(num_members=2, hidden_dim=8, num_layers=1)
TINY_MODEL = DeterministicDynamics(TINY)
SHUT = Expansion(length=4, gate=0.0, dynamics=TINY_MODEL, num_updates=3, batch_size=8, pool_batches=1, reuse=1)
OPEN = dataclasses.replace(SHUT, gate=1e6)
DRAWN = StochasticDynamics(network=SMALL)
POLICY = LinearPolicy(gain=[[0.01, -0.02]], bias=[0.1])
CASES: dict[str, dict[str, Any]] = {
    "squared": {},
    "current state": {"horizon": Horizon(0.5, first_state="current")},
    "temporal difference": {"objective": TDCFM(solver=FEW)},
    "coupled": {"objective": CoupledTDCFM(solver=FEW)},
    "squared diffusion": {"objective": TD2DD(sampler=DdimSampler(num_steps=3)), **DIFFUSION},
    "diffusion": {"objective": TDDD(sampler=DdimSampler(num_steps=3)), **DIFFUSION},
    "many horizons": {"horizon": Horizon(0.5, 0.25, consistency=0.25)},
    "random policy": {"policy": RandomPolicy(1), "columns": ["time"]},
}


def weights_after_a_run(folder: Path, **options: Any) -> torch.Tensor:
    torch.manual_seed(7)
    data = tiny_data(folder, test_states=1)
    module = model_of(data, **({"policy": POLICY} | options))
    run = trainer(folder)
    run.fit(module, datamodule=data)
    if isinstance(options.get("segments"), Expansion):
        assert run.callback_metrics["train/expansion_length"] >= 1.0
    return torch.nn.utils.parameters_to_vector(module.flow.parameters())


@one_test
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_with_the_gate_shut_a_run_is_that_of_plain_transitions_to_the_last_digit(options, tmp_path: Path) -> None:
    plain = weights_after_a_run(tmp_path, **options)
    assert torch.equal(weights_after_a_run(tmp_path, **options, segments=SHUT), plain)
    opened = weights_after_a_run(tmp_path, **options, segments=OPEN)
    assert bool(torch.isfinite(opened).all())
    assert not torch.equal(opened, plain)


def test_the_same_holds_for_a_model_that_draws_the_states_that_follow(tmp_path: Path) -> None:
    plain = weights_after_a_run(tmp_path)
    shut, opened = (dataclasses.replace(settings, dynamics=DRAWN) for settings in (SHUT, OPEN))
    assert torch.equal(weights_after_a_run(tmp_path, segments=shut), plain)
    weights = weights_after_a_run(tmp_path, segments=opened)
    assert not torch.equal(weights, plain)
    assert torch.equal(weights_after_a_run(tmp_path, segments=opened), weights)


def test_drawn_steps_differ_from_one_use_of_a_state_to_the_next() -> None:
    kept = pool(dataclasses.replace(OPEN, dynamics=DRAWN))
    (batch,) = batches(1)
    first, second = kept.take(batch), kept.take(batch)
    assert torch.equal(first.arrivals[:, 0], second.arrivals[:, 0])
    assert not bool((first.arrivals[:, 1] == second.arrivals[:, 1]).any())


def pool(settings: Expansion, policy: Any = PLANE_POLICY) -> SegmentPool:
    torch.manual_seed(0)
    dynamics = settings.dynamics.build(PLANE, 2).requires_grad_(False)
    return SegmentPool(settings, dynamics, policy, seed=3)


def batches(number: int, size: int = 6) -> list[Segment]:
    """Batches whose rows are numbered by the first entry of their state."""
    made = []
    for index in range(number):
        batch = segments(size)
        batch["observation"][:, 0] = torch.arange(size) + size * index
        batch["terminated"][:] = False
        made.append(read_segment(batch))
    return made


def test_batches_are_expanded_together_and_used_as_often_as_stated() -> None:
    kept = pool(dataclasses.replace(OPEN, pool_batches=3, reuse=2))
    taken = [kept.take(batch).observation[:, 0].tolist() for batch in batches(2 + 4 + 6)]
    # The first batch, then the two that waited, then the last three of the four that waited.
    assert [Counter(itertools.chain.from_iterable(part)) for part in (taken[:2], taken[2:6], taken[6:])] == [
        Counter(2 * list(range(6))),
        Counter(2 * list(range(6, 18))),
        Counter(2 * list(range(24, 42))),
    ]
    assert taken[0] == [0, 1, 2, 3, 4, 5]
    assert taken[9] != sorted(taken[9])


def test_expansions_are_as_long_as_stated_and_the_metrics_say_so() -> None:
    kept = pool(OPEN)
    (batch,) = batches(1)
    segment = kept.take(batch)
    assert segment.length.tolist() == [4] * 6
    assert (float(kept.full), float(kept.length)) == (1.0, 4.0)
    held = kept.expansions
    assert held is not None
    assert (held.schema.columns, held.schema.shift) == (PLANE.columns, PLANE.shift)
    assert held.schema.scale == pytest.approx(PLANE.scale)
    assert held.length.tolist() == held.wanted.tolist() == [4] * 6
    assert not held.ended.any()
    assert torch.equal(held.start, batch.arrivals[:, 0])
    shut = pool(SHUT)
    assert shut.take(batch).length.tolist() == [1] * 6
    assert (float(shut.full), float(shut.length)) == (0.0, 1.0)
    stopped = shut.expansions
    assert stopped is not None
    assert stopped.early.tolist() == [True] * 6
    assert pool(OPEN).expansions is None
    some = pool(dataclasses.replace(OPEN, mean_length=2.0))
    assert len(set(some.take(batches(1, 40)[0]).length.tolist())) > 2
    assert float(some.full) == 1.0


def test_a_checkpoint_keeps_the_model_which_is_not_trained_again(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    module = model_of(data, policy=POLICY, segments=OPEN)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    assert module.dynamics is not None
    assert bool(module.dynamics.trained)
    known = torch.nn.utils.parameters_to_vector(module.dynamics.parameters())
    again = OccupancyModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert again.segments == OPEN
    trainer(tmp_path).fit(again, datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    assert again.dynamics is not None
    assert torch.equal(torch.nn.utils.parameters_to_vector(again.dynamics.parameters()), known)
    assert all(not parameter.requires_grad for parameter in again.dynamics.parameters())


def test_training_the_model_lowers_its_error_and_leaves_other_noise_alone(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    module = model_of(data, policy=POLICY, segments=dataclasses.replace(OPEN, num_updates=200, learning_rate=1e-2))
    assert module.dynamics is not None
    assert isinstance(module.segments, Expansion)
    data.trainer = trainer(tmp_path)
    data.trainer.strategy.connect(module)
    stream = map(read_segment, data.transitions(32))
    batch = next(stream)
    parts = batch.observation, batch.action, batch.arrivals[:, 0], batch.terminated[:, 0]
    module.dynamics.measure(*parts[::2])
    before, state = float(module.dynamics.loss(*parts).mean()), torch.get_rng_state()
    module.segments.train(module.dynamics, stream)
    assert float(module.dynamics.loss(*parts).mean()) < 0.5 * before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_diverges_ends_the_run_by_name() -> None:
    dynamics = TINY_MODEL.build(PLANE, 2)
    with pytest.raises(RunError, match=r"one-step model has diverged; lower segments\.learning_rate"):
        dataclasses.replace(OPEN, learning_rate=1e30, num_updates=5).train(dynamics, iter(batches(5)))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"policy": None}, "expansion needs a policy"),
        ({"objective": MonteCarloCFM()}, "expansion needs an objective that bootstraps"),
    ],
)
def test_parts_that_cannot_be_expanded_are_refused(options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        occupancy(segments=OPEN, **options)


@one_test
@pytest.mark.parametrize(
    ("name", "value"),
    [("length", 0), ("mean_length", 0.5), ("gate", -1.0), ("num_updates", 0), ("reuse", 0), ("learning_rate", 0.0)],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} must .* got {value}"):
        Expansion(**{name: value})


def test_a_segment_has_at_least_one_step() -> None:
    with pytest.raises(UserError, match="num_steps must be at least 1, got 0"):
        ObservedSteps(0)


def test_a_column_that_changes_rarely_leaves_the_model_as_good_as_one_that_never_does() -> None:
    """Its scale is not that of the first batch, in which it does not change: a change would be a million of them."""
    generator = torch.Generator().manual_seed(0)

    def transitions(number: int, flips: int) -> Segment:
        state = torch.randn(number, 3, generator=generator)
        state[:, 2] = (state[:, 2] > 0.0).float()
        action = 2.0 * torch.rand(number, 2, generator=generator) - 1.0
        arrival = torch.cat([0.9 * state[:, :2] + 0.3 * action, state[:, 2:]], dim=1)
        arrival[:flips, 2] = 1.0 - arrival[:flips, 2]
        batch = segments(number)
        batch |= {"observation": state, "action": action, "arrivals": arrival[:, None]}
        return read_segment(batch | {"terminated": torch.zeros(number, 1, dtype=torch.bool)})

    torch.manual_seed(0)
    schema = TableSchema(("x", "y", "flag"), (0.0, 0.0, 0.5), (1.0, 1.0, 0.5))
    dynamics = DeterministicDynamics(dataclasses.replace(TINY, hidden_dim=32)).build(schema, 2)
    settings = dataclasses.replace(OPEN, num_updates=300, batch_size=64, learning_rate=1e-2)
    settings.train(dynamics, (transitions(64, int(index % 10 == 5)) for index in itertools.count()))
    test = transitions(500, 0)
    step = dynamics.step(test.observation, test.action)
    assert float((step.arrival - test.arrivals[:, 0]).square().mean().sqrt()) < 0.05
    assert float(step.spread.median()) < 0.2


@pytest.mark.parametrize(
    ("before", "after"), [(ObservedSteps(), OPEN), (OPEN, ObservedSteps())], ids=["added", "left out"]
)
def test_a_resumed_run_may_begin_or_end_to_expand(before: Any, after: Any, tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model_of(data, policy=POLICY, segments=before), datamodule=data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    module = model_of(data, policy=POLICY, segments=after)
    again = trainer(tmp_path)
    again.fit(module, datamodule=tiny_data(tmp_path), ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    assert again.global_step == 6
    assert (module.dynamics is not None) == (after is OPEN)
    if module.dynamics is not None:
        assert "train/expansion_length" in again.callback_metrics
        assert bool(module.dynamics.trained)


def test_frequencies_beyond_the_digits_of_a_state_are_refused() -> None:
    with pytest.raises(UserError, match=r"num_frequencies must .* got 2000"):
        DynamicsArchitecture(num_frequencies=2000)
