"""Online actor-critic with a flow policy, trained by reverse flow matching."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from tensordict import TensorDictBase
from torch import Tensor

from flowmatch_rl.estimators import PathPoints, PosteriorMean, PosteriorMeanEstimator, boltzmann_density
from flowmatch_rl.keys import REWARD, read_transition
from flowmatch_rl.metrics import episode_returns
from flowmatch_rl.modules.running_means import RunningMeans
from flowmatch_rl.nets import (
    ActorModule,
    CriticArchitecture,
    FlowPolicy,
    GreedySelection,
    ParticleActor,
    Selection,
    SoftmaxSelection,
    ValueReduction,
    VelocityArchitecture,
    lagging_copy,
    update_lagging_copy,
)
from flowmatch_rl.objectives import (
    TimeWeight,
    UniformWeight,
    bellman_target,
    critic_loss,
    prediction_loss,
    reverse_flow_target,
)
from flowmatch_rl.paths import AffinePath, GaussianSource, Squash, TanhSquash, TimeDistribution, UniformTime
from flowmatch_rl.solvers import Euler, Solver
from flowmatch_rl.types import Transition


class ReverseFlowActorCritic(LightningModule):
    """Actor-critic whose policy is a flow trained toward ``exp(Q / temperature)`` by reverse flow matching.

    The critics learn from the Bellman target of an action that is chosen among particles of the present policy. The
    velocity regresses, at points of the path to actions ``x_1``, onto the velocity that an importance-weighted
    estimate of the posterior mean of the Boltzmann policy gives. Both losses are summed and take one optimizer step.

    Args:
        observation_dim: Dimension S of the observation; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_low: Lower bounds of the action in the environment's unit, kept for ``load_policy``; from the data.
        action_high: Upper bounds; from the data.
        discount: Discount per environment step, in [0, 1).
        temperature: Temperature of the policy, in units of the return, positive.
        path: Path from noise to the latent action.
        squash: Map from latent points to actions.
        solver: Solver of the policy's flow.
        t_min: Flow times lie in [t_min, 1 - t_min]; in (0, 0.5).
        time_distribution: Distribution of the training times, scaled to that interval.
        time_weight: Weight of the policy loss by flow time.
        estimator: Estimator of the posterior mean.
        velocity: Shape of the velocity network.
        critic: Shape of the critics.
        train_particles: Particles per state for the Bellman target and for x_1.
        collect_particles: Particles per state while collecting.
        eval_particles: Particles per state in evaluation.
        train_selection: How one of the training particles is chosen.
        collect_selection: How one is chosen while collecting.
        eval_selection: How one is chosen in evaluation.
        x_1_source: Where the path at which the policy learns ends: a sample of the policy, the action in the replay
            buffer, or a uniform action.
        share_samples: Whether the policy learns at the next observation, so that one sampling pass serves the Bellman
            target and x_1; halves the sampling. Needs ``x_1_source: policy``.
        value_reduction: How the critics are reduced to one value, in targets, weights and choices.
        weight_critic: Critics in the importance weights: the learned ones or their lagging copies.
        actor_learning_rate: Adam's learning rate of the velocity network.
        critic_learning_rate: Adam's learning rate of the critics.
        max_gradient_norm: Gradients of each network are clipped to this norm; positive.
        ema_decay: Rate of the lagging critics, in [0, 1).
        compile: Whether to compile sampling and posterior with ``torch.compile``.

    Raises:
        ValueError: If a number is out of its range.

    Reference:
        Li et al., arXiv:2601.08136.
    """

    monitor = ("val/return_mean", "max")
    progress_metrics = (
        ("return", "val/return_mean"),
        ("critic", "train/loss/critic"),
        ("policy", "train/loss/policy"),
    )

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_low: list[float] | None = None,
        action_high: list[float] | None = None,
        discount: float = 0.99,
        temperature: float = 0.02,
        path: AffinePath = AffinePath(),
        squash: Squash = TanhSquash(),
        solver: Solver = Euler(num_steps=10),
        t_min: float = 0.01,
        time_distribution: TimeDistribution = UniformTime(),
        time_weight: TimeWeight = UniformWeight(),
        estimator: PosteriorMeanEstimator = PosteriorMeanEstimator(),
        velocity: VelocityArchitecture = VelocityArchitecture(),
        critic: CriticArchitecture = CriticArchitecture(),
        train_particles: int = 16,
        collect_particles: int = 16,
        eval_particles: int = 32,
        train_selection: Selection = SoftmaxSelection(),
        collect_selection: Selection = SoftmaxSelection(),
        eval_selection: Selection = GreedySelection(),
        x_1_source: Literal["policy", "replay", "uniform"] = "policy",
        share_samples: bool = False,
        value_reduction: ValueReduction = "min",
        weight_critic: Literal["online", "target"] = "online",
        actor_learning_rate: float = 3e-4,
        critic_learning_rate: float = 1e-3,
        max_gradient_norm: float = 10.0,
        ema_decay: float = 0.995,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= discount < 1.0:
            raise ValueError(f"discount must lie in [0, 1), got {discount}")
        if not temperature > 0.0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}")
        rates = {"actor_learning_rate": actor_learning_rate, "critic_learning_rate": critic_learning_rate}
        for name, value in {**rates, "max_gradient_norm": max_gradient_norm}.items():
            if not value > 0.0:
                raise ValueError(f"{name} must be positive, got {value}")
        if share_samples and x_1_source != "policy":
            raise ValueError(f"share_samples needs x_1_source: policy, got {x_1_source}")
        self.save_hyperparameters()
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.discount, self.temperature = discount, temperature
        self.path, self.squash, self.t_min = path, squash, t_min
        self.time_distribution, self.time_weight, self.estimator = time_distribution, time_weight, estimator
        self.x_1_source, self.share_samples = x_1_source, share_samples
        self.value_reduction: ValueReduction = value_reduction
        self.learning_rates = {"velocity": actor_learning_rate, "critic": critic_learning_rate}
        self.max_gradient_norm, self.ema_decay = max_gradient_norm, ema_decay
        self.policy = FlowPolicy(velocity.build(action_dim, observation_dim), solver, squash, t_min)
        self.critic = critic.build(observation_dim, action_dim)
        self.critic_ema = lagging_copy(self.critic)
        self._weight_by_ema = weight_critic == "target"
        self._roles = {
            "train": (train_particles, train_selection),
            "collect": (collect_particles, collect_selection),
            "eval": (eval_particles, eval_selection),
        }
        for role in self._roles:
            self.actor(role)
        self._train_actor = self.actor("train")
        self._means = RunningMeans()
        if compile:
            self.policy.compile_sampling()
            self.critic.compile_evaluation()
            self.critic_ema.compile_evaluation()

    def actor(self, role: str) -> ParticleActor:
        """The policy with the number of particles and the choice of a role.

        Args:
            role: ``train``, ``collect`` or ``eval``.
        """
        num_particles, selection = self._roles[role]
        return ParticleActor(
            self.policy, self.critic, self.action_dim, num_particles, selection, self.value_reduction, self.temperature
        )

    def collection_policy(self) -> ActorModule:
        """Policy that collects data; it shares the weights in training."""
        return ActorModule(self.actor("collect"))

    def evaluation_policy(self) -> ActorModule:
        """Policy that is evaluated, its noise seeded afresh, so that evaluations leave the training's noise alone."""
        return ActorModule(self.actor("eval"), torch.Generator().manual_seed(0))

    def on_fit_start(self) -> None:
        """Give each process noise of its own; weights were built from the common seed."""
        torch.manual_seed((torch.initial_seed() + self.global_rank) % 2**63)

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """Critic loss and policy loss of one batch, summed."""
        transition = read_transition(batch)
        next_action, observation, x_1 = self._sample(transition)
        losses = {"critic": self._critic_loss(transition, next_action), "policy": self._policy_loss(observation, x_1)}
        loss = torch.stack(list(losses.values())).sum()
        self._means.add({"train/loss": loss} | {f"train/loss/{name}": value for name, value in losses.items()})
        self._log_means()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the lagging critics."""
        update_lagging_copy(self.critic_ema, self.critic, self.ema_decay)

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
        groups = [
            {"name": name, "params": list(network.parameters()), "lr": self.learning_rates[name]}
            for name, network in (("velocity", self.policy.velocity), ("critic", self.critic))
        ]
        return torch.optim.Adam(groups, fused=True)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clip the gradient of each network by itself."""
        for group in optimizer.param_groups:
            norm = torch.nn.utils.clip_grad_norm_(group["params"], self.max_gradient_norm)
            self._means.add({f"train/gradient_norm/{group['name']}": norm})

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

    def _sample(self, transition: Transition) -> tuple[Tensor, Tensor, Tensor]:
        """Next action (B, A), and observation (B, S) and end point x_1 (B, A) of the path the policy learns on."""
        squash, size = self.squash, len(transition.observation)
        if self.share_samples:
            latent = self._train_actor.latent(transition.next_observation)
            return squash.action(latent), transition.next_observation, latent
        if self.x_1_source == "policy":
            both = torch.cat([transition.next_observation, transition.observation])
            next_latent, x_1 = self._train_actor.latent(both).split(size)
        else:
            next_latent = self._train_actor.latent(transition.next_observation)
            uniform = 2.0 * torch.rand_like(transition.action) - 1.0
            x_1 = squash.latent(transition.action if self.x_1_source == "replay" else uniform)
        return squash.action(next_latent), transition.observation, x_1

    def _critic_loss(self, transition: Transition, next_action: Tensor) -> Tensor:
        next_value = self.critic_ema.action_values(
            transition.next_observation, next_action[:, None], self.value_reduction
        )[:, 0]
        target = bellman_target(transition.reward, transition.terminated, next_value, self.discount)
        values = self.critic(transition.observation, transition.action)
        self._means.add({"train/value": values.detach().mean(), "train/reward": transition.reward.mean()})
        return critic_loss(values, target).mean()

    def _policy_loss(self, observation: Tensor, x_1: Tensor) -> Tensor:
        size, samples = len(x_1), self.estimator.num_samples
        uniform = torch.rand(size, device=x_1.device)
        t = self.t_min + (1.0 - 2.0 * self.t_min) * self.time_distribution.quantile(uniform)
        points = PathPoints.between(self.path, torch.randn_like(x_1), x_1, t)
        z = torch.randn(size, samples, self.action_dim, device=x_1.device)

        weight_critic = self.critic_ema if self._weight_by_ema else self.critic

        def value_and_gradient(actions: Tensor) -> tuple[Tensor, Tensor]:
            return weight_critic.action_values_and_gradients(observation, actions, self.value_reduction)

        density = boltzmann_density(value_and_gradient, self.temperature, self.squash)
        posterior = reverse_flow_target(self.estimator, self.path, GaussianSource(), density, points, z)
        velocity_target = self.path.target("velocity", posterior.x_0, posterior.x_1, t)
        self._note_posterior(posterior, velocity_target, x_1)
        loss = prediction_loss(self.policy.velocity, points.x_t, t, velocity_target, observation)
        return (self.time_weight.weight(self.path, t) * loss).mean()

    def _note_posterior(self, posterior: PosteriorMean, velocity_target: Tensor, x_1: Tensor) -> None:
        saturated = self.squash.action(x_1).abs() > 0.99
        self._means.add(
            {
                "train/effective_sample_size": posterior.effective_sample_size.mean(),
                "train/eta": posterior.eta.mean(),
                "train/log_density_spread": posterior.log_density_spread.mean(),
                "train/velocity_target": velocity_target.square().mean().sqrt(),
                "train/saturated": saturated.float().mean(),
            }
        )

    def _log_means(self) -> None:
        """Hand the means since the last time to the loggers, at the logging interval only: each costs half a ms."""
        interval: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if (self.global_step + 1) % interval == 0:
            means = self._means.take()
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
        return float(getattr(self.trainer.datamodule, "env_steps", self.global_step))  # pyright: ignore
