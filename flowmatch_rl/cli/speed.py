"""How fast this process updates a policy, beside what its own matrix products and operators allow."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from flowmatch_rl.estimators import PosteriorMeanEstimator
from flowmatch_rl.models import Acting, FlowPolicyArchitecture
from flowmatch_rl.modules import ReverseFlowActorCritic, TrainingPoints
from flowmatch_rl.modules.trial_update import trial_update
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Euler

_BATCH, _TINY_BATCH, _ROWS, _WIDTH = 128, 2, 8192, 256
_LEAST_ROUNDS = 5

_ALLOWED = 2.0
"""What an update may take, in times of its products and operators alone; elementwise functions are the difference."""


@dataclass(frozen=True)
class Speed:
    """Seconds of an update, measured in turns with what it is made of.

    Attributes:
        update_s: Median of a whole update.
        products_s: Time of the matrix products in it, at the best rate of a large product.
        operators_s: Time of the same update on two transitions: the cost of its operators, whatever their size.
        product_rate: Floating-point operations per second of a large matrix product.
        core_fraction: Fraction of the time in which the process had its core; None on a GPU.
    """

    update_s: float
    products_s: float
    operators_s: float
    product_rate: float
    core_fraction: float | None

    @property
    def allowed_s(self) -> float:
        """Seconds that an update may take on this device when nothing slows it down."""
        return _ALLOWED * (self.products_s + self.operators_s)

    @property
    def is_slow(self) -> bool:
        """Whether it takes longer."""
        return self.update_s > self.allowed_s


def measure_speed(seconds: float, device: str) -> Speed:
    """Measure updates of reverse flow matching at the sizes of HalfCheetah, by an inexpensive recipe.

    Args:
        seconds: How long to measure, after a second or two to begin; at least five rounds are made.
        device: Device, ``cpu`` or ``cuda``.
    """
    update, tiny = _update(_BATCH, device), _update(_TINY_BATCH, device)
    operations = _operations(update)
    left, right = torch.randn(_ROWS, _WIDTH, device=device), torch.randn(_WIDTH, _WIDTH, device=device)

    def products() -> None:
        torch.mm(left, right)

    calls = (update, tiny, products)
    for call in calls:
        call()
    taken, fraction = _rounds(calls, seconds, device)
    rate = 2.0 * _ROWS * _WIDTH * _WIDTH / min(taken[2])
    return Speed(
        update_s=statistics.median(taken[0]),
        products_s=operations / rate,
        operators_s=min(taken[1]),
        product_rate=rate,
        core_fraction=fraction if device == "cpu" else None,
    )


def _update(batch_size: int, device: str) -> Callable[[], None]:
    module = ReverseFlowActorCritic(
        observation_dim=17,
        action_dim=6,
        policy=FlowPolicyArchitecture(sampler=OdeSampler(Euler(num_steps=5))),
        estimator=PosteriorMeanEstimator(num_samples=16),
        acting=Acting(train_particles=2),
        points=TrainingPoints(share_samples=True),
    )
    return trial_update(module, batch_size, device)


def _operations(update: Callable[[], None]) -> int:
    """Floating-point operations in the matrix products of an update; they are counted in one thread only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with FlopCounterMode(display=False) as counter:
            update()
    finally:
        torch.set_num_threads(threads)
    return counter.get_total_flops()


def _rounds(calls: Sequence[Callable[[], None]], seconds: float, device: str) -> tuple[list[list[float]], float]:
    """Seconds of each call, in turns, and the fraction of the time in which this thread had a core."""
    taken: list[list[float]] = [[] for _ in calls]
    begun, begun_on_core = time.perf_counter(), time.thread_time()
    while time.perf_counter() - begun < seconds or len(taken[0]) < _LEAST_ROUNDS:
        for times, call in zip(taken, calls, strict=True):
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return taken, (time.thread_time() - begun_on_core) / (time.perf_counter() - begun)
