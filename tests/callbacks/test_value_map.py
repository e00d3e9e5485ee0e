"""The value of a policy over the plane: its numbers, its picture, and where there is none."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from torch import Tensor

from flowmatch_rl.callbacks import ValueMapFigure
from flowmatch_rl.envs import ProcessEnvironment, planar_process
from flowmatch_rl.evaluation import ValueMap, map_values
from flowmatch_rl.figures import draw_value_map
from flowmatch_rl.models import GreedySelection, ParticleActor
from flowmatch_rl.schema import ActionBounds
from flowmatch_rl.testbeds import LinearGaussianProcess, LinearReward, PlanarProcess, PointMassMaze, RingProcess
from tests.callbacks.stand_ins import stand_in_trainer, tiny_module
from tests.callbacks.test_figures import episodes, is_drawn

MAZE = PointMassMaze(action_repeat=4)
SLOPE = LinearReward(("x", "y", "vx"), (1.0, 10.0, 100.0), 0.5)


def worth(observation: Tensor, actions: Tensor) -> Tensor:
    """Values that tell every entry of the state and of the action from the others."""
    state = observation @ torch.tensor([1.0, 10.0, 100.0, 100.0])
    return state[:, None] + actions @ torch.tensor([3.0, 0.7])


def steer(observation: Tensor) -> Tensor:
    return torch.stack([2.0 * observation[..., 1], -observation[..., 0]], -1)


def steering(num_particles: int = 1, noise: float = 0.0) -> ParticleActor:
    """A policy that turns around the centre, with some noise."""

    def latents(observation: Tensor, drawn: Tensor, draw: Any) -> Tensor:
        return steer(observation)[:, None] + noise * drawn

    policy: Any = SimpleNamespace(noise_dim=2, sample_latents=latents, squash=SimpleNamespace(action=lambda x: x))
    return ParticleActor(policy, worth, num_particles, GreedySelection(), 1.0)


def states_of(found: ValueMap) -> Tensor:
    """States at rest at the middles of the cells, shape (G, G, 4), y along the rows."""
    number = len(found.values)
    axis = (torch.arange(number) + 0.5) * 2.0 * found.half_width / number - found.half_width
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    return torch.stack([x, y, torch.zeros_like(x), torch.zeros_like(x)], -1)


def test_the_value_at_a_place_is_that_of_the_policys_action_there_at_rest() -> None:
    found = map_values(steering(), SLOPE, MAZE)
    states = states_of(found).flatten(0, 1)
    wanted = worth(states, steer(states)[:, None])[:, 0]
    torch.testing.assert_close(found.values.flatten(), wanted, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(found.rewards.flatten(), SLOPE.evaluate(states, MAZE.columns), rtol=0.0, atol=1e-5)
    assert found.values.shape[0] == found.values.shape[1]
    assert found.half_width == MAZE.half_width


def test_values_are_of_the_action_that_evaluations_choose_and_arrows_of_plain_samples() -> None:
    plain, best = map_values(steering(), SLOPE, MAZE), map_values(steering(64, noise=0.1), SLOPE, MAZE)
    assert float((best.values - plain.values).min()) > 0.1
    differences = best.moves - plain.moves
    assert float(differences.std()) > 0.0
    assert abs(float(differences.mean())) < 0.2 * float(differences.std())


def test_arrows_lead_to_where_the_process_goes_from_free_places() -> None:
    found = map_values(steering(), SLOPE, MAZE)
    assert bool(MAZE.is_free(found.places).all())
    assert len(found.places) > 20
    states = torch.cat([found.places, torch.zeros(len(found.places), 2)], 1)
    arrivals, _ = MAZE.step(states, steer(states), torch.zeros(len(states), 4))
    assert found.moves.shape[1] > 5
    for sample in found.moves.unbind(1):
        torch.testing.assert_close(sample, arrivals[:, :2] - states[:, :2])


def test_the_roll_out_is_the_first_episode_without_its_padding() -> None:
    played = episodes(3, 8, 4, 2)
    figure: Any = ValueMapFigure().draw(tiny_module(4, 2), played, stand_in_data(MAZE), "title")
    wanted: Any = played["observation"][0, :4, :2].numpy()
    assert any(np.array_equal(line.get_xydata(), wanted) for line in figure.axes[1].lines)


def test_a_map_leaves_the_global_noise_alone_and_repeats() -> None:
    before = torch.get_rng_state()
    first, again = (map_values(steering(4, noise=0.3), SLOPE, MAZE) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.moves, again.moves)


def test_the_picture_shows_the_walls_the_numbers_and_the_roll_out() -> None:
    found = map_values(steering(), SLOPE, MAZE, [episodes(1, 8, 4, 2)["observation"][0]])
    panels: Any = draw_value_map(found, "title").axes
    left, right = panels[:2]
    for axes, cells in ((left, found.rewards), (right, found.values)):
        boxes = [patch.get_bbox().extents for patch in axes.patches if isinstance(patch, Rectangle)]
        for wall in MAZE.walls().numpy():
            assert any(np.allclose(box, wall) for box in boxes)
        (image,) = axes.images
        assert np.array_equal(np.asarray(image.get_array()), cells.numpy())
        assert image.origin == "lower"
        assert image.get_extent() == pytest.approx([-0.3, 0.3, -0.3, 0.3])
    (arrows,) = right.collections
    drawn, moves = np.stack([arrows.U, arrows.V], -1), found.moves.flatten(0, 1).numpy()
    assert np.allclose(drawn, moves * (drawn.max() / moves.max()), atol=1e-6)
    assert any(np.array_equal(line.get_xydata(), found.paths[0].numpy()) for line in right.lines)


def stand_in_data(plane: PlanarProcess | None, reward: Any = SLOPE, action_dim: int = 2) -> Any:
    spaces = SimpleNamespace(action_bounds=ActionBounds.unit(action_dim))
    return SimpleNamespace(label="$t$", spaces=spaces, plane=plane, reward=reward)


@pytest.mark.parametrize(("process", "action_dim"), [(MAZE, 2), (RingProcess(), 1)], ids=["maze", "ring"])
def test_a_test_in_the_plane_draws_the_map(tmp_path: Path, process: PlanarProcess, action_dim: int) -> None:
    reward = LinearReward(("x",), (1.0,))
    trainer = stand_in_trainer(tmp_path, datamodule=stand_in_data(process, reward, action_dim))
    width = len(process.columns)
    module, batch = tiny_module(width, action_dim), episodes(2, 9, width, action_dim)
    ValueMapFigure().on_test_batch_end(trainer, module, None, batch, 0)
    assert is_drawn(tmp_path / "figures" / "value_map.png")


@pytest.mark.parametrize(("plane", "reward"), [(None, SLOPE), (MAZE, None)], ids=["no plane", "no reward"])
def test_nothing_is_drawn_without_a_plane_or_a_reward(tmp_path: Path, plane: Any, reward: Any) -> None:
    trainer = stand_in_trainer(tmp_path, datamodule=stand_in_data(plane, reward))
    ValueMapFigure().on_test_batch_end(trainer, tiny_module(4, 2), None, episodes(2, 9, 4, 2), 0)
    assert list(tmp_path.iterdir()) == []


def test_only_environments_of_processes_in_the_plane_have_one() -> None:
    assert planar_process(ProcessEnvironment(MAZE)) is MAZE
    assert planar_process(ProcessEnvironment(LinearGaussianProcess())) is None
    assert planar_process(None) is None
