"""A flow policy of a bandit, whose value is known: reverse flow matching without a critic."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from flowmatch_rl.batches import ACTION, OBSERVATION, REFERENCE
from flowmatch_rl.checks import RunError
from flowmatch_rl.estimators import EndPointEstimator, PosteriorMeanEstimator, boltzmann_density
from flowmatch_rl.metrics import (
    energy_distance,
    maximum_mean_discrepancy,
    saturated_entries,
    saturated_share,
    sliced_wasserstein_distance,
)
from flowmatch_rl.models import FlowPolicy, ParticleActor, Selection, SoftmaxSelection
from flowmatch_rl.modules.gradients import check_gradient_options, fuses_adam
from flowmatch_rl.modules.policy_learner import PolicyLearner
from flowmatch_rl.modules.quick_hooks import QuickHooks
from flowmatch_rl.modules.reverse_flow_actor_critic import EndPointSource
from flowmatch_rl.modules.running_means import RunningMeans
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.objectives import ConditionalFlowMatching, FlowObjective
from flowmatch_rl.paths import AffinePath, GaussianSource, Source, Squash, TanhSquash
from flowmatch_rl.samplers import OdeSampler, Sampler
from flowmatch_rl.solvers import Euler
from flowmatch_rl.testbeds import Bandit

BANDWIDTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Bandwidths of the kernels of the maximum mean discrepancy, in units of the action."""

DIRECTIONS = 128
"""Directions of the sliced Wasserstein distance."""


class BanditFlow(QuickHooks, LightningModule):
    """A flow policy trained toward the Boltzmann law of a bandit.

    Policy, estimator and objective are those of ``ReverseFlowActorCritic``, and so are the names of the arguments; the
    value of the bandit stands in place of the critics. Evaluation compares plain samples of the policy, without choice
    among particles, with exact ones.

    Args:
        bandit: The bandit; taken from the data.
        temperature: Temperature of the law, in units of the return, positive.
        path: Path from noise to the latent action.
        source: Law of x_0.
        squash: Map from latent points to actions.
        sampler: How the policy carries noise to actions.
        t_min: Flow times lie in [t_min, 1 - t_min]; in (0, 0.5).
        objective: What the network predicts, with law and weight of the flow times.
        estimator: Estimator of the end points that the policy learns from.
        velocity: Shape of the policy's network, whatever it predicts.
        normalise: Whether the network sees x_t at unit variance and answers in units of what it predicts; for paths
            that explode.
        train_particles: Particles of the policy that x_1 is chosen among.
        train_selection: How it is chosen.
        x_1_source: Where the path at which the policy learns ends: a sample of the present policy, one of the replay
            buffer, or a uniform action.
        replay_capacity: Actions in the replay buffer, at least 1; at first they are uniform. Of several processes all
            have the buffer of the first.
        replay_actions: Actions of the present policy that enter the buffer per update, at least 1; chosen as x_1 is.
        eval_steps: Numbers of steps of the sampler that a test evaluates as well, where it has such a number.
        actor_learning_rate: Adam's learning rate.
        max_gradient_norm: The gradient is clipped to this norm; positive.

    Raises:
        ValueError: If a number is out of its range, or parts do not fit each other.

    Reference:
        Li et al., arXiv:2601.08136.
    """

    monitor = ("val/energy_distance", "min")
    progress_metrics = (("loss", "train/loss"), ("distance", "val/energy_distance"))

    replay: Tensor

    def __init__(
        self,
        bandit: Bandit,
        temperature: float = 1.0,
        path: AffinePath = AffinePath(),
        source: Source = GaussianSource(),
        squash: Squash = TanhSquash(),
        sampler: Sampler = OdeSampler(Euler(num_steps=10)),
        t_min: float = 0.01,
        objective: FlowObjective = ConditionalFlowMatching(),
        estimator: EndPointEstimator = PosteriorMeanEstimator(),
        velocity: VelocityArchitecture = VelocityArchitecture(),
        normalise: bool = False,
        train_particles: int = 1,
        train_selection: Selection = SoftmaxSelection(),
        x_1_source: EndPointSource = "policy",
        replay_capacity: int = 4096,
        replay_actions: int = 16,
        eval_steps: Sequence[int] = (50,),
        actor_learning_rate: float = 3e-4,
        max_gradient_norm: float = 10.0,
    ) -> None:
        super().__init__()
        numbers = {
            "temperature": temperature,
            "actor_learning_rate": actor_learning_rate,
            "max_gradient_norm": max_gradient_norm,
        }
        for name, value in numbers.items():
            if not value > 0.0:
                raise ValueError(f"{name} must be positive, got {value}")
        counts = {"replay_capacity": replay_capacity, "replay_actions": replay_actions}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if any(steps < 1 for steps in eval_steps):
            raise ValueError(f"eval_steps must be at least 1 each, got {list(eval_steps)}")
        self.save_hyperparameters()
        self.bandit, self.temperature = bandit, temperature
        averages = objective.uses_duration
        network = velocity.build(bandit.action_dim, 1, takes_duration=averages)
        self.policy = FlowPolicy(network, path, sampler, squash, t_min, objective.predicts, source, normalise, averages)
        self.learner = PolicyLearner(self.policy, objective, estimator)
        self.x_1_source, self.replay_actions = x_1_source, replay_actions
        self.eval_steps = tuple(eval_steps)
        self.learning_rate, self.max_gradient_norm = actor_learning_rate, max_gradient_norm
        value: Any = _KnownValue(bandit)
        self._actor = ParticleActor(
            self.policy, value, bandit.action_dim, train_particles, train_selection, "min", temperature
        )
        self.register_buffer("replay", torch.rand(replay_capacity, bandit.action_dim) * 2.0 - 1.0)
        self._means = RunningMeans()

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
            ValueError: If the sampler has no number of steps.
        """
        policy = self.policy if num_steps is None else self._policy_with(num_steps)
        observation = torch.zeros(1, 1, device=self.device)

        def draw(like: Tensor) -> Tensor:
            return self._normal(tuple(like.shape), generator)

        noise = self._normal((1, number, policy.noise_dim(self.bandit.action_dim)), generator)
        with torch.autocast(self.device.type, enabled=False):
            return policy.squash.action(policy.sample_latents(observation, noise, draw)[0])

    def on_fit_start(self) -> None:
        """Refuse a second clipping, and give each process noise of its own; weights share a seed."""
        check_gradient_options(self.trainer)
        torch.manual_seed((torch.initial_seed() + self.global_rank) % 2**63)

    def on_train_start(self) -> None:
        """Give a run that goes on other noise than it began with."""
        if self.global_step:
            torch.manual_seed((torch.initial_seed() + 1_000_000 * self.global_step) % 2**63)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss at points of the paths to actions."""
        observation, estimator = batch[OBSERVATION], self.learner.estimator
        x_1 = self._end_points(observation)
        density = boltzmann_density(
            self.bandit.value_and_gradient, self.temperature, self.policy.squash, estimator.needs_jacobian
        )
        losses, learned = self.learner.loss(observation, x_1, density)
        loss = losses.mean()
        self._means.add(
            {
                "train/loss": loss,
                "train/effective_sample_size": learned.ends.effective_sample_size.mean(),
                "train/eta": learned.ends.eta.mean(),
                "train/log_density_spread": learned.ends.log_density_spread.mean(),
                "train/saturated": saturated_entries(self.policy.squash.action(x_1)),
            }
        )
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log at the logging interval."""
        interval: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if self.global_step % interval == 0:
            means = self._means.take()
            if not bool(torch.isfinite(means["train/loss"])):
                raise RunError(f"the loss is not finite after {self.global_step} updates; lower the learning rate")
            self.log_dict(means, prog_bar=True)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log the distance of samples to exact ones, and what share of them is saturated."""
        actions = self._evaluated(len(batch[ACTION]), None)
        metrics = {
            "val/energy_distance": energy_distance(actions, batch[ACTION]),
            "val/saturated": saturated_share(actions),
        }
        self.log_dict(metrics, batch_size=1, sync_dist=True)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log distances to exact samples, as between two exact samples as well, the shares of modes and saturation."""
        exact, reference = batch[ACTION], batch[REFERENCE]
        actions = self._evaluated(len(exact), None)
        metrics = {f"test/{name}": value for name, value in _distances(actions, exact).items()}
        metrics |= {f"test/exact/{name}": value for name, value in _distances(reference, exact).items()}
        for steps in self.eval_steps if _counts_steps(self.policy.sampler) else ():
            finer = self._evaluated(len(exact), steps)
            metrics[f"test/energy_distance/{steps}_steps"] = energy_distance(finer, exact)
        shares = self.bandit.mode_shares(actions)
        metrics |= {
            "test/smallest_mode_share": shares.min(),
            "test/largest_mode_share": shares.max(),
            "test/saturated": saturated_share(actions),
            "test/saturated_entries": saturated_entries(actions),
        }
        self.log_dict(metrics, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on the network."""
        return torch.optim.Adam(self.policy.parameters(), lr=self.learning_rate, fused=fuses_adam(self._trainer))

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip the gradient of the network."""
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_gradient_norm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another bandit, in one line."""
        saved = checkpoint["hyper_parameters"]["bandit"]
        if saved != self.bandit:
            raise ValueError(f"the checkpoint was trained on {saved}, the data has {self.bandit}")

    def result_lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test found, one line each.

        Args:
            metrics: Metrics by name.
        """
        exact = metrics["test/exact/energy_distance"]
        lines = [
            f"distance     {metrics['test/energy_distance']:.4f} (energy distance; two exact samples: {exact:.4f})"
        ]
        for steps in self.eval_steps:
            if (name := f"test/energy_distance/{steps}_steps") in metrics:
                lines.append(f"             {metrics[name]:.4f} with {steps} steps")
        low, high = metrics["test/smallest_mode_share"], metrics["test/largest_mode_share"]
        lines.append(f"modes        shares from {low:.3f} to {high:.3f} of {self.bandit.num_modes}")
        lines.append(f"saturated    {metrics['test/saturated']:.1%} of the actions")
        return lines

    def _end_points(self, observation: Tensor) -> Tensor:
        """Latent points (B, A) where the paths end."""
        squash, size = self.policy.squash, len(observation)
        if self.x_1_source == "policy":
            return self._actor.latent(observation)
        if self.x_1_source == "uniform":
            return squash.latent(2.0 * torch.rand_like(self.replay[:1].expand(size, -1)) - 1.0)
        new = squash.action(self._actor.latent(observation[:1].expand(self.replay_actions, -1)))
        self.replay.copy_(torch.cat([self.replay, new])[-len(self.replay) :])
        return squash.latent(self.replay[torch.randint(len(self.replay), (size,), device=self.device)])

    def _evaluated(self, number: int, num_steps: int | None) -> Tensor:
        """Samples by the same noise at every evaluation."""
        actions = self.sample_actions(number, torch.Generator().manual_seed(self.global_rank), num_steps)
        bad = int((~torch.isfinite(actions)).any(1).sum())
        if bad:
            raise RunError(f"{bad} of {number} actions are not finite after {self.global_step} updates")
        return actions

    def _policy_with(self, num_steps: int) -> FlowPolicy:
        """The policy with another number of steps; it shares the weights."""
        policy, sampler = self.policy, self.policy.sampler
        if not _counts_steps(sampler):
            raise ValueError(f"{sampler} has no number of steps")
        finer, parts = copy.copy(policy), vars(sampler)
        changed = {"num_steps": num_steps}
        if "num_steps" not in parts:
            changed = {"solver": dataclasses.replace(parts["solver"], **changed)}
        finer.sampler = dataclasses.replace(sampler, **changed)
        return finer

    def _normal(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        device = self.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device).to(self.device)


class _KnownValue:
    """The value of a bandit, as an actor asks critics for it."""

    def __init__(self, bandit: Bandit) -> None:
        self._bandit = bandit

    def action_values(self, observation: Tensor, actions: Tensor, reduction: str) -> Tensor:
        """Values (B, N) of actions (B, N, A)."""
        return self._bandit.value_and_gradient(actions)[0]


def _distances(actions: Tensor, exact: Tensor) -> dict[str, Tensor]:
    """Distances between two samples, shape (N, D) each, by name."""
    directions = torch.randn(DIRECTIONS, exact.shape[1], generator=torch.Generator().manual_seed(0)).to(exact)
    return {
        "energy_distance": energy_distance(actions, exact),
        "sliced_wasserstein": sliced_wasserstein_distance(actions, exact, directions),
        "mmd": maximum_mean_discrepancy(actions, exact, BANDWIDTHS),
    }


def _counts_steps(sampler: Sampler) -> bool:
    parts = vars(sampler)
    return "num_steps" in parts or hasattr(parts.get("solver"), "num_steps")
