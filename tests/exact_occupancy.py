"""A process in one dimension whose occupancies, flows and bootstrapped samples are known without training.

The state moves by ``s' = .9 s + .5 a + .4 xi`` and policies act by ``a = -.3 s + 1.2 + z`` with a nudge z that makes a
family. An arrival is terminal with a probability that is the same everywhere: since a terminal state keeps all the
weight that is left, the occupancy is that of the endless process at the discount times the probability of going on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowmatch_rl.batches import Segment
from flowmatch_rl.models import Flow, Horizon, Occupancy, OccupancyInputs
from flowmatch_rl.nets import FlowNetwork, TerminationNetwork
from flowmatch_rl.objectives import Backup, BackupNoise, OccupancyObjective, expand
from flowmatch_rl.paths import AffinePath, Field
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.shapes import append_dims
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.types import Policy, Prediction
from tests.oracles import normal, uniform

KEPT, PUSH, GAIN, BIAS, NOISE = 0.9, 0.5, -0.3, 1.2, 0.4
CLOSED = KEPT + PUSH * GAIN
SCHEMA = TableSchema(("x",), (1.2,), (1.1,))
NUM_TERMS = 30
"""Steps after which only 1e-5 of the discounted future still depends on the start, at a discount of .9."""

F32 = torch.float32


@dataclass(frozen=True)
class Nudged(Policy):
    """The policies of the process.

    Args:
        family: Whether the nudge is an embedding; otherwise it is zero.
    """

    family: bool = False

    @property
    def embedding_dim(self) -> int:
        return int(self.family)

    def embeddings(self, uniform: Tensor) -> Tensor:
        return 2.0 * uniform - 1.0

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        self.check_embedding(embedding)
        action = GAIN * observation + BIAS
        return action if embedding is None or not self.family else action + embedding


def moved(state: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """States after a step."""
    return KEPT * state + PUSH * action + NOISE * noise


class ExactNetwork(FlowNetwork):
    """The exact prediction at every point, flow time and condition, by the posterior of a mixture of normals.

    Args:
        path: Path.
        prediction: What is predicted.
        horizon: Discounts and index convention.
        ends: Probability that an arrival is terminal.
        family: Whether conditions hold an embedding.
    """

    def __init__(
        self, path: AffinePath, prediction: Prediction, horizon: Horizon, ends: float = 0.0, family: bool = False
    ) -> None:
        super().__init__()
        self.path, self.horizon, self.ends, self.family = path, horizon, ends, family
        self.prediction: Prediction = prediction

    def mixture(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of the weights, means and variances of the standardised states, each of shape (*batch, J)."""
        state = condition[..., :1] * SCHEMA.scale[0] + SCHEMA.shift[0]
        nudge = condition[..., 2:3] if self.family else torch.zeros_like(state)
        many = self.horizon.min_discount is not None
        discount = condition[..., -3:-2] if many else torch.full_like(state, self.horizon.discount)
        steps = torch.arange(NUM_TERMS, dtype=condition.dtype)
        going = CLOSED**steps
        means = going * moved(state, condition[..., 1:2], 0.0 * state)
        means = means + PUSH * (BIAS + nudge) * (1.0 - going) / (1.0 - CLOSED)
        variances = NOISE**2 * (1.0 - CLOSED ** (2.0 * steps + 2.0)) / (1.0 - CLOSED**2)
        lasting = discount * (1.0 - self.ends)
        last = steps == NUM_TERMS - 1
        logs = steps * lasting.log() + torch.where(last, 0.0, (1.0 - lasting).log())
        if self.horizon.first_state == "current":
            logs = torch.cat([(1.0 - discount).log(), logs + discount.log()], -1)
            means = torch.cat([state, means], -1)
            variances = torch.cat([torch.zeros(1), variances])
        return logs, (means - SCHEMA.shift[0]) / SCHEMA.scale[0], variances / SCHEMA.scale[0] ** 2

    def bind(self, condition: Tensor | None) -> Callable[..., Tensor]:
        assert condition is not None
        logs, means, variances = self.mixture(condition)

        def predict(x: Tensor, t: Tensor, _: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
            time = append_dims(t, like=x)
            alpha, sigma = self.path.schedule.alpha(time), self.path.schedule.sigma(time)
            variance = alpha.square() * variances + sigma.square()
            offset = x - alpha * means
            shares = torch.softmax(logs - 0.5 * (offset.square() / variance + variance.log()), -1)
            x_0 = (shares * sigma * offset / variance).sum(-1, keepdim=True)
            x_1 = (shares * (means + alpha * variances * offset / variance)).sum(-1, keepdim=True)
            return self.path.target(self.prediction, x_0, x_1, time.expand_as(x)[..., 0])

        return predict


class KnownTermination(TerminationNetwork):
    """Every arrival is terminal with the same known probability."""

    def __init__(self, probability: float) -> None:
        super().__init__(1)
        self.known = probability

    def probability(self, state: Tensor) -> Tensor:
        return torch.full_like(state[..., 0], self.known)


def exact_occupancy(
    path: AffinePath = AffinePath(),
    prediction: Prediction = "velocity",
    horizon: Horizon = Horizon(0.9),
    ends: float = 0.0,
    family: bool = False,
    t_min: float = 0.0,
    num_steps: int = 16,
) -> Occupancy:
    """The occupancy of the policies as a model that needs no training."""
    network = ExactNetwork(path, prediction, horizon, ends, family)
    inputs = OccupancyInputs(SCHEMA, 1, int(family), horizon)
    flow = Flow(network, path, prediction=prediction, t_min=t_min)
    model = Occupancy(flow, inputs, OdeSampler(Midpoint(num_steps)), policy=Nudged(family))
    if model.termination is not None:
        model.termination = KnownTermination(ends)
    return model


def segments(size: int, seed: int, num_steps: int = 1, ends: float = 0.0, family: bool = False) -> Segment:
    """Segments of random lengths whose first action is random and whose others are the policy's.

    What lies beyond the length or a terminal state is far away.
    """
    policy, draws = Nudged(family), normal(num_steps + 1, size, 1, seed=seed, dtype=F32)
    embedding = policy.embeddings(uniform(size, policy.embedding_dim, seed=seed + 1, dtype=F32))
    state = first = draws[0]
    action = 2.0 * uniform(size, 1, seed=seed + 2, dtype=F32) - 1.0
    arrivals, chosen = [], action
    for noise in draws[1:]:
        state = moved(state, chosen, noise)
        arrivals.append(state)
        chosen = policy.act(state, embedding)
    terminated = uniform(size, num_steps, seed=seed + 3) < ends
    length = 1 + (uniform(size, seed=seed + 4) * num_steps).long()
    beyond = torch.arange(num_steps) >= length[:, None]
    beyond |= (terminated.cumsum(1) - terminated.long()) > 0
    states = torch.where(beyond[..., None], 9.0, torch.stack(arrivals, 1))
    return Segment(first, action, states, terminated, length, None, embedding, None)


def with_futures(segment: Segment, discount: Tensor, ends: float, seed: int) -> Segment:
    """Segments that hold a state of the occupancy of arrival states, from a simulation of ``3 NUM_TERMS`` steps."""
    policy, size = Nudged(segment.embedding.shape[1] > 0), len(discount)
    at = 1.0 + (torch.log1p(-uniform(size, seed=seed)) / discount.double().log()).floor()
    stops = uniform(3 * NUM_TERMS, size, seed=seed + 1) < ends
    going, state, action = torch.ones(size, dtype=torch.bool), segment.observation, segment.action
    noise = normal(3 * NUM_TERMS, size, 1, seed=seed + 2, dtype=F32)
    for time in range(3 * NUM_TERMS):
        state = torch.where((going & (time < at))[:, None], moved(state, action, noise[time]), state)
        going = going & ~stops[time]
        action = policy.act(state, segment.embedding)
    return replace(segment, future=state)


def expansions(
    segment: Segment, num_steps: int, ends: float, seed: int, spread: Callable[..., Tensor], noise: float = 1.0
) -> Segment:
    """Transitions expanded in the process itself to random lengths, as far as the gate at .5 is open.

    Args:
        segment: Transitions.
        num_steps: Most steps.
        ends: Probability that an arrival is terminal.
        seed: Seed.
        spread: How unsure a step is, given states, actions, arrivals and uniform noise, all of shape (B, ...).
        noise: Factor of the noise of the model's steps.
    """
    policy, generator = Nudged(segment.embedding.shape[1] > 0), torch.Generator().manual_seed(seed)

    def step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        arrival = moved(state, action, noise * torch.randn(state.shape, generator=generator))
        unsure = spread(state, action, arrival, torch.rand(len(state), generator=generator))
        return arrival, unsure, torch.full((len(state),), ends)

    size = len(segment.length)
    lengths = 1 + (uniform(size, seed=seed + 1) * num_steps).long()
    return expand(segment, policy.act, step, lengths, 0.5, uniform(size, num_steps - 1, seed=seed + 2, dtype=F32))


def noise_of(size: int, seed: int, interval: tuple[float, float] = (0.0, 1.0)) -> BackupNoise:
    """Noise of an update, its flow times uniform in the interval."""
    first, last = interval
    times = first + (last - first) * uniform(2, size, seed=seed + 1, dtype=F32)
    direct, start, fresh = normal(3, size, 1, seed=seed, dtype=F32)
    return BackupNoise(direct, start, fresh, times[0], times[1], uniform(size, seed=seed + 2, dtype=F32))


def features(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """Test functions of points (..., 1), flow times (...) and conditions (..., C), shape (..., 8)."""
    at, given = x[..., 0], condition.expand(*x.shape[:-1], -1)
    parts = [torch.ones_like(t), at, (at - 1.0).square(), t * at, torch.sin(3.0 * at)]
    return torch.stack([*parts, given[..., 0], given[..., -1], at * given[..., -1]], -1)


def gradients(
    objective: OccupancyObjective,
    field: Field,
    backup: Backup,
    noise: BackupNoise,
    interval: tuple[float, float] = (0.0, 1.0),
    at_zero: bool = False,
) -> Tensor:
    """Gradients of the loss per sample, shape (B, 8), in the directions of the test functions.

    Args:
        objective: Objective.
        field: The exact field, which is also bootstrapped from.
        backup: Backups.
        noise: Their noise.
        interval: Flow times of sampling.
        at_zero: Whether the network predicts zero, and not what is exact.
    """
    weights = torch.zeros(len(backup.state), 8, requires_grad=True)

    def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        with torch.no_grad():
            base = torch.zeros_like(x) if at_zero else field.predict(x, t, condition)
        return base + (features(x, t, condition) * weights[:, None]).sum(-1, keepdim=True)

    learner = Field(field.path, predict, field.prediction)
    direct, bootstrap = objective.loss(learner, field, backup, noise, interval)
    (gradient,) = torch.autograd.grad((direct + bootstrap).sum(), weights)
    return gradient


def largest_z_score(values: Tensor) -> float:
    """Largest mean of the columns of values (B, J), in units of its standard error."""
    values = values.double()
    return float((values.mean(0) / (values.std(0) / len(values) ** 0.5)).abs().max())
