"""A flow policy on a bandit whose value is known in closed form."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowmatch_rl.batches import ACTION, OBSERVATION, REFERENCE
from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.estimators import EndpointEstimator, PosteriorMeanEstimator, boltzmann_density
from flowmatch_rl.evaluation.bandit import evaluate_actions
from flowmatch_rl.metrics import energy_distance, saturated_entries, saturated_fraction
from flowmatch_rl.models import Acting, FlowPolicy, FlowPolicyArchitecture
from flowmatch_rl.modules.gradients import check_gradient_options, clip_gradient, fuses_adam
from flowmatch_rl.modules.learning_rate import use_stated_options
from flowmatch_rl.modules.policy_learner import PolicyLearner
from flowmatch_rl.modules.settings import ActorCriticOptimizer, TrainingPoints
from flowmatch_rl.modules.watched import WatchedModule
from flowmatch_rl.objectives import ConditionalFlowMatching, FlowObjective
from flowmatch_rl.testbeds import Bandit


class BanditFlow(WatchedModule):
    """A flow policy trained toward the Boltzmann distribution of a bandit.

    Policy, estimator and objective are those of ``ReverseFlowActorCritic``, and so are the names of the arguments, so
    that its methods can be laid over a bandit; the value of the bandit stands in place of the critics. Evaluation
    compares plain samples of the policy, without choice among particles, with exact ones.

    Args:
        bandit: The bandit; taken from the data.
        temperature: Temperature of the distribution, in units of the return, positive.
        policy: Path, network, sampler and squash of the policy.
        objective: What the network predicts, with distribution and weight of the flow times.
        estimator: Estimator of the endpoints that the policy learns from.
        points: Where along which paths the policy is trained; of it ``x_1_source`` is used.
        acting: Particles of the policy that x_1 is chosen among; of it the part for training is used.
        replay_capacity: Actions in the replay buffer, at least 1; at first they are uniform. Of several processes all
            have the buffer of the first.
        replay_actions: Actions of the current policy that enter the buffer per update, at least 1; chosen as x_1 is.
        eval_steps: Numbers of steps of the sampler that a test evaluates as well, where it has such a number.
        optimizer: Learning rate of the actor and clipping.

    Raises:
        UserError: If a number is out of its range, or parts do not fit each other.

    Reference:
        Li et al., arXiv:2601.08136.
    """

    monitor: ClassVar = ("val/energy_distance", "min")
    progress_metrics: ClassVar = (("loss", "train/loss"), ("distance", "val/energy_distance"))

    loss_names: ClassVar = {"policy": "train/loss"}

    replay: Tensor

    def __init__(
        self,
        bandit: Bandit,
        temperature: float = 1.0,
        policy: FlowPolicyArchitecture = FlowPolicyArchitecture(),
        objective: FlowObjective = ConditionalFlowMatching(),
        estimator: EndpointEstimator = PosteriorMeanEstimator(),
        points: TrainingPoints = TrainingPoints(),
        acting: Acting = Acting(train_particles=1),
        replay_capacity: int = 4096,
        replay_actions: int = 16,
        eval_steps: Sequence[int] = (50,),
        optimizer: ActorCriticOptimizer = ActorCriticOptimizer(),
    ) -> None:
        super().__init__()
        check_range("(0, inf)", temperature=temperature)
        check_range("[1, inf)", replay_capacity=replay_capacity, replay_actions=replay_actions)
        for steps in eval_steps:
            check_range("[1, inf)", eval_steps=steps)
        if estimator.needs_prior:
            raise UserError(f"{estimator} needs a behaviour that the data are of, which a bandit has not")
        self.save_hyperparameters()
        self.bandit, self.temperature = bandit, temperature
        self.policy = policy.build(1, bandit.action_dim, objective)
        self.learner = PolicyLearner(self.policy, objective, estimator)
        self.points, self.replay_actions = points, replay_actions
        self.eval_steps, self.optimizer = tuple(eval_steps), optimizer
        self.actor = acting.actor("train", self.policy, lambda _, a: bandit.value_and_gradient(a)[0], temperature)
        self.register_buffer("replay", torch.rand(replay_capacity, bandit.action_dim) * 2.0 - 1.0)

    @property
    def networks(self) -> Mapping[str, Iterable[Tensor]]:
        """The policy."""
        return {"policy": self.policy.parameters()}

    def advice(self, network: str) -> str:
        """What to do about a policy that diverges."""
        return "lower optimizer.actor_learning_rate"

    def sample_actions(
        self, number: int, generator: torch.Generator | None = None, num_steps: int | None = None
    ) -> Tensor:
        """Plain samples of the policy.

        Args:
            number: How many, N.
            generator: Source of noise, on the CPU; the global one if None.
            num_steps: Steps of the sampler, or None for its own number.

        Returns:
            Actions, shape (N, A).

        Raises:
            UserError: If the sampler has no number of steps.
        """
        policy = self.policy
        if num_steps is not None:
            sampler = policy.sampler.with_steps(num_steps)
            if sampler is None:
                raise UserError(f"{policy.sampler} has no number of steps")
            policy = FlowPolicy(policy.flow, policy.action_dim, sampler, policy.squash)
        observation = torch.zeros(1, 1, device=self.device)

        def draw(like: Tensor) -> Tensor:
            return self._normal(tuple(like.shape), generator)

        noise = self._normal((1, number, policy.noise_dim), generator)
        with torch.autocast(self.device.type, enabled=False):
            return policy.squash.action(policy.sample_latents(observation, noise, draw)[0])

    def on_fit_start(self) -> None:
        """Refuse a second clipping, and give each process its own noise."""
        check_gradient_options(self.trainer)
        super().on_fit_start()

    def start_training(self) -> None:
        """Give a resumed run the learning rate that it states."""
        use_stated_options(self.trainer.optimizers[0], self.configure_optimizers())

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss at points of the paths to actions."""
        observation, estimator = batch[OBSERVATION], self.learner.estimator
        x_1 = self.endpoints(observation)
        density = boltzmann_density(
            self.bandit.value_and_gradient, self.temperature, self.policy.squash, estimator.needs_jacobian
        )
        losses, learned = self.learner.loss(observation, x_1, density)
        loss = losses.mean()
        saturated = saturated_entries(self.policy.squash.action(x_1))
        self.means.add({"train/loss": loss, "train/saturated": saturated} | learned.estimate.diagnostics("train/"))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log at the logging interval."""
        if self.logs_after(self.global_step):
            self.log_dict(self.take_means(self.global_step), prog_bar=True)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the distance of samples to exact ones, and what fraction of them is saturated."""
        actions = self._evaluated(len(batch[ACTION]), None)
        metrics = {
            "val/energy_distance": energy_distance(actions, batch[ACTION]),
            "val/saturated": saturated_fraction(actions),
        }
        self.log_dict(metrics, batch_size=1, sync_dist=True)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Log distances to exact samples, as between two exact samples as well, fractions of modes and saturation.

        Returns:
            The samples that were measured, shape (N, A), under ``ACTION``.
        """
        exact = batch[ACTION]
        actions = self._evaluated(len(exact), None)
        found = evaluate_actions(self.bandit, actions, exact, batch[REFERENCE])
        metrics = found.metrics("test/")
        for steps in self.eval_steps if self.policy.sampler.steps is not None else ():
            finer = self._evaluated(len(exact), steps)
            metrics[f"test/energy_distance/{steps}_steps"] = energy_distance(finer, exact)
        self.log_dict(metrics, batch_size=1, sync_dist=True)
        return {ACTION: actions}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on the network."""
        rate = self.optimizer.actor_learning_rate
        return torch.optim.Adam(self.policy.parameters(), lr=rate, fused=fuses_adam(self._trainer))

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip the gradient of the network."""
        clip_gradient(self.policy.parameters(), self.optimizer.max_gradient_norm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another bandit, in one line."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["hyper_parameters"]["bandit"]
        if saved != self.bandit:
            raise UserError(f"the checkpoint was trained on {saved}, the data has {self.bandit}")

    def result_lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test measured, one line each.

        Args:
            metrics: Metrics by name.
        """
        if "test/energy_distance" not in metrics:
            return []
        exact = metrics["test/exact/energy_distance"]
        lines = [
            f"distance     {metrics['test/energy_distance']:.4f} (energy distance; two exact samples: {exact:.4f})"
        ]
        for steps in self.eval_steps:
            if (name := f"test/energy_distance/{steps}_steps") in metrics:
                lines.append(f"             {metrics[name]:.4f} with {steps} steps")
        low, high = metrics["test/smallest_mode_share"], metrics["test/largest_mode_share"]
        lines.append(f"modes        fractions from {low:.3f} to {high:.3f} of {self.bandit.num_modes}")
        lines.append(f"saturated    {metrics['test/saturated']:.1%} of the actions")
        return lines

    def endpoints(self, observation: Tensor) -> Tensor:
        """Latent points (B, A) where the paths end."""
        squash, size = self.policy.squash, len(observation)
        if self.points.x_1_source == "policy":
            return self.actor.latent(observation)
        if self.points.x_1_source == "uniform":
            return squash.latent(2.0 * torch.rand_like(self.replay[:1].expand(size, -1)) - 1.0)
        new = squash.action(self.actor.latent(observation[:1].expand(self.replay_actions, -1)))
        self.replay.copy_(torch.cat([self.replay, new])[-len(self.replay) :])
        return squash.latent(self.replay[torch.randint(len(self.replay), (size,), device=self.device)])

    def _evaluated(self, number: int, num_steps: int | None) -> Tensor:
        """Samples by the same noise at every evaluation."""
        actions = self.sample_actions(number, torch.Generator().manual_seed(self.global_rank), num_steps)
        bad = int((~torch.isfinite(actions)).any(1).sum())
        if bad:
            raise RunError(f"{bad} of {number} actions are not finite after {self.global_step} updates")
        return actions

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        device = self.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device).to(self.device)
