"""An ensemble of action-value networks, evaluated as stacked matrix products."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.nets.chunks import map_in_chunks
from flowmatch_rl.nets.critic_layers import CriticLayers, with_normalised_features
from flowmatch_rl.nets.critic_stages import PlainTrunk, Pullback, Rows, Stage, orthogonal
from flowmatch_rl.nets.observations import ObservationFeatures
from flowmatch_rl.nets.return_unit import ReturnUnit
from flowmatch_rl.nets.value_heads import ScalarHead, ValueHead
from flowmatch_rl.objectives import ValueReduction
from flowmatch_rl.shapes import check_same_shape


@dataclass(frozen=True)
class CriticArchitecture:
    """Configuration of an ensemble of critics with rectified linear units.

    Args:
        num_members: Members M, at least 1.
        hidden_dim: Width of every hidden layer.
        num_layers: Hidden layers, or residual blocks, at least 1.
        layer_norm: Whether each plain hidden layer is normalised before its rectified linear units.
        head: Meaning of the outputs: a value, or the distribution of the return.
        observations: Units of the observation, and waves of it as further inputs.
        layers: Kind of the hidden layers, such as residual blocks; plain ones if None.
        normalised_features: Whether the last features are divided by their root mean square.

    Raises:
        UserError: If a number is below 1, or ``layer_norm`` is set where the layers are not plain.
    """

    num_members: int = 2
    hidden_dim: int = 256
    num_layers: int = 2
    layer_norm: bool = False
    head: ValueHead = ScalarHead()
    observations: ObservationFeatures = ObservationFeatures()
    layers: CriticLayers | None = None
    normalised_features: bool = False

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_members=self.num_members, hidden_dim=self.hidden_dim, num_layers=self.num_layers)
        if self.layer_norm and self.layers is not None:
            raise UserError(f"layer_norm must be false: it is of plain layers, and layers are {self.layers}")

    def build(self, observation_dim: int, action_dim: int) -> "CriticEnsemble":
        """Build the ensemble for observations and actions of the given dimensions."""
        return CriticEnsemble(self, observation_dim, action_dim)

    def build_trunk(self) -> Stage:
        """Build the hidden layers of the ensemble."""
        sizes = self.num_members, self.hidden_dim, self.num_layers
        trunk = PlainTrunk(*sizes, self.layer_norm) if self.layers is None else self.layers.build(*sizes)
        return with_normalised_features(trunk) if self.normalised_features else trunk


class CriticEnsemble(nn.Module):
    """Action values Q(s, a) of M networks.

    The first layer is a sum of a map of the observation and a map of the action, so that N actions per state share
    the map of the observation. Where few rows are evaluated all members are one batched product; see ``action_values``.
    Under autocast the last layer and the values keep the precision of the weights.

    Args:
        architecture: Configuration of the ensemble.
        observation_dim: Dimension S.
        action_dim: Dimension A.
    """

    def __init__(self, architecture: CriticArchitecture, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        members, width = architecture.num_members, architecture.hidden_dim
        self.features = architecture.observations.build(observation_dim)
        observation_dim = architecture.observations.dimension(observation_dim)
        joint = orthogonal(members, observation_dim + action_dim, width)
        self.observation_weight = nn.Parameter(joint[:, :observation_dim].clone())  # (M, S, H)
        self.action_weight = nn.Parameter(joint[:, observation_dim:].clone())  # (M, A, H)
        self.input_bias = nn.Parameter(torch.zeros(members, 1, width))
        self.trunk = architecture.build_trunk()
        self.head = architecture.head
        self.value_weight = nn.Parameter(orthogonal(members, width, self.head.num_outputs))  # (M, H, O)
        self.value_bias = nn.Parameter(torch.zeros(members, 1, self.head.num_outputs))
        self.unit: ReturnUnit | None = None
        self.register_load_state_dict_pre_hook(_name_trunk)

    @property
    def num_members(self) -> int:
        """Members M."""
        return self.input_bias.shape[0]

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Action values of all members.

        Args:
            observation: Shape (B, S).
            action: Shape (B, A).

        Returns:
            Values in units of the return, shape (M, B).

        Raises:
            ValueError: If the batches differ.
        """
        return self.in_unit_of_return(self.head.values(self.outputs(observation, action)))

    def outputs(self, observation: Tensor, action: Tensor, members: Tensor | None = None) -> Tensor:
        """Outputs of the networks, which the head turns into values or distributions in the unit of the critics.

        Args:
            observation: Shape (B, S).
            action: Shape (B, A).
            members: Indices of the members to evaluate, integer, shape (M',); all if None.

        Returns:
            Outputs, shape (M, B, O), or (M', B, O).

        Raises:
            ValueError: If the batches differ.
        """
        if observation.shape[:-1] != action.shape[:-1] or observation.dim() != 2:
            raise ValueError(f"expected (B, S) and (B, A), got {tuple(observation.shape)} and {tuple(action.shape)}")
        return self._outputs(observation, action, members, learning=False)

    def joint_outputs(
        self, observation: Tensor, action: Tensor, next_observation: Tensor, next_action: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs at current and next pairs in one pass, to learn from.

        In training mode batch norms normalise by the statistics of both, and their running ones learn from them.

        Args:
            observation: Shape (B, S).
            action: Shape (B, A).
            next_observation: Shape (B, S).
            next_action: Shape (B, A).

        Returns:
            Outputs at the current and at the next pairs, each (M, B, O).

        Raises:
            ValueError: If the shapes differ.
        """
        check_same_shape(observation=observation, next_observation=next_observation)
        check_same_shape(action=action, next_action=next_action)
        both = torch.cat([observation, next_observation]), torch.cat([action, next_action])
        outputs, next_outputs = self._outputs(*both, None, learning=True).chunk(2, dim=1)
        return outputs, next_outputs

    def _outputs(self, observation: Tensor, action: Tensor, members: Tensor | None, learning: bool) -> Tensor:
        def of_members(parameter: Tensor) -> Tensor:
            return parameter if members is None else parameter[members]

        joint = torch.cat([of_members(self.observation_weight), of_members(self.action_weight)], dim=1)
        x = torch.cat([self.features(observation), action], dim=-1).expand(len(joint), -1, -1)
        h = self.trunk(torch.baddbmm(of_members(self.input_bias), x, joint), members, learning)
        with without_autocast(h):
            weight = of_members(self.value_weight)
            return torch.baddbmm(of_members(self.value_bias), h.to(weight.dtype), weight)

    @torch.no_grad()
    def action_values(self, observation: Tensor, actions: Tensor, reduction: ValueReduction = "min") -> Tensor:
        """Values of several actions per state, reduced over the members, without gradient to the weights.

        Args:
            observation: Shape (B, S).
            actions: Shape (B, N, A).
            reduction: Minimum or mean over the members.

        Returns:
            Values in units of the return, shape (B, N).

        Raises:
            ValueError: If the batches differ.
        """
        _check_particles(observation, actions)

        values = map_in_chunks(partial(self._values, reduction), actions.shape[1], observation, actions)[0]
        return self.in_unit_of_return(values)

    @torch.no_grad()
    def action_values_and_gradients(
        self, observation: Tensor, actions: Tensor, reduction: ValueReduction = "min"
    ) -> tuple[Tensor, Tensor]:
        """Values of several actions per state and their gradients with respect to the actions.

        The backward pass is written out, since it needs no gradient of the weights.

        Args:
            observation: Shape (B, S).
            actions: Shape (B, N, A).
            reduction: Minimum or mean over the members; the gradient of a minimum is its lowest member's.

        Returns:
            Values in units of the return, shape (B, N), and gradients, shape (B, N, A).

        Raises:
            ValueError: If the batches differ.
        """
        _check_particles(observation, actions)

        values, gradients = map_in_chunks(
            partial(self._values_and_gradients, reduction), actions.shape[1], observation, actions
        )
        return self.in_unit_of_return(values), self.in_unit_of_return(gradients)

    def share_unit(self, unit: ReturnUnit) -> None:
        """Let the outputs be in a unit that other critics share and that changes while they train.

        Args:
            unit: The unit.

        Raises:
            UserError: If the head states what its outputs stand for itself, such as the bounds of its atoms.
        """
        if not self.head.is_scalable:
            raise UserError(f"normalised values need a head of values or quantiles, got {self.head}")
        self.unit = unit

    def in_unit_of_return(self, values: Tensor) -> Tensor:
        """Values in units of the return, of values in the unit of the outputs."""
        return values if self.unit is None else values * self.unit.size

    def in_own_unit(self, returns: Tensor) -> Tensor:
        """Returns in the unit of the outputs, of returns in their own."""
        return returns if self.unit is None else returns / self.unit.size

    @property
    def scaled_weights(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Weight and bias of the last layer, of which a multiple makes that multiple of the outputs."""
        return self.value_weight, self.value_bias

    def compile_evaluation(self) -> None:
        """Compile the evaluation of many actions per state."""
        self._values = torch.compile(self._values)
        self._values_and_gradients = torch.compile(self._values_and_gradients)

    def _values(self, reduction: ValueReduction, observation: Tensor, actions: Tensor) -> tuple[Tensor]:
        members = torch.stack([self._member(m, observation, actions)[0] for m in range(self.num_members)])
        return (members.amin(0) if reduction == "min" else members.mean(0),)

    def _values_and_gradients(
        self, reduction: ValueReduction, observation: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        evaluated = [self._member(m, observation, actions) for m in range(self.num_members)]
        members = torch.stack([values for values, _ in evaluated])
        if reduction == "mean":
            weight = torch.full_like(members[0], 1.0 / self.num_members)
            parts = [gradient_of(weight, None) for _, gradient_of in evaluated]
            return members.mean(0), torch.stack(parts).sum(0, dtype=members.dtype).view_as(actions)
        lowest, one = members.argmin(0), torch.ones_like(members[0])
        if actions.device.type == "cpu" and not torch.compiler.is_compiling():
            # Each row goes back through its lowest member alone.
            gradients = members.new_empty(actions.shape).flatten(0, 1)
            for m, (_, gradient_of) in enumerate(evaluated):
                rows = (lowest.flatten() == m).nonzero()[:, 0]
                gradients.index_copy_(0, rows, gradient_of(one, rows).to(gradients.dtype))
            return members.amin(0), gradients.view_as(actions)
        # To look for the rows would wait for the device.
        parts = [gradient_of((lowest == m).to(one.dtype), None) for m, (_, gradient_of) in enumerate(evaluated)]
        return members.amin(0), torch.stack(parts).sum(0, dtype=members.dtype).view_as(actions)

    def _member(self, m: int, observation: Tensor, actions: Tensor) -> tuple[Tensor, Pullback]:
        """Values (B, N) of one member on all actions, and what returns the gradient (R, A) of a weighted sum."""
        shared = self.features(observation) @ self.observation_weight[m] + self.input_bias[m]  # (B, H)
        h = (actions @ self.action_weight[m]).add_(shared[:, None]).flatten(0, 1)
        last, through_trunk = self.trunk.member(m, h)
        with without_autocast(last):
            value_weight = self.value_weight[m]
            values, kept = self.head.read(last.to(value_weight.dtype), value_weight, self.value_bias[m])

        def gradient_of(weight: Tensor, rows: Rows) -> Tensor:
            gradient = self.head.hidden_gradient(
                kept.to(last.dtype), self.value_weight[m].to(last.dtype), weight.to(last.dtype).reshape(-1, 1)
            )
            gradient = gradient if rows is None else gradient.index_select(0, rows)
            return through_trunk(gradient, rows) @ self.action_weight[m].T

        return values.view(actions.shape[:2]), gradient_of


def _name_trunk(_: nn.Module, state_dict: dict[str, Tensor], prefix: str, *others: object) -> None:
    """Rename what checkpoints hold from when plain layers were parameters of the ensemble itself."""
    for key in list(state_dict):
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name.startswith(("hidden_weights.", "hidden_biases.", "norm_")):
            state_dict[f"{prefix}trunk.{name}"] = state_dict.pop(key)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products of float32 tensors are not rounded.

    Args:
        x: A tensor of the device in question.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _check_particles(observation: Tensor, actions: Tensor) -> None:
    if observation.dim() != 2 or actions.dim() != 3 or observation.shape[0] != actions.shape[0]:
        raise ValueError(f"expected (B, S) and (B, N, A), got {tuple(observation.shape)} and {tuple(actions.shape)}")
