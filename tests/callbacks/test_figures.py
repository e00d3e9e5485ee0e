import csv
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import pytest
import torch
from lightning.pytorch import Callback
from tensordict import TensorDict
from torch import Tensor

from flowmatch_rl.callbacks.figures import EpisodeFigure, LearningCurve, PolicyCurve, PolicyFigures
from flowmatch_rl.evaluation import Episodes, PolicySample, ReturnPoint, differing_states, sample_policy
from flowmatch_rl.figures import draw_episodes, draw_learning_curve, draw_policy, save_figure
from flowmatch_rl.schema import ActionBounds
from tests.callbacks.stand_ins import stand_in_trainer, tiny_data, tiny_module, tiny_trainer

FIGURES = ("learning_curve.png", "policy.png", "episode.png")


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "figures" / "learning_curve.csv").open() as file:
        return list(csv.DictReader(file))


def is_drawn(path: Path) -> bool:
    """Whether a picture holds more than a white page with a frame."""
    picture = torch.from_numpy(iio.imread(path)[..., :3].copy())
    marked = (picture.float().std(-1) > 20).float().mean()
    return min(picture.shape[:2]) > 300 and float(marked) > 2e-4


PENDULUM = ActionBounds((-2.0,), (2.0,))


def stand_in_data(bounds: ActionBounds = PENDULUM) -> Any:
    spaces = SimpleNamespace(action_bounds=bounds)
    return SimpleNamespace(label="Stand-in-v0", env_steps=10, recent_returns=deque(), spaces=spaces)


def episodes(num: int, length: int, observation_dim: int, action_dim: int) -> TensorDict:
    generator = torch.Generator().manual_seed(1)

    def uniform(*shape: int) -> Tensor:
        return 2.0 * torch.rand(shape, generator=generator) - 1.0

    mask = torch.ones(num, length, dtype=torch.bool)
    mask[0, length // 2 :] = False
    return TensorDict(
        {
            "observation": uniform(num, length, observation_dim),
            "action": uniform(num, length, action_dim),
            "next": {"reward": uniform(num, length, 1)},
            "mask": mask,
        },
        batch_size=[num, length],
    )


class Breaks(Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("broken off")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    module, data = tiny_module(), tiny_data()
    trainer = tiny_trainer(folder, [LearningCurve(), PolicyFigures(num_particles=50), EpisodeFigure()], max_epochs=2)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return folder


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_leaves_figures_that_are_not_blank(run: Path, name: str) -> None:
    assert is_drawn(run / "figures" / name)


def test_a_blank_page_is_no_figure(tmp_path: Path) -> None:
    figure = draw_learning_curve([ReturnPoint(1)], "")
    for axes in figure.axes:
        axes.remove()
    save_figure(figure, tmp_path / "blank.png")
    assert not is_drawn(tmp_path / "blank.png")


def test_the_table_has_a_row_per_evaluation(run: Path) -> None:
    rows = read_table(run)
    assert [int(row["env_steps"]) for row in rows] == [30, 40]
    assert all(float(row["return_mean"]) < 0.0 < float(row["critic_loss"]) for row in rows)
    assert all(row["training_return"] == "" for row in rows)  # no training episode has ended


def test_a_resumed_run_keeps_its_earlier_evaluations(tmp_path: Path) -> None:
    checkpoint = tmp_path / "first.ckpt"
    trainer = tiny_trainer(tmp_path, [LearningCurve()], max_epochs=1)
    trainer.fit(tiny_module(), datamodule=tiny_data())
    trainer.save_checkpoint(checkpoint)
    first = read_table(tmp_path)
    trainer = tiny_trainer(tmp_path, [LearningCurve()], max_epochs=2)
    trainer.fit(tiny_module(), datamodule=tiny_data(), ckpt_path=checkpoint, weights_only=False)
    rows = read_table(tmp_path)
    assert rows[:1] == first
    assert [row["env_steps"] for row in rows] == ["30", "40"]


def test_the_state_of_a_learning_curve_loads_without_pickled_classes(tmp_path: Path) -> None:
    curve, again = LearningCurve(), LearningCurve()
    metrics = {"val/return_mean": torch.tensor(-3.0), "val/return_std": torch.tensor(1.0)}
    trainer = stand_in_trainer(tmp_path, datamodule=stand_in_data(), callback_metrics=metrics)
    curve.on_validation_end(trainer, tiny_module())
    torch.save(curve.state_dict(), tmp_path / "state")
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert again.state_dict() == curve.state_dict()
    assert again.state_dict()["evaluations"][0]["return_mean"] == -3.0


def test_an_evaluation_at_the_same_step_replaces_the_earlier_one(tmp_path: Path) -> None:
    curve, data = LearningCurve(), stand_in_data()
    trainer = stand_in_trainer(tmp_path, datamodule=data)
    for data.env_steps in (10, 20, 30, 20):
        curve.on_validation_end(trainer, tiny_module())
    assert [row["env_steps"] for row in curve.state_dict()["evaluations"]] == [10, 20]


def test_a_run_that_breaks_off_leaves_its_curve(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, [LearningCurve(), Breaks()], max_epochs=2)
    with pytest.raises(RuntimeError, match="broken off"):
        trainer.fit(tiny_module(), datamodule=tiny_data())
    assert len(read_table(tmp_path)) == 1
    assert is_drawn(tmp_path / "figures" / "learning_curve.png")


@pytest.mark.parametrize(("observation_dim", "action_dim"), [(3, 1), (2, 2), (1, 8)])
def test_policies_of_every_action_dimension_are_drawn(tmp_path: Path, observation_dim: int, action_dim: int) -> None:
    bounds = ActionBounds((-2.0,) * action_dim, (3.0,) * action_dim)
    trainer = stand_in_trainer(tmp_path, datamodule=stand_in_data(bounds))
    batch = episodes(2, 300, observation_dim, action_dim)
    module = tiny_module(observation_dim, action_dim)
    for figures in (PolicyFigures(num_states=2, num_particles=20), EpisodeFigure()):
        figures.on_test_batch_end(trainer, module, None, batch, 0)
    assert is_drawn(tmp_path / "figures" / "policy.png")
    assert is_drawn(tmp_path / "figures" / "episode.png")


def test_an_evaluation_of_one_episode_of_one_step_is_drawn(tmp_path: Path) -> None:
    trainer = stand_in_trainer(tmp_path, datamodule=stand_in_data())
    batch = episodes(2, 1, 3, 1)[1:]
    for figures in (PolicyFigures(num_particles=20), EpisodeFigure()):
        figures.on_test_batch_end(trainer, tiny_module(), None, batch, 0)
        figures.on_test_batch_end(trainer, tiny_module(), None, batch.exclude("mask"), 0)  # transitions, no episodes
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"policy.png", "episode.png"}


def test_drawing_a_policy_leaves_the_global_noise_alone(tmp_path: Path) -> None:
    trainer, module, batch = stand_in_trainer(tmp_path, datamodule=stand_in_data()), tiny_module(), episodes(2, 9, 3, 1)
    before = torch.get_rng_state()
    PolicyFigures(num_states=1, num_particles=20).on_test_batch_end(trainer, module, None, batch, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_other_than_the_first_draw_nothing(tmp_path: Path) -> None:
    trainer = stand_in_trainer(tmp_path, datamodule=stand_in_data(), is_global_zero=False)
    curve = LearningCurve()
    curve.on_validation_end(trainer, tiny_module())
    curve.on_fit_end(trainer, tiny_module())
    for figures in (PolicyFigures(), EpisodeFigure()):
        figures.on_test_batch_end(trainer, tiny_module(), None, episodes(2, 9, 3, 1), 0)
    assert list(tmp_path.iterdir()) == []


def test_the_curve_of_a_policy_from_data_counts_gradient_steps(tmp_path: Path) -> None:
    metrics = {"val/return_mean": torch.tensor(2.0), "val/loss": torch.tensor(0.3), "train/loss/policy": 0.5}
    trainer = stand_in_trainer(tmp_path, datamodule=stand_in_data(), callback_metrics=metrics, global_step=7)
    point = PolicyCurve().measure(trainer, 1.5)
    assert (point.gradient_steps, point.return_mean, point.policy_loss, point.critic_loss) == (7, 2.0, 0.5, None)
    assert point.held_out_loss == pytest.approx(0.3)
    assert point.success_rate is None
    figure = draw_learning_curve([point, replace(point, gradient_steps=9)], "title")
    assert "success rate" not in [axes.get_ylabel() for axes in figure.axes]
    save_figure(figure, tmp_path / "curve.png")
    assert is_drawn(tmp_path / "curve.png")


def test_the_curve_of_a_policy_from_data_shows_success_where_the_environment_reports_it(tmp_path: Path) -> None:
    metrics = {"val/return_mean": torch.tensor(2.0), "val/success_rate": torch.tensor(0.75)}
    trainer = stand_in_trainer(tmp_path, datamodule=stand_in_data(), callback_metrics=metrics, global_step=7)
    point = PolicyCurve().measure(trainer, 1.5)
    assert point.success_rate == 0.75
    figure = draw_learning_curve([point, replace(point, gradient_steps=9, success_rate=1.0)], "title")
    panel = next(axes for axes in figure.axes if axes.get_ylabel() == "success rate")
    assert list(panel.lines[0].get_ydata()) == [0.75, 1.0]


def test_the_density_is_that_of_a_boltzmann_policy() -> None:
    grid = torch.linspace(-1.0, 1.0, 2001)
    empty = torch.empty(0)
    sample = PolicySample(empty, empty, empty, grid[None], 1e4 + 6.0 * grid[None].expand(2, -1), temperature=2.0)
    exact = 3.0 * torch.exp(3.0 * grid) / (torch.tensor(3.0).exp() - torch.tensor(-3.0).exp())
    torch.testing.assert_close(sample.density(), exact.expand(2, -1), rtol=1e-3, atol=1e-5)


def sample_stand_in(
    value: Callable[[Tensor], Tensor], chosen: Tensor, bounds: ActionBounds | None = None
) -> PolicySample:
    """Seven particles of a policy that carries noise to twice the noise, with values of its actions alone."""

    def trajectories(observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tensor([0.0, 1.0]), torch.stack([noise, 2.0 * noise])

    policy: Any = SimpleNamespace(
        trajectories=trajectories, noise_dim=chosen.shape[1], squash=SimpleNamespace(action=torch.tanh)
    )
    bounds = bounds or ActionBounds.unit(chosen.shape[1])
    return sample_policy(policy, lambda observation, actions: value(actions), 1.0, torch.zeros(2, 5), chosen, bounds, 7)


def test_a_sample_is_in_the_environments_unit_but_for_what_the_critic_sees() -> None:
    bounds = ActionBounds((-3.0, 0.0, 5.0), (1.0, 10.0, 5.0))
    chosen = torch.tensor([[0.0, 0.5, 0.1], [1.0, -1.0, -0.1]])
    unit = sample_stand_in(lambda a: a[..., 0] + 10.0 * a[..., 1], chosen)
    sample = sample_stand_in(lambda a: a[..., 0] + 10.0 * a[..., 1], chosen, bounds)
    torch.testing.assert_close(sample.chosen, torch.tensor([[-1.0, 7.5, 5.0], [1.0, 0.0, 5.0]]))
    torch.testing.assert_close(sample.actions[..., 1], 5.0 * (unit.actions[..., 1] + 1.0))
    torch.testing.assert_close(sample.grid[:, [0, -1]], torch.tensor([[-3.0, 1.0], [0.0, 10.0]]))
    assert torch.equal(sample.values, unit.values)


def test_the_density_is_that_of_a_boltzmann_policy_in_the_environments_unit() -> None:
    sample = sample_stand_in(lambda a: 3.0 * a[..., 0], torch.zeros(2, 1), ActionBounds((-2.0,), (4.0,)))
    exact = torch.exp(sample.grid) / (torch.tensor(4.0).exp() - torch.tensor(-2.0).exp())
    torch.testing.assert_close(sample.density(), exact.expand(2, -1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bounds", [ActionBounds((-2.0,), (4.0,)), ActionBounds((1.0, 2.0), (1.0, 50.0))], ids=repr)
def test_axes_of_actions_reach_from_bound_to_bound_of_the_environments_unit(bounds: ActionBounds) -> None:
    width = len(bounds.low)
    sample = sample_stand_in(lambda a: a.sum(-1), torch.zeros(2, width), bounds)
    policy = draw_policy(sample, [0, 1], "title")
    played = Episodes(torch.ones(1, 3), bounds.restore(torch.zeros(1, 3, width)).float(), torch.ones(1, 3).bool())
    lengths = [axes.get_ylim() for axes in (policy.axes[0], draw_episodes(played, bounds, "title").axes[1])]
    for low, high in lengths:
        assert bounds.low[0] - 1.1 <= low < bounds.low[0]
        assert bounds.high[0] < high <= bounds.high[0] + 1.1


def test_values_vary_over_the_first_two_entries_and_hold_the_others_as_chosen() -> None:
    chosen = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    sample = sample_stand_in(lambda a: a[..., 0] + 10.0 * a[..., 1] + 100.0 * a[..., 2], chosen)
    grid = sample.grid[0]
    torch.testing.assert_close(
        sample.values, grid[None, None, :] + 10.0 * grid[None, :, None] + 100.0 * chosen[:, 2, None, None]
    )


def test_particles_are_squashed_and_keep_their_flow_time() -> None:
    sample = sample_stand_in(lambda a: a[..., 0], torch.zeros(2, 1))
    assert sample.actions.shape == (2, 2, 7, 1)
    torch.testing.assert_close(sample.actions[1].atanh(), 2.0 * sample.actions[0].atanh(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(sample.values, sample.grid.expand(2, -1))


def test_the_states_drawn_are_the_extremes_of_an_episode() -> None:
    observation = torch.zeros(50, 2)
    observation[20, 0], observation[30, 1], observation[40] = 5.0, -5.0, 0.01
    assert differing_states(observation, 3) == [0, 20, 30]


@pytest.mark.parametrize(("length", "number"), [(10, 4), (3, 4), (1, 4), (10, 1)])
def test_no_state_is_drawn_twice_even_if_all_are_alike(length: int, number: int) -> None:
    steps = differing_states(torch.ones(length, 2), number)
    assert len(set(steps)) == len(steps) == min(length, number)
    assert steps[0] == 0


def test_the_best_and_the_worst_episode_are_named_with_their_returns_without_padding() -> None:
    reward = torch.tensor([[1.0, 1.0, 50.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    mask = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    figure = draw_episodes(Episodes(reward, torch.zeros(3, 3, 9), mask), ActionBounds.unit(9), "title")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["best of 3 episodes: return 3.0, 3 steps", "worst of 3 episodes: return 1.0, 3 steps"]
    assert len(figure.axes) == 2 * (1 + 6)


def test_a_learning_curve_without_losses_has_one_panel() -> None:
    evaluations = [ReturnPoint(10, -3.0, 1.0), ReturnPoint(20, -2.0, 1.0)]
    assert len(draw_learning_curve(evaluations, "title").axes) == 1
    with_losses = [ReturnPoint(10, -3.0, 1.0), ReturnPoint(20, -2.0, 1.0, -4.0, 0.5, 0.1)]
    assert len(draw_learning_curve(with_losses, "title").axes) == 2


@pytest.mark.parametrize("name", ["num_states", "num_particles"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        PolicyFigures(**{name: 0})
