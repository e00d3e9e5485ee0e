"""What an occupancy is taught: the states, weights and conditions that its loss is given."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import read_segment
from flowmatch_rl.models import Flow, Horizon
from flowmatch_rl.modules import ObservedSteps, OccupancyModule
from flowmatch_rl.nets import TerminationNetwork
from flowmatch_rl.objectives import (
    TD2CFM,
    Backup,
    FirstState,
    MonteCarloCFM,
    OccupancyObjective,
    backup_weights,
    horizon_weights,
)
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import LinearPolicy, MazeGoalPolicy
from tests.modules.occupancy_toys import PLANE, PLANE_POLICY, occupancy, segments

Teach = Callable[..., Backup]
SIGMAS = 4.5


@pytest.fixture
def teach(monkeypatch: pytest.MonkeyPatch) -> Teach:
    """Returns the backups that a module hands to its objective."""
    taught: list[Backup] = []

    def noting(self: OccupancyObjective, field: Any, field_ema: Any, backup: Backup, *_: Any) -> tuple[Tensor, Tensor]:
        taught.append(backup)
        return backup.state_weight, backup.next_weight

    monkeypatch.setattr(OccupancyObjective, "loss", noting)

    def ask(module: OccupancyModule, batch: dict[str, Tensor]) -> Backup:
        torch.manual_seed(5)
        module.loss(read_segment(batch), batch.get("discount"))
        return taught[-1]

    return ask


def standard(state: Tensor) -> Tensor:
    return (state - torch.tensor(PLANE.shift)) / torch.tensor(PLANE.scale)


def test_one_step_teaches_the_arrival_state_and_the_future_of_the_next_action(teach: Teach) -> None:
    batch = segments(10)
    backup = teach(occupancy(), batch)
    arrival, ended = batch["arrivals"][:, 0], batch["terminated"][:, 0]
    torch.testing.assert_close(backup.condition, torch.cat([standard(batch["observation"]), batch["action"]], 1))
    torch.testing.assert_close(backup.state, standard(arrival))
    torch.testing.assert_close(backup.next_condition, torch.cat([standard(arrival), PLANE_POLICY.act(arrival)], 1))
    torch.testing.assert_close(backup.state_weight, torch.where(ended, 1.0, 0.1))
    torch.testing.assert_close(backup.next_weight, torch.where(ended, 0.0, 0.9))


def test_a_model_of_some_columns_is_conditioned_on_the_whole_state(teach: Teach) -> None:
    batch = segments(10)
    backup = teach(occupancy(columns=["speed", "x"]), batch)
    torch.testing.assert_close(backup.state, standard(batch["arrivals"][:, 0])[:, [2, 0]])
    torch.testing.assert_close(backup.condition[:, :3], standard(batch["observation"]))
    assert backup.next_condition.shape == (10, 5)


def test_without_a_policy_the_next_actions_are_those_of_the_data(teach: Teach) -> None:
    batch = segments(10, next_action=True)
    backup = teach(occupancy(policy=None), batch)
    wanted = torch.cat([standard(batch["arrivals"][:, 0]), batch["next_action"]], 1)
    torch.testing.assert_close(backup.next_condition, wanted)


def test_members_that_made_the_data_are_inputs_of_the_network(teach: Teach) -> None:
    members = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    backup = teach(occupancy(policy=None, embedding_dim=2), segments(10, next_action=True, embedding=members))
    assert torch.equal(backup.condition[:, 5:], members)
    assert torch.equal(backup.next_condition[:, 5:], members)


def test_without_a_policy_and_next_actions_there_is_an_error() -> None:
    with pytest.raises(KeyError, match="the data holds no next actions; name a policy"):
        occupancy(policy=None).loss(read_segment(segments(4)))


@pytest.mark.parametrize("first_state", ["arrival", "current"])
def test_several_steps_teach_their_states_by_weight_and_go_on_at_the_last(
    teach: Teach, first_state: FirstState
) -> None:
    size = 4_000
    batch = segments(1, num_steps=3)
    batch = {name: value.expand(size, *value.shape[1:]).clone() for name, value in batch.items()}
    batch["length"] = torch.tensor([3, 2]).repeat_interleave(size // 2)
    batch["terminated"] = torch.zeros(size, 3, dtype=torch.bool)
    batch["arrivals"][size // 2 :, 2] = batch["arrivals"][0, 1]  # padding
    backup = teach(occupancy(segments=ObservedSteps(3), horizon=Horizon(0.9, first_state=first_state)), batch)
    weights, rest = backup_weights(torch.full((size,), 0.9), batch["terminated"], batch["length"], first_state)
    torch.testing.assert_close(backup.state_weight, weights.sum(1))
    torch.testing.assert_close(backup.next_weight, rest)
    states = standard(torch.cat([batch["observation"][:, None], batch["arrivals"]], 1))
    for half in (slice(0, size // 2), slice(size // 2, size)):
        for time in range(int(batch["length"][half][0]) + 1):
            share = float(weights[half][0, time] / weights[half][0].sum())
            found = (backup.state[half] == states[half][:, time]).all(1).float().mean().item()
            assert abs(found - share) <= SIGMAS * (share * (1.0 - share) / (size // 2)) ** 0.5
    last = batch["arrivals"][torch.arange(size), batch["length"] - 1]
    torch.testing.assert_close(backup.next_condition, torch.cat([standard(last), PLANE_POLICY.act(last)], 1))


def test_at_a_discount_of_zero_the_occupancy_from_the_current_state_is_that_state(teach: Teach) -> None:
    batch = segments(10)
    backup = teach(occupancy(horizon=Horizon(0.0, first_state="current")), batch)
    torch.testing.assert_close(backup.state, standard(batch["observation"]))
    going = ~batch["terminated"][:, 0]
    torch.testing.assert_close(backup.state_weight, torch.ones(10))
    assert not backup.next_weight.any()
    arrival = teach(occupancy(horizon=Horizon(0.0)), batch)
    torch.testing.assert_close(arrival.state, standard(batch["arrivals"][:, 0]))
    assert bool(going.any())


def test_monte_carlo_teaches_a_state_of_the_trajectory(teach: Teach) -> None:
    future = segments(10)["arrivals"][:, 0] + 1.0
    backup = teach(occupancy(objective=MonteCarloCFM()), segments(10, future=future))
    torch.testing.assert_close(backup.state, standard(future))
    assert torch.equal(backup.state_weight, torch.ones(10))
    assert not backup.next_weight.any()


def test_monte_carlo_from_the_current_state_teaches_it_with_its_share(teach: Teach) -> None:
    size = 4_000
    batch = segments(size, future=segments(size)["arrivals"][:, 0] + 1.0)
    backup = teach(occupancy(objective=MonteCarloCFM(), horizon=Horizon(0.7, first_state="current")), batch)
    now = (backup.state == standard(batch["observation"])).all(1)
    assert abs(now.float().mean().item() - 0.3) < SIGMAS * (0.21 / size) ** 0.5
    torch.testing.assert_close(backup.state[~now], standard(batch["future"])[~now])


def test_monte_carlo_without_futures_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="MonteCarloCFM needs states of trajectories; the batch has no 'future'"):
        occupancy(objective=MonteCarloCFM()).loss(read_segment(segments(4)))


MAZE = TableSchema(("x", "y", "vx", "vy"), (0.0,) * 4, (0.2, 0.2, 1.0, 1.0))
FAMILY = MazeGoalPolicy()


def maze(**options: Any) -> OccupancyModule:
    return occupancy(MAZE, policy=FAMILY, **options)


def maze_segments(size: int, num_steps: int = 1, **more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    where = 0.5 * torch.rand(size, num_steps + 1, 4, generator=generator) - 0.25
    given = {"observation": where[:, 0], "arrivals": where[:, 1:], "embedding": torch.zeros(size, 2)}
    return segments(size, num_steps) | given | more


def test_members_of_a_family_are_drawn_for_each_batch_and_act_at_the_arrival(teach: Teach) -> None:
    batch = maze_segments(500)
    backup = teach(maze(), batch)
    members = backup.condition[:, 6:]
    assert members.shape == (500, 2)
    assert len(members.unique(dim=0)) == 500
    assert float(members.abs().max()) <= 1.0
    assert bool((members.std(0) > 0.4).all())
    assert torch.equal(backup.next_condition[:, 6:], members)
    torch.testing.assert_close(backup.next_condition[:, 4:6], FAMILY.act(batch["arrivals"][:, 0], members))


@pytest.mark.parametrize("options", [{"segments": ObservedSteps(2)}, {"objective": MonteCarloCFM()}], ids=str)
def test_where_the_data_are_of_the_modelled_policy_so_is_its_member(teach: Teach, options: dict[str, Any]) -> None:
    """Later actions and states of a trajectory belong to the member that acted, not to one drawn for the batch."""
    batch = maze_segments(50, options.get("segments", ObservedSteps()).observed_steps)
    members = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    batch |= {"embedding": members, "future": batch["arrivals"][:, 0]}
    backup = teach(maze(**options), batch)
    assert torch.equal(backup.condition[:, 6:], members)
    assert torch.equal(backup.next_condition[:, 6:], members)


def test_where_the_data_name_no_member_but_must_they_are_refused() -> None:
    batch = maze_segments(5, 2, embedding=torch.empty(5, 0))
    with pytest.raises(ValueError, match="expected embedding of dimension 2, got 0"):
        maze(segments=ObservedSteps(2)).loss(read_segment(batch))


def test_discounts_of_many_horizons_lie_in_range_and_are_inputs(teach: Teach) -> None:
    batch = segments(4_000)
    batch["terminated"][:] = False
    backup = teach(occupancy(horizon=Horizon(0.9, 0.5)), batch)
    discount = backup.condition[:, 5]
    assert 0.5 <= float(discount.min()) < 0.505
    assert 0.895 < float(discount.max()) <= 0.9
    torch.testing.assert_close(backup.condition[:, 6], 1.0 - discount)
    torch.testing.assert_close(backup.condition[:, 7], -torch.log(1.0 - discount))
    torch.testing.assert_close(backup.next_condition[:, 5:], backup.condition[:, 5:])
    torch.testing.assert_close(backup.state_weight, 1.0 - discount)
    torch.testing.assert_close(backup.next_weight, discount)


def test_discounts_that_the_batch_brings_are_used(teach: Teach) -> None:
    given = torch.linspace(0.5, 0.9, 10)
    batch = segments(10, future=torch.zeros(10, 3), discount=given)
    backup = teach(occupancy(objective=MonteCarloCFM(), horizon=Horizon(0.9, 0.5)), batch)
    torch.testing.assert_close(backup.condition[:, 5], given)


def far_and_near(backup: Backup, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows that go through a shorter horizon: their discount, that of the bootstrap, whether it is near."""
    discount, asked = backup.condition[:count, 5].double(), backup.next_condition[:count, 5].double()
    return discount, asked, asked < discount


def test_a_long_horizon_is_reached_through_a_shorter_one_with_the_exact_shares(teach: Teach) -> None:
    size, share = 4_000, 0.75
    count = int(size * share)
    module = occupancy(horizon=Horizon(0.9, 0.5, consistency=share))
    with torch.no_grad():  # the field stands still: landed states are the noise
        for weight in module.flow_ema.parameters():
            weight.zero_()
    batch = segments(size)
    batch["terminated"][:] = False
    backup = teach(module, batch)
    discount, asked, near = far_and_near(backup, count)
    arrival = standard(batch["arrivals"][:, 0])
    # Near ones look from the arrival state with a shorter horizon, far ones from where it leads with the whole one.
    torch.testing.assert_close(backup.next_condition[:count][near][:, :3], arrival[:count][near])
    far = backup.next_condition[:count][~near]
    assert not bool(torch.isclose(far[:, :3], arrival[:count][~near]).all(1).any())
    landed = far[:, :3] * torch.tensor(PLANE.scale) + torch.tensor(PLANE.shift)
    torch.testing.assert_close(far[:, 3:5], PLANE_POLICY.act(landed), rtol=1e-4, atol=1e-4)
    assert bool((far[:, :3].mean(0).abs() < SIGMAS / len(far) ** 0.5).all())
    torch.testing.assert_close(far[:, :3].std(0), torch.ones(3), atol=0.08, rtol=0)
    assert float(asked.min()) >= 0.5
    # The shares of the near ones among all, by the distribution of the shorter discount, for several functions of it.
    uniform = ((torch.arange(400) + 0.5) / 400).double()
    shorter = 1.0 - 0.5 ** (1.0 - uniform) * (1.0 - discount[:, None]) ** uniform
    long = discount[:, None].expand_as(shorter)
    _, near_weight, far_weight = horizon_weights(long.reshape(-1), shorter.reshape(-1))
    of_near = (near_weight / (near_weight + far_weight)).reshape(shorter.shape)
    for weight in (torch.ones_like, torch.square, torch.log1p):
        wanted = (of_near * weight(shorter)).mean(1)
        found = torch.where(near, weight(asked), 0.0)
        error = found - wanted
        assert abs(float(error.mean())) < SIGMAS * float(error.std()) / count**0.5
    # The rest of the batch bootstraps as ever, and the weights of the backup are the same for all.
    torch.testing.assert_close(backup.next_condition[count:, :3], arrival[count:])
    torch.testing.assert_close(backup.next_condition[count:, 5:], backup.condition[count:, 5:])
    torch.testing.assert_close(backup.next_weight, backup.condition[:, 5])


@pytest.mark.parametrize(
    ("objective", "policy", "num_steps", "needs_actions", "needs_futures"),
    [
        (TD2CFM(), PLANE_POLICY, 1, False, False),
        (TD2CFM(), None, 1, True, False),
        (TD2CFM(), None, 3, True, False),
        (MonteCarloCFM(), None, 1, False, True),
        (MonteCarloCFM(), PLANE_POLICY, 1, False, True),
    ],
)
def test_a_model_states_what_its_backups_need(
    objective: OccupancyObjective, policy: Any, num_steps: int, needs_actions: bool, needs_futures: bool
) -> None:
    module = occupancy(objective=objective, policy=policy, segments=ObservedSteps(num_steps), horizon=Horizon(0.9, 0.5))
    needs = module.segment_needs
    assert (needs.num_steps, needs.next_action) == (num_steps, needs_actions)
    assert (needs.future_discounts is not None) == needs_futures
    if needs.future_discounts is not None:
        torch.testing.assert_close(needs.future_discounts(torch.tensor([0.0, 1.0])), torch.tensor([0.5, 0.9]))


class KnownTermination(TerminationNetwork):
    """Every arrival is terminal with the same known probability."""

    def __init__(self, probability: float) -> None:
        super().__init__(1)
        self.known = probability

    def probability(self, state: Tensor) -> Tensor:
        return torch.full_like(state[..., 0], self.known)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_no_occupancy_resumes_in_a_terminal_state_that_a_shorter_one_drew(
    teach: Teach, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """A counter that stops with probability p per step: its look-ahead is 1 / (1 - discount (1 - p)), here 5.814."""
    ends, size = 0.08, 100_000
    counter = TableSchema(("count",), (0.0,), (1.0,))
    policy = LinearPolicy(gain=[[0.0]])
    module = occupancy(counter, 1, policy=policy, horizon=Horizon(0.9, 0.6, consistency=share))
    module.model.termination = KnownTermination(ends)

    def exact(self: Flow, noise: Tensor, sampler: Any, condition: Tensor) -> Tensor:
        going = condition[:, 2:3] * (1.0 - ends)
        return condition[:, :1] + 1.0 + (torch.special.ndtr(-noise).log() / going.log()).floor()

    monkeypatch.setattr(Flow, "sample", exact)
    start = torch.arange(size).remainder(7.0)[:, None]
    batch = {
        "observation": start,
        "action": torch.zeros(size, 1),
        "arrivals": start[:, None] + 1.0,
        "terminated": (torch.arange(size) % 100 < 100 * ends)[:, None],
        "length": torch.ones(size, dtype=torch.long),
        "embedding": torch.empty(size, 0),
        "discount": torch.full((size,), 0.9),
    }
    backup = teach(module, batch)
    resumed, discount = backup.next_condition[:, 0], backup.next_condition[:, 2]
    after = resumed - start[:, 0] + 1.0 / (1.0 - discount * (1.0 - ends))
    ahead = backup.state_weight * (backup.state - start)[:, 0] + backup.next_weight * after
    torch.testing.assert_close(backup.state_weight + backup.next_weight, torch.ones(size))
    exact_mean = 1.0 / (1.0 - 0.9 * (1.0 - ends))
    assert exact_mean == pytest.approx(5.814, abs=1e-3)
    assert ahead.mean().item() == pytest.approx(exact_mean, abs=4.0 * ahead.std().item() / size**0.5)
