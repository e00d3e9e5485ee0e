"""Figures of a run: its learning curve, its policy and two of its episodes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from tensordict import TensorDictBase

from flowmatch_rl.callbacks.artifacts import file_path, publish, writes_files
from flowmatch_rl.callbacks.drawing import (
    Evaluation,
    differing_states,
    draw_episodes,
    draw_learning_curve,
    draw_policy,
    sample_policy,
    save_figure,
    write_table,
)
from flowmatch_rl.keys import ACTION, OBSERVATION, REWARD

_FOLDER = "figures"


class Labelled(Protocol):
    """An environment with a short name."""

    @property
    def label(self) -> str:
        """Short name."""
        ...


class EvaluatedData(Protocol):
    """What a data module must offer to have its runs drawn."""

    environment: Labelled
    recent_returns: Any

    @property
    def env_steps(self) -> int:
        """Environment steps so far."""
        ...


class LearningCurve(Callback):
    """Draws ``figures/learning_curve.png`` and writes its numbers to ``learning_curve.csv`` beside it.

    Every evaluation during training adds a point. Points are kept in checkpoints, so that the curve of a resumed run is
    whole. It is drawn when training ends, and when it breaks off.
    """

    def __init__(self) -> None:
        self._evaluations: list[Evaluation] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a point."""
        if not (writes_files(trainer) and trainer.state.fn == TrainerFn.FITTING):
            return
        data, metrics = _data(trainer), trainer.callback_metrics
        recent = data.recent_returns
        evaluation = Evaluation(
            env_steps=data.env_steps,
            return_mean=_value(metrics, "val/return_mean"),
            return_std=_value(metrics, "val/return_std"),
            training_return=sum(recent) / len(recent) if recent else None,
            critic_loss=_value(metrics, "train/loss/critic"),
            policy_loss=_value(metrics, "train/loss/policy"),
        )
        # A run resumed from within an epoch evaluates at a step that it may have seen already.
        earlier = [known for known in self._evaluations if known.env_steps < evaluation.env_steps]
        self._evaluations = [*earlier, evaluation]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curve."""
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the curve up to where training broke off."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._draw(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The points so far."""
        return {"evaluations": [dataclasses.asdict(evaluation) for evaluation in self._evaluations]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the points of a checkpoint."""
        self._evaluations = [Evaluation(**evaluation) for evaluation in state_dict["evaluations"]]

    def _draw(self, trainer: Trainer) -> None:
        if not (writes_files(trainer) and self._evaluations):
            return
        table = file_path(trainer, _FOLDER, "learning_curve.csv")
        write_table(self._evaluations, table)
        publish(trainer, table, _FOLDER)
        _write(trainer, draw_learning_curve(self._evaluations, _data(trainer).environment.label), "learning_curve.png")


class PolicyFigures(Callback):
    """Draws ``figures/policy.png`` and ``figures/episode.png`` from the episodes of the final evaluation.

    The first shows the flow at states of an episode that differ most from one another, and the actions it ends at
    beside the critic's values; the second the rewards and actions of the best and of the worst episode.

    Args:
        num_states: States drawn, at least 1.
        num_particles: Particles sampled at each of them, at least 1.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(self, num_states: int = 4, num_particles: int = 1000) -> None:
        for name, value in {"num_states": num_states, "num_particles": num_particles}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_states = num_states
        self.num_particles = num_particles

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: TensorDictBase,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw both figures from a batch of whole episodes, batch size (N, T)."""
        if not writes_files(trainer) or batch_idx or dataloader_idx:
            return
        data = _data(trainer)
        title = f"{data.environment.label} after {data.env_steps:,} environment steps"
        _write(trainer, self._policy(pl_module, batch, title), "policy.png")
        held = batch.select(ACTION, REWARD, "mask").cpu()
        _write(trainer, draw_episodes(held[REWARD].squeeze(-1), held[ACTION], held["mask"], title), "episode.png")

    def _policy(self, module: Any, batch: TensorDictBase, title: str) -> Figure:
        length = int(batch["mask"][0].sum())
        observation, action = batch[OBSERVATION][0, :length], batch[ACTION][0, :length]
        steps = differing_states(observation, self.num_states)
        sample = sample_policy(module, observation[steps], action[steps], self.num_particles)
        return draw_policy(sample, steps, title)


def _write(trainer: Trainer, figure: Figure, name: str) -> None:
    path = file_path(trainer, _FOLDER, name)
    save_figure(figure, path)
    publish(trainer, path, _FOLDER)


def _data(trainer: Trainer) -> EvaluatedData:
    return trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]


def _value(metrics: Mapping[str, Any], name: str) -> float | None:
    return float(metrics[name]) if name in metrics else None
