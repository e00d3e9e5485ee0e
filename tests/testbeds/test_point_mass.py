"""The room: walls of one's own, where the point starts, and what is refused."""

import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.testbeds import PointMassMaze, PointMassRoom
from flowmatch_rl.testbeds.processes.point_mass import MAX_SPEED

RIGHT = torch.tensor([[1.0, 0.0]])
WALL = (0.1, -0.3, 0.12, 0.3)


def pushed(room: PointMassRoom, steps: int, action: torch.Tensor = RIGHT) -> torch.Tensor:
    state = room.start(torch.zeros(1, 2))
    for _ in range(steps):
        state, terminated = room.step(state, action, torch.zeros(1, 2))
        assert not terminated.any()
    return state[0]


def test_full_force_leads_to_the_full_speed_and_the_outer_wall() -> None:
    assert pushed(PointMassRoom(), 7)[2] == pytest.approx(MAX_SPEED, rel=0.06)
    assert pushed(PointMassRoom(), 40).tolist() == pytest.approx([0.3, 0.0, 0.0, 0.0])


def test_a_wall_stops_the_point_on_its_side_and_lets_it_slide() -> None:
    assert pushed(PointMassRoom((WALL,)), 40).tolist() == pytest.approx([0.1, 0.0, 0.0, 0.0])
    x, y, vx, vy = pushed(PointMassRoom((WALL,)), 8, torch.tensor([[1.0, 1.0]])).tolist()
    assert (x, vx) == (pytest.approx(0.1), 0.0)
    assert y > 0.1
    assert vy > 0.3


def test_the_bars_of_the_maze_make_a_room_that_moves_as_the_maze_does() -> None:
    maze = PointMassMaze(start_speed=0.4, action_repeat=4)
    room = PointMassRoom(maze.boxes, start_at=(0.1, 0.1))
    noise, generator = torch.zeros(500, 4), torch.Generator().manual_seed(0)
    state = maze.start(torch.randn(500, 4, generator=generator))
    for _ in range(20):
        action = 2.0 * torch.rand(500, 2, generator=generator) - 1.0
        moved = room.step(state, action, noise[:, :2])[0]
        state = maze.step(state, action, noise)[0]
        assert torch.equal(moved, state)
    assert bool(maze.is_free(state[:, :2]).all())


def test_starts_are_uniform_in_their_square_and_at_rest() -> None:
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    position, velocity = PointMassRoom(start_at=(0.1, -0.2), start_half_width=0.05).start(noise).split(2, dim=-1)
    centred = (position - torch.tensor([0.1, -0.2])) / 0.05
    assert centred.abs().max() <= 1.0
    assert centred.pow(2).mean(0).tolist() == pytest.approx([1 / 3, 1 / 3], abs=0.02)
    assert velocity.abs().max() == 0.0
    assert PointMassRoom(start_half_width=0.0).start(noise).abs().max() == 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"walls_at": ((0.1, 0.0, 0.1, 0.2),)}, r"each low less than its high; got \(0.1, 0.0, 0.1, 0.2\)"),
        ({"walls_at": ((-0.1, -0.1, 0.1, 0.1),)}, r"start_at \(0.0, 0.0\) .* is not, with the walls"),
        ({"start_at": (0.29, 0.0)}, r"in \[-0.3, 0.3\]\^2; start_at \(0.29, 0.0\)"),
        ({"action_repeat": 0}, "action_repeat must be at least 1, got 0"),
        ({"start_half_width": 0.5}, r"start_half_width must lie in \[0, 0.3\], got 0.5"),
    ],
)
def test_rooms_that_cannot_be_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        PointMassRoom(**options)
