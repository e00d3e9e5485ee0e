"""What a constant error of every backup adds up to on a chain, by the horizon and the number of steps of a backup.

Twelve cells on a ring, the policy walks around it. A table is replaced by its backup of n steps plus an error until it
no longer changes. The error of values is a constant; that of occupancies puts a fraction of the probability outside the
ring. Both are given in units of the error of one backup, beside what the closed forms 1 / (1 - discount^n) and
1 / (1 - (1 - fraction) discount^n) say.
"""

import math
from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.testbeds import ConstantPolicy, RingProcess, TabularBackup, accumulated_bias, accumulated_strays

DISCOUNTS = (0.8, 0.9, 0.95, 0.99, 0.995)
STEPS = (1, 4, 16, 64)
BIAS, STRAYS = 0.01, 0.001
F64 = torch.float64


def run() -> dict[str, Any]:
    """One row for each quantity and discount."""
    ring = RingProcess(num_states=12, slip=0.1)
    kernel, cells = ring.policy_matrix(ConstantPolicy([1.0])), torch.eye(12, dtype=F64)
    quantities = {
        "error of the value": (cells[:, :1], _value_error),
        "probability outside": (cells, _outside),
        "backups to 1 %": (torch.ones(12, 1, dtype=F64), _backups_needed),
    }
    rows = []
    for name, (features, measure) in quantities.items():
        for discount in DISCOUNTS:
            steps = {n: TabularBackup.of_steps(features, kernel, kernel, discount, n) for n in STEPS}
            found = {n: measure(backup, discount, n) for n, backup in steps.items()}
            off = max(abs(measured / exact - 1.0) for measured, exact in found.values())
            measured = {f"n = {n}": value for n, (value, _) in found.items()}
            horizon = round(1.0 / (1.0 - discount))
            rows.append(
                {"quantity": name, "discount": discount, "horizon": horizon, **measured, "closed_form_off": off}
            )
    return {"title": "Error of a table against the horizon, by steps of a backup", "rows": rows}


def _value_error(backup: TabularBackup, discount: float, num_steps: int) -> tuple[float, float]:
    """Largest error of the value after many backups in units of the bias, and by the closed form."""
    last = backup.repeat(_errors(backup, BIAS, discount, num_steps))[-1]
    error = float((last - backup.fixed_point()).abs().max())
    return error / BIAS, accumulated_bias(1.0, discount, num_steps)


def _outside(backup: TabularBackup, discount: float, num_steps: int) -> tuple[float, float]:
    """Total variation between table and occupancy after many backups in units of the fraction; by the closed form."""
    strayed = TabularBackup((1.0 - discount) * backup.near, backup.far).with_strays(STRAYS)
    last = strayed.repeat(_errors(strayed, 0.0, discount, num_steps))[-1]
    exact = (1.0 - discount) * backup.fixed_point()
    padded = torch.cat([exact, torch.zeros_like(exact[:, :1])], 1)
    distance = float((last - padded).abs().sum(1).max()) / 2.0
    return distance / STRAYS, accumulated_strays(STRAYS, discount, num_steps) / STRAYS


def _backups_needed(backup: TabularBackup, discount: float, num_steps: int) -> tuple[float, float]:
    """Backups until a hundredth of the value of a constant reward is missing, and by the closed form."""
    tables = backup.repeat(_errors(backup, 0.0, discount, num_steps))
    left = (tables - backup.fixed_point()).abs().amax((1, 2))
    needed = int((left <= 0.01 * left[0]).long().argmax())
    return needed, math.ceil(math.log(0.01) / (num_steps * math.log(discount)))


def _errors(backup: TabularBackup, bias: float, discount: float, num_steps: int) -> Tensor:
    """The same error for each of as many backups as let a billionth of the first table through."""
    number = math.ceil(math.log(1e-9) / (num_steps * math.log(discount)))
    return torch.full((number, *backup.near.shape), bias, dtype=F64)
