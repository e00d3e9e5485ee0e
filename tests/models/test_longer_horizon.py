"""Chains of the futures of a short horizon, which are those of a longer one."""

import pytest
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.models import Horizon, Occupancy
from flowmatch_rl.paths import AffinePath
from tests import exact_occupancy as exact
from tests.exact_occupancy import KnownTermination, exact_occupancy, largest_z_score
from tests.oracles import normal, uniform

SIZE, F32 = 8_000, torch.float32
CASES = [(Horizon(0.8), 0.0, True), (Horizon(0.8, 0.5), 0.1, False)]


def errors(model: Occupancy, discount: float, ends: float, endless: bool) -> Tensor:
    """Functions of chained futures minus their exact means, shape (SIZE, 4)."""
    family = model.policy is not None and model.policy.embedding_dim > 0
    start, action = normal(SIZE, 1, seed=1, dtype=F32), 2.0 * uniform(SIZE, 1, seed=2, dtype=F32) - 1.0
    member = 2.0 * uniform(SIZE, int(family), seed=3, dtype=F32) - 1.0
    found = model.sample_beyond(discount, start, action, member, endless, torch.Generator().manual_seed(4))
    x = (found - exact.SCHEMA.shift[0]) / exact.SCHEMA.scale[0]
    network = exact.ExactNetwork(AffinePath(), "velocity", Horizon(discount), ends, family)
    condition = torch.cat([(start - exact.SCHEMA.shift[0]) / exact.SCHEMA.scale[0], action, member], 1)
    logs, means, variances = network.mixture(condition)
    damped = torch.exp(-4.5 * variances) * torch.cos(3.0 * means)
    known = torch.stack([means, means.square() + variances, damped], -1)
    wanted = (logs.exp()[..., None] * known).sum(1)
    difference = torch.cat([x, x.square(), torch.cos(3.0 * x)], 1) - wanted
    return torch.cat([difference, difference[:, :1] * condition[:, -1:]], 1)


@pytest.mark.parametrize(("horizon", "ends", "endless"), CASES, ids=["endless", "terminal states"])
@pytest.mark.parametrize("family", [False, True])
def test_chained_futures_are_those_of_the_longer_horizon(
    horizon: Horizon, ends: float, endless: bool, family: bool
) -> None:
    model = exact_occupancy(horizon=horizon, ends=ends, family=family)
    assert largest_z_score(errors(model, 0.95, ends, endless)) < 4.0


def test_a_chain_that_leaves_terminal_states_is_another_one() -> None:
    model = exact_occupancy(horizon=Horizon(0.8, 0.5), ends=0.1)
    model.termination = KnownTermination(0.0)
    assert largest_z_score(errors(model, 0.95, 0.1, endless=False)) > 6.0


def test_a_future_costs_as_many_as_the_horizons_say(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sample = [], Occupancy.sample

    def counting(self: Occupancy, noise: Tensor, *source: Tensor) -> Tensor:
        rows.append(len(noise))
        return sample(self, noise, *source)

    monkeypatch.setattr(Occupancy, "sample", counting)
    start = torch.zeros(4_000, 1)
    model = exact_occupancy(horizon=Horizon(0.8), num_steps=1)
    found = model.sample_beyond(0.96, start.view(400, 10, 1), start.view(400, 10, 1), endless=True)
    assert found.shape == (400, 10, 1)
    assert sum(rows) / 4_000 == pytest.approx(0.2 / 0.04, rel=0.1)


def test_models_that_cannot_be_chained_are_refused() -> None:
    state = torch.zeros(2, 1)

    def refused(message: str, horizon: Horizon = Horizon(0.8), discount: float = 0.9, endless: bool = True) -> None:
        model = exact_occupancy(horizon=horizon, t_min=0.01)
        with pytest.raises(UserError, match=message):
            model.sample_beyond(discount, state, state, endless=endless)

    refused("does not know which states are terminal: say that there are none", endless=False)
    refused("discount must lie above the model's 0.8 and below 1, got 0.7", discount=0.7)
    refused("discount must lie above the model's 0.8 and below 1, got 1", discount=1.0)
    refused("need first_state 'arrival', got 'current'", Horizon(0.8, first_state="current"))
    model = exact_occupancy(horizon=Horizon(0.8))
    model.policy = None
    with pytest.raises(UserError, match="need a policy that acts in modelled states"):
        model.sample_beyond(0.9, state, state, endless=True)
