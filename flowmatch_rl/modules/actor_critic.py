"""What online actor-critics share: critics, temperature, one optimizer, evaluation, and logging."""

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from tensordict import TensorDictBase
from torch import Tensor, nn

from flowmatch_rl.batches import REWARD, Transition, read_transition
from flowmatch_rl.metrics import episode_returns
from flowmatch_rl.models import ActorModule, LatentPolicy, ParticleActor, Selection
from flowmatch_rl.modules.critic_learner import CriticLearner
from flowmatch_rl.modules.gradients import check_gradient_options, fuses_adam
from flowmatch_rl.modules.running_means import RunningMeans
from flowmatch_rl.nets import CriticArchitecture, ValueReduction, ema_copy, update_ema
from flowmatch_rl.objectives import ConstantTemperature, PolicyState, Temperature, temperature_loss


class ActorCritic(LightningModule, abc.ABC):
    """Critics learned by temporal differences, and a policy that a subclass teaches.

    One loss per step, the sum of named terms, each of which reaches its own network only; one Adam with a group per
    network.

    Args:
        observation_dim: Dimension S of the observation.
        action_dim: Dimension A of the action.
        build_policy: Makes the policy.
        critic: Shape of the critics.
        temperature: Rule for the temperature, or a constant one.
        discount: Discount per environment step, in [0, 1).
        value_reduction: How the critics are reduced to one value, in targets and choices.
        subset_size: Critics, drawn anew for every update, that a target is reduced over; all if None.
        learning_rates: Of ``actor``, ``critic`` and ``temperature``, positive.
        max_gradient_norm: Gradients of each network are clipped to this norm; positive.
        ema_decay: Rate of the lagging critics, in [0, 1).
        reset_interval: Gradient steps after which all networks start afresh; never if None.

    Raises:
        ValueError: If a number is out of its range.
    """

    monitor = ("val/return_mean", "max")
    progress_metrics = (
        ("return", "val/return_mean"),
        ("critic", "train/loss/critic"),
        ("policy", "train/loss/policy"),
    )

    NAME_KEY = "actor_critic"
    """Entry of a checkpoint that names the class of the module."""

    temperature: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        build_policy: Callable[[], LatentPolicy],
        critic: CriticArchitecture,
        temperature: Temperature | float,
        discount: float,
        value_reduction: ValueReduction,
        subset_size: int | None,
        learning_rates: Mapping[str, float],
        max_gradient_norm: float,
        ema_decay: float,
        reset_interval: int | None,
    ) -> None:
        super().__init__()
        if not 0.0 <= discount < 1.0:
            raise ValueError(f"discount must lie in [0, 1), got {discount}")
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}")
        rates = {f"{name}_learning_rate": rate for name, rate in learning_rates.items()}
        for name, value in {**rates, "max_gradient_norm": max_gradient_norm}.items():
            if not value > 0.0:
                raise ValueError(f"{name} must be positive, got {value}")
        if reset_interval is not None and reset_interval < 1:
            raise ValueError(f"reset_interval must be at least 1, got {reset_interval}")
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.temperature_rule = (
            temperature if isinstance(temperature, Temperature) else ConstantTemperature(temperature)
        )
        self.value_reduction: ValueReduction = value_reduction
        self.learning_rates = dict(learning_rates)
        self.max_gradient_norm, self.ema_decay, self.reset_interval = max_gradient_norm, ema_decay, reset_interval
        self._build_policy, self._critic_architecture = build_policy, critic
        self.policy = build_policy()
        self.critic = critic.build(observation_dim, action_dim)
        self.critic_ema = ema_copy(self.critic)
        self.critic_learner = CriticLearner(self.critic, self.critic_ema, discount, value_reduction, subset_size)
        initial = float(self.temperature_rule.initial)
        self.register_buffer("temperature", torch.tensor(initial))
        self.log_temperature = None
        if self.temperature_rule.scheduled(0) is None:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(initial)))
        self.means = RunningMeans()
        self._common_seed = 0

    @abc.abstractmethod
    def actor(self, role: str) -> ParticleActor:
        """The policy as it acts in a role.

        Args:
            role: ``collect`` or ``eval``.
        """

    @abc.abstractmethod
    def losses(self, transition: Transition) -> tuple[dict[str, Tensor], PolicyState]:
        """Losses of one batch by name, each of shape () and reaching its own network only.

        Args:
            transition: The batch.

        Returns:
            Losses, ``critic`` and ``policy`` among them, and what the temperature's rule may want to know.
        """

    def make_actor(self, num_particles: int, selection: Selection, **options: float) -> ParticleActor:
        """An actor of this policy and these critics at the present temperature.

        Args:
            num_particles: Particles per state.
            selection: How one of them is chosen.
            **options: Of ``ParticleActor``.
        """
        return ParticleActor(
            self.policy,
            self.critic,
            self.action_dim,
            num_particles,
            selection,
            self.value_reduction,
            self.temperature,
            **options,
        )

    def collection_policy(self) -> ActorModule:
        """Policy that collects data; it shares the weights in training."""
        return ActorModule(self.actor("collect"))

    def evaluation_policy(self) -> ActorModule:
        """Policy that is evaluated, its noise seeded afresh, so that evaluations leave the training's noise alone."""
        return ActorModule(self.actor("eval"), torch.Generator().manual_seed(0))

    def on_fit_start(self) -> None:
        """Refuse what a trainer would do unasked, and give each process noise of its own; weights share a seed."""
        check_gradient_options(self.trainer)
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "an actor-critic takes a gradient step for each batch: trainer.accumulate_grad_batches must be 1, got "
                f"{self.trainer.accumulate_grad_batches}; raise data.batch_size instead"
            )
        common = torch.initial_seed()
        self._common_seed = self.trainer.strategy.broadcast(common)
        torch.manual_seed((common + self.global_rank) % 2**63)

    def on_train_start(self) -> None:
        """Give a resumed run other noise than that of its beginning."""
        if self.global_step:
            torch.manual_seed((self._common_seed + self.global_rank + 1_000_003 * self.global_step) % 2**63)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """All losses of one batch, summed."""
        losses, state = self.losses(read_transition(batch))
        loss = torch.stack(list(losses.values())).sum()
        self.means.add({"train/loss": loss} | {f"train/loss/{name}": value for name, value in losses.items()})
        surplus = self.temperature_rule.surplus(state)
        if self.log_temperature is not None and surplus is not None:
            loss = loss + temperature_loss(self.log_temperature, surplus)
            self.means.add({"train/temperature": self.temperature})
        self._log_means()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the lagging critics and the temperature; start the networks afresh where it is time."""
        update_ema(self.critic_ema, self.critic, self.ema_decay)
        if self.log_temperature is None:
            scheduled = self.temperature_rule.scheduled(int(self._env_steps()))
            self.temperature.fill_(scheduled if scheduled is not None else self.temperature_rule.initial)
        else:
            self.temperature.copy_(self.log_temperature.detach().exp())
        if self.reset_interval and self.global_step and self.global_step % self.reset_interval == 0:
            self._start_afresh()

    def validation_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Log return and length of evaluation episodes."""
        self._log_episodes(batch, "val")

    def test_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Log return and length of evaluation episodes."""
        self._log_episodes(batch, "test")

    def predict_step(self, batch: TensorDictBase, batch_idx: int) -> TensorDictBase:
        """Episodes of the policy, as the loader made them."""
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam with a group per network."""
        networks: dict[str, list[nn.Parameter]] = {
            "actor": list(self.policy.parameters()),
            "critic": list(self.critic.parameters()),
        }
        if self.log_temperature is not None:
            networks["temperature"] = [self.log_temperature]
        groups = [
            {"name": name, "params": parameters, "lr": self.learning_rates[name]}
            for name, parameters in networks.items()
        ]
        return torch.optim.Adam(groups, fused=fuses_adam(self._trainer))

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clip the gradient of each network by itself."""
        for group in optimizer.param_groups:
            norm = torch.nn.utils.clip_grad_norm_(group["params"], self.max_gradient_norm)
            self.means.add({f"train/gradient_norm/{group['name']}": norm})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, for those who load the policy without a configuration."""
        checkpoint[self.NAME_KEY] = type(self).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other dimensions, in one line."""
        saved = checkpoint["hyper_parameters"]
        for name in ("observation_dim", "action_dim"):
            if saved[name] != getattr(self, name):
                raise ValueError(f"the checkpoint has {name} {saved[name]}, this environment {getattr(self, name)}")

    def result_lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test found, one line each.

        Args:
            metrics: Metrics by name.
        """
        return [
            f"return       {metrics['test/return_mean']:.1f} +- {metrics['test/return_std']:.1f} (mean and standard "
            f"deviation of {metrics['test/episodes']:.0f} episodes, mean length {metrics['test/episode_length']:.0f})"
        ]

    def critic_loss(self, transition: Transition, next_action: Tensor, bonus: Tensor | None = None) -> Tensor:
        """Mean Bellman loss of the critics; draws the members that the target is made of.

        Args:
            transition: The batch.
            next_action: Action in the state arrived at, shape (B, A).
            bonus: Added to that state's value, units of the return, shape (B,), or None.

        Returns:
            Loss, shape ().
        """
        uniform = torch.rand(self.critic.num_members, device=next_action.device)
        loss = self.critic_learner.loss(transition, next_action, bonus, self.critic_learner.choose_members(uniform))
        self.means.add(self.critic_learner.metrics)
        return loss.mean()

    @torch.no_grad()
    def _start_afresh(self) -> None:
        """New weights everywhere, lagging copies included, and an optimizer without memory; the temperature stays."""
        # The same new weights on every process, and none that other noise depends on. They are made on the CPU, whose
        # generator alone is seeded: `torch.manual_seed` would seed those of the GPUs too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed((self._common_seed + self.global_step) % 2**63)
            fresh = self._build_policy(), self._critic_architecture.build(self.observation_dim, self.action_dim)
        self.policy.load_state_dict(fresh[0].state_dict())
        self.critic.load_state_dict(fresh[1].state_dict())
        self.critic_ema.load_state_dict(fresh[1].state_dict())
        optimizer = self.optimizers(use_pl_optimizer=False)
        state = optimizer.state  # pyright: ignore[reportAttributeAccessIssue]
        for parameter in (*self.policy.parameters(), *self.critic.parameters()):
            state.pop(parameter, None)

    def _log_means(self) -> None:
        """Hand the means since the last time to the loggers, at the logging interval only: each costs half a ms."""
        interval: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if (self.global_step + 1) % interval == 0:
            means = self.means.take()
            bar = {name: means.pop(name) for name in ("train/loss/critic", "train/loss/policy")}
            self.log_dict(means | {"step": self._env_steps()})
            self.log_dict(bar, prog_bar=True)

    def _log_episodes(self, batch: TensorDictBase, stage: str) -> None:
        returns = episode_returns(batch[REWARD].squeeze(-1), batch["mask"])
        lengths = batch["mask"].sum(1).float()
        # Each process ran its share of the episodes.
        returns, lengths = torch.as_tensor(self.all_gather(torch.stack([returns, lengths]))).movedim(-2, 0).flatten(1)
        metrics = {
            f"{stage}/return_mean": returns.mean(),
            f"{stage}/return_std": returns.std(correction=0),
            f"{stage}/episode_length": lengths.mean(),
            f"{stage}/episodes": float(len(returns)),
            "step": self._env_steps(),
        }
        self.log_dict(metrics, batch_size=1, sync_dist=True)

    def _env_steps(self) -> float:
        """Environment steps where the data counts them, gradient steps elsewhere: the x-axis of every metric."""
        data = getattr(self._trainer, "datamodule", None)
        return float(getattr(data, "env_steps", self.global_step))
