"""Policies on cells, deterministic and constant within each cell."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.testbeds import CellProcess, RandomWalkProcess, RingProcess
from flowmatch_rl.types import Policy

CELL_PROCESSES: list[CellProcess] = [
    RingProcess(),
    RingProcess(num_states=5, jitter=0.1, slip=0.0, radius=2.0),
    RandomWalkProcess(),
    RandomWalkProcess(num_states=4, jitter=0.05, slip=0.5, absorbing=False),
]


@dataclass(frozen=True)
class PatternPolicy(Policy):
    """Moves by a fixed pattern over the cells; a member of the family (Z = 1) moves as it is told everywhere."""

    process: CellProcess
    is_family: bool = False

    @property
    def embedding_dim(self) -> int:
        return int(self.is_family)

    def embeddings(self, uniform: Tensor) -> Tensor:
        return 2.0 * uniform - 1.0

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        self.check_embedding(embedding)
        if embedding is not None:
            return embedding
        pattern = observation.new_tensor([1.0, 0.0, 1.0, -1.0, 1.0, 0.0, 1.0, 1.0, -1.0, 1.0, 1.0, 0.5])
        return pattern[self.process.cell(observation)][..., None]


def pairs(process: CellProcess, count: int = 6) -> tuple[Tensor, Tensor]:
    """States that are not terminal and actions of all three moves."""
    cells = (~process.terminal_cells()).nonzero().squeeze(-1)
    cells = cells[torch.arange(count) % len(cells)]
    noise = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    actions = torch.tensor([1.0, -1.0, 0.0, 0.4, -0.4, 0.3], dtype=torch.float64)[torch.arange(count) % 6]
    return process.centres()[cells] + 0.01 * noise, actions[:, None]
