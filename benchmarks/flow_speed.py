"""Updates per second of a flow in the plane: the module under its Trainer, a bare loop, TorchCFM and flow_matching.

One network (4 layers of 512), one optimizer and one set of data for all. The packages make x_t and the target; the bare
loop does so in two lines, and is the limit of what a trainer can reach. Needs the extra ``benchmarks``.
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher

from flowmatch_rl.callbacks import Throughput
from flowmatch_rl.couplings import Coupling, ExactCoupling, IndependentCoupling
from flowmatch_rl.data import Dataset, DensityTable, SampleData
from flowmatch_rl.modules import FlowMatchingModel, FlowOptimizer
from flowmatch_rl.nets import VelocityArchitecture

ARCHITECTURE = VelocityArchitecture(
    hidden_dim=512, num_blocks=3, activation="silu", max_frequency=10.0, balanced_inputs=True
)
LEARNING_RATE = 1e-3

Pairs = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Makes t, x_t and the velocity target of a batch of data."""


def bare_pairs(x_1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two lines of PyTorch."""
    x_0, t = torch.randn_like(x_1), torch.rand(len(x_1))
    return t, torch.lerp(x_0, x_1, t[:, None]), x_1 - x_0


def torchcfm_pairs(matcher: ConditionalFlowMatcher) -> Pairs:
    """TorchCFM's."""

    def pairs(x_1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return matcher.sample_location_and_conditional_flow(torch.randn_like(x_1), x_1)

    return pairs


def flow_matching_pairs(x_1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the package flow_matching."""
    sample = _PATH.sample(t=torch.rand(len(x_1)), x_0=torch.randn_like(x_1), x_1=x_1)
    return sample.t, sample.x_t, sample.dx_t


_PATH = AffineProbPath(scheduler=CondOTScheduler())

PACKAGES: dict[str, Pairs] = {
    "bare loop": bare_pairs,
    "TorchCFM": torchcfm_pairs(ConditionalFlowMatcher(sigma=0.0)),
    "flow_matching": flow_matching_pairs,
}


def batches(table: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Random batches of a table, forever."""
    while True:
        for rows in torch.randperm(len(table)).split(batch_size):
            if len(rows) == batch_size:
                yield table[rows]


class Loop:
    """A training loop without a trainer.

    Args:
        pairs: Makes t, x_t and target.
        table: Data, shape (N, D).
        batch_size: Rows per batch.
        seed: Seed of the weights.
    """

    def __init__(self, pairs: Pairs, table: Tensor, batch_size: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.network: nn.Module = ARCHITECTURE.build(table.shape[1], 0)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.pairs = pairs
        self.batches = batches(table, batch_size)

    def run(self, updates: int) -> None:
        """Train."""
        for _ in range(updates):
            t, x_t, target = self.pairs(next(self.batches))
            loss = (self.network(x_t, t) - target).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


class Clock(Callback):
    """Times the updates of a Trainer after the first ones."""

    def __init__(self, skip: int = 10) -> None:
        self.skip = skip
        self.begin = self.end = 0.0
        self.updates = 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.end = time.perf_counter()
        self.updates = trainer.global_step - self.skip
        if trainer.global_step == self.skip:
            self.begin = self.end


def quiet_trainer(updates: int, precision: Any = "32-true", *callbacks: Callback) -> Trainer:
    """A Trainer on the CPU that neither logs nor evaluates nor keeps checkpoints."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return Trainer(
        max_steps=updates,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=100,
        callbacks=[Throughput(), *callbacks],
    )


def trained(
    dataset: Dataset,
    batch_size: int,
    updates: int,
    precision: Any = "32-true",
    coupling: Coupling = IndependentCoupling(),
    seed: int = 0,
    **options: Any,
) -> tuple[FlowMatchingModel, SampleData, float]:
    """Train the module under a Trainer; returns model, data and updates per second."""
    torch.manual_seed(seed)
    data = SampleData(dataset, batch_size=batch_size, num_updates=updates, epoch_updates=updates)
    model = FlowMatchingModel(
        data.schema, network=ARCHITECTURE, coupling=coupling, optimizer=FlowOptimizer(LEARNING_RATE), **options
    )
    clock = Clock()
    trainer = quiet_trainer(updates, precision, clock)
    trainer.fit(model, datamodule=data)
    return model, data, clock.updates / (clock.end - clock.begin)


def run(rounds: int = 5) -> dict[str, Any]:
    """Alternate rounds of every contestant, at two batch sizes; each keeps its best round."""
    dataset = DensityTable()
    data = SampleData(dataset)
    table = data.schema.standardise(torch.tensor(dataset.load()[["x", "y"]].to_numpy())).float()
    rows = []
    for batch_size, updates in ((256, 200), (4096, 25)):
        contestants: dict[str, Callable[[], float]] = {}
        loops = {name: Loop(pairs, table, batch_size) for name, pairs in PACKAGES.items()}
        if batch_size == 256:
            exact = torchcfm_pairs(ExactOptimalTransportConditionalFlowMatcher(sigma=0.0))
            loops["TorchCFM, optimal transport"] = Loop(exact, table, batch_size)
        for name, loop in loops.items():
            contestants[name] = _timed(loop, updates)
        for name, options in _module_variants(batch_size).items():
            contestants[name] = _trainer(dataset, batch_size, updates, options)
        best = dict.fromkeys(contestants, 0.0)
        for _ in range(rounds):
            for name, rate in contestants.items():
                best[name] = max(best[name], rate())
        rows += [
            {"batch": batch_size, "loop": name, "updates_per_s": rate, "of_the_bare_loop": rate / best["bare loop"]}
            for name, rate in best.items()
        ]
    return {"title": "A flow in the plane: updates per second, network 4x512", "rows": rows}


def _timed(loop: Loop, updates: int) -> Callable[[], float]:
    def rate() -> float:
        loop.run(10)
        start = time.perf_counter()
        loop.run(updates)
        return updates / (time.perf_counter() - start)

    return rate


def _trainer(dataset: Dataset, batch_size: int, updates: int, options: dict[str, Any]) -> Callable[[], float]:
    return lambda: trained(dataset, batch_size, updates + 10, **options)[2]


def _module_variants(batch_size: int) -> dict[str, dict[str, Any]]:
    variants: dict[str, dict[str, Any]] = {"module": {}, "module, bfloat16": {"precision": "bf16-mixed"}}
    if batch_size == 256:
        variants["module, optimal transport"] = {"coupling": ExactCoupling()}
    return variants
