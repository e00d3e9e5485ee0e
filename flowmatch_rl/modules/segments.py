"""How transitions become segments, whose states are counted before an occupancy is bootstrapped from."""

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from flowmatch_rl.batches import Segment
from flowmatch_rl.checks import check_range
from flowmatch_rl.evaluation import ExpansionSample
from flowmatch_rl.models import Dynamics, DynamicsSettings
from flowmatch_rl.schema import ActionBounds, TableSchema
from flowmatch_rl.types import Policy

Transitions: TypeAlias = Callable[[int], Iterator[Segment]]
"""Batches without end of as many transitions as stated."""


class SegmentMaker(abc.ABC):
    """Makes the segments that a run learns from."""

    @abc.abstractmethod
    def take(self, batch: Segment) -> Segment:
        """Segments to learn from, in exchange for those of the data.

        Args:
            batch: Segments of the data, and the embeddings of the members to follow.
        """

    @property
    @abc.abstractmethod
    def metrics(self) -> Mapping[str, Tensor]:
        """What a run logs of them, by name."""

    @property
    @abc.abstractmethod
    def expansions(self) -> ExpansionSample | None:
        """The last transitions that were expanded; None if none were."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a resumed run continues with."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a state, on the device of the segments that will follow."""


class AsObserved(SegmentMaker):
    """Leaves the segments of the data as they are."""

    def take(self, batch: Segment) -> Segment:
        """The same segments."""
        return batch

    @property
    def metrics(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}

    @property
    def expansions(self) -> ExpansionSample | None:
        """None."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Nothing."""


class Segments(abc.ABC):
    """How transitions become segments of n steps of the modelled policy.

    The error of one backup is multiplied by ``1 / (1 - discount^n)``.
    """

    @property
    @abc.abstractmethod
    def observed_steps(self) -> int:
        """Steps of a segment that are taken from the data."""

    @property
    @abc.abstractmethod
    def longest(self) -> int:
        """Steps n of a segment at most."""

    @abc.abstractmethod
    def check(self, policy: Policy | None, bootstraps: bool) -> None:
        """Raise unless a run can have such segments.

        Args:
            policy: The modelled policy; None for the one that made the data.
            bootstraps: Whether the objective bootstraps.

        Raises:
            UserError: If not.
        """

    @abc.abstractmethod
    def build_dynamics(
        self, schema: TableSchema, action_dim: int, saved: DynamicsSettings | None = None
    ) -> Dynamics | None:
        """The one-step model that segments are made in, untrained; None if they need none.

        Args:
            schema: Names and units of the state's entries.
            action_dim: Dimension A of the action.
            saved: Configuration of the model in a checkpoint of the run, whose weights follow.
        """

    @abc.abstractmethod
    def load_dynamics(self, schema: TableSchema, action_dim: int, bounds: ActionBounds | None) -> Dynamics | None:
        """The one-step model of a checkpoint of its own; None if it is trained by the run, or there is none.

        Args:
            schema: Names and units of the state's entries.
            action_dim: Dimension A of the action.
            bounds: Bounds of the action in the environment's unit.

        Raises:
            MissingFileError: If there is no such checkpoint.
            UserError: If it is of another kind, or of other states or actions.
        """

    @abc.abstractmethod
    def start(
        self, dynamics: Dynamics | None, policy: Policy | None, transitions: Transitions, seed: int
    ) -> SegmentMaker:
        """What makes the segments of a run; a one-step model is trained before, unless it has been.

        Args:
            dynamics: The one-step model.
            policy: The modelled policy.
            transitions: Transitions of the data.
            seed: Seed of all that is drawn.
        """


@dataclass(frozen=True)
class ObservedSteps(Segments):
    """Segments of the data as they are.

    Args:
        num_steps: Steps n, at least 1; more than 1 needs data of the modelled policy itself, which name the member of
            a family that acted.

    Raises:
        UserError: If the number is too small.
    """

    num_steps: int = 1

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_steps=self.num_steps)

    @property
    def observed_steps(self) -> int:
        """Steps of a segment that are taken from the data."""
        return self.num_steps

    @property
    def longest(self) -> int:
        """Steps n of a segment at most."""
        return self.num_steps

    def check(self, policy: Policy | None, bootstraps: bool) -> None:
        """Any run can have them; the data says later whether it holds them."""

    def build_dynamics(
        self, schema: TableSchema, action_dim: int, saved: DynamicsSettings | None = None
    ) -> Dynamics | None:
        """No model."""
        return None

    def load_dynamics(self, schema: TableSchema, action_dim: int, bounds: ActionBounds | None) -> Dynamics | None:
        """No model."""
        return None

    def start(
        self, dynamics: Dynamics | None, policy: Policy | None, transitions: Transitions, seed: int
    ) -> SegmentMaker:
        """Leaves the segments as they are."""
        return AsObserved()
