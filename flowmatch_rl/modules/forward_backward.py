"""Training of a forward-backward representation, from transitions without rewards."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowmatch_rl.batches import ActionTrials, Segment, SegmentNeeds, read_rollouts, read_segment
from flowmatch_rl.checks import UserError, check_range, check_word
from flowmatch_rl.models import ForwardBackwardModel
from flowmatch_rl.modules.dynamics import check_spaces
from flowmatch_rl.modules.settings import FlowOptimizer
from flowmatch_rl.modules.single_optimizer import SingleOptimizer
from flowmatch_rl.nets import EmaSettings, ForwardBackwardArchitecture, ForwardBackwardNetworks, ema_copy
from flowmatch_rl.objectives import (
    ValueReduction,
    distilled_policy_loss,
    forward_backward_loss,
    on_sphere,
    orthonormality_loss,
    reduced_members,
    successor_density,
)
from flowmatch_rl.schema import ActionBounds, TableSchema

_NOISE_CLIP = 0.3
"""Bound of the noise of the actions in targets."""


class ForwardBackward(SingleOptimizer):
    """Policies for all rewards of the state, from data without rewards.

    F, B and a deterministic policy of every embedding z are trained together: ``F(s, a, z)^T B(s')`` is the density of
    the successor measure of the policy of z, the state after a step with weight 1, the next with weight ``discount``
    and so on; the policy of z climbs ``F(s, a, z)^T z``. A reward is then turned into an embedding by its values at
    states of the data, without further training; see ``load_forward_backward``.

    Args:
        schema: Names and units of the state's entries; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_bounds: Bounds of the action in the environment's unit; taken from the data.
        discount: Discount per environment step, in [0, 1).
        architecture: Shape of F, B and the policy.
        reduction: How the members of F are reduced to one, in targets and for the policy.
        orthonormality: Weight of the loss that makes the second moment of B the identity, at least 0.
        cloning: Weight of the squared distance of the policy from the actions of the data, at least 0; values are
            divided by their mean magnitude over the batch.
        data_embeddings: Fraction of the embeddings that are B of states of the data, whose policies go to these
            states; the others are uniform on the sphere. In [0, 1].
        target_noise: Standard deviation of the noise of the actions in targets, at least 0; cut off at 0.3.
        ema: How the target networks follow.
        optimizer: Optimizer.
        num_references: States of the data that a checkpoint holds for rewards to be evaluated on, at least 1.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Touati and Ollivier, arXiv:2103.07945; Touati et al., arXiv:2209.14935.
    """

    loss_names: ClassVar = {"representation": "train/loss/measure", "policy": "train/loss/policy"}
    progress_metrics: ClassVar = (("loss", "train/loss/measure"), ("held out", "val/loss"))
    policy: ClassVar = None  # of the data's evaluations, which have the last trajectories of the data instead

    def __init__(
        self,
        schema: TableSchema | None,
        action_dim: int,
        action_bounds: ActionBounds | None = None,
        discount: float = 0.99,
        architecture: ForwardBackwardArchitecture = ForwardBackwardArchitecture(),
        reduction: ValueReduction = "mean",
        orthonormality: float = 1.0,
        cloning: float = 0.0,
        data_embeddings: float = 0.5,
        target_noise: float = 0.2,
        ema: EmaSettings = EmaSettings(0.99),
        optimizer: FlowOptimizer = FlowOptimizer(3e-4),
        num_references: int = 10_000,
    ) -> None:
        super().__init__()
        if schema is None:  # an option of a dataclass type alone would be asked for field by field
            raise UserError("expected the schema of the data, got None")
        check_range("[0, 1)", discount=discount)
        check_range("[0, inf)", orthonormality=orthonormality, cloning=cloning, target_noise=target_noise)
        check_range("[0, 1]", data_embeddings=data_embeddings)
        check_range("[1, inf)", num_references=num_references)
        check_word(("min", "mean"), reduction=reduction)
        self.save_hyperparameters()
        self.state_schema, self.discount = schema, discount
        self.reduction: ValueReduction = reduction
        self.orthonormality, self.cloning = orthonormality, cloning
        self.data_embeddings, self.target_noise = data_embeddings, target_noise
        self.ema, self.optimizer = ema, optimizer
        self.model = ForwardBackwardModel(schema, action_dim, architecture, reduction, num_references)
        self.target: ForwardBackwardNetworks = ema_copy(self.model.networks)

    @property
    def networks(self) -> Mapping[str, Iterable[Tensor]]:
        """F and B, the policy, and the target networks."""
        online = self.model.networks
        representation = [*online.forward_layers.parameters(), *online.backward_layers.parameters()]
        policy = online.policy_layers.parameters()
        return {"representation": representation, "policy": policy, "target networks": self.target.parameters()}

    @property
    def segment_needs(self) -> SegmentNeeds:
        """Single transitions."""
        return SegmentNeeds()

    @property
    def action_trials(self) -> ActionTrials:
        """None: evaluations have the trajectories of the data."""
        return ActionTrials()

    def start_training(self) -> None:
        """Keep states of the data for rewards to be evaluated on."""
        super().start_training()
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        batch = read_segment(next(data.transitions(len(self.model.references))))
        self.model.references.copy_(batch.arrivals[:, 0])

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Sum of the losses of a batch."""
        losses = self.losses(read_segment(batch))
        self.means.add({f"train/loss/{name}": loss for name, loss in losses.items()})
        return losses["measure"] + self.orthonormality * losses["orthonormality"] + losses["policy"]

    def losses(self, segment: Segment) -> dict[str, Tensor]:
        """Losses of a batch by name, each of shape (); draws embeddings, and noise of the actions in targets.

        Args:
            segment: Transitions: segments with n = 1.
        """
        losses, embedding = self.representation_losses(segment)
        state = self.model.standardise(segment.observation)
        return losses | {"policy": self.policy_loss(state, segment.action, embedding)}

    def representation_losses(
        self, segment: Segment, generator: torch.Generator | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of F and B, each of shape (), and the embeddings (B, d) whose policies were followed.

        Args:
            segment: Transitions: segments with n = 1.
            generator: Generator of the noise; the global one if None.
        """
        networks = self.model.networks
        state, arrival = (self.model.standardise(part) for part in (segment.observation, segment.arrivals[:, 0]))
        backward = networks.represent_arrival(arrival)
        directions, jitter, uniform = self._draw(len(state), state.device, generator)
        # States of the data to go to are those that other transitions of the batch arrive in.
        places = on_sphere(backward.detach())[uniform[0].argsort()]
        embedding = torch.where((uniform[1] < self.data_embeddings)[:, None], places, on_sphere(directions))
        with torch.no_grad():
            jitter = (self.target_noise * jitter).clamp(-_NOISE_CLIP, _NOISE_CLIP)
            next_action = (networks.act(arrival, embedding) + jitter).clamp(-1.0, 1.0)
            next_forward = self.target.represent(arrival, next_action, embedding)
            next_density = successor_density(next_forward, self.target.represent_arrival(arrival))
            discount = self.discount * (~segment.terminated[:, 0]).to(state.dtype)
            target = discount[:, None] * reduced_members(next_density, self.reduction)
        forward = networks.represent(state, segment.action, embedding)
        measure, moment = forward_backward_loss(forward, backward, target), orthonormality_loss(backward)
        return {"measure": measure.mean(), "orthonormality": moment.mean()}, embedding

    def _draw(
        self, size: int, device: torch.device, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise of embeddings (B, d) and of actions (B, A), normal, and uniform noise (2, B)."""
        where = device if generator is None else generator.device
        widths = self.model.embedding_dim, self.model.action_dim
        normal = [torch.randn(size, width, generator=generator, device=where) for width in widths]
        uniform = torch.rand(2, size, generator=generator, device=where)
        return normal[0].to(device), normal[1].to(device), uniform.to(device)

    def policy_loss(self, state: Tensor, data_action: Tensor, embedding: Tensor) -> Tensor:
        """Loss of the policies, shape (), of which the gradient matters alone; it reaches the policies alone.

        Args:
            state: Standardised states, shape (B, S).
            data_action: Actions of the data there, shape (B, A).
            embedding: Embeddings, shape (B, d).
        """
        networks = self.model.networks
        action = networks.act(state, embedding)
        point = action.detach().requires_grad_()
        forward = networks.represent(state, point, embedding)
        value = reduced_members((forward * embedding).sum(-1), self.reduction)
        (slope,) = torch.autograd.grad(value.sum(), point)
        scale = value.detach().abs().mean().clamp_min(1e-6)
        self.means.add({"train/policy_value": value.detach().mean()})
        return distilled_policy_loss(action, action, slope, data_action, self.cloning, scale).mean()

    def after_update(self) -> None:
        """Move the target networks."""
        self.ema.update(self.target, self.model.networks, self.global_step, 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on all networks."""
        return self.optimizer.build(self.model.networks.parameters())

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log losses of the last transitions of the data."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Log losses of the last transitions of the data."""
        self._evaluate(batch, "test")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other states or actions, in one line."""
        super().on_load_checkpoint(checkpoint)
        saved, bounds = checkpoint["hyper_parameters"], self.hparams["action_bounds"]
        check_spaces("the checkpoint", saved, self.state_schema, self.model.action_dim, bounds)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what kind of checkpoint it is.

        Raises:
            RunError: If a network has diverged.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["forward_backward"] = {"discount": self.discount}

    def result_lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test measured, one line each.

        Args:
            metrics: Metrics by name.
        """
        if "test/loss" not in metrics:
            return [f"{'measured':<12} nothing: the data have no trajectories that training leaves out"]
        return [
            f"{'held out':<12} Bellman loss {metrics['test/loss']:.4g} up to a constant; second moment of B "
            f"{metrics['test/loss/orthonormality']:.3g} from the identity (squared)"
        ]

    def _evaluate(self, batch: Mapping[str, Tensor], stage: str) -> None:
        rollouts = read_rollouts(batch)
        if rollouts.states is None or rollouts.ended is None or len(rollouts.action) < 2:
            return
        arrivals, ended = rollouts.states[:, 0, :1], rollouts.ended[:, 0, :1]
        length = torch.ones(len(arrivals), dtype=torch.long, device=arrivals.device)
        segment = Segment(
            rollouts.observation, rollouts.action, arrivals, ended, length, None, rollouts.embedding, None
        )
        losses, _ = self.representation_losses(segment, torch.Generator().manual_seed(0))
        metrics = {"loss": losses["measure"], "loss/orthonormality": losses["orthonormality"]}
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, batch_size=1, sync_dist=True)
