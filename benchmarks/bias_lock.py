"""Values on a combination lock of 64 states from random actions, by the number of steps of a backup.

The value of the right actions is learned from 50,000 transitions with random actions in random states: by backups of n
steps of the data, and by backups of n steps in a one-step model, the counted transitions. Errors are root mean squares
over the states, of values between 0.48 and 1; with noise, each backup has a normal error of standard deviation 0.02 of
its own in every state, as of a regression, and the mean square is over 50 repetitions, too. Backups are counted until
the table is within 0.01 of where it ends.
"""

from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.testbeds import CombinationLock, TabularBackup, counted_kernel

LOCK, DISCOUNT = CombinationLock(length=64, slip=0.005), 0.99
TRANSITIONS, NOISE, REPETITIONS, BACKUPS = 50_000, 0.02, 50, 400
STEPS = (1, 4, 16, 64)


def run() -> dict[str, Any]:
    """One row for each number of steps."""
    generator = torch.Generator().manual_seed(0)
    right, random = counted(generator)
    exact = TabularBackup.of_steps(LOCK.opened(), LOCK.kernel(1.0), LOCK.kernel(1.0), DISCOUNT).fixed_point()
    noise = NOISE * torch.randn(BACKUPS, REPETITIONS, LOCK.num_states, 1, generator=generator, dtype=torch.float64)
    noise[..., -1, :] = 0.0  # of the open lock, which has no value to fit
    rows = []
    for n in STEPS:
        row: dict[str, Any] = {"n": n}
        for name, rest in (("data", random), ("model", right)):
            backup = TabularBackup.of_steps(LOCK.opened(), right, rest, DISCOUNT, n)
            row |= {
                f"{name}_backups": _backups_needed(backup),
                f"{name}_error": _error(backup.fixed_point(), exact),
                f"{name}_error_with_noise": _error(backup.repeat(noise)[-1], exact),
            }
        rows.append(row)
    return {"title": "Values on a combination lock of 64 states from random actions", "noise": NOISE, "rows": rows}


def counted(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Counted transition probabilities under the right actions, and under those of the data."""
    state = torch.randint(LOCK.length, (TRANSITIONS,), generator=generator)
    uniform = torch.rand(2, TRANSITIONS, generator=generator)
    is_right = uniform[0] < 0.5
    arrival = LOCK.step(state, is_right, uniform[1])
    right = counted_kernel(state[is_right], arrival[is_right], LOCK.num_states)
    return right, counted_kernel(state, arrival, LOCK.num_states)


def _error(table: Tensor, exact: Tensor) -> float:
    return float((table - exact)[..., :-1, :].square().mean().sqrt())


def _backups_needed(backup: TabularBackup) -> int:
    tables = backup.repeat(torch.zeros(BACKUPS, LOCK.num_states, 1, dtype=torch.float64))
    return int(((tables - backup.fixed_point()).abs().amax((1, 2)) <= 0.01).long().argmax())
