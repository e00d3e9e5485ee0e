"""The data module of occupancies: what it hands out, holds out, keeps and refuses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import ActionTrials, SegmentNeeds
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.schema import ActionBounds, TableSchema
from flowmatch_rl.testbeds import ConstantPolicy, LinearGaussianProcess, LinearPolicy, MazeGoalPolicy
from flowmatch_rl.types import Policy
from tests.combinations import one_test
from tests.data.toy_trajectories import End, action_at, trajectory_store
from tests.processes import ALONE

EIGHT: list[tuple[int, End]] = [(3, "truncated"), (2, "terminated")] * 4
"""Eight trajectories, of which two may be held out: rows 15 to 19."""

PLANE = ProcessEnvironment(LinearGaussianProcess())
PLANE_POLICY = LinearPolicy(gain=[[0.1, -0.2]])


def data(
    path: Path,
    policy: Policy | None = None,
    needs: SegmentNeeds = SegmentNeeds(),
    rank: int = 0,
    world_size: int = 1,
    store: dict[str, Any] | None = None,
    **options: Any,
) -> OfflineData:
    """Data of a small set, as a trainer would have attached them."""
    if not (path / "set").is_dir():
        trajectory_store(path / "set", **({"trajectories": EIGHT} | (store or {})))
    sizes = {"batch_size": 32, "num_updates": 10, "epoch_updates": 4, "eval_steps": 4}
    made = OfflineData(str(path / "set"), **(sizes | options))
    module = SimpleNamespace(policy=policy, segment_needs=needs, action_trials=ActionTrials(2, 3))
    made.trainer = SimpleNamespace(
        lightning_module=module, strategy=ALONE, world_size=world_size, global_rank=rank, received_sigterm=False
    )  # pyright: ignore
    torch.manual_seed(11)
    made.setup("fit")
    return made


def training(made: OfflineData, epochs: int = 1) -> list[dict[str, Tensor]]:
    return [batch for _ in range(epochs) for batch in made.train_dataloader()]


def seen(batches: list[dict[str, Tensor]]) -> set[tuple[int, int]]:
    return {(int(i), int(k)) for batch in batches for i, k in batch["observation"].tolist()}


def only(loader: Any) -> dict[str, Tensor]:
    (batch,) = list(loader)
    return batch


def test_dimensions_and_units_come_from_the_data_set(tmp_path: Path) -> None:
    bounds = {"action_low": [-2.0], "action_high": [3.0], "embedding_dim": 2}
    made = data(tmp_path, store=bounds)
    info = made.store.info
    low, high = (getattr(made.store.transitions.get("observation"), name)(0).tolist() for name in ("amin", "amax"))
    units = info.observation_mean, info.observation_std
    assert made.dimensions == {
        "schema": TableSchema(("trajectory", "time"), *units, low=tuple(low), high=tuple(high)),
        "action_dim": 1,
        "embedding_dim": 2,
        "action_bounds": ActionBounds((-2.0,), (3.0,)),
    }
    assert made.label == "set"
    other = data(tmp_path / "other", store={"units": {"time": "s"}})
    assert other.dimensions["action_bounds"] is None
    assert other.dimensions["schema"].labels == ("trajectory", "time [s]")
    assert other.dimensions["embedding_dim"] == 0


@pytest.mark.parametrize(("updates", "epoch", "epochs"), [(10, 4, 3), (10, 100, 1), (10, 5, 2)])
def test_an_epoch_is_an_even_part_of_the_updates(tmp_path: Path, updates: int, epoch: int, epochs: int) -> None:
    made = data(tmp_path, num_updates=updates, epoch_updates=epoch)
    assert made.num_epochs == epochs
    batches = training(made)
    assert len(batches) == len(made.train_dataloader()) == round(updates / epochs)
    assert all(len(batch["observation"]) == 32 for batch in batches)


def test_an_epoch_has_at_least_one_update(tmp_path: Path) -> None:
    made = data(tmp_path, num_updates=3, epoch_updates=1)
    assert (made.num_epochs, len(training(made))) == (3, 1)


def test_without_a_policy_the_last_trajectories_are_held_out(tmp_path: Path) -> None:
    made = data(tmp_path)
    assert made.has_trajectories
    assert seen(training(made, 4)) == {(i, k) for i in range(6) for k in range(EIGHT[i][0])}
    batch = only(made.test_dataloader())
    assert sorted(batch["observation"].tolist()) == [[6.0, 0.0], [7.0, 0.0]]
    for row, (trajectory, _) in enumerate(batch["observation"].tolist()):
        length = EIGHT[int(trajectory)][0]
        assert batch["states"][row, 0].tolist() == [[trajectory, min(k + 1, length)] for k in range(4)]
    assert torch.equal(batch["action"], action_at(*batch["observation"].unbind(1)))


def test_no_more_trajectories_are_held_out_than_a_test_looks_at(tmp_path: Path) -> None:
    made = data(tmp_path, test_states=1)
    assert seen(training(made, 4)) == {(i, k) for i in range(7) for k in range(EIGHT[i][0])}
    assert only(made.val_dataloader())["observation"].tolist() == [[7.0, 0.0]]


def test_fewer_states_than_are_held_out_are_drawn_without_repetition(tmp_path: Path) -> None:
    made = data(tmp_path, store={"trajectories": EIGHT * 4}, eval_states=5)
    starts = only(made.val_dataloader())["observation"]
    assert len(starts) == len({tuple(row) for row in starts.tolist()}) == 5
    assert starts[:, 0].min() >= 24
    assert not starts[:, 1].any()


@pytest.mark.parametrize("environment", [None, PLANE])
def test_a_shuffled_table_holds_nothing_out(tmp_path: Path, environment: ProcessEnvironment | None) -> None:
    store = {"ordered": False, "has_next_action": True, "embedding_dim": 1}
    made = data(tmp_path, None, SegmentNeeds(1, True), store=store, environment=environment, eval_states=9)
    assert not made.has_trajectories
    assert len(seen(training(made, 4))) == 20
    batch = only(made.val_dataloader())
    assert set(batch) == {"observation", "action", "embedding"}
    assert len(batch["observation"]) == 9
    assert torch.equal(batch["action"], action_at(*batch["observation"].unbind(1)))
    assert torch.equal(batch["embedding"], batch["observation"][:, :1])


def test_a_policy_without_an_environment_acts_in_states_of_the_data_set(tmp_path: Path) -> None:
    made = data(tmp_path, PLANE_POLICY, eval_states=9)
    assert not made.has_trajectories
    assert len(seen(training(made, 4))) == 20
    batch = only(made.val_dataloader())
    assert set(batch) == {"observation", "action", "embedding"}
    assert torch.equal(batch["action"], PLANE_POLICY.act(batch["observation"]))
    assert batch["embedding"].shape == (9, 0)


def test_members_of_a_family_act_in_states_of_the_data_set(tmp_path: Path) -> None:
    family = _Family()
    batch = only(data(tmp_path, family, eval_states=9).val_dataloader())
    assert batch["embedding"].shape == (9, 2)
    assert torch.equal(batch["action"], family.act(batch["observation"], batch["embedding"]))


class _Family(MazeGoalPolicy):
    """Pushes by the first entry of its name."""

    def act(self, observation: Tensor, embedding: Tensor | None = None, generator: Any = None) -> Tensor:
        assert embedding is not None
        return embedding[..., :1]


def test_a_policy_is_followed_in_its_environment(tmp_path: Path) -> None:
    made = data(tmp_path, PLANE_POLICY, environment=PLANE, eval_states=5, test_states=6, eval_copies=3)
    assert made.has_trajectories
    assert len(seen(training(made, 4))) == 20
    val, test, predict = (only(load()) for load in (made.val_dataloader, made.test_dataloader, made.predict_dataloader))
    assert val["states"].shape == (5, 3, 4, 2)
    assert test["states"].shape == (6, 3, 4, 2)
    assert not torch.equal(val["observation"], test["observation"][:5])
    assert all(torch.equal(test[name], predict[name]) for name in predict)
    assert test.keys() - predict.keys() == {"tried_actions", "tried_states", "tried_ended"}
    assert test["tried_states"].shape == (6, 2, 2, 3, 2)
    assert only(made.val_dataloader())["states"] is val["states"]  # it is followed once
    again = data(tmp_path, PLANE_POLICY, environment=PLANE, eval_states=5, eval_copies=3)
    assert torch.equal(only(again.val_dataloader())["states"], val["states"])
    other = data(tmp_path, PLANE_POLICY, environment=PLANE, eval_states=5, eval_copies=3, eval_seed=1)
    assert not torch.equal(only(other.val_dataloader())["states"], val["states"])


def test_processes_share_the_source_states_of_an_evaluation(tmp_path: Path) -> None:
    options = {"environment": PLANE, "eval_states": 5}
    parts = [
        only(data(tmp_path, PLANE_POLICY, rank=rank, world_size=2, **options).val_dataloader()) for rank in range(2)
    ]
    assert [len(part["observation"]) for part in parts] == [3, 3]
    assert not torch.equal(parts[0]["observation"], parts[1]["observation"])


def test_processes_train_on_different_batches(tmp_path: Path) -> None:
    first, second = (training(data(tmp_path, rank=rank, world_size=2)) for rank in range(2))
    assert all(
        not torch.equal(mine["observation"], theirs["observation"]) for mine, theirs in zip(first, second, strict=True)
    )


def test_a_run_that_goes_on_sees_the_batches_it_would_have_seen(tmp_path: Path) -> None:
    whole = training(data(tmp_path), 3)
    begun = data(tmp_path)
    training(begun)
    assert begun.state_dict() == {"drawn": 3}
    rest = data(tmp_path)
    rest.load_state_dict(begun.state_dict())
    for wanted, batch in zip(whole[3:], training(rest, 2), strict=True):
        assert all(torch.equal(wanted[name], batch[name]) for name in wanted)
    # A second fit of the same object goes on as well.
    begun.teardown("fit")
    assert begun.state_dict() == {"drawn": 3}
    begun.setup("fit")
    assert torch.equal(training(begun)[0]["observation"], whole[3]["observation"])


def test_evaluations_leave_the_training_batches_and_the_global_noise_alone(tmp_path: Path) -> None:
    wanted = training(data(tmp_path, PLANE_POLICY, environment=PLANE), 2)
    made = data(tmp_path, PLANE_POLICY, environment=PLANE)
    batches = training(made)
    state = torch.get_rng_state()
    only(made.val_dataloader())
    only(made.test_dataloader())
    assert torch.equal(torch.get_rng_state(), state)
    batches += training(made)
    for mine, theirs in zip(batches, wanted, strict=True):
        assert torch.equal(mine["observation"], theirs["observation"])


@one_test
@pytest.mark.parametrize(
    "name", ["batch_size", "num_updates", "epoch_updates", "eval_states", "test_states", "eval_copies", "eval_steps"]
)
def test_a_count_below_one_is_refused_by_name(tmp_path: Path, name: str) -> None:
    count: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0$"):
        data(tmp_path, **count)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        OfflineData(str(tmp_path / "nowhere"))


def test_what_the_module_needs_is_asked_of_the_data(tmp_path: Path) -> None:
    made = data(tmp_path, ConstantPolicy([0.0]), SegmentNeeds(3), store={"ordered": False})
    with pytest.raises(ValueError, match="num_steps 3 needs trajectories"):
        made.train_dataloader()
