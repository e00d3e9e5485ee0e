"""The second stage of a rectified flow, trained on the couplings of a trained flow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowmatch_rl.batches import Samples
from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import MissingFileError, UserError, check_range
from flowmatch_rl.models import GenerativeModel
from flowmatch_rl.modules.loading import build_module
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Midpoint, Solver


@dataclass(frozen=True)
class Reflow:
    """Pairs of noise and samples of a trained flow, in place of data.

    Straightens the flow lines, so that a few Euler steps suffice. Costs one integration of the teacher per pair before
    training starts, and training once more; the student can only be as good as the teacher, errors of both add up, and
    it sees ``num_pairs`` points instead of the data.

    Args:
        teacher: Checkpoint of the first stage; the second one starts from its weights and keeps its units.
        num_pairs: Pairs made before training, per process, at least 1.
        solver: Solver of the teacher's flow.

    Raises:
        UserError: If ``num_pairs`` is below 1.

    Reference:
        Liu et al., arXiv:2209.03003.
    """

    teacher: str
    num_pairs: int = 50_000
    solver: Solver = Midpoint(num_steps=25)

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_pairs=self.num_pairs)

    def load(self, kind: Any, student: Any) -> Any:
        """Load the teacher.

        Args:
            kind: Class of both models.
            student: The model to teach.

        Returns:
            The teacher.

        Raises:
            MissingFileError: If there is no such checkpoint.
            UserError: If the file is no such checkpoint, or teacher and student have different networks or columns.
        """
        if not Path(self.teacher).is_file():
            raise MissingFileError(f"no checkpoint of a teacher at {self.teacher}")
        try:
            teacher = build_module(kind, read_checkpoint(self.teacher), self.teacher).eval()
        except UserError as error:
            raise UserError(f"the teacher cannot be loaded: {error}") from error
        for kind_of in ("columns", "condition_columns", "class_columns", "classes"):
            taught, here = getattr(teacher.schema, kind_of), getattr(student.schema, kind_of)
            if taught != here:
                raise UserError(f"the teacher has the {kind_of} {taught}, this table {here}")
        shapes = [{k: tuple(v.shape) for k, v in m.flow.state_dict().items()} for m in (teacher, student)]
        if shapes[0] != shapes[1]:
            raise UserError(f"the network of the teacher {self.teacher} has another shape than this one")
        return teacher

    def pairs(self, teacher: GenerativeModel, samples: Samples) -> Samples:
        """Noise and where the teacher carries it, with conditions drawn from the data.

        Args:
            teacher: The teacher, on the device to compute on.
            samples: The data, standardised.

        Returns:
            ``num_pairs`` samples with their source points, on the device of the data.
        """
        home = samples.sample.device
        noise = teacher.draw_noise(self.num_pairs)
        condition = None
        if samples.condition is not None:
            rows = torch.randint(len(samples.sample), (self.num_pairs,))
            condition = samples.condition[rows].to(teacher.device)
        sample = teacher.sample(noise, condition, sampler=OdeSampler(self.solver))
        source = teacher.flow.source.transform(noise)
        return Samples(sample.to(home), None if condition is None else condition.to(home), source.to(home))
