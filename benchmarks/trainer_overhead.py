"""What Lightning and the callbacks add to an update, by the updates that a step of the trainer holds; one thread.

Whole trainings on cheetah-run with one update per environment step. In turns of 96 updates the trainer makes them, or a
plain loop does, on batches of the same data, with the same loss, clipping, optimizer and target networks. CPU time;
medians over the turns.
"""

import statistics
import tempfile
import time
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, Trainer

from benchmarks.training_speed import COMMON, CONF, METHODS
from flowmatch_rl.cli import FlowMatchCLI
from flowmatch_rl.data import episodes
from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.rounds import UPDATES_PER_ROUND

TASK, COMPARED, UPDATES = "cheetah_run", ("SAC", "lean"), 96


class Turns(Callback):
    """Makes the same updates in a plain loop after each turn of the trainer, and notes the time of both.

    Args:
        per_round: Updates of a step of the trainer.
        turns: Turns of each; the run ends after them.
    """

    def __init__(self, per_round: int, turns: int) -> None:
        self.in_trainer, self.in_loop = list[float](), list[float]()
        self._steps, self._turns, self._began = UPDATES // per_round, turns, 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End a turn of the trainer."""
        if (batch_idx + 1) % self._steps:
            return
        now = time.process_time()
        if self._began:  # the first turn warms up
            self.in_trainer.append((now - self._began) / UPDATES)
            _update(pl_module, trainer)
            self.in_loop.append((time.process_time() - now) / UPDATES)
        trainer.should_stop = len(self.in_loop) == self._turns
        self._began = time.process_time()


def _update(module: ActorCritic, trainer: Any) -> None:
    """The updates of a turn, as one would write them without a trainer."""
    optimizer, data = trainer.optimizers[0], trainer.datamodule
    for _ in range(UPDATES):
        loss = module.loss(data.next_batch())
        optimizer.zero_grad()
        loss.backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        module.after_update()


def run(turns: int = 15) -> dict[str, Any]:
    """Measure; returns one row per method and number of updates."""
    torch.set_num_threads(1)
    rows = [_measured(name, number, turns) for name in COMPARED for number in (1, UPDATES_PER_ROUND)]
    return {"title": "Time of an update in the trainer and in a plain loop", "threads": 1, "rows": rows}


def _measured(name: str, per_round: int, turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, patch.object(episodes, "UPDATES_PER_ROUND", per_round):
        place = [f"--trainer.default_root_dir={folder}", "--trainer.precision=32-true"]
        files = [f"-c={CONF / file}" for file in (f"{TASK}.yaml", METHODS[name])]
        cli = FlowMatchCLI([*files, *COMMON, *place], run=False)
        times = Turns(per_round, turns)
        cli.trainer.callbacks.append(times)  # pyright: ignore[reportAttributeAccessIssue]
        cli.trainer.fit(cli.model, cli.datamodule)
    inside, outside = statistics.median(times.in_trainer), statistics.median(times.in_loop)
    return {
        "method": name,
        "updates_per_step_of_the_trainer": per_round,
        "trainer_ms": 1e3 * inside,
        "loop_ms": 1e3 * outside,
        "overhead": inside / outside - 1.0,
    }
