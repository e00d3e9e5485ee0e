"""Trajectories from source states: of a policy in an environment, and of a data set."""

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from flowmatch_rl.batches import Rollouts, read_rollouts
from flowmatch_rl.data.transitions.rollouts import follow_policy, from_steps, stored_trajectories, try_actions
from flowmatch_rl.envs import GymnasiumEnvironment, ProcessEnvironment
from flowmatch_rl.testbeds import (
    ConstantPolicy,
    LinearGaussianProcess,
    LinearPolicy,
    MazeGoalPolicy,
    PointMassMaze,
    RandomPolicy,
    RandomWalkProcess,
    RingProcess,
)
from tests.data.toy_trajectories import TRAJECTORIES, action_at, trajectory_store


def steps_of(*ends: tuple[int | None, bool], num_steps: int = 5) -> TensorDict:
    """Rows of steps whose states count up from ten times the row; each ends at a step, perhaps by termination.

    Behind its end a row goes on with another episode, as TorchRL's roll-outs do, which ends as well.
    """
    time = torch.arange(num_steps)
    rows, flags = [], []
    for row, (end, terminated) in enumerate(ends):
        done = time == end if end is not None else torch.zeros(num_steps, dtype=torch.bool)
        done = done | ((time == num_steps - 1) & bool(done.any()))
        state = torch.where(done.cumsum(0) - done.long() > 0, 1000.0, 10.0 * row + time)
        rows.append(state[:, None])
        flags.append(torch.stack([done, done & terminated], 1))
    state, flag = torch.stack(rows), torch.stack(flags)
    return TensorDict(
        {
            "observation": state,
            "action": 0.01 * state,
            "next": {"observation": state + 1.0, "done": flag[..., :1], "terminated": flag[..., 1:]},
        },
        batch_size=(len(ends), num_steps),
    )


def test_a_trajectory_is_its_first_episode_and_repeats_the_last_state() -> None:
    steps = steps_of((None, False), (2, False), (2, True), (0, True), (4, True), (4, False))
    embedding = torch.arange(12.0).reshape(6, 2)
    rollouts = read_rollouts(from_steps(steps, embedding))
    assert rollouts.observation[:, 0].tolist() == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    torch.testing.assert_close(rollouts.action, 0.01 * rollouts.observation)
    assert rollouts.embedding is embedding
    assert rollouts.states is not None
    assert rollouts.length is not None
    assert rollouts.ended is not None
    assert rollouts.states.shape == (6, 1, 5, 1)
    assert rollouts.states[:, 0, :, 0].tolist() == [
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [11.0, 12.0, 13.0, 13.0, 13.0],
        [21.0, 22.0, 23.0, 23.0, 23.0],
        [31.0, 31.0, 31.0, 31.0, 31.0],
        [41.0, 42.0, 43.0, 44.0, 45.0],
        [51.0, 52.0, 53.0, 54.0, 55.0],
    ]
    # What is behind a termination is known, what is behind a truncation is not.
    assert rollouts.length.tolist() == [[5], [3], [5], [5], [5], [5]]
    assert rollouts.ended[:, 0].int().tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0],
    ]


def check_shapes(rollouts: Rollouts, shape: tuple[int, int, int], state_dim: int, action_dim: int) -> None:
    count, copies, num_steps = shape
    assert rollouts.observation.shape == (count, state_dim)
    assert rollouts.action.shape == (count, action_dim)
    assert rollouts.states is not None
    assert rollouts.length is not None
    assert rollouts.ended is not None
    assert rollouts.states.shape == (count, copies, num_steps, state_dim)
    assert rollouts.length.shape == (count, copies)
    assert rollouts.ended.shape == (count, copies, num_steps)
    assert rollouts.ended.dtype == torch.bool


LINEAR = LinearGaussianProcess(transition=[[0.8]], control=[[0.5]], drift=[0.1], noise_factor=[[0.3]])
LINEAR_POLICY = LinearPolicy(gain=[[-0.9]], bias=[0.6])


def test_copies_follow_a_process_from_one_state_with_noise_of_their_own() -> None:
    environment = ProcessEnvironment(LINEAR, max_steps=2)
    rollouts = read_rollouts(follow_policy(environment, LINEAR_POLICY, 5, 4_000, 6, seed=3))
    check_shapes(rollouts, (5, 4_000, 6), 1, 1)
    assert rollouts.states is not None
    assert rollouts.embedding.shape == (5, 0)
    assert torch.equal(rollouts.action, LINEAR_POLICY.act(rollouts.observation))
    closed, shift = 0.8 + 0.5 * -0.9, 0.5 * 0.6 + 0.1
    mean, variance = rollouts.observation[:, 0].double(), 0.0
    for k in range(6):
        mean, variance = closed * mean + shift, closed**2 * variance + 0.3**2
        found = rollouts.states[:, :, k, 0].double()
        assert bool(((found.mean(1) - mean).abs() < 4.5 * (variance / 4_000) ** 0.5).all())
        torch.testing.assert_close(found.var(1), torch.full_like(mean, variance), rtol=0.12, atol=0.0)
    # One process, several noises: neither copies nor source states move alike.
    residual = rollouts.states[:, :, 0, 0] - rollouts.states[:, :, 0, 0].mean(1, keepdim=True)
    assert float(torch.corrcoef(residual).fill_diagonal_(0.0).abs().max()) < 0.08


def test_copies_on_the_ring_visit_its_cells_by_the_exact_law() -> None:
    process, policy, steps = RingProcess(num_states=8, slip=0.3), ConstantPolicy([1.0]), 3
    rollouts = read_rollouts(follow_policy(ProcessEnvironment(process), policy, 3, 3_000, steps, seed=1))
    assert rollouts.states is not None
    kernel = process.policy_matrix(policy)
    law = torch.nn.functional.one_hot(process.cell(rollouts.observation), 8).double()
    for k in range(steps):
        law = law @ kernel
        cells = process.cell(rollouts.states[:, :, k])
        found = torch.nn.functional.one_hot(cells, 8).double().mean(1)
        assert float((found - law).abs().max()) < 4.5 * 0.5 / 3_000**0.5


def test_a_process_that_ends_stays_in_its_terminal_state() -> None:
    process = RandomWalkProcess(num_states=5, slip=0.0)
    rollouts = read_rollouts(follow_policy(ProcessEnvironment(process), ConstantPolicy([1.0]), 6, 2, 7, seed=0))
    check_shapes(rollouts, (6, 2, 7), 2, 1)
    assert rollouts.states is not None
    assert rollouts.ended is not None
    first = process.cell(rollouts.observation)
    time = torch.arange(1, 8)
    wanted = (first[:, None, None] + time).clamp_max(4).expand(-1, 2, -1)
    assert torch.equal(process.cell(rollouts.states), wanted)
    assert torch.equal(rollouts.ended, wanted == 4)
    torch.testing.assert_close(rollouts.length, torch.full((6, 2), 7))
    last = rollouts.states[:, :, -1:]
    for row, copy in ((0, 0), (5, 1)):
        kept = rollouts.states[row, copy][rollouts.ended[row, copy]]
        assert torch.equal(kept, last[row, copy].expand_as(kept))


def test_members_of_a_family_act_each_from_a_state_of_its_own() -> None:
    policy = MazeGoalPolicy()
    rollouts = read_rollouts(follow_policy(ProcessEnvironment(PointMassMaze()), policy, 6, 2, 400, seed=0))
    check_shapes(rollouts, (6, 2, 400), 4, 2)
    assert rollouts.states is not None
    assert rollouts.embedding.shape == (6, 2)
    assert len({tuple(row) for row in rollouts.embedding.tolist()}) == 6
    torch.testing.assert_close(rollouts.action, policy.act(rollouts.observation, rollouts.embedding))
    # After 400 steps all of them rest at their own goals.
    goal = 0.3 * rollouts.embedding[:, None].expand(-1, 2, -1)
    torch.testing.assert_close(rollouts.states[:, :, -1, :2], goal, rtol=0.0, atol=0.02)


@pytest.mark.parametrize("policy", [LINEAR_POLICY, RandomPolicy(1)], ids=repr)
def test_trajectories_of_a_process_depend_on_their_seed_alone(policy) -> None:
    first, again, other = (follow_policy(ProcessEnvironment(LINEAR), policy, 3, 2, 4, seed=seed) for seed in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["observation"], other["observation"])
    assert not torch.equal(first["states"], other["states"])


def test_tried_actions_of_a_state_have_one_noise_and_are_followed_by_the_policy() -> None:
    environment = ProcessEnvironment(LINEAR)
    known = follow_policy(environment, LINEAR_POLICY, 2_000, 1, 2, seed=3)
    tried = try_actions(environment, LINEAR_POLICY, known, 3, 5, seed=4)
    rollouts = read_rollouts(known | tried)
    assert rollouts.tried_actions is not None
    assert rollouts.tried_states is not None
    assert rollouts.tried_ended is not None
    assert rollouts.tried_actions.shape == (2_000, 3, 1)
    assert rollouts.tried_states.shape == (2_000, 3, 2, 5, 1)
    assert rollouts.tried_ended.shape == (2_000, 3, 2, 5)
    assert not rollouts.tried_ended.any()
    actions = rollouts.tried_actions.flatten()
    assert float(actions.abs().max()) <= 1.0
    torch.testing.assert_close(actions.mean(), torch.tensor(0.0), rtol=0.0, atol=4.5 * (1 / 3 / 6_000) ** 0.5)
    assert actions.var().item() == pytest.approx(1 / 3, rel=0.05)
    # Actions do not follow the states that they are tried in.
    pair = torch.stack([rollouts.observation[:, 0], rollouts.tried_actions[:, 0, 0]])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.1
    # What differs between two actions of one state shrinks as the policy would have it, without noise.
    closed, made = 0.8 + 0.5 * -0.9, rollouts.tried_states[..., 0]
    for k in range(5):
        apart = 0.5 * closed**k * (rollouts.tried_actions[:, 1] - rollouts.tried_actions[:, 0])
        torch.testing.assert_close(made[:, 1, :, k] - made[:, 0, :, k], apart.expand(-1, 2), rtol=0.0, atol=1e-5)
    # The two trajectories of an action, and those of two states, have noise of their own.
    first = made[:, 0, :, 0] - (0.8 * rollouts.observation + 0.5 * rollouts.tried_actions[:, 0] + 0.1)
    assert first.std().item() == pytest.approx(0.3, rel=0.05)
    assert abs(float(torch.corrcoef(first.T)[0, 1])) < 0.1
    again = try_actions(environment, LINEAR_POLICY, known, 3, 5, seed=4)
    assert all(torch.equal(tried[name], again[name]) for name in tried)


def test_a_member_of_a_family_acts_after_all_actions_tried_in_its_state() -> None:
    environment, policy = ProcessEnvironment(PointMassMaze()), MazeGoalPolicy()
    known = follow_policy(environment, policy, 3, 1, 2, seed=0)
    tried = try_actions(environment, policy, known, 2, 400, seed=0)["tried_states"]
    goal = 0.3 * known["embedding"][:, None, None].expand(-1, 2, 2, -1)
    torch.testing.assert_close(tried[:, :, :, -1, :2], goal, rtol=0.0, atol=0.02)


def test_no_actions_are_tried_where_none_are_wanted_or_states_cannot_be_put_back() -> None:
    known = follow_policy(ProcessEnvironment(LINEAR), LINEAR_POLICY, 2, 1, 2, seed=3)
    assert try_actions(ProcessEnvironment(LINEAR), LINEAR_POLICY, known, 0, 5, seed=4) == {}
    assert try_actions(PENDULUM, LINEAR_POLICY, known, 3, 5, seed=4) == {}


PENDULUM = GymnasiumEnvironment("Pendulum-v1")


def pendulum(seed: int, count: int = 3, num_steps: int = 12) -> dict[str, Tensor]:
    return follow_policy(PENDULUM, LinearPolicy(gain=[[0.1, 0.4, -0.05]]), count, 1, num_steps, seed)


def test_a_general_environment_is_followed_once_from_each_state() -> None:
    found = pendulum(seed=5)
    rollouts = read_rollouts(found)
    check_shapes(rollouts, (3, 1, 12), 3, 1)
    assert rollouts.states is not None
    assert rollouts.ended is not None
    assert rollouts.length is not None
    assert rollouts.embedding.shape == (3, 0)
    assert not bool(rollouts.ended.any())
    assert rollouts.length.tolist() == [[12]] * 3
    # The first step of the pendulum, by its equations.
    cos, sin, speed = rollouts.observation.double().unbind(1)
    force = 2.0 * (0.1 * cos + 0.4 * sin - 0.05 * speed)
    torch.testing.assert_close(2.0 * rollouts.action[:, 0].double(), force, rtol=1e-5, atol=1e-5)
    speed = (speed + (15.0 * sin + 3.0 * force) * 0.05).clamp(-8.0, 8.0)
    angle = torch.atan2(sin, cos) + 0.05 * speed
    wanted = torch.stack([angle.cos(), angle.sin(), speed], 1)
    torch.testing.assert_close(rollouts.states[:, 0, 0].double(), wanted, rtol=1e-4, atol=1e-4)
    again, other = pendulum(seed=5), pendulum(seed=6)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not torch.equal(found["observation"], other["observation"])


def test_a_single_source_state_of_a_general_environment_is_a_batch_of_one() -> None:
    check_shapes(read_rollouts(pendulum(seed=5, count=1, num_steps=4)), (1, 1, 4), 3, 1)


def test_a_general_environment_is_not_followed_more_than_once_from_a_state() -> None:
    with pytest.raises(ValueError, match="Pendulum-v1 can't be put back into a state: eval_copies must be 1, got 2"):
        follow_policy(PENDULUM, ConstantPolicy([0.0]), 3, 2, 5, 0)


@pytest.mark.parametrize("embedding_dim", [0, 2])
def test_stored_trajectories_begin_at_their_rows_and_end_with_their_trajectory(
    tmp_path: Path, embedding_dim: int
) -> None:
    store = trajectory_store(tmp_path / "set", embedding_dim=embedding_dim)
    firsts, inside = [0, 4, 5, 8, 9, 14], [2, 15]
    rollouts = read_rollouts(stored_trajectories(store, torch.tensor(firsts + inside), 4))
    check_shapes(rollouts, (8, 1, 4), 2, 1)
    assert rollouts.states is not None
    assert rollouts.length is not None
    assert rollouts.ended is not None
    trajectory, begin = [0, 1, 2, 3, 4, 5, 0, 5], [0, 0, 0, 0, 0, 0, 2, 1]
    assert rollouts.observation.tolist() == [[i, k] for i, k in zip(trajectory, begin, strict=True)]
    assert torch.equal(rollouts.action, action_at(*rollouts.observation.unbind(1)))
    assert torch.equal(rollouts.embedding, rollouts.observation[:, :1].expand(-1, embedding_dim))
    for row, (i, k) in enumerate(zip(trajectory, begin, strict=True)):
        whole, end = TRAJECTORIES[i]
        left = whole - k
        assert rollouts.states[row, 0].tolist() == [[i, min(k + j + 1, whole)] for j in range(4)]
        assert rollouts.length[row].tolist() == [4 if end == "terminated" else min(left, 4)]
        assert rollouts.ended[row, 0].tolist() == [end == "terminated" and j + 1 >= left for j in range(4)]


def test_sources_with_a_lead_are_states_that_the_policy_leads_to() -> None:
    policy, lead, seed = LinearPolicy(gain=[[0.1, 0.4, -0.05]]), 9, 3
    whole = read_rollouts(follow_policy(PENDULUM, policy, 8, 1, lead + 6, seed))
    rollouts = read_rollouts(follow_policy(PENDULUM, policy, 8, 1, 6, seed, lead))
    check_shapes(rollouts, (8, 1, 6), 3, 1)
    assert whole.states is not None
    assert rollouts.states is not None
    path = torch.cat([whole.observation[:, None], whole.states[:, 0]], 1)
    times = (path == rollouts.observation[:, None]).all(-1).int().argmax(1)
    assert 0 <= int(times.min()) < int(times.max()) <= lead
    assert len(times.unique()) > 3
    for row, time in enumerate(times.tolist()):
        assert torch.equal(rollouts.observation[row], path[row, time])
        assert torch.equal(rollouts.states[row, 0], path[row, time + 1 : time + 7])
    torch.testing.assert_close(rollouts.action, policy.act(rollouts.observation))


def test_a_lead_beyond_the_end_of_an_episode_goes_on_in_the_next_one() -> None:
    environment = GymnasiumEnvironment("Pendulum-v1", {"max_episode_steps": 4})
    rollouts = read_rollouts(follow_policy(environment, ConstantPolicy([0.0]), 6, 1, 5, 0, lead=40))
    assert rollouts.length is not None
    assert rollouts.ended is not None
    assert not bool(rollouts.ended.any())
    # Times do not depend on where episodes end: what remains of one is 1 to 4 steps, each as likely.
    assert set(rollouts.length.flatten().tolist()) <= {1, 2, 3, 4}
    assert len(rollouts.length.unique()) > 1


def test_a_process_leads_to_states_that_are_not_terminal() -> None:
    process = RandomWalkProcess(num_states=6, slip=0.0)
    environment = ProcessEnvironment(process)
    start = read_rollouts(follow_policy(environment, ConstantPolicy([1.0]), 40, 1, 3, 0))
    rollouts = read_rollouts(follow_policy(environment, ConstantPolicy([1.0]), 40, 2, 3, 0, lead=3))
    check_shapes(rollouts, (40, 2, 3), 2, 1)
    moved = process.cell(rollouts.observation) - process.cell(start.observation)
    assert set(moved.tolist()) == {0, 1, 2, 3}
    assert int(process.cell(rollouts.observation).max()) == 4
    assert rollouts.states is not None
    wanted = (process.cell(rollouts.observation)[:, None] + torch.arange(1, 4)).clamp_max(5)
    assert torch.equal(process.cell(rollouts.states)[:, 0], wanted)
