"""What a network makes of an observation before its first layer."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.nets.running_units import RunningUnits


@dataclass(frozen=True)
class ObservationFeatures:
    """Standardised observations, and sines and cosines of them.

    Args:
        mean: What is taken from each entry, in its unit; nothing if empty.
        std: What each entry is then divided by, in its unit, positive; 1 if empty.
        num_frequencies: Frequencies 1/4, 1/2, 1, 2, ... per standard deviation, at which sines and cosines of the
            observation are inputs too; at most 20, 0 for none. They make room for edges, such as walls.

    Raises:
        UserError: If a number is out of its range, or mean and std differ in length.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    num_frequencies: int = 0

    def __post_init__(self) -> None:
        check_range("[0, 20]", num_frequencies=self.num_frequencies)  # finer waves are beyond float32
        if len(self.mean) != len(self.std):
            raise UserError(f"mean and std must have one number per entry, got {len(self.mean)} and {len(self.std)}")
        if not all(math.isfinite(each) for each in self.mean) or not all(0.0 < each < math.inf for each in self.std):
            raise UserError(f"mean must be finite and std positive, got {self.mean} and {self.std}")

    def dimension(self, observation_dim: int) -> int:
        """Number of features of an observation of dimension S."""
        return observation_dim * (1 + 2 * self.num_frequencies)

    def build(self, observation_dim: int) -> "ObservationInput":
        """The function of observations (*batch, S) that returns their features; it has no weights.

        Args:
            observation_dim: Dimension S.

        Raises:
            UserError: If mean and std are of another dimension.
        """
        if not self.mean:
            return ObservationInput(_Waves(self.num_frequencies) if self.num_frequencies else nn.Identity())
        if len(self.mean) != observation_dim:
            raise UserError(f"mean and std must have {observation_dim} numbers, one per entry, got {len(self.mean)}")
        fixed = nn.Sequential(_Units(self.mean, self.std), _Waves(self.num_frequencies))
        return ObservationInput(fixed, has_units=True)


class ObservationInput(nn.Module):
    """Features of an observation, perhaps in units that several networks share and that change while they train.

    Args:
        features: Function of observations in these units.
        has_units: Whether ``features`` has units of its own.
    """

    def __init__(self, features: nn.Module, has_units: bool = False) -> None:
        super().__init__()
        self.features, self.has_units = features, has_units
        self.units: RunningUnits | None = None

    def forward(self, observation: Tensor) -> Tensor:
        """Features of observations (*batch, S)."""
        return self.features(observation if self.units is None else self.units(observation))


def share_units(units: RunningUnits, *networks: nn.Module) -> None:
    """Let networks see their observations in the same running units from now on.

    Args:
        units: Units of the observation.
        *networks: Networks, each with at least one part that takes observations.

    Raises:
        UserError: If a part of them has units of its own.
        ValueError: If a network has no such part.
    """
    for network in networks:
        inputs = [part for part in network.modules() if isinstance(part, ObservationInput)]
        if not inputs:
            raise ValueError(f"expected a network that takes observations, got {type(network).__name__}")
        for part in inputs:
            if part.has_units:
                raise UserError("normalised observations have running units: mean and std of the network must be empty")
            part.units = units


def waves(state: Tensor, num_frequencies: int) -> Tensor:
    """Standardised states beside their sines and cosines.

    Args:
        state: Shape (*batch, S).
        num_frequencies: Frequencies F, 1/4, 1/2, 1, 2, ... per standard deviation.

    Returns:
        Shape (*batch, S (1 + 2 F)).
    """
    angles = [0.5 * math.pi * 2.0**octave * state for octave in range(num_frequencies)]
    return torch.cat([state, *(wave(angle) for angle in angles for wave in (torch.sin, torch.cos))], dim=-1)


class _Units(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, observation: Tensor) -> Tensor:
        return (observation - self.mean) / self.std


class _Waves(nn.Module):
    def __init__(self, num_frequencies: int) -> None:
        super().__init__()
        self._number = num_frequencies

    def forward(self, state: Tensor) -> Tensor:
        return waves(state, self._number)
