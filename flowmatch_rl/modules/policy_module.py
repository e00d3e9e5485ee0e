"""What modules that train a policy share: acting, evaluation by episodes, and what their checkpoints say."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor

from flowmatch_rl.batches import ACTION, REWARD, SUCCESS, Transition, read_transition
from flowmatch_rl.checks import UserError
from flowmatch_rl.evaluation import Calibration, Episodes, behavior_distance, normalised_score, score_actions
from flowmatch_rl.models import ActorModule, FirstSelection, GoalTable, LatentPolicy, ParticleActor, no_values
from flowmatch_rl.models.actor import Role
from flowmatch_rl.modules.loading import instantiate
from flowmatch_rl.modules.watched import WatchedModule
from flowmatch_rl.schema import Interface, TableSchema
from flowmatch_rl.seeds import process_seed
from flowmatch_rl.shapes import even_rows

_MOST_SCORED = 256
"""Held-out states that the policy is compared with the data in, at most."""


class PolicyModule(WatchedModule, abc.ABC):
    """Trains a policy, which is evaluated by the episodes that the data runs with it.

    Children set the attributes.

    Attributes:
        learns_from_rewards: Whether training uses rewards; otherwise it imitates a data set.
        takes_rounds: Whether a step of the trainer may hold several updates, see ``Round``.
        observation_dim: Dimension S of the observation.
        action_dim: Dimension A of the action.
        policy: The policy.
        interface: Names and units of what the policy observes and does, those of the data or of the checkpoint.
    """

    NAME_KEY: ClassVar = "actor_critic"
    """Entry of a checkpoint that names the class of the module; the word is that of the first versions."""

    INTERFACE_KEY: ClassVar = "interface"
    """Entry of a checkpoint that holds names and units."""

    learns_from_rewards: ClassVar[bool] = True
    takes_rounds: ClassVar[bool] = False
    observation_dim: int
    action_dim: int
    policy: LatentPolicy
    interface: Interface = Interface()
    _loaded_steps: int = 0  # those of the checkpoint, which a test of it does not give to the trainer

    @property
    def gradient_steps(self) -> int:
        """Gradient steps that the weights have been trained for, also in a test of a checkpoint."""
        return self.global_step or self._loaded_steps

    @abc.abstractmethod
    def actor(self, role: Role) -> ParticleActor:
        """The policy as it acts in a role.

        Args:
            role: ``train``, ``collect`` or ``eval``.
        """

    def collection_policy(self) -> ActorModule:
        """Policy that collects data; it shares the weights in training."""
        return ActorModule(self.actor("collect"))

    @property
    def builder(self) -> Callable[[], "PolicyModule"]:
        """Makes a module of the same shape with weights of its own, not compiled, in this process or another."""
        plain = {"compile": False} if "compile" in self.hparams else {}
        return partial(instantiate, type(self), dict(self.hparams) | plain)

    def evaluation_policy(self) -> ActorModule:
        """Policy that is evaluated, with seeded noise of its own, so that evaluations leave the training's noise."""
        return ActorModule(self.actor("eval"), torch.Generator().manual_seed(0))

    @abc.abstractmethod
    def held_out_losses(self, transition: Transition) -> dict[str, Tensor]:
        """Losses on transitions that training leaves out, by name, each of shape (); ``loss`` is the one that counts.

        Args:
            transition: The batch.
        """

    @abc.abstractmethod
    def calibration(self, episodes: TensorDictBase) -> Calibration | None:
        """Values at the beginnings of episodes against the returns that followed; None for a policy without values.

        Args:
            episodes: Whole episodes, batch size (N, T), see ``roll_out_episodes``.
        """

    @property
    def valued(self) -> str:
        """What values are of, in some words."""
        return "discounted return"

    @property
    @abc.abstractmethod
    def behavior(self) -> LatentPolicy | None:
        """Policy that clones the data and that the policy departs from; None if there is none."""

    @property
    @abc.abstractmethod
    def goals(self) -> GoalTable | None:
        """Goals of a family of policies, which act on the observation with an embedding beside it; None for one."""

    @property
    def takes_goals(self) -> bool:
        """Whether it is a family of policies, one for each goal."""
        return self.goals is not None

    def as_seen(self, transition: Transition) -> Transition:
        """Transitions whose observations are what the policy acts on: with the goal beside them for a family."""
        if self.goals is None or transition.goal is None:
            return transition
        seen = self.goals.beside(transition.observation, self.goals.embedding(transition.goal))
        return dataclasses.replace(transition, observation=seen)

    @property
    def monitor(self) -> tuple[str, str] | None:
        """Metric that picks the best checkpoint: the return of evaluations, or the loss where there are no episodes."""
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        has_episodes = getattr(data, "environment", self) is not None
        return ("val/return_mean", "max") if has_episodes else ("val/loss", "min")

    def validation_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Log return and length of evaluation episodes, or losses on held-out transitions."""
        self._log_evaluation(batch, "val")

    def test_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Log return and length of evaluation episodes, or losses on held-out transitions."""
        self._log_evaluation(batch, "test")

    def predict_step(self, batch: TensorDictBase, batch_idx: int) -> TensorDictBase:
        """Episodes of the policy, as the loader made them."""
        return batch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, for those who load the policy without a configuration, and write names and units in use.

        Raises:
            RunError: If a network has diverged.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint[self.NAME_KEY] = type(self).__name__
        own = getattr(getattr(self._trainer, "datamodule", None), "interface", self.interface)
        checkpoint[self.INTERFACE_KEY] = dataclasses.asdict(own)
        if self.goals is not None:
            checkpoint["hyper_parameters"]["goal_schema"] = self.goals.schema

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the gradient steps of a checkpoint, and take its units of goals; refuse another policy in one line."""
        super().on_load_checkpoint(checkpoint)
        self.interface = Interface(**checkpoint.get(self.INTERFACE_KEY, {}))
        saved = checkpoint["hyper_parameters"]
        for name in ("observation_dim", "action_dim"):
            if saved[name] != getattr(self, name):
                raise UserError(f"the checkpoint has {name} {saved[name]}, the data {getattr(self, name)}")
        goals: TableSchema | None = saved.get("goal_schema")
        trained, here = (
            () if schema is None else schema.columns for schema in (goals, self.goals and self.goals.schema)
        )
        if trained != here:
            names = (", ".join(columns) or "none" for columns in (trained, here))
            raise UserError("the checkpoint has goals ({}), the data ({}); see data.goals".format(*names))
        if self.goals is not None and goals is not None:
            self.goals.use(goals)
        self._loaded_steps = checkpoint["global_step"]

    def result_lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test measured, one line each.

        Args:
            metrics: Metrics by name.
        """
        held_out = [f"held out     loss {metrics['test/loss']:.4g}"] if "test/loss" in metrics else []
        held_out += self._score_lines(metrics)
        if "test/return_mean" not in metrics:
            return held_out
        normalised = [
            f"normalised   {metrics[name]:.1f} % of the way from the lower reference return to the higher"
            for name in metrics
            if name == "test/normalised_score"
        ]
        solved = [
            f"success      {metrics[name]:.0%} of the episodes" for name in metrics if name == "test/success_rate"
        ]
        return [
            f"return       {metrics['test/return_mean']:.1f} +- {metrics['test/return_std']:.1f} (mean and standard "
            f"deviation of {metrics['test/episodes']:.0f} episodes, mean length {metrics['test/episode_length']:.0f})",
            *normalised,
            *solved,
            *self._calibration_lines(metrics),
            f"acting       {self.actor('eval').description}; while training {self.actor('collect').description}",
            *held_out,
        ]

    def _calibration_lines(self, metrics: Mapping[str, float]) -> list[str]:
        if "test/predicted_return" not in metrics:
            return []
        return [
            f"critic       predicts a {self.valued} of {metrics['test/predicted_return']:.4g} at the start; "
            f"{metrics['test/discounted_return']:.4g} followed (root mean square error "
            f"{metrics['test/value_error']:.3g})"
        ]

    @staticmethod
    def _score_lines(metrics: Mapping[str, float]) -> list[str]:
        if "test/energy_score" not in metrics:
            return []
        distance = metrics.get("test/behavior_energy_distance")
        flow = "" if distance is None else f", energy distance {distance:.2g} from the behaviour flow"
        return [f"behaviour    energy score {metrics['test/energy_score']:.3g} of held-out actions{flow}"]

    def _log_evaluation(self, batch: TensorDictBase, stage: str) -> None:
        """Log what a batch of an evaluation is made for: whole episodes have a mask."""
        if batch.get("mask", None) is not None:
            self._log_episodes(batch, stage)
            return
        transition = self.as_seen(read_transition(batch))
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(process_seed(0, self.global_rank))
            found = self.held_out_losses(transition)
        found |= self._scores(transition)
        metrics = {f"{stage}/{name}": value for name, value in found.items()} | {"step": self._env_steps()}
        self.log_dict(metrics, batch_size=1, sync_dist=True)

    def _scores(self, transition: Transition) -> dict[str, Tensor]:
        """How near the policy stays to the actions of the data as it acts in evaluations, and to their behaviour."""
        places = even_rows(len(transition.action), _MOST_SCORED)
        rows = transition.observation[places], transition.action[places]
        seed = process_seed(0, self.global_rank)
        score = score_actions(self.actor("eval"), *rows, seed=seed)
        if self.behavior is None:
            return {"energy_score": score}
        behavior = ParticleActor(self.behavior, no_values, 1, FirstSelection(), 1.0)
        distance = behavior_distance(score, score_actions(behavior, *rows, seed=seed))
        return {"energy_score": score, "behavior_energy_distance": distance}

    def _log_episodes(self, batch: TensorDictBase, stage: str) -> None:
        success = batch.get(SUCCESS, None)
        success = None if success is None else success.squeeze(-1)
        episodes = Episodes(batch[REWARD].squeeze(-1), batch[ACTION], batch["mask"], success)
        own = [episodes.returns, episodes.lengths.float()]
        if episodes.solved is not None:
            own.append(episodes.solved.float())
        # Each process ran its part of the episodes.
        returns, lengths, *solved = torch.as_tensor(self.all_gather(torch.stack(own))).movedim(-2, 0).flatten(1)
        metrics = {
            f"{stage}/return_mean": returns.mean(),
            f"{stage}/return_std": returns.std(correction=0),
            f"{stage}/episode_length": lengths.mean(),
            f"{stage}/episodes": float(len(returns)),
            "step": self._env_steps(),
        }
        metrics |= {f"{stage}/success_rate": each.mean() for each in solved}
        return_range = getattr(getattr(self._trainer, "datamodule", None), "return_range", None)
        if return_range is not None:
            metrics[f"{stage}/normalised_score"] = normalised_score(returns.mean(), return_range)
        if (calibration := self.calibration(batch)) is not None:
            parts = [calibration.predicted, calibration.observed, calibration.known.float()]
            predicted, observed, known = torch.as_tensor(self.all_gather(torch.stack(parts))).movedim(-2, 0).flatten(1)
            metrics |= Calibration(predicted, observed, known > 0.5).metrics(stage)
        self.log_dict(metrics, batch_size=1, sync_dist=True)

    def _env_steps(self) -> float:
        """Environment steps where the data counts them, gradient steps elsewhere: the x-axis of every metric."""
        data = getattr(self._trainer, "datamodule", None)
        return float(getattr(data, "env_steps", self.gradient_steps))
