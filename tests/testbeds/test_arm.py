"""The arm: where its tip is, what stops it, and what is refused."""

import math

import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.testbeds import ReachingArm

OBSTACLE = (0.06, -0.04, 0.14, 0.04)
ABOVE = (-0.02, 0.1, 0.02, 0.3)


def turned(arm: ReachingArm, steps: int, action: tuple[float, float]) -> torch.Tensor:
    state = arm.start(torch.zeros(1, 2))
    for _ in range(steps):
        state, terminated = arm.step(state, torch.tensor([action]), torch.zeros(1, 2))
        assert not terminated.any()
    return state[0]


def test_the_arm_starts_stretched_to_the_left_and_turns_as_its_joints_do() -> None:
    assert turned(ReachingArm(), 0, (0.0, 0.0)).tolist() == pytest.approx([-0.3, 0.0, 0.0, 0.0])
    x, y, shoulder, elbow = turned(ReachingArm(action_repeat=1), 5, (1.0, -0.5)).tolist()
    assert (shoulder, elbow) == (pytest.approx(0.3), pytest.approx(-0.15))
    assert x == pytest.approx(-0.15 * (math.cos(0.3) + math.cos(0.15)))
    assert y == pytest.approx(-0.15 * (math.sin(0.3) + math.sin(0.15)))
    assert turned(ReachingArm(), 30, (1.0, 0.0))[2] == pytest.approx(math.pi)


def test_walls_stop_a_link_on_both_ways_alike() -> None:
    """The stretched arm comes to rest beside the obstacle, at an angle that is the same from above and below."""
    below, above = (turned(ReachingArm((OBSTACLE,)), 40, (side, 0.0)) for side in (1.0, -1.0))
    assert above[1] == pytest.approx(-below[1])
    assert 0.15 * math.sin(math.pi - float(below[2])) > 0.04
    assert below[2] < math.pi - 0.2


def test_a_wall_beside_the_shoulder_closes_one_way() -> None:
    arm = ReachingArm((OBSTACLE, ABOVE))
    assert turned(arm, 40, (-1.0, -1.0))[0] < 0.0
    assert turned(arm, 40, (1.0, 0.0))[0] > 0.0


def test_a_link_in_a_wall_is_found_wherever_it_crosses() -> None:
    """Against points along the links."""
    arm = ReachingArm((OBSTACLE, ABOVE))
    angles = math.pi * (2.0 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) - 1.0)
    direction = angles.cumsum(-1)
    links = -0.15 * torch.stack([direction.cos(), direction.sin()], dim=-1)
    along = torch.linspace(0.0, 1.0, 400)[:, None]
    elbow = links[:, :1]
    points = torch.cat([along * elbow, elbow + along * links[:, 1:]], dim=1)[:, :, None]
    boxes = arm.walls().float()
    inside = ((points > boxes[:, :2]) & (points < boxes[:, 2:])).all(-1).flatten(1).any(-1)
    touches = arm.touches(angles)
    assert bool(touches[inside].all())
    assert float((touches & ~inside).float().mean()) < 0.01
    assert 0.2 < float(inside.float().mean()) < 0.8


def test_starts_are_uniform_in_their_square() -> None:
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    angles = ReachingArm(start_half_width=0.1).start(noise)[:, 2:] / 0.1
    assert angles.abs().max() <= 1.0
    assert angles.pow(2).mean(0).tolist() == pytest.approx([1 / 3, 1 / 3], abs=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"walls_at": ((0.1, 0.0, 0.1, 0.2),)}, r"each low less than its high; got \(0.1, 0.0, 0.1, 0.2\)"),
        ({"walls_at": ((-0.2, -0.1, -0.1, 0.1),)}, "must start outside of walls, stretched to the left"),
        ({"action_repeat": 0}, "action_repeat must be at least 1, got 0"),
        ({"start_half_width": 1.5}, r"start_half_width must lie in \[0, 1\], got 1.5"),
    ],
)
def test_arms_that_cannot_be_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ReachingArm(**options)
