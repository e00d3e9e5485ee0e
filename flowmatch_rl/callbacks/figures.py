"""Figures of a run: its learning curve, its policy and two of its episodes."""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch import Callback, Trainer
from tensordict import TensorDictBase

from flowmatch_rl.batches import ACTION, ACTION_CHUNK, OBSERVATION, REWARD
from flowmatch_rl.callbacks.artifacts import write_figure, writes_files
from flowmatch_rl.callbacks.curves import Curve, data_label, metric
from flowmatch_rl.callbacks.progress import env_step_counter
from flowmatch_rl.checks import check_range
from flowmatch_rl.evaluation import (
    Calibration,
    Episodes,
    PolicyPoint,
    ReturnPoint,
    differing_states,
    map_values,
    sample_policy,
)
from flowmatch_rl.figures import (
    Figure,
    draw_calibration,
    draw_episodes,
    draw_learning_curve,
    draw_policy,
    draw_value_map,
)
from flowmatch_rl.schema import ActionBounds


class LearningCurve(Curve[ReturnPoint]):
    """Draws ``figures/learning_curve.png`` and writes its numbers to ``learning_curve.csv`` beside it.

    Every evaluation during training adds a point. Points are kept in checkpoints, so that the curve of a resumed run is
    whole. It is drawn when training ends, and when it breaks off.
    """

    def __init__(self) -> None:
        super().__init__(ReturnPoint)

    def measure(self, trainer: Trainer, seconds: float | None) -> ReturnPoint:
        """Returns and losses at the present environment step."""
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        metrics = trainer.callback_metrics
        recent = data.recent_returns
        return ReturnPoint(
            env_steps=data.env_steps,
            return_mean=metric(metrics, "val/return_mean"),
            return_std=metric(metrics, "val/return_std"),
            training_return=sum(recent) / len(recent) if recent else None,
            critic_loss=metric(metrics, "train/loss/critic"),
            policy_loss=metric(metrics, "train/loss/policy"),
            seconds=seconds,
        )

    def draw(self, points: Sequence[ReturnPoint], trainer: Trainer) -> Figure:
        """Returns and losses by environment step."""
        return draw_learning_curve(points, data_label(trainer))


class PolicyCurve(Curve[PolicyPoint]):
    """The learning curve of a policy that learns from a data set: as ``LearningCurve``, by gradient step."""

    def __init__(self) -> None:
        super().__init__(PolicyPoint)

    def measure(self, trainer: Trainer, seconds: float | None) -> PolicyPoint:
        """Returns and losses at the present gradient step."""
        metrics = trainer.callback_metrics
        return PolicyPoint(
            gradient_steps=trainer.global_step,
            return_mean=metric(metrics, "val/return_mean"),
            return_std=metric(metrics, "val/return_std"),
            success_rate=metric(metrics, "val/success_rate"),
            critic_loss=metric(metrics, "train/loss/critic"),
            policy_loss=metric(metrics, "train/loss/policy"),
            held_out_loss=metric(metrics, "val/loss"),
            seconds=seconds,
        )

    def draw(self, points: Sequence[PolicyPoint], trainer: Trainer) -> Figure:
        """Returns and losses by gradient step."""
        return draw_learning_curve(points, data_label(trainer))


class EpisodesFigure(Callback, abc.ABC):
    """Draws a figure of the whole episodes of the final evaluation, in ``figures``."""

    picture: ClassVar[str]

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: TensorDictBase,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the figure from the first batch, if it is of whole episodes."""
        if not writes_files(trainer) or batch.get("mask", None) is None or batch_idx or dataloader_idx:
            return
        counter, data = env_step_counter(trainer), trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        number = pl_module.gradient_steps if counter is None else counter.env_steps
        title = f"{data_label(trainer)} after {number:,} {'gradient' if counter is None else 'environment'} steps"
        figure = self.draw(pl_module, batch, data, title)
        if figure is not None:
            write_figure(trainer, figure, self.picture)

    @abc.abstractmethod
    def draw(self, module: Any, batch: TensorDictBase, data: Any, title: str) -> Figure | None:
        """Draw the figure; None where there is nothing to draw.

        Args:
            module: The module.
            batch: Whole episodes, batch size (N, T), see ``roll_out_episodes``.
            data: The data module.
            title: Title.
        """


class EpisodeFigure(EpisodesFigure):
    """Draws ``figures/episode.png``: rewards and actions of the best and of the worst episode of the final evaluation.

    Actions are in the environment's unit.
    """

    picture = "episode.png"

    def draw(self, module: Any, batch: TensorDictBase, data: Any, title: str) -> Figure:
        """The best and the worst episode."""
        held = batch.select(ACTION, REWARD, "mask").cpu()
        bounds: ActionBounds = data.spaces.action_bounds
        action = bounds.restore(held[ACTION]).float()
        episodes = Episodes(held[REWARD].squeeze(-1), action, held["mask"])
        return draw_episodes(episodes, bounds, title)


class CalibrationFigure(EpisodesFigure):
    """Draws ``figures/calibration.png``: values of the critic at the starts of episodes over the returns that followed.

    Episodes that were cut off long before their return was known are left out.
    """

    picture = "calibration.png"

    def draw(self, module: Any, batch: TensorDictBase, data: Any, title: str) -> Figure | None:
        """Values over returns; None without values, or where no return is known."""
        calibration: Calibration | None = module.calibration(batch)
        if calibration is None or not bool(calibration.known.any()):
            return None
        return draw_calibration(calibration, title, module.valued)


class ValueMapFigure(EpisodesFigure):
    """Draws ``figures/value_map.png``: reward and value over the plane, samples of the policy's action, and a roll-out.

    Drawn where the environment is made of a process in the plane and the data state a reward.
    """

    picture = "value_map.png"

    def draw(self, module: Any, batch: TensorDictBase, data: Any, title: str) -> Figure | None:
        """Reward, value and the first episode in the plane; None where there is no plane or no reward of states."""
        if data.plane is None or data.reward is None:
            return None
        first = batch[OBSERVATION][0, batch["mask"][0]]
        found = map_values(module.actor("eval"), data.reward, data.plane, [first], module.device)
        return draw_value_map(found, title)


class PolicyFigures(EpisodesFigure):
    """Draws ``figures/policy.png`` from the episodes of the final evaluation.

    It shows the flow at states of an episode that differ most from one another, and the actions it ends at beside the
    critic's values. Actions are in the environment's unit.

    Args:
        num_states: States drawn, at least 1.
        num_particles: Particles sampled at each of them, at least 1.

    Raises:
        UserError: If a number is below 1.
    """

    picture = "policy.png"

    def __init__(self, num_states: int = 4, num_particles: int = 1000) -> None:
        check_range("[1, inf)", num_states=num_states, num_particles=num_particles)
        self.num_states = num_states
        self.num_particles = num_particles

    def draw(self, module: Any, batch: TensorDictBase, data: Any, title: str) -> Figure:
        """The flow at some states of the first episode."""
        length = int(batch["mask"][0].sum())
        observation, action = batch[OBSERVATION][0, :length], batch.get(ACTION_CHUNK, batch[ACTION])[0, :length]
        steps = differing_states(observation, self.num_states)
        bounds: ActionBounds = data.spaces.action_bounds
        sample = sample_policy(
            module.policy,
            module.critics.values,
            float(module.temperature),
            observation[steps],
            action[steps],
            bounds.repeated(action.shape[-1] // len(bounds.low)),
            self.num_particles,
        )
        return draw_policy(sample, steps, title)
