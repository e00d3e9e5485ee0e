"""The maze: geometry, collisions and the scripted experts."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from flowmatch_rl.testbeds import (
    MazeGoalPolicy,
    MazeLoopPolicy,
    MazeReachPolicy,
    PointMassMaze,
    RandomPolicy,
    Room,
    free_positions,
)
from flowmatch_rl.types import Policy
from tests.combinations import each_value, one_test

ROOMS: tuple[Room, ...] = get_args(Room)
F64 = torch.float64
start_speeds = pytest.mark.parametrize("start_speed", [0.0, 0.4])


def starts(start_speed: float, count: int = 1000, dtype: torch.dtype = torch.float32) -> Tensor:
    noise = torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    return PointMassMaze(start_speed).start(noise.to(dtype))


def run(policy: Policy, state: Tensor, steps: int, embedding: Tensor | None = None) -> Tensor:
    noise = torch.zeros(1, 1, 1).expand(steps, len(state), 4)
    first = policy.act(state, embedding)
    return PointMassMaze().futures(policy, state, first, noise, embedding)[0]


def grid(count: int) -> Tensor:
    axis = (torch.arange(count, dtype=F64) + 0.5) / count
    return torch.cartesian_prod(axis, axis)


def test_walls_form_a_cross_that_leaves_four_rooms_joined_in_a_ring() -> None:
    maze, count = PointMassMaze(), 120
    free = maze.is_free(0.6 * grid(count) - 0.3).reshape(count, count)
    label = torch.where(free, torch.arange(count * count).reshape(count, count), -1)
    for _ in range(4 * count):
        padded = torch.nn.functional.pad(label, (1, 1, 1, 1), value=-1)
        near = torch.stack(
            [padded[1:-1, 1:-1], padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2]]
        )
        label = torch.where(free, near.amax(0), -1)
    assert label[free].unique().numel() == 1
    middle, arm, gap = slice(56, 64), slice(24, 96), slice(0, 24)
    assert not free[middle, arm].any()
    assert free[middle, gap].all()
    assert free[:, :56][:56].all()
    assert torch.equal(free, free.T)
    assert torch.equal(free, free.flip(0))
    boxes = maze.walls()
    assert boxes.shape == (2, 4)
    assert not maze.is_free(0.5 * (boxes[:, :2] + boxes[:, 2:])).any()
    outside = torch.tensor([[0.31, 0.0], [0.0, -0.31], [0.3, 0.3]])
    assert maze.is_free(outside).tolist() == [False, False, True]


def test_free_positions_are_uniform_over_the_free_space() -> None:
    points = free_positions(torch.rand(2_000_000, 2, dtype=F64, generator=torch.Generator().manual_seed(0)))
    maze = PointMassMaze()
    assert maze.is_free(points).all()
    cells = ((points + 0.3) / 0.02).long().clamp(0, 29)
    counts = torch.bincount(cells[:, 0] * 30 + cells[:, 1], minlength=900).double()
    centres = (torch.cartesian_prod(torch.arange(30), torch.arange(30)).double() + 0.5) * 0.02 - 0.3
    free = maze.is_free(centres)
    assert torch.equal(counts > 0, free)
    share = counts[free] / counts.sum() * free.sum()
    assert (share - 1.0).abs().max() < 0.1
    ends = torch.tensor([[0.0, 0.0], [1.0 - 2**-24, 1.0 - 2**-24]])
    assert maze.is_free(free_positions(ends)).all()


@start_speeds
def test_starts_are_free_and_no_faster_than_asked(start_speed: float) -> None:
    state = starts(start_speed, 10_000)
    assert PointMassMaze().is_free(state[:, :2]).all()
    assert state[:, 2:].abs().max() == pytest.approx(start_speed, rel=0.01)
    assert float(state[:, 2:].var()) == pytest.approx(start_speed**2 / 3.0, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_walk_enters_a_wall_or_leaves_the_arena(dtype: torch.dtype) -> None:
    maze, state = PointMassMaze(), starts(0.4, 2000, dtype)
    generator = torch.Generator().manual_seed(1)
    push = RandomPolicy(2).act(state, generator=generator).sign()
    touched = torch.zeros(len(state), dtype=torch.bool)
    for _ in range(300):
        turn = torch.rand(len(state), 1, generator=generator) < 0.02
        push = torch.where(turn, RandomPolicy(2).act(state, generator=generator).sign(), push)
        moved, ended = maze.step(state, push, state)
        assert maze.is_free(moved[:, :2]).all()
        assert moved[:, 2:].abs().max() <= 0.4
        assert not ended.any()
        assert ((moved[:, :2] - state[:, :2]).abs() <= 0.02 * 0.4 + 1e-6).all()
        touched |= (moved[:, 2:] == 0.0).any(-1)
        state = moved
    assert touched.all()


def test_free_motion_is_a_damped_point_mass() -> None:
    state = torch.tensor([[-0.2, -0.2, 0.1, -0.2]], dtype=F64)
    action = torch.tensor([[0.5, 1.0]], dtype=F64)
    moved, _ = PointMassMaze().step(state, action, state)
    wanted = torch.tensor([[-0.2 + 0.02 * 0.11, -0.2 - 0.02 * 0.14, 0.11, -0.14]], dtype=F64)
    torch.testing.assert_close(moved, wanted)


def test_a_wall_stops_one_part_of_the_velocity_and_the_point_slides_along_it() -> None:
    state = torch.tensor([[-0.021, 0.1, 0.4, 0.4], [0.299, 0.1, 0.4, 0.4], [0.1, -0.021, -0.4, 0.4]], dtype=F64)
    moved, _ = PointMassMaze().step(state, torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=F64), state)
    wanted = [[-0.02, 0.108, 0.0, 0.4], [0.3, 0.108, 0.0, 0.4], [0.092, -0.02, -0.4, 0.0]]
    torch.testing.assert_close(moved, torch.tensor(wanted, dtype=F64))


def test_a_fast_point_does_not_pass_through_a_wall() -> None:
    state = torch.tensor([[-0.1, 0.1, 20.0, 0.0], [0.1, 0.1, 0.0, -20.0]], dtype=F64)
    moved, _ = PointMassMaze().step(state, torch.zeros(2, 2, dtype=F64), state)
    torch.testing.assert_close(moved[:, :2], torch.tensor([[-0.02, 0.1], [0.1, 0.02]], dtype=F64))


@each_value
@start_speeds
@pytest.mark.parametrize("room", ROOMS)
def test_reach_policy_rests_in_its_room_from_everywhere(room: Room, start_speed: float) -> None:
    policy = MazeReachPolicy(room)
    states = run(policy, starts(start_speed), 170)
    goal = torch.tensor(policy.goal)
    sides = {"left": goal[0] < 0, "right": goal[0] > 0, "top": goal[1] > 0, "bottom": goal[1] < 0}
    assert all(sides[word] for word in room.split("_"))
    assert ((states[150:, :, :2] - goal).norm(dim=-1) < 0.01).all()
    assert states[-1, :, 2:].abs().max() < 1e-3


@start_speeds
def test_every_member_of_the_goal_family_reaches_its_goal_from_everywhere(start_speed: float) -> None:
    policy = MazeGoalPolicy()
    uniform = torch.rand(4000, 2, generator=torch.Generator().manual_seed(2))
    embedding = policy.embeddings(uniform)
    assert embedding.abs().max() <= 1.0
    assert PointMassMaze().is_free(0.3 * embedding).all()
    states = run(policy, starts(start_speed, 4000), 200, embedding)
    assert ((states[150:, :, :2] - 0.3 * embedding).norm(dim=-1) < 0.01).all()
    assert states[-1, :, 2:].abs().max() < 1e-3


def test_goals_at_the_corners_of_the_wall_are_reached() -> None:
    edge, near = torch.tensor([0.02, 0.0201, 0.021, 0.029, 0.031]), torch.tensor([0.1, 0.179, 0.1801, 0.185, 0.2])
    corner = torch.cat([torch.cartesian_prod(edge, near), torch.cartesian_prod(near, edge)])
    goals = torch.cat([corner * torch.tensor(sign) for sign in ((1, 1), (1, -1), (-1, 1), (-1, -1))])
    goals = goals[PointMassMaze().is_free(goals)].repeat_interleave(10, dim=0)
    states = run(MazeGoalPolicy(), starts(0.4, len(goals)), 260, goals / 0.3)
    assert ((states[200:, :, :2] - goals).norm(dim=-1) < 0.005).all()


def test_the_shorter_way_around_is_taken() -> None:
    state = torch.tensor([[-0.15, 0.15, 0.0, 0.0], [-0.2, 0.05, 0.0, 0.0], [-0.05, 0.2, 0.0, 0.0]])
    for room, wanted in (("top_right", [0, 0, 0]), ("bottom_left", [3, 3, 3]), ("bottom_right", [None, 3, 0])):
        states = run(MazeReachPolicy(room), state, 150)
        for start, gap in enumerate(wanted):
            left = ((states[:, start, 0] > 0.0) | (states[:, start, 1] < 0.0)).nonzero()[0, 0]
            through = 0 if states[left, start, 0] > 0.0 else 3
            assert gap in (None, through)


@start_speeds
def test_loop_policy_runs_clockwise_laps_from_everywhere(start_speed: float) -> None:
    states = run(MazeLoopPolicy(), starts(start_speed), 1000)
    angle = torch.atan2(states[..., 1], states[..., 0])
    turned = -(torch.remainder(angle.diff(dim=0) + math.pi, 2.0 * math.pi) - math.pi)
    laps = turned[300:].sum(0) / (2.0 * math.pi)
    period = len(turned[300:]) / laps
    assert ((period > 120.0) & (period < 200.0)).all()
    assert states[300:, :, 2:].norm(dim=-1).min() > 0.2


def test_crossing_to_the_next_room_takes_about_forty_steps() -> None:
    state = torch.tensor([[-0.15, 0.15, 0.0, 0.0]])
    states = run(MazeReachPolicy("top_right"), state, 100)
    arrived = ((states[:, 0, :2] - torch.tensor([0.15, 0.15])).norm(dim=-1) < 0.05).nonzero()[0, 0]
    assert 30 <= arrived <= 55


@pytest.mark.parametrize("policy", [MazeLoopPolicy(), MazeReachPolicy(), MazeGoalPolicy()], ids=repr)
def test_forces_stay_in_the_unit_box_and_do_not_depend_on_the_batch(policy: Policy) -> None:
    state = starts(0.4, 60)
    embedding = policy.embeddings(torch.rand(60, policy.embedding_dim, generator=torch.Generator().manual_seed(0)))
    named = embedding if policy.embedding_dim else None
    force = policy.act(state, named)
    assert force.abs().max() <= 1.0
    shaped = policy.act(state.reshape(4, 15, 4), None if named is None else named.reshape(4, 15, 2))
    torch.testing.assert_close(shaped.reshape(60, 2), force)
    torch.testing.assert_close(policy.act(state[7], None if named is None else named[7]), force[7])


def test_a_held_action_is_as_many_steps_of_it() -> None:
    state, action = starts(0.4, 50), RandomPolicy(2).act(torch.zeros(50, 4), generator=torch.Generator().manual_seed(1))
    held, _ = PointMassMaze(action_repeat=3).step(state, action, torch.zeros(50, 4))
    for _ in range(3):
        state, _ = PointMassMaze().step(state, action, torch.zeros(50, 4))
    torch.testing.assert_close(held, state, rtol=0, atol=0)
    with pytest.raises(ValueError, match="action_repeat must be at least 1, got 0"):
        PointMassMaze(action_repeat=0)


def test_a_point_at_rest_on_its_goal_is_left_alone() -> None:
    goal = MazeReachPolicy("bottom_left")
    force = goal.act(torch.tensor([[*goal.goal, 0.0, 0.0]]))
    assert torch.equal(force, torch.zeros(1, 2))


@one_test
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PointMassMaze(start_speed=0.5), "[0, 0.4], got 0.5"),
        (lambda: MazeReachPolicy("attic"), "'attic'"),  # pyright: ignore[reportArgumentType]
        (lambda: MazeGoalPolicy().act(torch.zeros(3, 4)), "no embedding"),
        (lambda: MazeGoalPolicy().act(torch.zeros(3, 4), torch.zeros(3, 3)), "(3, 2), got (3, 3)"),
        (lambda: MazeLoopPolicy().act(torch.zeros(3, 4), torch.zeros(3, 2)), "dimension 0"),
        (lambda: MazeLoopPolicy().act(torch.zeros(3, 2)), "(3, 4), got (3, 2)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
