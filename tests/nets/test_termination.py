"""The classifier of terminal states."""

import torch

from flowmatch_rl.nets import TerminationNetwork


def test_states_of_a_terminal_region_are_recognised() -> None:
    torch.manual_seed(0)
    network = TerminationNetwork(2)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        state = 2.0 * torch.randn(256, 2)
        optimizer.zero_grad()
        network.loss(state, (state[:, 0] > 2.0) & (state[:, 1] > 0.0)).mean().backward()
        optimizer.step()
    state = 2.0 * torch.randn(20_000, 2)
    terminal = (state[:, 0] > 2.0) & (state[:, 1] > 0.0)
    with torch.no_grad():
        error = (network.probability(state) - terminal.float()).abs().mean()
    assert float(error) < 0.02 < 0.07 < float(terminal.float().mean())


def test_without_terminations_nothing_is_terminal_and_nothing_is_learned() -> None:
    network = TerminationNetwork(3)
    state = torch.randn(5, 4, 3)
    loss = network.loss(state[:, 0], torch.zeros(5, dtype=torch.bool))
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros(5))
    assert all(not p.grad.any() for p in network.parameters() if p.grad is not None)
    assert torch.equal(network.probability(state), torch.zeros(5, 4))
    network.loss(state[:, 0], torch.ones(5, dtype=torch.bool))
    assert bool((network.probability(state) > 0.0).all())


def test_building_leaves_the_global_noise_alone() -> None:
    before = torch.get_rng_state()
    TerminationNetwork(3)
    assert torch.equal(torch.get_rng_state(), before)
