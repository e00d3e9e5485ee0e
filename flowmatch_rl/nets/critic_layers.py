"""Kinds of hidden layers of critics: residual blocks, and layers with batch normalisation."""

import abc
from dataclasses import dataclass
from typing import ClassVar

from flowmatch_rl.checks import check_range
from flowmatch_rl.nets.critic_stages import BatchNorm, Chain, Linear, Norm, Rectified, Residual, Stage, UnitScale


@dataclass(frozen=True)
class CriticLayers(abc.ABC):
    """Kind of the hidden layers of a critic, in place of plain ones.

    Attributes:
        needs_joint_batch: Whether a batch of current and next pairs must be evaluated in one pass to learn.
    """

    needs_joint_batch: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, num_members: int, width: int, num_layers: int) -> Stage:
        """Build the layers.

        Args:
            num_members: Members M.
            width: Features H.
            num_layers: Layers or blocks.
        """


@dataclass(frozen=True)
class PreNormBlocks(CriticLayers):
    """Residual blocks that normalise their input: layer norm, a wide rectified layer, a linear one, and the sum.

    The linear map of the inputs has no rectified units, and a layer norm follows the last block: from inputs to
    features a linear path stays open. The default of the paper is a width of 512 and two blocks for critics, on
    standardised observations.

    Args:
        expansion: Width of a block's rectified layer as a multiple of the features, at least 1.

    Raises:
        UserError: If ``expansion`` is below 1.

    Reference:
        Lee et al., arXiv:2410.09754 (SimBa).
    """

    expansion: int = 4

    def __post_init__(self) -> None:
        check_range("[1, inf)", expansion=self.expansion)

    def build(self, num_members: int, width: int, num_layers: int) -> Stage:
        """Build ``num_layers`` blocks."""
        wide = self.expansion * width

        def block() -> Stage:
            layers = Linear(num_members, width, wide), Rectified(), Linear(num_members, wide, width)
            return Residual(Norm(num_members, width), *layers)

        return Chain(*(block() for _ in range(num_layers)), Norm(num_members, width))


@dataclass(frozen=True)
class PostNormBlocks(CriticLayers):
    """Residual blocks that normalise after each linear map: linear, layer norm, rectified units, linear, layer norm.

    The map of the inputs is followed by a layer norm and rectified units. The default of the papers is a width of 512
    and two blocks.

    Reference:
        Nauman et al., arXiv:2405.16158 (BRO) and arXiv:2505.23150 (BRC).
    """

    def build(self, num_members: int, width: int, num_layers: int) -> Stage:
        """Build ``num_layers`` blocks."""

        def normalised_linear() -> tuple[Stage, Stage]:
            return Linear(num_members, width, width), Norm(num_members, width)

        blocks = (Residual(*normalised_linear(), Rectified(), *normalised_linear()) for _ in range(num_layers))
        return Chain(Norm(num_members, width), Rectified(), *blocks)


@dataclass(frozen=True)
class BatchNormLayers(CriticLayers):
    """Rectified layers, each of which is normalised over the batch before its rectified units.

    To learn, the statistics are those of the current and next pairs together (``Critics.joint_batch``); values of
    actions are by running ones. Batch renormalisation brings the two near each other after ``warm_up`` updates. The
    paper normalises the inputs too, and its layers after their units; its critics have a width of 2048.

    Args:
        momentum: Rate at which running statistics keep their value, in [0, 1); they are averages at first.
        warm_up: Updates of plain batch normalisation, at least 0.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Bhatt et al., arXiv:1902.05605 (CrossQ); Ioffe, arXiv:1702.03275 (batch renormalisation).
    """

    needs_joint_batch: ClassVar[bool] = True

    momentum: float = 0.99
    warm_up: int = 100_000

    def __post_init__(self) -> None:
        check_range("[0, 1)", momentum=self.momentum)
        check_range("[0, inf)", warm_up=self.warm_up)

    def build(self, num_members: int, width: int, num_layers: int) -> Stage:
        """Build ``num_layers`` layers, of which the first is the map of the inputs."""

        def norm() -> tuple[Stage, Stage]:
            return BatchNorm(num_members, width, self.momentum, self.warm_up), Rectified()

        hidden = ((Linear(num_members, width, width), *norm()) for _ in range(num_layers - 1))
        return Chain(*norm(), *(stage for layer in hidden for stage in layer))


def with_normalised_features(trunk: Stage) -> Stage:
    """A trunk whose features are divided by their root mean square.

    Args:
        trunk: Hidden layers.
    """
    return Chain(trunk, UnitScale())
