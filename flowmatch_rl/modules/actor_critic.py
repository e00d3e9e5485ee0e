"""What online actor-critics share: critics, temperature, one optimizer, evaluation, and logging."""

import abc
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from flowmatch_rl.batches import ACTION, ACTION_CHUNK, OBSERVATION, REWARD, TERMINATED, Transition, read_transition
from flowmatch_rl.checks import UserError
from flowmatch_rl.evaluation import Calibration, calibrate
from flowmatch_rl.models import LatentPolicy
from flowmatch_rl.modules.critic_learner import CriticLearner
from flowmatch_rl.modules.gradients import check_gradient_options, clip_gradient, fuses_adam
from flowmatch_rl.modules.learning_rate import use_stated_options
from flowmatch_rl.modules.policy_module import PolicyModule
from flowmatch_rl.modules.settings import ActorCriticOptimizer, Critics, Normalisation
from flowmatch_rl.modules.task_units import TaskUnits
from flowmatch_rl.nets import update_ema
from flowmatch_rl.objectives import ConstantTemperature, PolicyState, Temperature, temperature_loss
from flowmatch_rl.publishing import publish
from flowmatch_rl.rounds import Round
from flowmatch_rl.seeds import process_seed

_UNIT_INTERVAL = 64
"""Updates between two looks at the unit of returns, which wait for the device."""

_STATES_AT_ONCE = 2048
"""States of episodes whose entropy is computed at a time."""

LEAST_TEMPERATURE = 1e-6
"""Temperature below which a tuned one does not fall, units of the return, or of the rewards' scale."""


class ActorCritic(PolicyModule, abc.ABC):
    """Critics trained by temporal differences, and a policy that a subclass trains.

    One loss per step, the sum of named terms, each of which reaches its own network only; one Adam with a group per
    network.

    Args:
        observation_dim: Dimension S of the observation.
        action_dim: Dimension A of the action.
        build_policy: Makes the policy.
        critics: The critics and how their targets are made.
        temperature: Rule for the temperature, or a constant one, in units of the return, or of the rewards' scale by
            ``normalisation``.
        discount: Discount per environment step, in [0, 1).
        optimizer: Learning rates, clipping and resets.
        build_others: Makes more networks, by name, that have the policy's learning rate and losses of their names.
        entropy_backup: Whether values include the entropy of the policy.
        normalisation: Units of observations and rewards.

    Raises:
        UserError: If a number is out of its range.
    """

    takes_rounds: ClassVar = True

    progress_metrics: ClassVar = (
        ("return", "val/return_mean"),
        ("critic", "train/loss/critic"),
        ("policy", "train/loss/policy"),
    )

    loss_names: ClassVar = {"critics": "train/loss/critic", "policy": "train/loss/policy"}

    temperature: Tensor

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        build_policy: Callable[[], LatentPolicy],
        critics: Critics,
        temperature: Temperature | float,
        discount: float,
        optimizer: ActorCriticOptimizer,
        build_others: Mapping[str, Callable[[], nn.Module]] | None = None,
        entropy_backup: bool = False,
        normalisation: Normalisation = Normalisation(),
    ) -> None:
        super().__init__()
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.temperature_rule = (
            temperature if isinstance(temperature, Temperature) else ConstantTemperature(temperature)
        )
        self.optimizer = optimizer
        self.entropy_backup = entropy_backup
        self.units = units = TaskUnits(normalisation, observation_dim, discount)
        self._build_policy = lambda: units.seen_by(build_policy())
        self._build_critics = lambda: units.seen_by(CriticLearner(critics, observation_dim, action_dim, discount))
        others = dict(build_others or {})
        self._build_others = {name: lambda build=build: units.seen_by(build()) for name, build in others.items()}
        self.policy = self._build_policy()
        self.critics = self._build_critics()
        self.others = nn.ModuleDict({name: build() for name, build in self._build_others.items()})
        initial = float(self.temperature_rule.initial)
        self.register_buffer("temperature", torch.tensor(initial))
        self.log_temperature = None
        if self.temperature_rule.scheduled(0) is None:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(initial)))
        self._constant: set[int] = set()  # critics that were warned about

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As for any policy; refuse in one line what was trained in other units."""
        super().on_load_checkpoint(checkpoint)
        _count_updates(checkpoint)
        self.units.check_state(checkpoint["state_dict"])

    @abc.abstractmethod
    def losses(self, transition: Transition) -> tuple[dict[str, Tensor], PolicyState]:
        """Losses of one batch by name, each of shape () and reaching its own network only.

        Args:
            transition: The batch.

        Returns:
            Losses, ``critic`` and ``policy`` among them, and what the temperature's rule may use.
        """

    @abc.abstractmethod
    def value_losses(self, transition: Transition) -> dict[str, Tensor]:
        """Those of the losses that values are learned by, ``critic`` among them; draws noise.

        Args:
            transition: The batch.
        """

    @property
    def goals(self) -> None:
        """None: it is a single policy."""

    @property
    def networks(self) -> Mapping[str, Iterable[Tensor]]:
        """The online critics, the policy, what else is trained, and a temperature that is tuned."""
        tuned = {} if self.log_temperature is None else {"temperature": [self.log_temperature]}
        others = {name: network.parameters() for name, network in self.others.items()}
        return {"critics": self.critics.online.parameters(), "policy": self.policy.parameters()} | others | tuned

    def advice(self, network: str) -> str:
        """What to do about a network that diverges."""
        if network != "critics":
            return f"lower optimizer.{'temperature' if network == 'temperature' else 'actor'}_learning_rate"
        return f"lower optimizer.critic_learning_rate, or scale observations and rewards{self.critics.largest_inputs()}"

    def on_fit_start(self) -> None:
        """Refuse trainer options that would have no effect, and give each process its own noise."""
        check_gradient_options(self.trainer)
        if self.trainer.accumulate_grad_batches != 1:
            raise UserError(
                "an actor-critic takes a gradient step for each batch: trainer.accumulate_grad_batches must be 1, got "
                f"{self.trainer.accumulate_grad_batches}; raise data.batch_size instead"
            )
        self.units.take(getattr(self._trainer, "datamodule", None))
        super().on_fit_start()
        self.automatic_optimization = False  # from here on: before, Lightning would refuse those options in other words

    def start_training(self) -> None:
        """Give a resumed run the learning rates that it states."""
        use_stated_options(self.trainer.optimizers[0], self.configure_optimizers())

    def training_step(self, batch: TensorDictBase | Round, batch_idx: int) -> None:
        """Update for each of the batches, one after the other."""
        batches = iter(batch if isinstance(batch, Round) else [batch])
        most = self.trainer.max_steps
        while most < 0 or self.global_step < most:
            with torch.autocast(self.device.type, enabled=False):  # a round may collect
                following = next(batches, None)
            if following is None:
                break
            self._update(following)

    def loss(self, batch: TensorDictBase) -> Tensor:
        """All losses of one batch, summed; logs at the logging interval."""
        transition = read_transition(batch)
        self._measure(transition)
        losses, state = self.losses(transition)
        self.means.add(self.critics.metrics)
        loss = torch.stack(list(losses.values())).sum()
        self.means.add({"train/loss": loss} | {f"train/loss/{name}": value for name, value in losses.items()})
        surplus = self.temperature_rule.surplus(state)
        if self.log_temperature is not None and surplus is not None:
            loss = loss + temperature_loss(self.log_temperature, surplus)
        if self.log_temperature is not None or self.units.scales_temperature:
            self.means.add({"train/temperature": self.temperature})
        if self.logs_after(self.global_step + 1):
            means = self.take_means(self.global_step + 1)
            self._warn_of_constant_critics()
            publish(self, means | {"step": self._env_steps()}, self.loss_names.values())
        return loss

    def after_update(self) -> None:
        """Update the target networks and the temperature; initialise the networks again where it is time."""
        update_ema(self.critics.target, self.critics.online, self.critics.critics.ema_decay)
        if self.log_temperature is not None:
            with torch.no_grad():
                # Where all values are equal no temperature meets a divergence: it would fall to zero.
                self.log_temperature.clamp_(min=math.log(LEAST_TEMPERATURE))
        self._set_temperature()
        interval = self.optimizer.reset_interval
        if interval and self.global_step and self.global_step % interval == 0:
            self.reset_networks()

    def held_out_losses(self, transition: Transition) -> dict[str, Tensor]:
        """The losses that values are learned by, and their sum."""
        losses = self.value_losses(transition)
        return {"loss": torch.stack(list(losses.values())).sum()} | {
            f"loss/{name}": value for name, value in losses.items()
        }

    def calibration(self, episodes: TensorDictBase) -> Calibration | None:
        """Values of the critics at the beginnings of episodes against the returns, with the entropy that they hold."""
        return calibrate(
            self.critics.values,
            episodes[OBSERVATION][:, 0].to(self.device),
            episodes.get(ACTION_CHUNK, episodes[ACTION])[:, 0].to(self.device),
            episodes[REWARD].squeeze(-1).to(self.device),
            episodes[TERMINATED].squeeze(-1).to(self.device),
            episodes["mask"].to(self.device),
            self.critics.discount,
            self._bonuses(episodes[OBSERVATION]),
        )

    @property
    def valued(self) -> str:
        """What values are of, in some words."""
        return "discounted return and entropy" if self.entropy_backup else super().valued

    def next_bonus(self, observation: Tensor) -> Tensor | None:
        """What Bellman targets add to the values of next states for the entropy of the policy, by a sample of it.

        Args:
            observation: Next states, shape (B, S).

        Returns:
            Units of the return, shape (B,); None where values hold no entropy.
        """
        return None

    @torch.no_grad()
    def _bonuses(self, observation: Tensor) -> Tensor | None:
        """What the values hold for the entropy of the policy in the states (N, T, S) of episodes, shape (N, T)."""
        found = []
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(process_seed(0, self.global_rank))
            for states in observation.flatten(0, 1).split(_STATES_AT_ONCE):
                bonus = self.next_bonus(states.to(self.device))
                if bonus is None:
                    return None
                found.append(bonus)
        return torch.cat(found).unflatten(0, observation.shape[:2])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One Adam with a group per network."""
        rates = self.optimizer
        groups = [
            {"name": "actor", "params": list(self.policy.parameters()), "lr": rates.actor_learning_rate},
            {"name": "critic", "params": list(self.critics.online.parameters()), "lr": rates.critic_learning_rate},
        ]
        groups += [
            {"name": name, "params": list(network.parameters()), "lr": rates.actor_learning_rate}
            for name, network in self.others.items()
        ]
        if self.log_temperature is not None:
            rate = rates.temperature_learning_rate
            groups.append({"name": "temperature", "params": [self.log_temperature], "lr": rate})
        return torch.optim.Adam(groups, fused=fuses_adam(self._trainer))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient of each network by itself."""
        for group in optimizer.param_groups:
            norm = clip_gradient(group["params"], self.optimizer.max_gradient_norm)
            self.means.add({f"train/gradient_norm/{group['name']}": norm})

    def critic_loss(self, transition: Transition, next_action: Tensor, bonus: Tensor | None = None) -> Tensor:
        """Mean Bellman loss of the critics; draws the members that the target is made of.

        Args:
            transition: The batch.
            next_action: Action in the arrival state, shape (B, A).
            bonus: Added to that state's value, units of the return, shape (B,), or None.

        Returns:
            Loss, shape ().
        """
        uniform = torch.rand(self.critics.online.num_members, device=next_action.device)
        return self.critics.loss(transition, next_action, bonus, self.critics.choose_members(uniform)).mean()

    def _update(self, batch: TensorDictBase) -> None:
        optimizer: Any = self.optimizers()

        def closure() -> None:
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)

        optimizer.step(closure)
        self.after_update()

    @torch.no_grad()
    def reset_networks(self) -> None:
        """Initialise all networks again, and forget the optimizer's state of them; the temperature stays."""
        # The same new weights on every process, and none that other noise depends on. They are made on the CPU, whose
        # generator alone is seeded: `torch.manual_seed` would seed those of the GPUs too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed((self._common_seed + self.global_step) % 2**63)
            fresh = {self.policy: self._build_policy(), self.critics: self._build_critics()}
            fresh |= {network: self._build_others[name]() for name, network in self.others.items()}
        for network, new in fresh.items():
            network.load_state_dict(new.state_dict())
        optimizer = self.optimizers(use_pl_optimizer=False)
        state = optimizer.state  # pyright: ignore[reportAttributeAccessIssue]
        trained = (self.policy, self.critics.online, self.others)
        for parameter in itertools.chain.from_iterable(network.parameters() for network in trained):
            state.pop(parameter, None)

    def _measure(self, transition: Transition) -> None:
        """Count a batch in the units that are measured, before it is learned from."""
        gather: Any = self.all_gather if self.trainer.world_size > 1 else None
        self.units.measure(transition, gather)
        if self.units.rewards is None:
            return
        self._set_temperature()
        self.means.add({"train/reward_scale": self.units.rewards.root_mean_square[0]})
        if self.global_step % _UNIT_INTERVAL == 0:
            self.units.follow_returns(self, self.trainer.optimizers, self.global_step == 0)

    def _set_temperature(self) -> None:
        """Bring the temperature up to date with its rule, and with the scale of the rewards if it is in units of it."""
        if self.log_temperature is None:
            scheduled = self.temperature_rule.scheduled(int(self._env_steps()))
            self.temperature.fill_(scheduled if scheduled is not None else self.temperature_rule.initial)
        else:
            self.temperature.copy_(self.log_temperature.detach().exp())
        self.temperature.mul_(self.units.temperature_unit)

    def _warn_of_constant_critics(self) -> None:
        """Warn, once for each, of critics that no longer depend on their input: their units are dead."""
        for index, value in self.critics.constant_members():
            if index in self._constant or not self.trainer.is_global_zero:
                continue
            self._constant.add(index)
            warnings.warn(
                f"critic {index + 1} of {self.critics.online.num_members} returns the same value, {value:.4g}, for all "
                f"transitions of a batch after {self.global_step} updates: its units are dead; "
                "lower optimizer.critic_learning_rate, or set optimizer.reset_interval",
                stacklevel=2,
            )


def _count_updates(checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint of version 0.2.0 continue, whose updates Lightning made by itself, and counted elsewhere."""
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    if (counted := loops.get("epoch_loop.manual_optimization.optim_step_progress")) is not None:
        counted["total"] = {"ready": checkpoint["global_step"], "completed": checkpoint["global_step"]}
