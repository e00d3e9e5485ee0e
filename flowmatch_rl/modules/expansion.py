"""Segments by expansion of transitions in a one-step model: the settings, and the pool of expanded segments."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from flowmatch_rl.batches import Segment
from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.evaluation import ExpansionSample
from flowmatch_rl.models import DeterministicDynamics, Dynamics, DynamicsSettings, Step
from flowmatch_rl.modules.dynamics import dynamics_loss, load_dynamics
from flowmatch_rl.modules.learning_rate import cosine_decay
from flowmatch_rl.modules.segments import SegmentMaker, Segments, Transitions
from flowmatch_rl.objectives import expand, geometric_lengths
from flowmatch_rl.schema import ActionBounds, TableSchema
from flowmatch_rl.types import Policy

_PARTS = ("observation", "action", "arrivals", "terminated", "length", "embedding")


@dataclass(frozen=True)
class Expansion(Segments):
    """Transitions extended by the modelled policy, in a one-step model that is trained before the occupancy.

    Serves data of any policy. Its price is the model's error over n steps; an expansion ends where the members of the
    model disagree.

    Args:
        length: Steps n of a segment at most, the observed one included, at least 1.
        mean_length: Mean of the geometric distribution that lengths are drawn from, cut off at ``length``; all
            segments have ``length`` if None.
        gate: Most that the members may disagree about a step, in units of the change of one step; at least 0.
        dynamics: The one-step model.
        checkpoint: Checkpoint of a ``DynamicsModule``, whose model is used in place of one that is trained here:
            ``dynamics`` and the three arguments below it are then of no use.
        num_updates: Updates of the model before the occupancy is trained, at least 1.
        batch_size: Transitions of each of these updates.
        learning_rate: Learning rate of the model at the start; it falls to zero by a cosine.
        pool_batches: Batches that are expanded at a time, at least 1.
        reuse: Updates of the occupancy for each batch that is expanded, at least 1.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Feinberg et al., Model-Based Value Expansion, arXiv:1803.00101; Buckman et al., arXiv:1807.01675, for the
        disagreement of an ensemble.
    """

    length: int = 32
    mean_length: float | None = None
    gate: float = 0.5
    dynamics: DynamicsSettings = DeterministicDynamics()
    checkpoint: str | None = None
    num_updates: int = 4_000
    batch_size: int = 256
    learning_rate: float = 1e-2
    pool_batches: int = 64
    reuse: int = 16

    def __post_init__(self) -> None:
        check_range(
            "[1, inf)",
            length=self.length,
            mean_length=self.mean_length,
            num_updates=self.num_updates,
            batch_size=self.batch_size,
            pool_batches=self.pool_batches,
            reuse=self.reuse,
        )
        check_range("[0, inf)", gate=self.gate)
        check_range("(0, inf)", learning_rate=self.learning_rate)

    @property
    def observed_steps(self) -> int:
        """Steps of a segment that are taken from the data."""
        return 1

    @property
    def longest(self) -> int:
        """Steps n of a segment at most."""
        return self.length

    def check(self, policy: Policy | None, bootstraps: bool) -> None:
        """Raise unless a run can expand transitions.

        Args:
            policy: The modelled policy.
            bootstraps: Whether the objective bootstraps.

        Raises:
            UserError: If not.
        """
        if policy is None:
            raise UserError("expansion needs a policy that acts in the states it leads to, got None")
        if not bootstraps:
            raise UserError("expansion needs an objective that bootstraps, got one that learns from trajectories")

    def build_dynamics(self, schema: TableSchema, action_dim: int, saved: DynamicsSettings | None = None) -> Dynamics:
        """The one-step model, untrained; one that came from a checkpoint of its own is as ``saved`` says."""
        settings = self.dynamics if self.checkpoint is None or saved is None else saved
        return settings.build(schema, action_dim).requires_grad_(False)

    def load_dynamics(self, schema: TableSchema, action_dim: int, bounds: ActionBounds | None) -> Dynamics | None:
        """The one-step model of ``checkpoint``."""
        if self.checkpoint is None:
            return None
        return load_dynamics(self.checkpoint, schema, action_dim, bounds).requires_grad_(False)

    def start(
        self, dynamics: Dynamics | None, policy: Policy | None, transitions: Transitions, seed: int
    ) -> "SegmentPool":
        """A pool of expanded segments; the one-step model is trained before, unless it has been.

        Args:
            dynamics: The one-step model.
            policy: The modelled policy.
            transitions: Transitions of the data.
            seed: Seed of all that is drawn.

        Raises:
            ValueError: If there is no model or no policy.
        """
        if dynamics is None or policy is None:
            raise ValueError(f"expected a one-step model and a policy, got {dynamics} and {policy}")
        if not dynamics.trained:
            self.train(dynamics, transitions(self.batch_size))
        return SegmentPool(self, dynamics, policy, seed)

    def train(self, dynamics: Dynamics, batches: Iterator[Segment]) -> None:
        """Train a model on transitions.

        Args:
            dynamics: The model.
            batches: Batches of segments with n = 1, more than ``num_updates``: the first one is held out.

        Raises:
            RunError: If the model diverges.
        """
        dynamics.requires_grad_()
        first = next(batches)
        held_out = first.observation, first.action, first.arrivals[:, 0]
        dynamics.measure(held_out[0], held_out[2])
        optimizer = torch.optim.AdamW(dynamics.parameters(), lr=self.learning_rate, fused=True)
        # Of a fixed seed: all processes train the same model.
        generator = torch.Generator(dynamics.change_scale.device).manual_seed(0)
        for update, batch in zip(range(self.num_updates), batches, strict=False):
            optimizer.param_groups[0]["lr"] = cosine_decay(self.learning_rate, update, self.num_updates)
            loss = dynamics_loss(dynamics, batch, generator).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        dynamics.requires_grad_(False)
        if not all(bool(weight.isfinite().all()) for weight in dynamics.parameters()):
            raise RunError(f"the one-step model has diverged; lower segments.learning_rate from {self.learning_rate}")
        dynamics.trained.fill_(True)
        if misfit := dynamics.misfit(*held_out, generator):
            rank_zero_warn(f"{misfit}; compare with a run without expansion")


class SegmentPool(SegmentMaker):
    """Expanded segments, made for many batches at a time and used several times.

    Args:
        settings: How transitions are expanded.
        dynamics: The one-step model.
        policy: The modelled policy.
        seed: Seed of the lengths, of actions, steps and terminations, and of the draws from the pool.
    """

    def __init__(self, settings: Expansion, dynamics: Dynamics, policy: Policy, seed: int) -> None:
        self._settings, self._dynamics, self._policy = settings, dynamics, policy
        self._generator = torch.Generator().manual_seed(seed)
        # Of another seed: with the same numbers terminations would depend on the noise of the steps.
        self._step_generator = torch.Generator(dynamics.change_scale.device).manual_seed(seed + 1)
        self._waiting: list[Segment] = []
        self._order: list[Tensor] = []
        self._pool: Any = None
        self._lengths = torch.empty(0)
        self.full = torch.zeros(())
        """Fraction of the expansions in the pool that reached the length drawn for them, or a terminal state."""
        self.length = torch.zeros(())
        """Mean length of the expansions in the pool, in steps."""

    def take(self, batch: Segment) -> Segment:
        """A batch of expanded segments in exchange for one of transitions.

        Args:
            batch: Segments with n = 1, and the embeddings of the members to follow.
        """
        self._waiting = [*self._waiting[-(self._settings.pool_batches - 1) or len(self._waiting) :], batch]
        if not self._order:
            self._fill(len(batch.observation))
        return _select(self._pool, self._order.pop(0))

    @property
    def metrics(self) -> Mapping[str, Tensor]:
        """How far expansions get."""
        return {"train/full_expansions": self.full, "train/expansion_length": self.length}

    @property
    def expansions(self) -> ExpansionSample | None:
        """The expansions in the pool."""
        if self._pool is None:
            return None
        start, length, ended = self._pool.arrivals[:, 0], self._pool.length, self._pool.terminated.any(1)
        model = self._dynamics
        shift, scale = (tuple(numbers.tolist()) for numbers in (model.state_shift, model.state_scale))
        schema = TableSchema(model.columns, shift, scale, units=model.units)
        return ExpansionSample(schema, *(part.cpu() for part in (start, length, self._lengths, ended)))

    def state_dict(self) -> dict[str, Any]:
        """The pool, the order in which it is drawn from, the batches that wait, and the generators."""
        return {
            "generators": (self._generator.get_state(), self._step_generator.get_state()),
            "waiting": [_parts_of(segment) for segment in self._waiting],
            "order": list(self._order),
            "pool": None if self._pool is None else _parts_of(self._pool),
            "numbers": (self._lengths, self.full, self.length),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue with the pool of another run."""
        if not state:  # of segments that were not expanded
            return
        for generator, held in zip((self._generator, self._step_generator), state["generators"], strict=True):
            generator.set_state(held.cpu())
        self._waiting = [_segment(parts, device) for parts in state["waiting"]]
        self._order = [rows.to(device) for rows in state["order"]]
        self._pool = None if state["pool"] is None else _segment(state["pool"], device)
        self._lengths, self.full, self.length = (numbers.to(device) for numbers in state["numbers"])

    def _act(self, state: Tensor, embedding: Tensor) -> Tensor:
        return self._policy.act(state, embedding, self._step_generator)

    def _step(self, state: Tensor, action: Tensor) -> Step:
        return self._dynamics.step(state, action, self._step_generator)

    def _fill(self, batch_size: int) -> None:
        """Expand the batches that wait; the first pass over them keeps their order."""
        joined = _join(self._waiting)
        self._waiting = []
        size, most = len(joined.observation), self._settings.length
        uniform = torch.rand(size, most, generator=self._generator).to(joined.observation)
        lengths = torch.full((size,), most)
        if self._settings.mean_length is not None:
            lengths = geometric_lengths(self._settings.mean_length, most, uniform[:, 0])
        self._lengths = lengths = lengths.to(joined.length)
        self._pool = expand(joined, self._act, self._step, lengths, self._settings.gate, uniform[:, 1:])
        ended = self._pool.terminated.any(1)
        self.length = self._pool.length.float().mean()
        self.full = ((self._pool.length == lengths) | ended).float().mean()
        for first in range(self._settings.reuse):
            rows = torch.arange(size) if first == 0 else torch.randperm(size, generator=self._generator)
            self._order += rows.to(joined.length.device).split(batch_size)


def _join(segments: Sequence[Segment]) -> Segment:
    """Segments of several batches as one, without next actions and futures."""
    parts: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in segments]) for name in _PARTS}
    return Segment(**parts, next_action=None, future=None)


def _parts_of(segment: Segment) -> dict[str, Tensor]:
    return {name: getattr(segment, name) for name in _PARTS}


def _segment(parts: dict[str, Tensor], device: torch.device) -> Segment:
    """A segment of parts, without next actions and futures."""
    moved: dict[str, Any] = {name: part.to(device) for name, part in parts.items()}
    return Segment(**moved, next_action=None, future=None)


def _select(segment: Segment, rows: Tensor) -> Segment:
    """Some rows of segments without next actions and futures."""
    parts: dict[str, Any] = {name: getattr(segment, name)[rows] for name in _PARTS}
    return Segment(**parts, next_action=None, future=None)
